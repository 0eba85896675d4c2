"""Requests of the soak to its negative source: a file for each, in the folder that an environment variable names.

An actor that dies deletes its file first, so that one file ends one actor.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "DISTKG_SOAK"
"""Environment variable: the folder."""

NAME = "near_miss_under_faults"
DIE_IN_DRAW, DIE_IN_PUBLICATION, RAISE = "die-in-draw", "die-in-publication", "raise"


def install(folder: Path) -> None:
    """Write an entry point for the source into a folder for PYTHONPATH; without it, nothing imports the source."""
    package = folder / "distkg_soak-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: distkg-soak\nVersion: 1\n")
    (package / "entry_points.txt").write_text(f"[distkg.negative_sources]\n{NAME} = benchmarks.soak_source\n")
