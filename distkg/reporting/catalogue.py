"""Catalogue of presets, search spaces, scorers and negative sources, with a summary of each."""

from __future__ import annotations

import inspect
from dataclasses import dataclass

from pydantic import BaseModel

from distkg.config import CLUSTERS, PRESETS, preset_names
from distkg.search.space import SPACES, space_names


@dataclass(frozen=True)
class Entry:
    """Name of an entry, a one-line summary, its options as ``key=default``, and the data that it needs."""

    name: str
    summary: str
    options: str = ""
    needs: str = ""


def describe_presets() -> list[Entry]:
    """Return every preset with the comment on its first line."""
    return [Entry(name, _first_comment((PRESETS / f"{name}.yaml").read_text("utf-8"))) for name in preset_names()]


def describe_spaces() -> list[Entry]:
    """Return every search space with the comment on its first line."""
    return [Entry(name, _first_comment((SPACES / f"{name}.yaml").read_text("utf-8"))) for name in space_names()]


def describe_clusters() -> list[Entry]:
    """Return every cluster with the comment on its first line."""
    return [Entry(path.stem, _first_comment(path.read_text("utf-8"))) for path in sorted(CLUSTERS.glob("*.yaml"))]


def describe_scorers() -> list[Entry]:
    """Return every scorer with the first line of its module's docstring, which names the paper."""
    from distkg.embedding.scorers import SCORERS  # here, as below, because presets are listed without importing torch

    entries = []
    for name in SCORERS:
        scorer = SCORERS[name]
        entries.append(Entry(name, _first_line(inspect.getmodule(scorer).__doc__), _options_of(scorer.Options)))
    return entries


def describe_sources() -> list[Entry]:
    """Return every negative source with the first line of its docstring, and the data that it needs."""
    from distkg.negatives import SOURCES

    return [
        Entry(name, _first_line(source.__doc__), _options_of(source.Options), source.needs)
        for name, source in ((name, SOURCES[name]) for name in SOURCES)
    ]


def _options_of(options: type[BaseModel]) -> str:
    return ", ".join(
        key if field.is_required() else f"{key}={_shown(field.get_default(call_default_factory=True))}"
        for key, field in options.model_fields.items()
    )


def _shown(default: object) -> str:
    return "{" + _options_of(type(default)) + "}" if isinstance(default, BaseModel) else str(default)


def _first_comment(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _first_line(text: str | None) -> str:
    return inspect.cleandoc(text or "").partition("\n")[0]
