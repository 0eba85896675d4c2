"""What a foundation model begins with: weights of its own kind, or of the model that it grows from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distkg.config import ConfigError, RunConfig
from distkg.data.store.graph_store import Store
from distkg.data.store.manifest import Manifest
from distkg.foundation.initial_model import initial_model
from distkg.foundation.model_files import make_model, save_model
from distkg.foundation.models import FoundationModel, KnowledgeGraph

SMALL = {"width": 8, "layers": 2, "hidden": 8}
GRAPH = KnowledgeGraph(torch.tensor([(0, 0, 1), (1, 0, 2), (2, 1, 3)]), entities=4, relations=2)
ASKED = torch.tensor([0, 3]), torch.tensor([1, 2])


@pytest.fixture
def sizes(small_store: str) -> list[Manifest]:
    return [Store.open(small_store).manifest]


def saved(folder: Path, name: str, **options: Any) -> tuple[FoundationModel, str]:
    torch.manual_seed(3)
    model = make_model(name, {**SMALL, **options})
    save_model(model, folder / name)
    return model.eval(), str(folder / name)


def config(name: str, start: str, **options: Any) -> RunConfig:
    return RunConfig.model_validate({"model": {"name": name, "start": start, "options": options}})


def test_tofu_grows_from_ultra(tmp_path: Path, sizes: list[Manifest]) -> None:
    ultra, place = saved(tmp_path, "ultra")
    grown = initial_model(config("tofu", place, modalities={"text": 5}), sizes).eval()
    assert grown.options.model_dump() == {**SMALL, **grown.options.model_dump()}
    assert torch.equal(grown(GRAPH, *ASKED), ultra(GRAPH, *ASKED))


def test_a_model_goes_on_with_its_own_options_but_for_those_given(tmp_path: Path, sizes: list[Manifest]) -> None:
    model, place = saved(tmp_path, "tofu", modalities={"text": 5})
    found = initial_model(config("tofu", place, dropout=0.0), sizes).eval()
    assert found.options.model_dump() == {**model.options.model_dump(), "dropout": 0.0}
    assert torch.equal(found(GRAPH, *ASKED), model(GRAPH, *ASKED))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("trix", {}, r"model.start: \S+/ultra is ultra, and model.name is trix"),
        ("ultra", {"width": 16}, r'with \{"width": 16\} the weights of \S+/ultra do not fit, first entity_model\.'),
        ("ultra", {"layers": 1}, r'with \{"layers": 1\} the weights of \S+/ultra do not fit'),
        ("ultra", {"layers": 3}, r'with \{"layers": 3\} the weights of \S+/ultra do not fit'),
        ("tofu", {"layers": 1}, r'with \{"layers": 1\} the weights of \S+/ultra do not fit'),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, sizes: list[Manifest], name: str, options: dict[str, Any], message: str
) -> None:
    _, place = saved(tmp_path, "ultra")
    with pytest.raises(ConfigError, match=message):
        initial_model(config(name, place, **options), sizes)
