import pytest

from distkg.reporting.quantities import compact, decimal_size, duration, score, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0, "0"), (0.04213, "0.0421"), (7, "7"), (999, "999"), (999.7, "1000"), (1234, "1.23 k")),
        *((999_900, "1000 k"), (58_400, "58.4 k"), (2.5e6, "2.5 M"), (-4200, "-4.2 k"), (5e15, "5000 T")),
        *((float("nan"), "not finite"), (float("inf"), "not finite")),
    ],
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (512, "512 B"), (2048, "2.0 KiB"), (3.25 * 2**30, "3.2 GiB"), (2**42, "4.0 TiB")],
)
def test_size(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512 B"), (4.5e6, "4.5 MB"), (1.043e9, "1.04 GB")])
def test_decimal_size(value: float, text: str) -> None:
    assert decimal_size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 ms"),
        (0.25, "250 ms"),
        (4.25, "4.2 s"),
        (42, "42 s"),
        (59.7, "1 min 00 s"),
        (125, "2 min 05 s"),
        (7384, "2 h 03 min"),
    ],
)
def test_duration(value: float, text: str) -> None:
    assert duration(value) == text


def test_score_keeps_four_digits() -> None:
    assert score(0.36) == "0.3600"
