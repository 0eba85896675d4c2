"""Negative source of the soak that fails on request: near misses by actors that die or raise where a file says so.

distkg finds it by an entry point, as any plug-in, in the processes of the soak alone: its import changes distkg.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

from benchmarks.soak_requests import DIE_IN_DRAW, DIE_IN_PUBLICATION, FOLDER, NAME, RAISE
from distkg.negatives.base import SOURCES, Negatives, Queries
from distkg.negatives.model_based.cached import NearMiss
from distkg.negatives.prefetch.source_server import SourceServer


class InjectedError(RuntimeError):
    """Error that the soak injects."""


@SOURCES.register(NAME)
class NearMissUnderFaults(NearMiss):
    """Near misses; a draw dies or raises where a file asks for it."""

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        _die_if_asked(DIE_IN_DRAW)
        if (Path(os.environ[FOLDER]) / RAISE).exists():
            raise InjectedError("raised by the soak")
        return super().draw(queries, count, generator)


def _die_if_asked(file: str) -> None:
    try:
        os.unlink(Path(os.environ[FOLDER]) / file)
    except FileNotFoundError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


_publish = SourceServer.publish


def _publish_or_die(self: SourceServer[Any, Any], *arguments: Any) -> None:
    _publish(self, *arguments)
    _die_if_asked(DIE_IN_PUBLICATION)


SourceServer.publish = _publish_or_die  # type: ignore[method-assign, assignment]
