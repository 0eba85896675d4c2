"""Fields of a configuration, with the settings under which each acts and whether a resumed run may change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from distkg.config.strict import StrictModel

Resume = Literal["fixed", "course", "free"]
"""Class of a key when a run is resumed.

``fixed``: the key defines the meaning of stored tensors and must not change. ``course``: the key affects the result of
training and may change on request, which is recorded. ``free``: the key affects only duration, place or speed, and may
change.
"""

Conditions = Mapping[str, tuple[Any, ...]]
"""Settings with which a key acts: dotted key, or ``family``, → accepted values; empty for any true value."""


class Section(StrictModel):
    """Base class of the sections of a configuration."""

    model_config = ConfigDict(validate_assignment=True)


def fixed(*default: Any, acts: Conditions | None = None, **settings: Any) -> Any:
    """Return a field that is ``fixed`` on resume; other arguments are those of pydantic's ``Field``."""
    return _field("fixed", acts, *default, **settings)


def course(*default: Any, acts: Conditions | None = None, **settings: Any) -> Any:
    """Return a field that is ``course`` on resume; other arguments are those of pydantic's ``Field``."""
    return _field("course", acts, *default, **settings)


def free(*default: Any, acts: Conditions | None = None, **settings: Any) -> Any:
    """Return a field that is ``free`` on resume; other arguments are those of pydantic's ``Field``."""
    return _field("free", acts, *default, **settings)


def section(kind: type[Section], description: str, acts: Conditions | None = None) -> Any:
    """Return a field that holds a section; ``acts`` applies to every key in it."""
    return Field(default_factory=kind, description=description, json_schema_extra=_extra(acts))


def _field(resume: Resume, acts: Conditions | None, *default: Any, **settings: Any) -> Any:
    return Field(*default, json_schema_extra={"resume": resume, **_extra(acts)}, **settings)


def _extra(acts: Conditions | None) -> dict[str, Any]:
    return {"acts_with": {key: list(values) for key, values in acts.items()}} if acts else {}
