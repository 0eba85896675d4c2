"""Records of CSV (RFC 4180): quoted fields may hold delimiters, line ends and, doubled, quotes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distkg.compilation import njit

QUOTE = ord('"')
LONGEST_RECORD = 1 << 20
"""Bytes after which an open quote is treated as never closed."""

SOUND, BROKEN, UNCLOSED = 0, 1, 2


def find_records(
    text: bytes, delimiter: str, line_end: bytes = b"\n"
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int8]]:
    """Locate the records of a text: byte offsets, lines (from 0), and state of their quoting.

    Returns:
        starts int64 [n + 1], ending with the length of the text; lines int64 [n + 1], ending with the number of lines;
        state int8 [n]: SOUND, BROKEN (text after a closing quote), or, for the last record only, UNCLOSED.
    """
    most = text.count(line_end) + 2
    starts, lines, state = np.empty(most, np.int64), np.empty(most, np.int64), np.zeros(most, np.int8)
    count = _find(np.frombuffer(text, np.uint8), ord(delimiter), line_end[0], starts, lines, state)
    return starts[: count + 1], lines[: count + 1], state[:count]


def split_records(text: str, delimiter: str) -> list[tuple[str, int]]:
    """Split a text into (record without its line end, number of lines); an unclosed record ends at its first line."""
    data, records = text.encode(), []
    while data:
        starts, lines, state = find_records(data, delimiter)
        sound = len(state) - (len(state) > 0 and state[-1] == UNCLOSED)
        for place in range(sound):
            record = data[starts[place] : starts[place + 1]].removesuffix(b"\n")
            records.append((record.decode(), int(lines[place + 1] - lines[place])))
        if sound == len(state):
            break
        line, _, data = data[starts[sound] :].partition(b"\n")
        records.append((line.decode(), 1))
    return records


def split_fields(text: str, delimiter: str) -> list[str] | None:
    """Split a record into columns; None if its quoting is broken."""
    fields: list[str] = []
    place = 0
    while True:
        if not text.startswith('"', place):
            end = text.find(delimiter, place)
            fields.append(text[place:] if end < 0 else text[place:end])
            if end < 0:
                return fields
            place = end + 1
            continue
        end = place + 1
        while (end := text.find('"', end)) >= 0 and text.startswith('"', end + 1):
            end += 2
        if end < 0:
            return None
        fields.append(text[place + 1 : end].replace('""', '"'))
        place = end + 2
        if end + 1 == len(text):
            return fields
        if text[end + 1] != delimiter:
            return None


@njit(cache=True)
def _find(
    text: np.ndarray, delimiter: int, line_end: int, starts: np.ndarray, lines: np.ndarray, state: np.ndarray
) -> int:
    begin, plain, quoted, closed = 0, 1, 2, 3
    place, records, line = begin, 0, 0
    starts[0], lines[0] = 0, 0
    for i in range(text.size):
        byte = text[i]
        if byte == line_end:
            line += 1
            if place != quoted:
                records += 1
                starts[records], lines[records] = i + 1, line
                place = begin
        elif place == quoted:
            if byte == QUOTE:
                place = closed
        elif byte == QUOTE and place in (begin, closed):
            place = quoted
        elif byte == delimiter:
            place = begin
        elif place == closed:
            if byte != 13 or (i + 1 < text.size and text[i + 1] != line_end):
                state[records] = BROKEN
                place = plain
        else:
            place = plain
    if starts[records] < text.size:
        if place == quoted:
            state[records] = UNCLOSED
        records += 1
        starts[records], lines[records] = text.size, line + (text[-1] != line_end)
    return records
