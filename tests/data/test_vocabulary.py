import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distkg.data.errors import IngestError
from distkg.data.store import vocabulary
from distkg.data.store.vocabulary import Vocabulary

LABELS = st.lists(st.text(max_size=6), max_size=80)


def test_ids_follow_the_order_in_which_labels_are_met() -> None:
    words = Vocabulary()
    assert words.encode(pa.array(["b", "a", "b", "", "ä"])).tolist() == [0, 1, 0, 2, 3]
    assert words.encode(pa.array(["ä", "c", ""])).tolist() == [3, 4, 2]
    assert words.labels().to_pylist() == ["b", "a", "", "ä", "c"]
    assert len(words) == 5


def test_a_slice_of_an_array_is_read_as_the_slice() -> None:
    words = Vocabulary()
    assert words.encode(pa.array(["x", "y", "z", "y"]).slice(1, 2)).tolist() == [0, 1]
    assert words.labels().to_pylist() == ["y", "z"]


def test_a_prefix_is_another_label() -> None:
    assert Vocabulary().encode(pa.array(["ab", "a", "abc", "ab"])).tolist() == [0, 1, 2, 0]


@given(batches=st.lists(LABELS, max_size=5))
def test_it_agrees_with_a_dictionary(batches: list[list[str]]) -> None:
    words, known = Vocabulary(), dict[str, int]()
    for batch in batches:
        expected = [known.setdefault(label, len(known)) for label in batch]
        assert words.encode(pa.array(batch, pa.utf8())).tolist() == expected
    assert words.labels().to_pylist() == list(known)


def test_ids_survive_growth() -> None:
    words, labels = Vocabulary(), [f"entity {number}" for number in range(20_000)]
    for start in range(0, 20_000, 1000):
        assert words.encode(pa.array(labels[start : start + 1000])).tolist() == list(range(start, start + 1000))
    assert words.encode(pa.array(labels[::-1])).tolist() == list(range(19_999, -1, -1))
    assert words.labels().to_pylist() == labels


def test_labels_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiled table cannot be patched; its plain Python form can, with a hash that always collides.
    monkeypatch.setattr(vocabulary, "_hash", lambda data, low, high: vocabulary.np.uint64(7))
    monkeypatch.setattr(vocabulary, "_encode", vocabulary._encode.py_func)
    assert Vocabulary().encode(pa.array(["ab", "cd", "ef", "cd", "ab"])).tolist() == [0, 1, 2, 1, 0]


def test_more_labels_than_ids_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "MOST_LABELS", 3)
    with pytest.raises(IngestError, match="more than 3 labels"):
        Vocabulary().encode(pa.array(["a", "b", "c", "d"]))
