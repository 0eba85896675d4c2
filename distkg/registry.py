"""One small registry: name → class. Unknown names answer with the known ones."""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """A name that no registered class carries; the message lists the names that exist."""


class Registry(Generic[T]):
    """Maps the names that users write in a configuration to classes.

    >>> animals: Registry[type] = Registry("animal")
    >>> @animals.register("cat")
    ... class Cat: ...
    >>> animals["cat"] is Cat
    True
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that files a class under ``name``; a name is given once."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"the {self.kind} name {name!r} is already taken by {self._entries[name]!r}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        try:
            return self._entries[name]
        except KeyError:
            close = get_close_matches(name, self._entries, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            known = ", ".join(sorted(self._entries))
            raise UnknownNameError(f"there is no {self.kind} named {name!r}.{hint} Known: {known}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))
