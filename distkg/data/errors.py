"""Errors of stores and of the files from which stores are made."""

from typing import get_args


class StoreError(ValueError):
    """A store cannot be opened, read, made or trusted; the message names the store and says what to do."""


class IngestError(StoreError):
    """A source file cannot become a store; the message names the file and line and says what to do."""


def check_choice(name: str, value: str, choices: object) -> None:
    """Refuse a value that is not one of the ``Literal`` choices.

    Raises:
        IngestError: names the choices.
    """
    if value not in get_args(choices):
        raise IngestError(f"{name}={value!r} is unknown. Known: {', '.join(get_args(choices))}")
