"""Scores with shared and kept relation states, against the model on one query at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_facts import FACTS, graph
from torch import Tensor

from distkg.foundation.footprint import cached_states
from distkg.foundation.graph_scorer import CACHE_BYTES, GraphScorer, RelationStateCache
from distkg.foundation.graphs.entity_tokens import EntityTokens
from distkg.foundation.graphs.sampling import SubgraphSampler
from distkg.foundation.model_files import make_model
from distkg.foundation.models import FoundationModel, KnowledgeGraph

SMALL = {"width": 8, "layers": 2, "hidden": 8}
MODELS: dict[str, dict[str, Any]] = {
    "ultra": SMALL,
    "motif": SMALL,
    "semma": SMALL,
    "tofu": {**SMALL, "modalities": {"text": 4}, "prompts": 2, "token_width": 4, "message_width": 4},
    "trix": {"width": 8, "layers": 2, "hidden": 8},
    "nbfnet": {"relations": 2, "width": 8, "layers": 2},
    "rgcn": {"entities": 5, "relations": 2, "width": 8},
}
# Relation 2 is the inverse of 0; two queries occur twice.
QUERIES = np.array([[0, 1], [3, 0], [0, 1], [2, 2], [4, 1], [3, 0], [1, 3]])


def made(name: str, **options: Any) -> FoundationModel:
    torch.manual_seed(1)
    model = make_model(name, {**MODELS[name], **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # some are initialised with zeros, which would hide what they multiply
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def full_graph() -> KnowledgeGraph:
    """With text vectors of relations and tokens of entities."""
    generator = torch.Generator().manual_seed(0)
    tokens = EntityTokens.of(torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0], [0, 2]]), torch.eye(4))
    text = torch.randn(4, 8, generator=generator)
    return KnowledgeGraph(torch.tensor(FACTS), 5, 2, relation_text=text, tokens={"text": tokens})


@torch.no_grad()
def one_by_one(model: FoundationModel, whole: KnowledgeGraph, queries: np.ndarray) -> Tensor:
    return torch.cat([model(whole, *torch.tensor([query]).unbind(1)) for query in queries.tolist()])


@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_the_model_on_one_query_at_a_time(name: str) -> None:
    model, whole = made(name), full_graph()
    scorer = GraphScorer(model, whole)
    expected = one_by_one(model, whole, QUERIES)
    assert not torch.allclose(expected[0], expected[4])
    for _ in range(2):  # from states that were computed, and from states that were kept
        torch.testing.assert_close(scorer.scores(QUERIES), expected, rtol=1e-4, atol=1e-5)


def test_scores_of_sampled_subgraphs_are_from_the_same_states() -> None:
    model, whole = made("ultra"), full_graph()
    scorer = GraphScorer(model, whole, SubgraphSampler(whole, [100, 100]))
    for _ in range(2):
        torch.testing.assert_close(scorer.scores(QUERIES), one_by_one(model, whole, QUERIES), rtol=1e-4, atol=1e-5)
    assert scorer.cache.encoded == 2


@pytest.mark.parametrize(("name", "states"), [("ultra", 2), ("semma", 2), ("motif", 4), ("tofu", 4), ("trix", 0)])
def test_each_relation_is_encoded_once(name: str, states: int) -> None:
    scorer = GraphScorer(made(name), full_graph())
    scorer.scores(QUERIES[:2])
    assert scorer.cache.encoded == min(states, 2)
    scorer.scores(QUERIES)
    scorer.scores(QUERIES[::-1])
    assert scorer.cache.encoded == states


def test_repeated_questions_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = made("ultra"), graph()
    asked: list[int] = []
    scores = model.scores

    def counted(*arguments: Any, **named: Any) -> Tensor:
        asked.append(len(arguments[2]))
        return scores(*arguments, **named)

    monkeypatch.setattr(model, "scores", counted)
    rows = GraphScorer(model, whole).scores(QUERIES)
    assert asked == [5]
    rows[0] = -torch.inf  # callers hide known answers of one row
    assert rows[2].isfinite().all()

    ranker = make_model("trix_relations", {"width": 4, "rounds": 1, "layers": 1}).eval()
    pairs = np.array([[0, 3], [1, 2], [0, 3]])
    found = GraphScorer(ranker, whole).relation_scores(pairs)
    with torch.no_grad():
        expected = ranker.relation_scores(whole, *torch.from_numpy(pairs).unbind(1))
    torch.testing.assert_close(found, expected)


def of_relation(relation: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([0]), torch.tensor([relation])


@torch.no_grad()
def test_the_states_used_last_are_kept_within_the_limit() -> None:
    bytes_of_one = 2 * 2 * 8 * 4  # float32 states of width 8, of two relations and their inverses
    cache = RelationStateCache(made("motif"), graph(), limit=2 * bytes_of_one + 1)
    for relation, encoded in ((0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4), (0, 4)):
        cache.states_of(*of_relation(relation))
        assert cache.encoded == encoded
        assert cache.nbytes <= 2 * bytes_of_one
    states, place = cache.states_of(torch.zeros(4, dtype=torch.int64), torch.arange(4))
    assert states.shape == (4, 4, 8), "a batch may need more than is kept"
    assert place is not None
    assert place.tolist() == [0, 1, 2, 3]
    assert cache.nbytes == 2 * bytes_of_one
    small = RelationStateCache(made("motif"), graph(), limit=bytes_of_one - 1)
    small.states_of(*of_relation(0))
    assert small.nbytes == 0


def in_place(model: FoundationModel) -> None:
    next(model.parameters()).mul_(-2.0)


def by_data(model: FoundationModel) -> None:
    first = next(model.parameters())
    first.data = -2.0 * first.data


def behind_autograd(model: FoundationModel) -> None:
    """As an optimizer that holds the values in one buffer does."""
    next(model.parameters()).detach().numpy()[...] *= -2.0


@torch.no_grad()
@pytest.mark.parametrize("change", [in_place, by_data, behind_autograd])
def test_other_weights_give_other_states(change: Callable[[FoundationModel], None]) -> None:
    model, whole = made("ultra"), graph()
    scorer = GraphScorer(model, whole)
    before = scorer.scores(QUERIES)
    change(model)
    after = scorer.scores(QUERIES)
    assert not torch.allclose(before, after, rtol=1e-3)
    torch.testing.assert_close(after, one_by_one(model, whole, QUERIES), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_in_training_mode_nothing_is_kept() -> None:
    cache = RelationStateCache(made("motif").train(), graph())
    first, place = cache.states_of(*of_relation(1))
    again, _ = cache.states_of(*of_relation(1))
    assert place is None
    assert not torch.equal(first, again), "dropout is drawn anew"
    assert cache.nbytes == 0


def test_the_plan_counts_what_a_scorer_keeps() -> None:
    # 2R keys at most, each with 2R vectors of 8 numbers of 4 bytes.
    assert cached_states(made("ultra"), 10) == 20 * 20 * 8 * 4
    assert cached_states(made("motif"), 100_000) == CACHE_BYTES == 67_108_864
    assert cached_states(made("trix"), 10) == cached_states(made("rgcn"), 10) == 0
    assert cached_states(make_model("trix_relations", {}), 10) == 0
