"""Where compiled code is kept: never lost for want of a writable folder, never where another user could put code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from distkg import compilation
from distkg.compilation import PACKAGE, choose_cache, keep_gpu_kernels, private_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder of this test's own."""
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(compilation.tempfile, "tempdir", str(folder))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.delenv("TRITON_CACHE_DIR", raising=False)
    monkeypatch.delenv("TRITON_HOME", raising=False)
    private_folder.cache_clear()
    yield folder
    private_folder.cache_clear()


def unwritable(folder: Path) -> Path:
    """A path that nobody can make a folder of, not even root: it lies below a file."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("")
    return folder / "below"


def closed_package(folder: Path) -> Path:
    """A package beside which nothing can be kept."""
    unwritable(folder / "__pycache__")
    return folder


def test_numba_finds_a_place_itself_beside_the_package_or_at_home(tmp_path: Path) -> None:
    nowhere = unwritable(tmp_path / "file")
    assert choose_cache([tmp_path / "package"], nowhere) == ""
    assert choose_cache([closed_package(tmp_path / "closed")], tmp_path / "home") == ""


def test_one_closed_folder_of_the_package_is_enough_to_go_elsewhere(tmp_path: Path, temporary: Path) -> None:
    packages, nowhere = [tmp_path / "open", closed_package(tmp_path / "closed")], unwritable(tmp_path / "file")
    assert choose_cache(packages, nowhere) == str(temporary / f"distkg-{os.geteuid()}" / "numba")


def test_what_the_user_configured_is_kept_where_it_can_be_written(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, nowhere = closed_package(tmp_path / "closed"), unwritable(tmp_path / "file")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "mine"))
    assert choose_cache([closed], nowhere) == str(tmp_path / "mine")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(nowhere))
    assert choose_cache([closed], nowhere) == str(temporary / f"distkg-{os.geteuid()}" / "numba")


def test_the_private_folder_is_for_its_owner_alone_and_shared_by_processes(temporary: Path) -> None:
    found = private_folder()
    assert found == str(temporary / f"distkg-{os.geteuid()}")
    assert os.stat(found).st_mode & 0o777 == 0o700
    private_folder.cache_clear()
    assert private_folder() == found


@pytest.mark.parametrize("planted", ["link", "open folder", "file"])
def test_what_another_user_may_have_planted_is_not_used(planted: str, tmp_path: Path, temporary: Path) -> None:
    name = temporary / f"distkg-{os.geteuid()}"
    if planted == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        name.symlink_to(tmp_path / "elsewhere")
    elif planted == "file":
        name.write_text("")
    else:
        name.mkdir()
        name.chmod(0o777)
    found = private_folder()
    assert found is not None
    assert Path(found) != name
    assert Path(found).parent == temporary
    assert os.stat(found).st_mode & 0o777 == 0o700
    assert not list((tmp_path / "elsewhere").glob("*")) if planted == "link" else True


def test_another_users_folder_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = private_folder()
    assert first is not None
    private_folder.cache_clear()
    owner = os.geteuid()
    planted = temporary / f"distkg-{owner + 1}"
    os.rename(first, planted)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)  # the folder has this user's name and another's owner
    assert private_folder() != str(planted)


def test_a_temporary_folder_that_others_can_change_is_not_used(temporary: Path) -> None:
    temporary.chmod(0o777)
    assert private_folder() is None
    private_folder.cache_clear()
    temporary.chmod(0o1777)
    assert private_folder() is not None


def test_without_any_temporary_folder_there_is_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(compilation.tempfile, "gettempdir", none)
    assert choose_cache([closed_package(tmp_path / "closed")], unwritable(tmp_path / "file")) is None


def test_gpu_kernels_go_to_the_private_folder_where_home_is_closed(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    keep_gpu_kernels()
    assert "TRITON_CACHE_DIR" not in os.environ
    assert not (tmp_path / ".triton").exists()
    monkeypatch.setenv("TRITON_HOME", str(tmp_path / "locked"))
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    monkeypatch.setitem(os.environ, "TRITON_CACHE_DIR", "mine")
    keep_gpu_kernels()
    assert os.environ["TRITON_CACHE_DIR"] == "mine"
    monkeypatch.delenv("TRITON_CACHE_DIR")
    keep_gpu_kernels()
    assert os.environ.pop("TRITON_CACHE_DIR") == str(temporary / f"distkg-{os.geteuid()}" / "triton")


@pytest.mark.parametrize("private", [True, False])
def test_an_installation_and_a_home_that_cannot_be_written_to(private: bool, tmp_path: Path, temporary: Path) -> None:
    package = tmp_path / "site" / "distkg"
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    for init in package.rglob("__init__.py"):
        unwritable(init.parent / "__pycache__")
    temporary.chmod(0o700 if private else 0o777)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA_", "XDG_"))}
    environment |= {"HOME": str(unwritable(tmp_path / "file")), "TMPDIR": str(temporary)}
    environment |= {"PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    program = f"""
        import numpy as np
        from distkg.compilation import PACKAGE, _has_cache
        from distkg.graph.structure import _sort_rows

        assert str(PACKAGE) == {str(package)!r}
        neighbours = np.array([3, 1, 2, 0], np.int32)
        _sort_rows(np.array([0, 2, 4]), neighbours)
        assert neighbours.tolist() == [1, 3, 0, 2]
        assert _has_cache() is {private}
    """
    run = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kept = list(temporary.rglob("*.nbi"))
    assert bool(kept) is private


def test_nothing_else_asks_numba_to_keep_compiled_code() -> None:
    """`njit` of `distkg.compilation` is the only way to numba's decorators, so nothing escapes its decision."""
    others = [path for path in PACKAGE.rglob("*.py") if path.name != "compilation.py"]
    assert not [str(path) for path in others if "numba import njit" in path.read_text(encoding="utf-8")]
    assert not [str(path) for path in others if "numba.njit" in path.read_text(encoding="utf-8")]
