"""Configurations that name a scorer, its options and its width."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distkg.config import ConfigError, ModelConfig
from distkg.embedding.scorers import SCORERS, make_scorer
from distkg.registry import UnknownNameError


def test_the_known_scorers() -> None:
    expected = "atth complex conve cp distmult hake interht murp pairre quate refh rescal rotate rote roth rotl simple "
    expected += "trans transe triplere tucker"
    assert list(SCORERS) == expected.split()


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"no scorer named 'rotat'\. Did you mean 'rotate'\? Known: atth"):
        make_scorer(ModelConfig(name="rotat"))


@pytest.mark.parametrize(
    ("name", "dim", "options", "message"),
    [
        ("distmult", 4, {"norm": "l1"}, r"model\.options\.norm: .*not permitted.* Options of distmult: distance"),
        ("transe", 4, {"norn": "l1"}, r"model\.options\.norn: .*not permitted.* Options of transe: norm"),
        ("transe", 4, {"norm": "l3"}, r"model\.options\.norm: .*'l1', 'l2' or 'squared_l2'"),
        ("rotl", 4, {"alpha": 0}, r"model\.options\.alpha: .*greater than 0"),
        ("tucker", 4, {"input_dropout": 1.0}, r"model\.options\.input_dropout: .*less than 1"),
        ("complex", 5, {}, r"model\.dim=5: complex needs a multiple of 2; try 6"),
        ("rotate", 7, {}, r"model\.dim=7: rotate needs a multiple of 2; try 8"),
        ("hake", 7, {}, r"model\.dim=7: hake needs a multiple of 2; try 8"),
        ("hake", 8, {"phase_weight": 0}, r"model\.options\.phase_weight: .*greater than 0"),
        ("simple", 7, {}, r"model\.dim=7: simple needs a multiple of 2; try 8"),
        ("rote", 7, {}, r"model\.dim=7: rote needs a multiple of 2; try 8"),
        ("rotl", 7, {}, r"model\.dim=7: rotl needs a multiple of 2; try 8"),
        ("roth", 7, {}, r"model\.dim=7: roth needs a multiple of 2; try 8"),
        ("refh", 7, {}, r"model\.dim=7: refh needs a multiple of 2; try 8"),
        ("atth", 7, {}, r"model\.dim=7: atth needs a multiple of 2; try 8"),
        ("murp", 4, {"curvature": -1}, r"model\.options\.curvature: .*'learned' or 'fixed'"),
        ("quate", 6, {}, r"model\.dim=6: quate needs a multiple of 4; try 8"),
        ("conve", 16, {"height": 3}, r"model\.options\.height=3: conve needs a divisor of model\.dim=16"),
        ("conve", 8, {}, r"model\.options\.kernel=3: conve's stacked image is only 8×2; lower kernel"),
    ],
)
def test_refusals_name_the_key_and_the_way_out(name: str, dim: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_scorer(ModelConfig(name=name, dim=dim, options=options))


@pytest.mark.parametrize("name", ["atth", "conve", "cp", "murp", "refh", "roth", "rotl", "tucker"])
def test_tied_inverse_is_refused_where_there_is_none(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.inverse: {name} has no closed form.*use `learned`"):
        make_scorer(ModelConfig(name=name, dim=16, inverse="tied"))


WIDTHS = {
    "atth": (17, 49),
    "complex": (16, 16),
    "conve": (17, 16),
    "cp": (32, 16),
    "distmult": (16, 16),
    "hake": (16, 24),
    "interht": (32, 16),
    "murp": (17, 33),
    "pairre": (16, 32),
    "quate": (16, 16),
    "refh": (17, 25),
    "rescal": (16, 256),
    "rotate": (16, 8),
    "rote": (16, 24),
    "roth": (17, 25),
    "rotl": (16, 24),
    "simple": (16, 16),
    "trans": (32, 48),
    "transe": (16, 16),
    "triplere": (16, 48),
    "tucker": (16, 16),
}


@pytest.mark.parametrize("name", list(SCORERS))
def test_widths_and_gradients_of_the_whole_score(name: str) -> None:
    """Rows of the stated widths go in, and every part of them that the score uses receives a gradient."""
    scorer = make_scorer(ModelConfig(name=name, dim=16)).eval()
    assert (scorer.entity_width, scorer.relation_width) == WIDTHS[name]
    generator = torch.Generator().manual_seed(0)
    anchor, answer = torch.randn(2, 3, scorer.entity_width, generator=generator).div(4).requires_grad_()
    relation = torch.randn(3, scorer.relation_width, generator=generator).div(4).requires_grad_()
    query, candidates = scorer.query(anchor, relation), scorer.candidates(answer)
    total = scorer.similarity.pairs(query, candidates).sum()
    to_anchor, to_relation, to_answer = torch.autograd.grad(total, (anchor, relation, answer))
    assert (to_relation != 0).any(dim=0).all()
    used = (to_anchor != 0) | (to_answer != 0)
    assert used.any(dim=0).all()


def test_options_are_resolved() -> None:
    tucker = make_scorer(ModelConfig(name="tucker", dim=24)).options.model_dump()
    assert tucker["relation_dim"] == 24
    conve = make_scorer(ModelConfig(name="conve", dim=200)).options.model_dump()
    assert (conve["height"], conve["channels"], conve["kernel"]) == (20, 32, 3)
