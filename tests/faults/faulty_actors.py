"""Negative actors with one fault each, in place of ``NegativeActor``; Ray's workers import this module."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from distkg.cluster.sampling.negative_pool import NegativeActor
from distkg.negatives import SOURCES
from distkg.negatives.prefetch.source_server import SourceServer

SOURCE = "near_miss"
Method = Callable[..., Any]


class UserError(Exception):
    """An exception that cannot be unpickled, as those of users often cannot."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"error {code}: {reason}")


class NotToBeRead:
    """Raises when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not to be read",)


def raising(real: Method, *arguments: Any) -> Any:
    raise UserError(7, "no luck today")


def dying(real: Method, *arguments: Any) -> Any:
    os._exit(3)


def unreadable(real: Method, *arguments: Any) -> NotToBeRead:
    return NotToBeRead()


def replace_method(owner: type, name: str, fault: Callable[..., Any], first: int = 1) -> None:
    """From its ``first`` call on, a method of a class does what ``fault`` does."""
    real, calls = getattr(owner, name), 0

    def method(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        return real(*arguments, **named) if calls < first else fault(real, *arguments, **named)

    setattr(owner, name, method)


class RaisesInDraw(NegativeActor):
    def __init__(self, *arguments: Any) -> None:
        replace_method(SOURCES[SOURCE], "draw", raising, first=5)
        super().__init__(*arguments)


class RepliesUnreadably(NegativeActor):
    def __init__(self, *arguments: Any) -> None:
        replace_method(SourceServer, "answer", unreadable)
        super().__init__(*arguments)


class RaisesInMaking(NegativeActor):
    def __init__(self, *arguments: Any) -> None:
        replace_method(SOURCES[SOURCE], "__init__", raising)
        super().__init__(*arguments)


class DiesInMaking(NegativeActor):
    def __init__(self, *arguments: Any) -> None:
        replace_method(SOURCES[SOURCE], "__init__", dying)
        super().__init__(*arguments)


class RaisesInConstructor(NegativeActor):
    def __init__(self, *arguments: Any) -> None:
        raise UserError(7, "no luck today")


def killed_once(mark: str) -> Callable[..., Any]:
    """SIGKILL to the process that finds no file ``mark``, which it makes."""

    def fault(real: Method, *arguments: Any) -> Any:
        if not os.path.exists(mark):
            with open(mark, "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    return fault


class DiesOnceInPublication(NegativeActor):
    """The first process at each place does; the file that says so lies beside the store."""

    def __init__(self, config: dict[str, Any], peer: str | None, place: int) -> None:
        replace_method(SourceServer, "publish", killed_once(f"{config['data']['store']}.died-{place}"), first=3)
        super().__init__(config, peer, place)


class DiesOnceInDraw(NegativeActor):
    """Likewise."""

    def __init__(self, config: dict[str, Any], peer: str | None, place: int) -> None:
        replace_method(SOURCES[SOURCE], "draw", killed_once(f"{config['data']['store']}.died-{place}"), first=3)
        super().__init__(config, peer, place)


class HangsInFirstDraw(NegativeActor):
    def __init__(self, config: dict[str, Any], peer: str | None, place: int) -> None:
        mark = f"{config['data']['store']}.hung-{place}"

        def hanging_once(real: Method, *arguments: Any) -> Any:
            if not os.path.exists(mark):
                with open(mark, "w"):
                    time.sleep(3600)
            return real(*arguments)

        replace_method(SOURCES[SOURCE], "draw", hanging_once)
        super().__init__(config, peer, place)
