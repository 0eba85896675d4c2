import unicodedata

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kept_rejects import KeptRejects

from distkg.data import label_forms
from distkg.data.label_forms import WARNING, plain_forms, warn_of_forms
from distkg.data.readers.problems import Problems, warning_text


def warned(labels: list[str]) -> tuple[int, str | None]:
    problems = Problems("fail", KeptRejects)
    warn_of_forms(pa.array(labels, pa.large_utf8()), problems)
    return problems.counts[WARNING], problems.examples.get(WARNING)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Paris", "Paris "),
        ("New York", "New\u00a0York"),
        ("New York", "New  York"),
        ("New York", " New\tYork"),
        ("Café", "Cafe\u0301"),
        ("Paris", "Pa\u200bris"),
        ("ＡＢＣ", "ABC"),
        ("a\u2003b", "a\u3000b"),
    ],
)
def test_one_thing_with_two_labels_is_counted(first: str, second: str) -> None:
    count, example = warned(["x", first, "y", second])
    assert count == 1
    assert example is not None
    assert len(set(example.split(" and "))) == 2


def test_others_are_not() -> None:
    assert warned(["Paris", "paris", "/m/0a", "/m/0A", "a b", "ab", "x\u00b3", " lonely ", "é", "e"])[0] == 0


def test_each_label_beyond_the_first_counts() -> None:
    assert warned(["a", "a ", " a", "b", "b ", "c "])[0] == 3
    problems = Problems("fail", KeptRejects)
    warn_of_forms(pa.array(["Paris", "Paris "], pa.large_utf8()), problems)
    text = warning_text(WARNING, problems.counts[WARNING], problems.examples[WARNING])
    assert text == "labels_that_differ_in_spaces_or_unicode_form: 1, such as 'Paris' and 'Paris '"


LABELS = st.lists(st.text(st.sampled_from("ab e\u0301é\u00a0\u200b²2ﬁfi\t"), min_size=1, max_size=4), unique=True)


@given(labels=LABELS, chunk=st.integers(1, 5))
def test_as_a_dictionary_by_plain_form_counts(labels: list[str], chunk: int) -> None:
    def plain(label: str) -> str:
        return " ".join(unicodedata.normalize("NFKC", label).replace("\u200b", "").split())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_forms, "CHUNK", chunk)
        assert warned(labels)[0] == len(labels) - len({plain(label) for label in labels})
    assert plain_forms(pa.array(labels, pa.large_utf8())).to_pylist() == [plain(label) for label in labels]
