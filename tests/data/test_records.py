import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from distkg.data.readers.records import BROKEN, SOUND, UNCLOSED, find_records, split_fields, split_records


def test_records_lines_and_states() -> None:
    starts, lines, state = find_records(b'a,"b\nc"\nd,"e"f\ng,"h\n', ",")
    assert starts.tolist() == [0, 8, 15, 20]
    assert lines.tolist() == [0, 2, 3, 4]
    assert state.tolist() == [SOUND, BROKEN, UNCLOSED]


def test_a_record_that_does_not_close_is_its_line() -> None:
    assert split_records('a,"b\nc"\nd,"e\nf,g', ",") == [('a,"b\nc"', 2), ('d,"e', 1), ("f,g", 1)]


def test_quotes_within_a_field_are_characters() -> None:
    assert split_fields('5" disk,r,"a ""b"""', ",") == ['5" disk', "r", 'a "b"']
    assert split_fields('a,"b"c', ",") is None
    assert split_fields('a,"b', ",") is None
    assert split_fields("", ",") == [""]


CELL = st.text(st.sampled_from('ab",;\n\r é'), max_size=6)


@given(rows=st.lists(st.lists(CELL, min_size=2, max_size=4), max_size=6), quote_all=st.booleans())
def test_what_pythons_writer_writes_is_read_back(rows: list[list[str]], quote_all: bool) -> None:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL if quote_all else csv.QUOTE_MINIMAL).writerows(rows)
    text = file.getvalue()
    assert [split_fields(record, ",") for record, _ in split_records(text, ",")] == rows
    starts, lines, state = find_records(text.encode(), ",")
    assert len(starts) == len(rows) + 1
    assert not state.any()
    assert lines.tolist() == [text.encode()[:start].count(b"\n") for start in starts]
