"""Formats of files of triples: readers by name of the format, and formats by file extension.

A package of somebody else's adds a format with an entry point of the group ``distkg.readers``. Its name is that of
the format, as of ``distkg prepare --format``, and the extension of its files. Its module registers a reader under it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING

from distkg.registry import Registry

if TYPE_CHECKING:
    from distkg.data.readers.problems import Problems
    from distkg.data.readers.sources import SourceFile
    from distkg.data.readers.text_blocks import LabelBatch

Reader = Callable[["SourceFile", "Problems"], Iterator["LabelBatch"]]
"""A file → its triples as labels, batch by batch; lines that are no triples are rejected through ``Problems``."""

READERS: Registry[Reader] = Registry("format", "distkg.readers")

BUILT_IN = ("tsv", "parquet", "nt", "nq", "ttl", "trig", "rdf", "n3", "jsonld")
AUTO = "auto"
"""Format by the extension of the file."""

_OTHER_EXTENSIONS = {"txt": "tsv", "csv": "tsv", "xml": "rdf", "owl": "rdf"}
COMPRESSIONS = {"gz": "gzip", "bz2": "bz2", "xz": "xz", "zst": "zstd", "lz4": "lz4"}
"""Extension of a compressed text file → its compression."""


@cache
def extensions() -> dict[str, str]:
    """Return extension → format, those of plug-ins included; no reader is imported."""
    order = ("tsv", "txt", "csv", "parquet", "nt", "nq", "ttl", "trig", "rdf", "xml", "owl", "n3", "jsonld")
    own = {extension: _OTHER_EXTENSIONS.get(extension, extension) for extension in order}
    return own | {name: name for name in READERS.plug_ins() if name not in own}


def formats() -> list[str]:
    """Return the names of all formats, ``auto`` first."""
    return [AUTO, *dict.fromkeys([*BUILT_IN, *extensions().values()])]


@cache
def ending() -> re.Pattern[str]:
    """Return the pattern of the end of a file's name: group 1 is the extension, group 3 that of a compression."""
    known = "|".join(map(re.escape, extensions()))
    return re.compile(rf"\.({known})(\.({'|'.join(COMPRESSIONS)}))?$", re.IGNORECASE)
