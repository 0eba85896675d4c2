"""Registry of classes by name; an unknown name raises an error that lists the known ones.

Third-party packages add classes with an entry point: its name is the one that configurations use, and its module
registers a class under that name as the modules of distkg do. The module is imported at the first use of the name, in
every process.
"""

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(ValueError):
    """No class is registered under a name; the message lists the registered names."""


class Registry(Generic[T]):
    """Registry that maps names in configurations to classes.

    >>> animals: Registry[type] = Registry("animal")
    >>> @animals.register("cat")
    ... class Cat: ...
    >>> animals["cat"] is Cat
    True
    """

    def __init__(self, kind: str, group: str = "") -> None:
        """``group`` is the entry-point group of plug-ins, such as ``distkg.scorers``."""
        self.kind, self.group = kind, group
        self._entries: dict[str, T] = {}
        self._plug_ins: dict[str, EntryPoint] | None = None
        self._broken: dict[str, str] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Return a decorator that registers a class under ``name``, which must be new."""

        def add(entry: T) -> T:
            if name in self._entries:
                raise ValueError(f"the {self.kind} name {name!r} is already taken by {self._entries[name]!r}")
            self._entries[name] = entry
            return entry

        return add

    def __getitem__(self, name: str) -> T:
        if name in self:
            return self._entries[name]
        if name in self._broken:
            raise UnknownNameError(f"{self.kind} {name!r} is a plug-in that cannot be used: {self._broken[name]}")
        names = list(self)
        close = get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownNameError(f"there is no {self.kind} named {name!r}.{hint} Known: {', '.join(names)}")

    def __contains__(self, name: object) -> bool:
        if name not in self._entries and isinstance(name, str):
            self._load(name)
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        for name in self._found_plug_ins():
            self._load(name)
        return iter(sorted(self._entries))

    def plug_ins(self) -> list[str]:
        """Return the names of installed plug-ins, without importing them."""
        return sorted(self._found_plug_ins())

    def _found_plug_ins(self) -> dict[str, EntryPoint]:
        if self._plug_ins is None:
            self._plug_ins = {point.name: point for point in entry_points(group=self.group)} if self.group else {}
        return self._plug_ins

    def _load(self, name: str) -> None:
        """Import a plug-in at its first use, and record its error, if any."""
        point = self._found_plug_ins().get(name)
        if point is None or name in self._entries or name in self._broken:
            return
        try:
            point.load()
        except Exception as error:  # third-party code may raise anything
            lines = str(error).splitlines()
            self._broken[name] = f"{point.value}: {type(error).__name__}{f': {lines[0]}' if lines else ''}"
            return
        if name not in self._entries:
            self._broken[name] = f"{point.value} registers no {self.kind} under this name"
