"""User-defined functions, given as ``module:function``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from distkg.data.errors import StoreError


@lru_cache(maxsize=8)
def load_function(name: str) -> Callable[..., Any]:
    """Import the function named ``module:function``.

    Raises:
        StoreError: no such module or function; the message names it.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise StoreError(f"{name!r} is not the name of a function: write module:function, such as my_images:tokens_of")
    try:
        attribute = getattr(import_module(module_name), function_name, None)
    except Exception as error:  # user code may raise anything
        raise StoreError(f"module {module_name!r} cannot be imported: {_short_message(error)}") from error
    if not callable(attribute):
        raise StoreError(f"module {module_name!r} has no function {function_name!r}")
    function: Callable[..., Any] = attribute
    return function


def _short_message(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@dataclass(frozen=True)
class ImageTokenizer:
    """Image tokenizer that calls a user function: path of an image → sequence of token ids.

    The function runs in every process that tokenises. It should load its model at the first call and keep it, for
    instance with ``functools.cache``.

    Attributes:
        function: ``module:function``.
        vocabulary: number of tokens; ids are below.
    """

    function: str
    vocabulary: int

    def __call__(self, paths: Sequence[str]) -> list[list[int]]:
        """Tokenise images.

        Raises:
            StoreError: no such function, or it fails or returns no list of token ids for an image (named).
        """
        tokens_of = load_function(self.function)
        return [self._checked(path, self._tokens(tokens_of, path)) for path in paths]

    def _tokens(self, tokens_of: Callable[[str], Any], path: str) -> np.ndarray:
        try:
            return np.asarray(tokens_of(path))
        except Exception as error:  # user code and damaged images may raise anything
            raise StoreError(f"{self.function} fails on {path}: {_short_message(error)}") from error

    def _checked(self, path: str, tokens: np.ndarray) -> list[int]:
        if tokens.size and (tokens.ndim != 1 or tokens.dtype.kind not in "iu"):
            raise StoreError(f"{self.function} must return a list of token ids; for {path} it gave {str(tokens)[:80]}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            wrong = tokens.max() if tokens.min() >= 0 else tokens.min()
            raise StoreError(
                f"{self.function} gives token {wrong} for {path}; the codebook has 0 to {self.vocabulary - 1}"
            )
        token_ids: list[int] = tokens.tolist()
        return token_ids
