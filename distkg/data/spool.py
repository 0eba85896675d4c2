"""Spool file: triples of one split as provisional ids on local disk, in reading order, with their source lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CHUNK_ROWS = 1 << 20
NO_ROWS: NDArray[np.int64] = np.empty(0, dtype=np.int64)


class Spool:
    """Append-only file of triples int32 [n, 3].

    Args:
        path: file to create.
        name: name of the source file, for messages.
        unit: prefix of positions in messages, if they are not lines (``SourceFile.unit``).
    """

    def __init__(self, path: Path, name: str = "", unit: str = "") -> None:
        self.path = path
        self._files = [(0, name, unit)]  # first row of each source file
        self._rows = 0
        self._file = path.open("wb")
        # Row and line at which each run of consecutive lines begins; a rejected line starts a new run.
        self._run_rows: list[NDArray[np.int64]] = []
        self._run_lines: list[NDArray[np.int64]] = []
        self._next_line = -1

    def __len__(self) -> int:
        return self._rows

    @property
    def name(self) -> str:
        """Name of the source file; of the first one if there are several."""
        return self._files[0][1]

    def begin(self, name: str, unit: str = "") -> None:
        """Start the rows of another source file."""
        self._files.append((self._rows, name, unit))
        self._next_line = -1

    def append(self, triples: NDArray[np.int32], lines: NDArray[np.int64] | None = None) -> None:
        """Append triples [n, 3] and, if they come from a file, their lines [n]."""
        if lines is not None and len(lines):
            starts = np.flatnonzero(np.diff(lines, prepend=self._next_line - 1) != 1)
            self._run_rows.append(starts + self._rows)
            self._run_lines.append(lines[starts])
            self._next_line = int(lines[-1]) + 1
        self._file.write(np.ascontiguousarray(triples, dtype=np.int32).data)
        self._rows += len(triples)

    def finish(self) -> None:
        """End writing; the spool can now be read."""
        self._file.close()

    def chunks(self, without: NDArray[np.int64] = NO_ROWS) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int32]]]:
        """Yield row numbers [m] and triples [m, 3] in order, skipping the sorted rows ``without``."""
        with self.path.open("rb") as file:
            for start in range(0, self._rows, CHUNK_ROWS):
                count = min(CHUNK_ROWS, self._rows - start)
                triples = np.fromfile(file, dtype=np.int32, count=3 * count).reshape(count, 3)
                rows = np.arange(start, start + count, dtype=np.int64)
                low, high = np.searchsorted(without, [start, start + count])
                if high > low:
                    keep = np.ones(count, dtype=bool)
                    keep[without[low:high] - start] = False
                    rows, triples = rows[keep], triples[keep]
                yield rows, triples

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Read the triples of given rows: int32 [m, 3]."""
        if not len(rows):
            return np.empty((0, 3), dtype=np.int32)
        return np.array(np.memmap(self.path, dtype=np.int32, mode="r", shape=(self._rows, 3))[rows])

    def where(self, row: int) -> str:
        """Return the source position ``file:line`` of a row."""
        starts = np.concatenate(self._run_rows)
        run = int(np.searchsorted(starts, row, side="right")) - 1
        line = int(np.concatenate(self._run_lines)[run]) + row - int(starts[run])
        name, unit = next((name, unit) for first, name, unit in reversed(self._files) if first <= row)
        return f"{name}:{unit}{line}"


def shuffled(source: Spool, path: Path, without: NDArray[np.int64], rng: np.random.Generator) -> Spool:
    """Permute a spool at random in bounded memory: rows go to random buckets, each shuffled in memory."""
    count = -(-len(source) // (4 * CHUNK_ROWS)) or 1
    buckets = [Spool(path.with_suffix(f".{bucket}")) for bucket in range(count)]
    for _, triples in source.chunks(without):
        choice = rng.integers(0, count, len(triples))
        for bucket, spool in enumerate(buckets):
            spool.append(triples[choice == bucket])
    target = Spool(path)
    for spool in buckets:
        spool.finish()
        target.append(rng.permutation(spool.take(np.arange(len(spool)))))
        spool.path.unlink()
    target.finish()
    return target
