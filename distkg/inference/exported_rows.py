"""Entity rows of an export: one safetensors file, or one of each worker that wrote it and a list of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.working_copy import delete, fetch, names_in
from distkg.sharding.shards import Shards
from distkg.strict_json import JsonError, read_json

ENTITIES = "entities.safetensors"
FILE_LIST = "entities.index.json"
_FILES_OF_RANKS = "entities-*-of-*.safetensors"


class ExportError(ValueError):
    """Error of an export that cannot be read; the message says which file."""


@dataclass(frozen=True)
class EntityFile:
    """File with the rows ``low … high - 1`` as tensor ``vectors``.

    Attributes:
        name: name in the folder of the export.
    """

    name: str
    low: int
    high: int


def entity_files(shards: Shards) -> list[EntityFile]:
    """Return the file of each rank that exports its range of rows."""
    size = shards.size
    names = [ENTITIES] if size == 1 else [f"entities-{rank + 1:05d}-of-{size:05d}.safetensors" for rank in range(size)]
    return [EntityFile(name, *shards.range(rank)) for rank, name in enumerate(names)]


def write_file_list(folder: Path, files: Sequence[EntityFile], width: int) -> None:
    """List the files of an export that are more than one, and remove those of an earlier export."""
    if len(files) > 1:
        listed = {"rows": files[-1].high, "width": width, "files": [asdict(file) for file in files]}
        replace_text(folder / FILE_LIST, json.dumps(listed, indent=1) + "\n")
    else:
        delete(folder / FILE_LIST)
    written = {file.name for file in files}
    for name in names_in(folder) - written:
        if name == ENTITIES or fnmatch(name, _FILES_OF_RANKS):
            delete(folder / name)


class ExportedRows:
    """Entity rows of an export, read by range.

    Attributes:
        count: number of rows.
    """

    def __init__(self, folder: Path) -> None:
        """Find the files.

        Raises:
            ExportError: there are none, or their list is damaged.
        """
        self._folder = folder
        if (folder / FILE_LIST).is_file():
            self._files = _listed(folder / FILE_LIST)
        elif (folder / ENTITIES).is_file():
            with safe_open(folder / ENTITIES, framework="pt") as file:
                self._files = [EntityFile(ENTITIES, 0, file.get_slice("vectors").get_shape()[0])]
        else:
            raise ExportError(f"{folder} holds no exported entities. Create them with `distkg export RUN --to DIR`")
        self.count = self._files[-1].high

    def rows(self, low: int, high: int) -> Tensor:
        """Read rows ``low … high - 1``: float32 [high - low, width]."""
        parts = []
        for piece in self._files:
            first, last = max(low, piece.low), min(high, piece.high)
            if first < last:
                fetch(self._folder / piece.name)
                with safe_open(self._folder / piece.name, framework="pt") as file:
                    parts.append(file.get_slice("vectors")[first - piece.low : last - piece.low])
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _listed(path: Path) -> list[EntityFile]:
    try:
        files = [EntityFile(**entry) for entry in read_json(path)["files"]]
        ends = [0, *(file.high for file in files)]
        if [file.low for file in files] != ends[:-1] or any(Path(file.name).name != file.name for file in files):
            raise ValueError("its files do not follow each other")
    except (JsonError, KeyError, TypeError, ValueError) as error:
        raise ExportError(f"{path} is damaged ({error}). Export the run again") from None
    return files
