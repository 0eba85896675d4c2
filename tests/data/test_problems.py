from collections.abc import Callable

import pytest
from kept_rejects import KeptRejects

from distkg.data.errors import IngestError
from distkg.data.readers.problems import Problems, warning_text


def test_the_first_place_of_a_warning_is_its_example() -> None:
    problems = Problems("fail", KeptRejects)
    problems.note("train_duplicates", "train.tsv:9", count=0)
    problems.note("train_duplicates", "train.tsv:3", count=2)
    problems.note("train_duplicates", "train.tsv:7")
    assert problems.counts == {"train_duplicates": 3}
    assert problems.examples == {"train_duplicates": "train.tsv:3"}


def test_fail_raises_and_shows_the_start_of_the_line() -> None:
    with pytest.raises(IngestError, match=r"x\.tsv:4: empty label: 'a{200}'\. Correct the line") as raised:
        Problems("fail", KeptRejects).reject("x.tsv", 4, "empty label", "a" * 5000)
    assert len(str(raised.value)) < 400


def test_skip_opens_the_rejects_file_only_when_needed() -> None:
    opened: list[KeptRejects] = []

    def open_rejects() -> KeptRejects:
        opened.append(KeptRejects())
        return opened[-1]

    problems = Problems("skip", open_rejects)
    problems.close()
    assert not opened
    problems.reject("x.tsv", 1, "why", "two\nlines")
    problems.reject("y.tsv", 2, "why", b"tab\t\xe4")
    problems.close()
    assert opened[0].text == "file\tline\treason\ttext\nx.tsv\t1\twhy\ttwo\\nlines\ny.tsv\t2\twhy\ttab\\t\\\\xe4\n"
    assert len(opened) == 1
    assert problems.examples == {"rejected_lines": "x.tsv:1: why"}


def test_a_surrogate_in_the_text_cannot_break_the_rejects_file(
    problems: Callable[[str], Problems], rejects: KeptRejects
) -> None:
    kept = problems("skip")
    kept.reject("x.tsv", 1, "why", "\ud800")
    kept.close()
    assert rejects.text.splitlines()[1] == "x.tsv\t1\twhy\t\\ud800"


@pytest.mark.parametrize(
    ("warning", "example", "text"),
    [
        ("train_duplicates", "train.tsv:3", "train_duplicates: 1,234, first at train.tsv:3"),
        ("train_test_inverses", "a and b", "train_test_inverses: 1,234, a and b"),
        ("columns_left_out", "x.csv: weight", "columns_left_out: 1,234, such as x.csv: weight"),
        ("held_out_short", None, "held_out_short: 1,234"),
    ],
)
def test_warnings_in_words(warning: str, example: str | None, text: str) -> None:
    assert warning_text(warning, 1234, example) == text
