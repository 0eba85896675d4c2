"""Formatting of numbers for readers: 12.3 k, 1.5 GiB, 2 min 05 s."""

from __future__ import annotations

import math

_THOUSANDS = ["", "k", "M", "G", "T"]
_BINARY = ["B", "KiB", "MiB", "GiB", "TiB"]


def compact(value: float) -> str:
    """Format a number with three significant digits and a decimal suffix.

    >>> [compact(v) for v in (0, 0.0421, 7, 1234, 58_400, 2.5e6)]
    ['0', '0.0421', '7', '1.23 k', '58.4 k', '2.5 M']
    """
    if not math.isfinite(value):
        return "not finite"
    if abs(value) < 1000:
        return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"
    scaled, suffix = _scaled(value, 1000.0, _THOUSANDS)
    return f"{scaled:.3g} {suffix}" if abs(scaled) < 999.5 else f"{scaled:.0f} {suffix}"


def size(count: float) -> str:
    """Format bytes with a binary suffix.

    >>> [size(v) for v in (512, 2048, 3.25 * 2**30)]
    ['512 B', '2.0 KiB', '3.2 GiB']
    """
    scaled, suffix = _scaled(count, 1024.0, _BINARY)
    return f"{scaled:.0f} B" if suffix == "B" else f"{scaled:.1f} {suffix}"


def decimal_size(count: float) -> str:
    """Format bytes with a decimal suffix.

    >>> [decimal_size(v) for v in (512, 4_500_000, 1.043e9)]
    ['512 B', '4.5 MB', '1.04 GB']
    """
    text = compact(count)
    return f"{text}B" if " " in text else f"{text} B"


def duration(seconds: float) -> str:
    """Format a duration in seconds.

    >>> [duration(v) for v in (0.25, 4.2, 42, 125, 7384)]
    ['250 ms', '4.2 s', '42 s', '2 min 05 s', '2 h 03 min']
    """
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def score(value: float) -> str:
    """Format a metric between 0 and 1 with four digits, as in the literature."""
    return f"{value:.4f}"


def _scaled(value: float, base: float, suffixes: list[str]) -> tuple[float, str]:
    power = 0
    while abs(value) >= base and power < len(suffixes) - 1:
        value, power = value / base, power + 1
    return value, suffixes[power]
