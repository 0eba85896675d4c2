"""First rows have the scale that the papers give, whatever part of the table is filled at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from distkg.config import ModelConfig
from distkg.embedding.scorers import SCORERS, Scorer, make_scorer

DIM, COUNT = 64, 3000


def build(name: str, **options: object) -> Scorer:
    return make_scorer(ModelConfig(name=name, dim=DIM, options=options))


def fresh(scorer: Scorer, count: int = COUNT, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    entities = torch.full((count, scorer.entity_width), math.nan)
    relations = torch.full((count, scorer.relation_width), math.nan)
    scorer.init_entities(entities, generator)
    scorer.init_relations(relations, generator)
    return entities, relations


def assert_uniform(rows: Tensor, bound: float) -> None:
    assert rows.abs().max() <= bound
    assert rows.abs().max() >= 0.99 * bound
    assert rows.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert rows.mean().item() == pytest.approx(0, abs=0.02 * bound)


def assert_normal(rows: Tensor, deviation: float) -> None:
    assert rows.std().item() == pytest.approx(deviation, rel=0.02)
    assert rows.abs().max() > 3.5 * deviation


@pytest.mark.parametrize("name", ["complex", "cp"])
def test_a_thousandth_of_a_standard_normal(name: str) -> None:
    for rows in fresh(build(name)):
        assert_normal(rows, 1e-3)


def test_transe_starts_at_length_one() -> None:
    for rows in fresh(build("transe")):
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(COUNT))


@pytest.mark.parametrize("name", ["distmult", "rescal", "tucker"])
def test_variance_one_over_dim(name: str) -> None:
    entities, _ = fresh(build(name))
    assert_uniform(entities, math.sqrt(3 / 64))
    assert entities.square().sum(1).mean().item() == pytest.approx(1, rel=0.02)


def test_rescal_matrices_keep_length() -> None:
    _, relations = fresh(build("rescal"))
    assert_uniform(relations, math.sqrt(6 / (64 + 64)))


def test_tucker_core_and_relations() -> None:
    scorer = build("tucker", relation_dim=30)
    assert_uniform(scorer.get_parameter("core"), 1)
    assert_uniform(fresh(scorer)[1], math.sqrt(3 / 30))


def test_rotate_follows_its_margin() -> None:
    entities, phases = fresh(build("rotate", gamma=6.0))
    assert_uniform(entities, 8 / 32)
    assert_uniform(phases, math.pi)


def test_pairre_follows_its_margin() -> None:
    for rows in fresh(build("pairre", gamma=10.0)):
        assert_uniform(rows, 12 / 64)


@pytest.mark.parametrize("name", ["triplere", "interht", "trans"])
def test_projections_and_auxiliary_vectors_follow_the_margin(name: str) -> None:
    for rows in fresh(build(name, gamma=10.0)):
        assert_uniform(rows, 12 / 64)


def test_hake_starts_at_moduli_of_one_without_biases() -> None:
    scorer = build("hake", gamma=6.0, modulus_weight=3.0, phase_weight=0.25)
    entities, relations = fresh(scorer)
    assert_uniform(entities, 8 / 32)
    assert_uniform(relations[:, :32], 8 / 32)
    assert torch.equal(relations[:, 32:], torch.cat((torch.ones(COUNT, 32), torch.zeros(COUNT, 32)), 1))
    assert scorer.get_parameter("weights").tolist() == [3.0, 0.25 * 8 / 32]


def test_simple_is_uniform() -> None:
    for rows in fresh(build("simple")):
        assert_uniform(rows, 6 / math.sqrt(32))


def test_quate_draws_quaternions_in_polar_form() -> None:
    bound = 1 / math.sqrt(2 * 16)
    for rows in fresh(build("quate")):
        moduli = rows.view(COUNT, 4, 16).norm(dim=1)
        assert moduli.max() <= bound * 1.0001
        assert moduli.mean().item() == pytest.approx(bound / 2, rel=0.02)  # |φ| is uniform in [0, bound]
        real_share = rows[:, :16].square().mean() / moduli.square().mean()
        assert real_share.item() == pytest.approx(0.5, rel=0.03)  # E cos² θ


def test_conve_bias_starts_at_zero() -> None:
    entities, relations = fresh(build("conve"))
    assert torch.equal(entities[:, 64], torch.zeros(COUNT))
    assert_normal(entities[:, :64], 1 / 8)
    assert_normal(relations, 1 / 8)


@pytest.mark.parametrize("name", ["rote", "rotl"])
def test_rotations_and_small_translations(name: str) -> None:
    entities, relations = fresh(build(name))
    assert_normal(entities, 1e-3)
    assert_uniform(relations[:, :32], math.pi)
    assert_normal(relations[:, 32:], 1e-3)


def test_distmult_by_distance_starts_with_signs_at_random() -> None:
    entities, relations = fresh(build("distmult", distance="squared_l2"))
    assert_normal(entities, 1e-3)
    signs = relations.round()
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.05
    assert_normal(relations - signs, 1e-3)


def test_rote_biases_start_at_zero() -> None:
    entities, _ = fresh(build("rote", bias=True))
    assert torch.equal(entities[:, 64], torch.zeros(COUNT))
    assert_normal(entities[:, :64], 1e-3)


@pytest.mark.parametrize(("name", "angles"), [("roth", 32), ("refh", 32), ("atth", 64)])
def test_hyperbolic_rotations_and_reflections(name: str, angles: int) -> None:
    entities, relations = fresh(build(name))
    assert_normal(entities[:, :64], 1e-3)
    assert torch.equal(entities[:, 64], torch.zeros(COUNT))
    assert_uniform(relations[:, :angles], math.pi)
    assert_normal(relations[:, angles:-1], 1e-3)
    assert torch.equal(relations[:, -1], torch.ones(COUNT))


def test_murp_diagonals_are_uniform() -> None:
    entities, relations = fresh(build("murp", bias=False, curvature="fixed"))
    assert_normal(entities, 1e-3)
    assert_uniform(relations[:, :64], 1)
    assert_normal(relations[:, 64:], 1e-3)


@pytest.mark.parametrize("name", list(SCORERS))
def test_scale_does_not_depend_on_the_part_filled(name: str) -> None:
    scorer = build(name)
    for few, many in zip(fresh(scorer, 40), fresh(scorer, 4000), strict=True):
        assert few.std().item() == pytest.approx(many.std().item(), rel=0.06)


@pytest.mark.parametrize("name", list(SCORERS))
def test_a_seed_gives_the_same_rows(name: str) -> None:
    scorer = build(name)
    first, second, other = fresh(scorer, 5), fresh(scorer, 5), fresh(scorer, 5, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("name", list(SCORERS))
def test_fills_bfloat16_tables(name: str) -> None:
    scorer = build(name)
    table = torch.full((500, scorer.entity_width), math.nan, dtype=torch.bfloat16)
    scorer.init_entities(table, torch.Generator().manual_seed(0))
    assert table.float().std().item() == pytest.approx(fresh(scorer)[0].std().item(), rel=0.05)
