"""Files that are replaced in one step."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from distkg.data.storage.atomic_file import NotAFileError, check_replaceable, replace_text, replaced_file


def test_a_file_is_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    replace_text(path, "größe\n")
    assert path.read_bytes() == "größe\n".encode()
    replace_text(path, "b")
    assert path.read_text() == "b"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_a_writer_that_fails_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")

    def write_half() -> None:
        with replaced_file(path) as unfinished:
            unfinished.write_text("half")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write_half()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]


def test_a_pipe_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to(pipe)
    for path in (pipe, link):
        with pytest.raises(NotAFileError, match="is a device, pipe or socket: name a plain file to write"):
            replace_text(path, "x")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotAFileError, match="'/dev/null' is a device"):
        check_replaceable(Path("/dev/null"))
    with pytest.raises(NotAFileError, match="is a folder: name a file to write"):
        check_replaceable(tmp_path)
    check_replaceable(tmp_path / "new")
