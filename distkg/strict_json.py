"""Strict JSON parser with limits of size and depth, which rejects JSON that parsers interpret differently."""

from __future__ import annotations

import errno
import json
import math
import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

MAX_BYTES = 16 << 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The bytes are not a JSON value, or one that distkg would not write; the message says why.

    Attributes:
        line: line of a syntax error, from 1; else 0.
    """

    def __init__(self, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.line = line


def parse_json(content: bytes, limit: int = MAX_BYTES) -> Any:
    """Parse a JSON text in UTF-8.

    NaN, Infinity, numbers beyond the range of a double, repeated keys in one object, and lone surrogates are rejected.

    Raises:
        JsonError: invalid JSON, longer than ``limit`` bytes, or nested deeper than Python can read.
    """
    if len(content) > limit:
        raise JsonError(f"it has {len(content):,} bytes; at most {limit:,} are read")
    try:
        value = json.loads(
            content.decode(),
            object_pairs_hook=_without_repetition,
            parse_constant=_refuse_constant,
            parse_float=_finite,
        )
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError:
        raise JsonError("its brackets are nested too deeply") from None
    except UnicodeEncodeError:
        raise JsonError(
            "a text in it has half a character (\\ud800 to \\udfff alone), which is not valid Unicode"
        ) from None
    except UnicodeDecodeError as error:
        raise JsonError(f"it is not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        problem = f"it is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        raise JsonError(problem, error.lineno) from None
    except JsonError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise JsonError(str(error)) from None


def read_json(path: Path) -> Any:
    """Parse a regular file; a link, a pipe or a folder is rejected without opening it.

    Raises:
        JsonError: as ``parse_json``, or the file is missing or cannot be read.
    """
    try:
        check_regular(path)
        with path.open("rb") as file:
            return parse_json(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise JsonError(f"it cannot be read: {error.strerror or error}") from None


def check_regular(path: Path) -> int:
    """Check that a path is a regular file, and return its size.

    Raises:
        OSError: the file is missing, or it is a link (which could lead anywhere), a folder, a pipe or a device.
    """
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, "it is a link; replace it by the file itself", str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return status.st_size


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise JsonError(f"key {ascii(name)[:80]} occurs twice")
    return tree


def _refuse_constant(name: str) -> float:
    raise JsonError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise JsonError(f"the number {text[:40]} is too large")
    return value
