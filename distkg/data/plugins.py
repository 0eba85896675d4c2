"""Functions of the user's own, named ``module:function``."""

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
    """The function that ``module:function`` names.

    Raises:
        StoreError: no such module or function; says which.
    """
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise StoreError(f"{name!r} names no function: module:function is expected, such as my_images:tokens_of")
    try:
        found = getattr(import_module(module_name), function_name, None)
    except Exception as error:  # the module is the user's, and may raise anything
        raise StoreError(f"module {module_name!r} cannot be imported: {_in_short(error)}") from error
    if not callable(found):
        raise StoreError(f"module {module_name!r} has no function {function_name!r}")
    function: Callable[..., Any] = found
    return function


def _in_short(error: Exception) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@dataclass(frozen=True)
class ImageTokenizer:
    """Paths of images → their tokens, by a function of the user's: one path to a sequence of token ids.

    The function is called in every process that tokenises, so a model that it needs should be loaded at the first call
    and kept, by ``functools.cache`` for instance.

    Attributes:
        function: ``module:function``.
        vocabulary: tokens are below this.
    """

    function: str
    vocabulary: int

    def __call__(self, paths: Sequence[str]) -> list[list[int]]:
        """
        Raises:
            StoreError: there is no such function, or what it gives for an image (named) is no list of tokens.
        """
        tokens_of = load_function(self.function)
        return [self._checked(path, self._tokens(tokens_of, path)) for path in paths]

    def _tokens(self, tokens_of: Callable[[str], Any], path: str) -> np.ndarray:
        try:
            return np.asarray(tokens_of(path))
        except Exception as error:  # the function is the user's, and images are damaged in any way
            raise StoreError(f"{self.function} fails on {path}: {_in_short(error)}") from error

    def _checked(self, path: str, tokens: np.ndarray) -> list[int]:
        if tokens.size and (tokens.ndim != 1 or tokens.dtype.kind not in "iu"):
            raise StoreError(f"{self.function} gives no sequence of token ids for {path}: {str(tokens)[:80]}")
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < self.vocabulary:
            wrong = tokens.max() if tokens.min() >= 0 else tokens.min()
            raise StoreError(
                f"{self.function} gives token {wrong} for {path}; the codebook has 0 to {self.vocabulary - 1}"
            )
        listed: list[int] = tokens.tolist()
        return listed
