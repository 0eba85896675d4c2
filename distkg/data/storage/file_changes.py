"""Notice of files that distkg has written or deleted, for those who keep a copy of them elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Listener = Callable[[Path], None]
"""Called with the path of a file that was written, or that is gone."""
_listeners: list[Listener] = []


def add_listener(listener: Listener) -> None:
    """Call ``listener`` with the path of every file that is written or deleted from now on."""
    _listeners.append(listener)


def remove_listener(listener: Listener) -> None:
    """Call a listener no more."""
    _listeners.remove(listener)


def changed(path: Path) -> None:
    """Tell that a file was written or deleted."""
    for listener in tuple(_listeners):
        listener(path)
