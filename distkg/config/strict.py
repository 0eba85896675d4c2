"""Base class of every section of a configuration and of the options of every registered class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from distkg.config.errors import ConfigError
from distkg.documents import DocumentError, parse_yaml


class StrictModel(BaseModel):
    """Base class of sections and options, which refuses unknown keys, NaN, infinity, booleans for numbers, numbers for
    booleans, and integers of more than 64 bits."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_kinds(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_leaf_types(cls.model_fields[str(info.field_name)].annotation))
        if any(issubclass(kind, BaseModel) for kind in kinds):
            return value  # the nested model validates its own fields
        numeric = bool(kinds & {int, float})
        for leaf in _leaves(value):
            if isinstance(leaf, bool) and numeric and bool not in kinds:
                raise PydanticCustomError("bool_for_number", "Input should be a number, not true or false")
            if isinstance(leaf, int | float) and not isinstance(leaf, bool) and bool in kinds and not numeric:
                raise PydanticCustomError("number_for_bool", "Input should be true or false, not a number")
            if isinstance(leaf, int) and not -LARGEST <= leaf <= LARGEST:
                raise PydanticCustomError("number_too_large", "Input should fit into 64 bits")
        return value


LARGEST = 2**63 - 1
"""Largest integer of a setting: NumPy, torch and Arrow hold 64 bits."""


def _leaf_types(annotation: Any) -> Iterator[type]:
    """Yield the types of the values in a field, its lists and its mappings."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) or origin in (list, tuple):
        for each in arguments:
            yield from _leaf_types(each)
    elif origin is dict:
        yield from _leaf_types(arguments[1])
    elif isinstance(annotation, type) and annotation is not NoneType:
        yield annotation


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    else:
        yield value


AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def parse_options(model: type[AnyOptions], given: Mapping[str, Any], key: str, owner: str) -> AnyOptions:
    """Validate the options of a registered class, such as a scorer.

    Raises:
        ConfigError: an option is wrong; the message names its key, below ``key``, and the options of ``owner``.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        # A misspelt key is reported before the missing key that it causes.
        problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        location = [str(part) for part in problem["loc"]]
        known = ", ".join(model.model_fields) or "none"
        hint = did_you_mean(location[-1], model.model_fields) if problem["type"] == "extra_forbidden" else ""
        place = ".".join([key, *location])
        raise ConfigError(f"{place}: {problem['msg']}. Options of {owner}: {known}{hint}") from None


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Parse a mapping written as YAML in one line, such as ``{hops: 3}``.

    Raises:
        ConfigError: the text is not a mapping; the message names its origin ``where``.
    """
    try:
        tree = parse_yaml(text, where)
    except DocumentError as error:
        raise ConfigError(f"{error}. Write it as '{{key: value}}'") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{where}: {text!r} is not a mapping; write it as '{{key: value}}'")
    return tree or {}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the end of a message that suggests the closest known name; empty if none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""
