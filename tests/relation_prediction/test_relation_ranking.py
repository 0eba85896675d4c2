"""Ranks of relations: numbers written by hand, plain sorting, and metrics of a store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import run_ranks
from torch import Tensor

from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store, StoreError
from distkg.data.store.known_relations import KnownRelations
from distkg.evaluation.ranking import Ranking
from distkg.evaluation.score_blocks import ScoreError
from distkg.foundation.graph_scorer import GraphScorer
from distkg.foundation.model_files import make_model
from distkg.foundation.models import KnowledgeGraph, UnsupportedQuestionError
from distkg.relation_prediction.ranking import evaluate_relations, rank_relations
from distkg.sharding.ranks import Ranks

ROWS = {(0, 1): [3.0, 2.0, 2.0, 1.0], (2, 1): [0.0, 5.0, 5.0, 5.0]}


def score(pairs: np.ndarray) -> Tensor:
    return torch.tensor([ROWS[(h, t)] for h, t in pairs.tolist()])


def test_ranks_written_by_hand() -> None:
    triples = np.array([[0, 2, 1], [2, 0, 1], [0, 0, 1]])
    plain = rank_relations(score, triples)
    assert plain.optimistic.tolist() == [2, 4, 1]
    assert plain.pessimistic.tolist() == [3, 4, 1]
    assert plain.queries.tolist() == [[0, 1], [2, 1], [0, 1]]
    assert plain.answers.tolist() == [2, 0, 0]
    facts = np.array([[0, 0, 1], [0, 2, 1], [2, 3, 1], [1, 1, 0]])
    filtered = rank_relations(score, triples, KnownRelations.of([facts], 3, 4))
    assert filtered.optimistic.tolist() == [1, 3, 1]
    assert filtered.pessimistic.tolist() == [2, 3, 1]


def by_sorting(scores: np.ndarray, relation: int, known: set[int]) -> float:
    """The mean of the best and the worst place among relations that compete."""
    rest = [scores[r] for r in range(len(scores)) if r != relation and r not in known]
    above, beside = sum(s > scores[relation] for s in rest), sum(s == scores[relation] for s in rest)
    return 1 + above + beside / 2


def ranked(ranks: Ranks) -> Ranking:
    generator = np.random.default_rng(4)
    triples = generator.integers(0, [6, 5, 6], (40, 3))
    table = torch.from_numpy(generator.integers(0, 4, (6, 6, 5)).astype(np.float32))
    known = KnownRelations.of([generator.integers(0, [6, 5, 6], (60, 3)), triples], 6, 5)
    ranking = rank_relations(lambda p: table[p[:, 0], p[:, 1]], triples, known, batch_size=3, ranks=ranks)
    for row, (h, r, t) in enumerate(triples.tolist()):
        facts = set(np.flatnonzero(known.mask(np.array([[h, t]]))[0]).tolist())
        assert ranking.realistic[row] == by_sorting(table[h, t].numpy(), r, facts)
    return ranking


def test_ranks_are_those_of_sorting() -> None:
    ranked(Ranks.single())


@pytest.mark.slow
def test_ranks_share_the_pairs_and_agree() -> None:
    single = ranked(Ranks.single())
    for each in run_ranks(2, ranked):
        assert each.greater.tolist() == single.greater.tolist()
        assert each.equal.tolist() == single.equal.tolist()


def test_broken_scores_name_their_pair() -> None:
    with pytest.raises(ScoreError, match="scores of relations from entity 2 to 1 are NaN or infinite"):
        rank_relations(lambda p: score(p).masked_fill(score(p) == 5, torch.nan), np.array([[0, 0, 1], [2, 0, 1]]))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    rows = np.unique(np.random.default_rng(0).integers(0, [8, 4, 8], (60, 3)), axis=0)
    rows = np.random.default_rng(1).permutation(rows)
    (tmp_path / "files").mkdir()
    for name, low, high in (("train", 0, 40), ("test", 40, len(rows))):
        text = "".join(f"e{h}\tr{r}\te{t}\n" for h, r, t in rows[low:high])
        (tmp_path / "files" / f"{name}.tsv").write_text(text)
    prepare(str(tmp_path / "files"), str(tmp_path / "store"))
    return Store.open(str(tmp_path / "store"))


@pytest.mark.parametrize("filtered", [True, False])
def test_metrics_of_a_store_are_those_of_its_scores(store: Store, filtered: bool) -> None:
    torch.manual_seed(0)
    model = make_model("trix_relations", {"width": 4, "rounds": 1, "layers": 1})
    found = evaluate_relations(model, store, filtered=filtered)
    facts = {tuple(fact) for split in ("train", "test") for fact in store.triples(split).tolist()}
    reasoner, places = GraphScorer(model, KnowledgeGraph.of_store(store)), []
    for h, r, t in store.triples("test").tolist():
        scores = reasoner.relation_scores(np.array([[h, t]]))[0].numpy()
        known = {other for other in range(4) if (h, other, t) in facts} if filtered else set()
        places.append((r, by_sorting(scores, r, known)))
    assert found["metrics"]["queries"] == len(places)
    assert found["metrics"]["mrr"] == pytest.approx(np.mean([1 / place for _, place in places]), abs=1e-3)
    labels = store.relation_labels().to_pylist()
    for row in found["by_relation"]:
        own = [1 / place for r, place in places if labels[r] == row["relation"]]
        assert row["mrr"] == pytest.approx(np.mean(own), abs=1e-3)
        assert row["queries"] == len(own)


def test_what_cannot_be_evaluated_is_said(store: Store) -> None:
    with pytest.raises(UnsupportedQuestionError, match="ultra ranks entities"):
        evaluate_relations(make_model("ultra", {"width": 4, "layers": 1, "hidden": 4}), store)
    with pytest.raises(StoreError, match=r"split 'valid' of .* holds no triples"):
        evaluate_relations(make_model("trix_relations", {"width": 4}), store, "valid")
