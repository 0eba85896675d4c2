"""Options that choose the method of a search, and its file."""

import math
from pathlib import Path

import pytest

from distkg.search.method import Method, Options, method_yaml, read_method
from distkg.search.rungs import Rung
from distkg.search.trials import SearchError

RUNGS = (Rung(8, 0.125, 3, 40, 400, 80, 0.4, 10), Rung(3, 1 / 3, 0, 100, 1000, 300, 1.0, 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(3, against="seconds"), r"^--against seconds and --rungs exclude each other"),
        (Options(budget=2.0), r"^--budget is that of all rungs, and there are none\. Give --rungs too"),
        (Options(3, math.nan), r"^--budget nan must be a finite number of full runs above 0"),
        (Options(3, math.inf), r"^--budget inf must be a finite number"),
        (Options(3, 0.0), r"^--budget 0\.0 must be a finite number"),
        (Options(20), r"^--trials 32 are too few for --rungs 20"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: Options, message: str) -> None:
    with pytest.raises(SearchError, match=message):
        options.check(32)


def test_options_that_fit_are_taken() -> None:
    for options in (Options(), Options(3), Options(3, 1.5), Options(against="memory")):
        options.check(32)
    assert (Options(3).full_runs, Options(3, 1.5).full_runs) == (3.0, 1.5)


@pytest.mark.parametrize("method", [Method(), Method(against="memory"), Method(budget=2.5, rungs=RUNGS)])
def test_a_method_written_is_the_method_read(method: Method, tmp_path: Path) -> None:
    (tmp_path / "method.yaml").write_text(method_yaml(method))
    assert read_method(tmp_path / "method.yaml") == method


def test_a_search_without_the_file_is_one_by_asha(tmp_path: Path) -> None:
    assert read_method(tmp_path / "method.yaml") == Method()
    assert Method().stops_early
    assert not Method(against="seconds").stops_early
    assert not Method(rungs=RUNGS).stops_early


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "method.yaml").write_text("rungs: {")
    with pytest.raises(SearchError, match=r"method\.yaml cannot be read"):
        read_method(tmp_path / "method.yaml")
    (tmp_path / "method.yaml").write_text("against: money")
    with pytest.raises(SearchError, match=r"method\.yaml cannot be read: Input should be 'seconds' or 'memory'"):
        read_method(tmp_path / "method.yaml")


def test_a_resumed_search_has_its_own_options(tmp_path: Path) -> None:
    method = Method(budget=2.0, rungs=RUNGS)
    method.check_options(Options(2), 8, tmp_path)
    method.check_options(Options(2, 2.0), 8, tmp_path)
    for options, trials in ((Options(3), 8), (Options(2, 3.0), 8), (Options(2), 9), (Options(), 8)):
        with pytest.raises(SearchError, match=r"was started with --trials 8 --rungs 2 --budget 2\. Continue it with"):
            method.check_options(options, trials, tmp_path)
    with pytest.raises(SearchError, match="was started with --against memory"):
        Method(against="memory").check_options(Options(), 8, tmp_path)
    Method().check_options(Options(), 99, tmp_path)  # a search without rungs may have more trials than before
    assert (method.total(8), Method().total(8)) == (11, 8)
