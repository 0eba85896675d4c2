"""A small generated graph, made once."""

from pathlib import Path

import pytest

from distkg.data.generate import generate


@pytest.fixture(scope="session")
def small_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of a store with 150 entities, 6 relations and about 1,500 triples."""
    store = tmp_path_factory.mktemp("graphs") / "small"
    generate(str(store), entities=150, relations=6, triples=1500, seed=3)
    return str(Path(store))
