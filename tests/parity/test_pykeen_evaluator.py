"""Metrics agree with PyKEEN's rank-based evaluator, given the same scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pykeen.evaluation import RankBasedEvaluator
from small_model import SmallModel, random_model

from distkg.data.store.known_answers import KnownAnswers
from distkg.evaluation.metrics import metrics_by_side, ranking_metrics
from distkg.evaluation.ranking import rank_answers

ENTITIES, RELATIONS = 300, 4
OURS = {"mrr": "inverse_harmonic_mean_rank", "mean_rank": "arithmetic_mean_rank"} | {
    f"hits@{k}": f"hits_at_{k}" for k in (1, 3, 10)
}


def pykeen_results(model: SmallModel, triples: np.ndarray, facts: np.ndarray):
    """PyKEEN's metrics of the model's scores, known facts masked by NaN as its own filter does."""
    evaluator = RankBasedEvaluator(filtered=True, clear_on_finalize=True)
    known = {(h, r, t) for h, r, t in facts.tolist()}
    for target in ("tail", "head"):
        for triple in triples.tolist():
            head, relation, tail = triple
            tails = target == "tail"
            anchor, answer = (head, tail) if tails else (tail, head)
            query = model.query(
                model.entities.whole[[anchor]], torch.tensor([relation if tails else relation + RELATIONS])
            )
            scores = model.scorer.similarity.scores(query, model.entities.whole).double()
            true = scores[:, answer].clone()[:, None]
            for e in range(ENTITIES):
                if e != answer and ((head, relation, e) if tails else (e, relation, tail)) in known:
                    scores[0, e] = torch.nan
            evaluator.process_scores_(torch.tensor([triple]), target, scores, true_scores=true)
    return evaluator.finalize()


@pytest.mark.parametrize("integers", [True, False], ids=["ties", "no ties"])
def test_metrics_agree(integers: bool) -> None:
    model = SmallModel(*random_model(ENTITIES, RELATIONS, 6, seed=0, integers=integers))
    rng = np.random.default_rng(1)
    facts = rng.integers(0, [40, RELATIONS, ENTITIES], (900, 3)).astype(np.int32)
    triples = facts[:120]
    theirs = pykeen_results(model, triples, facts)
    ranking = rank_answers(model, triples, KnownAnswers.from_triples(facts, RELATIONS))
    ours = {"both": ranking_metrics(ranking), **metrics_by_side(ranking, RELATIONS)}
    for side, metrics in ours.items():
        for name, their_name in OURS.items():
            expected = theirs.get_metric(f"{side}.realistic.{their_name}")
            # PyKEEN averages in float32, whose step is above 1e-6 at a mean rank of 100.
            tolerance = {"rel": 1e-7} if name == "mean_rank" else {"abs": 1e-6}
            assert metrics[name] == pytest.approx(expected, **tolerance), (side, name)
        for kind in ("optimistic", "pessimistic"):
            expected = theirs.get_metric(f"{side}.{kind}.inverse_harmonic_mean_rank")
            assert metrics[f"mrr_{kind}"] == pytest.approx(expected, abs=1e-6)
    assert (ranking.equal.sum() > 100) == integers
