"""The NumPy lines of docs/export.md give the scorers' own scores."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from distkg.config import ModelConfig
from distkg.embedding.scorers import SCORERS, Scorer, make_scorer

DOC = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
ENTITIES, RELATIONS, DIM = 7, 3, 16
CASES: list[tuple[str, str, dict[str, Any]]] = [(name, "learned", {}) for name in SCORERS]
CASES += [(name, "tied", {}) for name in SCORERS if SCORERS[name].tied_inverse]
CASES += [
    ("transe", "learned", {"norm": "l2"}),
    ("transe", "tied", {"norm": "squared_l2"}),
    ("rote", "tied", {"bias": True}),
    ("rotl", "learned", {"alpha": 0.3}),
    ("rotl", "learned", {"relation_alpha": True}),
    *((name, "learned", {"distance": "squared_l2"}) for name in ("distmult", "rotate", "rotl")),
    ("triplere", "tied", {"offset": 0.0}),
    ("hake", "tied", {"gamma": 3.0, "modulus_weight": 2.0}),
    ("roth", "learned", {"bias": False}),
    ("murp", "learned", {"curvature": "fixed"}),
    ("tucker", "learned", {"relation_dim": 5}),
    ("conve", "learned", {"height": 2, "kernel": 2, "channels": 3}),
]


def sections() -> dict[str, str]:
    """Scorer name -> the code under its heading."""
    parts = re.split(r"^### (\w+)\n", DOC.split("## Scores", 1)[1], flags=re.MULTILINE)
    return {name: "\n".join(BLOCK.findall(body)) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def loading() -> str:
    return "\n".join(BLOCK.findall(DOC.split("## Loading", 1)[1].split("## Scores", 1)[0]))


def exported(folder: Path, name: str, inverse: str, options: dict[str, Any]) -> tuple[Scorer, Any, Any]:
    """Write an export whose every term counts; give the scorer, entity rows and relation rows."""
    torch.manual_seed(3)
    config = ModelConfig.model_validate({"name": name, "dim": DIM, "inverse": inverse, "options": options})
    scorer = make_scorer(config).eval()
    for key, buffer in scorer.state_dict().items():
        if buffer.is_floating_point() and ("norm" in key or "running" in key):
            buffer.uniform_(0.5, 1.5)
    entities = torch.randn(ENTITIES, scorer.entity_width) / 2
    relations = torch.randn(RELATIONS * (2 if inverse == "learned" else 1), scorer.relation_width) / 2
    save_file({"vectors": entities}, folder / "entities.safetensors")
    save_file({"vectors": relations, **scorer.state_dict()}, folder / "relations.safetensors")
    facts = {"scorer": name, "dim": DIM, "num_relations": RELATIONS, "inverse": inverse}
    facts["options"] = scorer.options.model_dump()
    (folder / "model.json").write_text(json.dumps(facts))
    return scorer, entities, relations


def relation_rows(scorer: Scorer, relations: torch.Tensor) -> torch.Tensor:
    """The rows of all 2R relation ids."""
    if len(relations) == 2 * RELATIONS:
        return relations
    return torch.cat((relations, scorer.inverse(relations)))


def test_every_scorer_has_its_lines() -> None:
    assert sorted(sections()) == sorted(SCORERS)


@pytest.mark.parametrize(("name", "inverse", "options"), CASES)
def test_lines_give_the_scorers_scores(
    name: str, inverse: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, entities, relations = exported(tmp_path, name, inverse, options)
    monkeypatch.chdir(tmp_path)
    code = compile(loading() + sections()[name], f"docs/export.md:{name}", "exec")
    rows = relation_rows(scorer, relations)
    for anchor, relation, answer in [(0, 0, 1), (2, 2, 3), (4, 3, 5), (6, 5, 6)]:
        names: dict[str, Any] = {"anchor": anchor, "relation": relation, "answer": answer}
        exec(code, names)
        with torch.no_grad():
            query = scorer.query(entities[anchor, None], rows[relation, None])
            expected = scorer.similarity.pairs(query, scorer.candidates(entities[answer, None])).item()
        assert np.isclose(names["score"], expected, rtol=1e-4, atol=1e-4), (anchor, relation, answer)
