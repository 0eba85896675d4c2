"""The commands of the README, run as they are printed, on a graph of its shape with a time limit of seconds."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from website import repository, shell_blocks

SHORTER = {"time_limit_seconds=120": "time_limit_seconds=5", "--trials 12": "--trials 1"}
ME = "tests/documentation/test_readme.py::test_the_five_minutes_run_as_printed"


def make_wordnet(folder: Path) -> None:
    """Write a small graph with the label and the relation that the README asks about."""
    draw = random.Random(0)
    synsets = ["02084071", *(f"{number:08d}" for number in draw.sample(range(10**7), 199))]
    facts = {
        (synsets[draw.randrange(200)], relation, synsets[draw.randrange(200)])
        for relation in ("_hypernym", "_has_part", "_also_see")
        for _ in range(500)
    }
    facts.add(("02084071", "_hypernym", synsets[1]))
    lines = ["\t".join(fact) + "\n" for fact in sorted(facts)]
    draw.shuffle(lines)
    folder.mkdir(parents=True)
    for name, part in {"train": lines[200:], "valid": lines[:100], "test": lines[100:200]}.items():
        (folder / f"{name}.tsv").write_text("".join(part), "utf-8")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_the_five_minutes_run_as_printed(tmp_path: Path) -> None:
    make_wordnet(tmp_path / "data" / "WN18RR")
    readme = (repository.ROOT / "README.md").read_text("utf-8")
    marked = [block for block in shell_blocks.blocks(readme) if block.mark and block.mark.text == ME]
    printed = [line for block in marked for line in shell_blocks.commands(block.code)]
    assert [line.split()[1] for line in printed] == [
        *("prepare", "plan", "train", "evaluate", "predict", "export"),
        *("tune", "train"),
    ]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment["PYTHONPATH"] = str(repository.ROOT)
    for line in printed:
        for long, short in SHORTER.items():
            line = line.replace(long, short)
        words = [sys.executable, "-m", *line.split()]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.fail(f"{line}\n{done.stdout}\n{done.stderr}")
    assert {"report.html", "result.json"} <= {path.name for path in (tmp_path / "runs" / "best").iterdir()}
    assert (tmp_path / "exported" / "wn18rr" / "entities.safetensors").is_file()
    assert re.search(r"^model:", (tmp_path / "searches" / "wn18rr" / "best.yaml").read_text(), re.MULTILINE)
