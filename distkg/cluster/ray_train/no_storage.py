"""File system for Ray Train that keeps nothing, for runs in object stores.

Ray Train asks that every node sees its storage path. Nothing that it writes there is needed by a run of distkg, whose
checkpoints it does not make.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from pyarrow import fs
from ray.train.v2._internal.constants import VALIDATE_STORAGE_MARKER_FILENAME

PATH = "nothing-is-kept"


class _NoStorage(fs.FileSystemHandler):
    """Handler in which the file that Ray Train looks for exists, and no other."""

    def get_type_name(self) -> str:
        return "no-storage"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _NoStorage)

    def __ne__(self, other: object) -> bool:
        return not isinstance(other, _NoStorage)

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: list[str]) -> list[fs.FileInfo]:
        found = {True: fs.FileType.File, False: fs.FileType.NotFound}
        return [fs.FileInfo(path, found[path.endswith(VALIDATE_STORAGE_MARKER_FILENAME)]) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        return []

    def open_output_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.BufferOutputStream()

    def open_append_stream(self, path: str, metadata: Any) -> pa.NativeFile:
        return pa.BufferOutputStream()

    def open_input_stream(self, path: str) -> pa.NativeFile:
        raise FileNotFoundError(path)

    def open_input_file(self, path: str) -> pa.NativeFile:
        raise FileNotFoundError(path)

    def _nothing(self, *arguments: Any) -> None:
        """Do nothing."""

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = move = copy_file = _nothing


def no_storage() -> fs.PyFileSystem:
    """Return the file system; picklable."""
    return fs.PyFileSystem(_NoStorage())
