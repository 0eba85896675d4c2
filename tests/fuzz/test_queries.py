"""Files of queries, and where their answers go."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.harness import anything, few, hold, lines_of, mutated_bytes
from tests.fuzz.world import SAID, World

pytestmark = pytest.mark.timeout(14400)


@few(12)
@given(data=st.data(), kind=st.sampled_from([".tsv", ".parquet"]))
def test_a_damaged_file_of_queries_is_named_and_no_query_is_lost(
    data: st.DataObject, kind: str, world: World, tmp_path: Path
) -> None:
    file, output = tmp_path / "damaged_queries.tsv", tmp_path / f"answers{kind}"
    output.unlink(missing_ok=True)
    content = data.draw(mutated_bytes(SAID["queries.tsv"].encode()))
    file.write_bytes(content)
    line = ["predict", str(world.run), "--queries", str(file), "--output", str(output), "--known", "keep", "--top", "1"]
    result = hold("queries", line, repr(content), [file.name])
    assert output.exists() == (result.exit_code == 0)
    if result.exit_code == 0:
        answers = (
            pq.read_table(output).num_rows if kind == ".parquet" else len(output.read_text("utf-8").splitlines()) - 1
        )
        assert answers == len([line for line in lines_of(content) if line.strip()]), (content, result.output)


@few(5)
@given(name=anything)
def test_an_output_that_cannot_be_written_is_refused_before_the_work(name: str, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "o"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for place in (name, f"{folder}/{name}", f"{folder}/{name}/x.tsv", f"{folder}/{name}.tsv"):
        line = ["predict", str(world.run), "--queries", str(world.said / "queries.tsv"), f"--output={place}"]
        hold("outputs", line, names=["--output", "argument", place.strip(), "predictions", "folder"])


@pytest.mark.parametrize(
    "command", ["export", "report", "import-checkpoint", "inductive-split", "prepare", "train", "extend"]
)
@pytest.mark.parametrize("place", ["file", "file/below", "closed/new", "full.html", "x" * 300, "a/" * 2500, "run"])
def test_a_place_that_cannot_be_made_is_a_message(command: str, place: str, world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "closed").write_text("x")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "other").write_text("x")
    to = str(tmp_path / place)
    line = {
        "export": ["export", str(world.run), "--to", to],
        "report": ["report", str(world.run), "--to", to],
        "import-checkpoint": ["import-checkpoint", str(world.checkpoint), "--to", to],
        "inductive-split": [
            "inductive-split",
            str(world.folder / "generated"),
            "--to",
            to,
            "--kind=entities",
            "--seed=1",
        ],
        "prepare": ["prepare", str(world.source), "--store", to],
        "train": ["train", str(world.config), "--run", to],
        "extend": ["extend", str(world.run), str(world.said / "new.tsv"), "--store", f"{tmp_path}/s", "--to", to],
    }[command]
    result = hold("outputs", line, names=["file", "closed", "name", "run", "full", "path"])
    if place != "full.html" and not (place == "run" and command in ("export", "import-checkpoint", "inductive-split")):
        # A report may replace a file; exports, models and the two stores of a split may lie beside other files.
        assert result.exit_code == 2 or (command == "report" and place == "file"), result.output
    assert (tmp_path / "run" / "other").read_text() == "x"
