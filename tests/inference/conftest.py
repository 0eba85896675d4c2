from __future__ import annotations

from pathlib import Path

import pytest

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store

SPLITS = {
    "train": "anna likes ben|anna likes carl|ben likes carl|dora likes anna|carl knows dora|emil knows anna",
    "valid": "ben knows emil",
    "test": "anna likes dora|emil likes ben",
}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Five people, two relations, nine facts."""
    folder = tmp_path_factory.mktemp("people")
    for split, facts in SPLITS.items():
        lines = [fact.replace(" ", "\t") for fact in facts.split("|")]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    prepare(str(folder), str(folder / "store"))
    return Store.open(str(folder / "store"))


@pytest.fixture
def queries_file(tmp_path: Path) -> Path:
    path = tmp_path / "queries.tsv"
    path.write_text("anna\tlikes\tforward\nanna\tlikes\tinverse\nemil\tknows\tforward\n")
    return path
