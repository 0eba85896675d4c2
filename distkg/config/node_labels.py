"""Selectors of Ray nodes by their labels, as configurations hold them.

The syntax is Ray's (that of Kubernetes' labels), checked here so that a mistake is named before Ray starts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticCustomError

_WORD = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_PART = r"[A-Za-z0-9](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"  # of a prefix, between dots
_NAME = re.compile(rf"(?:(?=.{{1,253}}/){_PART}(?:\.{_PART})*/)?{_WORD}")
_VALUE = re.compile(rf"!?(?:{_WORD}|in\({_WORD}(?:, ?{_WORD})*\))")

LONGEST_SHOWN = 80
"""Maximum number of characters of a wrong value that an error shows."""


def check_label_selector(selector: object) -> object:
    """Validate the names and values of a label selector.

    Raises:
        PydanticCustomError: says which label is wrong, and what to write.
    """
    if not isinstance(selector, Mapping):
        raise _wrong("write labels and their values as a mapping, such as {ray.io/market-type: spot}")
    for name, value in selector.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise _wrong(
                f"{_shown(name)} is no name of a label. Write letters, digits and . - _ between them, at most 63, such "
                "as zone or ray.io/market-type"
            )
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise _wrong(
                f"label {name} cannot be selected by {_shown(value)}. Write a value, !VALUE, in(A, B) or !in(A, B), in "
                f'quotes, such as {{{name}: "!spot"}}; a value has letters, digits and . - _ between them, at most 63'
            )
    return selector


def check_accelerator_type(name: str | None) -> str | None:
    """Validate the name of an accelerator type; which types there are is known to the cluster alone.

    Raises:
        PydanticCustomError: says what to write.
    """
    if name is not None and not re.fullmatch(_WORD, name):
        raise _wrong(f"{_shown(name)} is no name of an accelerator type. Write one of Ray's, such as H100 or A100-80G")
    return name


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}…"


def _wrong(message: str) -> PydanticCustomError:
    return PydanticCustomError("label_selector", "{message}", {"message": message})


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Return whether a node with ``labels`` meets every condition of a selector.

    >>> selects({"zone": "in(a, b)", "market": "!spot"}, {"zone": "b"})
    True
    """
    return all(_meets(condition, labels.get(name)) for name, condition in selector.items())


def _meets(condition: str, value: Any) -> bool:
    wanted = condition.removeprefix("!")
    values = [each.strip() for each in wanted[3:-1].split(",")] if wanted.endswith(")") else [wanted]
    return (value in values) != condition.startswith("!")
