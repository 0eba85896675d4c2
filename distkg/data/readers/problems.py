"""Rejected lines, counted warnings and notes of the files that are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import BinaryIO, Literal

from distkg.data.errors import IngestError
from distkg.printable import printable_lines

OnError = Literal["fail", "skip"]
SHOWN_TEXT = 200


class Problems:
    """Collector of rejected lines, counted warnings and notes.

    Args:
        on_error: ``fail`` raises at the first bad line; ``skip`` writes each to the rejects file.
        open_rejects: opens the rejects file; called once, at the first reject.

    Attributes:
        counts: warning → number of occurrences.
        examples: warning → first occurrence, ``file:line``.
        notes: sentences for the user about how files were read.
        possible_headers: file, line and labels of each first triple whose labels do not recur in their columns.
    """

    def __init__(self, on_error: OnError, open_rejects: Callable[[], BinaryIO]) -> None:
        self.on_error = on_error
        self.counts: Counter[str] = Counter()
        self.examples: dict[str, str] = {}
        self.notes: list[str] = []
        self.possible_headers: list[tuple[str, int, tuple[str, str, str]]] = []
        self._open_rejects = open_rejects
        self._rejects: BinaryIO | None = None

    def note(self, warning: str, where: str, count: int = 1) -> None:
        """Count a warning; its first occurrence is kept as the example."""
        if count:
            self.counts[warning] += count
            self.examples.setdefault(warning, where)

    def tell(self, sentence: str) -> None:
        """Add a note for the user about how a file was read."""
        self.notes.append(sentence)

    def reject(self, file: str, line: int, reason: str, text: str | bytes, hint: str = "") -> None:
        """Reject one line of input: raise, or write it to the rejects file.

        Args:
            hint: further advice for the message, a sentence that ends with a space.

        Raises:
            IngestError: if ``on_error`` is ``fail``.
        """
        shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
        if self.on_error == "fail":
            raise IngestError(
                f"{file}:{line}: {reason}: {shown[:SHOWN_TEXT]!r}. {hint}"
                "Correct the line, or use --on-error skip to set such lines aside in rejects.tsv"
            )
        self.note("rejected_lines", f"{file}:{line}: {reason}")
        self._write([file, str(line), reason, shown])

    def close(self) -> None:
        if self._rejects is not None:
            self._rejects.close()

    def _write(self, fields: list[str]) -> None:
        if self._rejects is None:
            self._rejects = self._open_rejects()
            self._rejects.write(b"file\tline\treason\ttext\n")
        self._rejects.write(("\t".join(_escape(field) for field in fields) + "\n").encode())


def warning_text(warning: str, count: int, example: str | None) -> str:
    """Format a counted warning for the user: name, count, and an example or its first occurrence."""
    if example is None:
        return f"{warning}: {count:,}"
    if warning.endswith(("_inverses", "_duplicates_by_relation")):
        return f"{warning}: {count:,}, {example}"
    if warning.startswith(("labels_that_differ", "columns_left_out")):
        return f"{warning}: {count:,}, such as {example}"
    return f"{warning}: {count:,}, first at {example}"


def _escape(field: str) -> str:
    """Escape tabs, line ends and unprintable characters, so that each reject is one line of four columns."""
    escaped = field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return printable_lines(escaped)
