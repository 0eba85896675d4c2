"""Keep what numba has compiled from one checkout to the next: ``python -m tests.kept_code bring`` and ``… keep``.

A clean clone has nothing compiled, and to compile it all takes a minute and more of each run. Numba's files lie beside
the modules and name no path, so they serve any checkout with the same sources. Numba looks at the file of a function
alone, and not at those of the functions that it calls: hence files are kept under a hash of all sources together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import llvmlite
import numba

PACKAGE = Path(__file__).resolve().parent.parent / "distkg"
MOST = 5  # sets of sources of which files are kept


def main() -> int:
    """Bring or keep them, and say how many there were."""
    moved = {"bring": bring, "keep": keep}[sys.argv[1]]
    print(f"{moved(PACKAGE, place_of(PACKAGE, kept_at()))} files of compiled code: {sys.argv[1]}")
    return 0


def kept_at() -> Path:
    """The user's folder for such things."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "distkg-compiled-for-tests"


def place_of(package: Path, kept: Path) -> Path:
    """Where the files of these sources are kept."""
    found = hashlib.sha256(f"{sys.version} {numba.__version__} {llvmlite.__version__}".encode())
    for source in sorted(package.rglob("*.py")):
        content = source.read_bytes()
        if b"jit" in content:
            found.update(f"{source.relative_to(package)} {len(content)} ".encode() + content)
    return kept / found.hexdigest()


def bring(package: Path, place: Path) -> int:
    """Copy kept files beside the modules that they belong to, where there are none yet."""
    found = [(kept, package / kept.relative_to(place)) for kept in _compiled(place)]
    absent = [(kept, beside) for kept, beside in found if not beside.exists()]
    _copy(absent)
    if place.is_dir():
        os.utime(place)  # those that are not asked for any more make room
    return len(absent)


def keep(package: Path, place: Path) -> int:
    """Copy compiled files to their place, and remove those of the sources that were used longest ago."""
    found = [(beside, place / beside.relative_to(package)) for beside in _compiled(package)]
    _copy(found)
    if place.is_dir():
        os.utime(place)
        for old in sorted(place.parent.iterdir(), key=lambda folder: folder.stat().st_mtime)[:-MOST]:
            shutil.rmtree(old, ignore_errors=True)
    return len(found)


def _compiled(folder: Path) -> Iterator[Path]:
    """Code before the indices that name it, so that an index never names what is not there."""
    for ending in ("nbc", "nbi"):
        yield from sorted(folder.rglob(f"__pycache__/*.{ending}"))


def _copy(files: list[tuple[Path, Path]]) -> None:
    for source, target in files:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        shutil.copyfile(source, part)
        part.replace(target)  # whole, also where two runs keep theirs at once


if __name__ == "__main__":
    sys.exit(main())
