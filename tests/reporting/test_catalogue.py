import pytest

from distkg.config import PRESETS, preset_names
from distkg.reporting.catalogue import describe_presets, describe_scorers, describe_sources


def test_every_preset_says_what_it_is_for() -> None:
    entries = {entry.name: entry.summary for entry in describe_presets()}
    assert set(entries) == set(preset_names())
    assert [name for name, summary in entries.items() if len(summary) < 20] == []
    assert entries["demo"].startswith("A generated graph with known rules")


@pytest.mark.parametrize("name", preset_names())
def test_the_summary_is_the_first_line_of_the_file(name: str) -> None:
    assert (PRESETS / f"{name}.yaml").read_text("utf-8").startswith("# ")


def test_scorers_come_with_their_paper_and_options() -> None:
    entries = {entry.name: entry for entry in describe_scorers()}
    assert len(entries) >= 13
    assert entries["distmult"].summary.startswith("DistMult (Yang et al. 2015")
    assert (entries["distmult"].options, entries["transe"].options) == ("distance=none", "norm=l1")
    assert [name for name, entry in entries.items() if not entry.summary] == []


def test_options_of_options_are_written_in_braces() -> None:
    (dans,) = (entry for entry in describe_sources() if entry.name == "dans")
    assert "made=2, weight=0.25" in dans.options
    assert "diffusion={steps=20, first_noise=0.001, " in dans.options
