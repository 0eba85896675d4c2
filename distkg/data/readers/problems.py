"""What is wrong or remarkable in the files read: raised, or counted and set aside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import BinaryIO, Literal

from distkg.data.errors import IngestError
from distkg.printable import printable_lines

OnError = Literal["fail", "skip"]
SHOWN_TEXT = 200


class Problems:
    """Collects rejected lines and counted warnings.

    Args:
        on_error: ``fail`` raises at the first bad line; ``skip`` writes each to the rejects file.
        open_rejects: opens the rejects file; called once, at the first reject.

    Attributes:
        counts: warning → how often.
        examples: warning → where it was first met, ``file:line``.
        notes: sentences about how files were read.
        possible_headers: file, line and labels of first triples none of whose labels occurs again in its column.
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
        """Count a warning; the first place is kept as its example."""
        if count:
            self.counts[warning] += count
            self.examples.setdefault(warning, where)

    def tell(self, sentence: str) -> None:
        """Say how a file was read, where that is not the plainest way."""
        self.notes.append(sentence)

    def reject(self, file: str, line: int, reason: str, text: str | bytes, hint: str = "") -> None:
        """Refuse one line of input.

        Args:
            hint: what else to do, a sentence that ends with a space.

        Raises:
            IngestError: where ``on_error`` is ``fail``.
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
    """A counted warning as a line for the user: its name, how often, and an example or the first place."""
    if example is None:
        return f"{warning}: {count:,}"
    if warning.endswith(("_inverses", "_duplicates_by_relation")):
        return f"{warning}: {count:,}, {example}"
    if warning.startswith(("labels_that_differ", "columns_left_out")):
        return f"{warning}: {count:,}, such as {example}"
    return f"{warning}: {count:,}, first at {example}"


def _escape(field: str) -> str:
    """Keep the rejects file at one line and four columns per reject, whatever the text holds."""
    escaped = field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return printable_lines(escaped)
