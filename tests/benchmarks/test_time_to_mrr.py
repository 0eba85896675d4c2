"""Time to a validation MRR: peers are ranked as distkg is, do the published work, and are timed without validations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SmallModel

from benchmarks.common import BenchmarkError, known_answers_of
from benchmarks.plain_complex import PlainComplEx, Setting, batches
from benchmarks.time_to_mrr import GRAPHS, Distkg, Peer, Point, Run, columns, graph_of, missed, validations
from benchmarks.validation_curve import Validation, ValidationCurve, distinct_queries
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.evaluation.metrics import ranking_metrics
from distkg.evaluation.ranking import rank_answers

FACTS = {
    "train": ["a r b", "c r d", "e s a", "b s e"],
    "valid": ["a r c"],
    "test": ["a r d"],
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("letters")
    for split, facts in FACTS.items():
        (folder / f"{split}.tsv").write_text("".join(fact.replace(" ", "\t") + "\n" for fact in facts))
    prepare(str(folder), str(folder / "store"))
    return Store.open(str(folder / "store"))


def scores_by_label(store: Store, tails: str, heads: str) -> torch.Tensor:
    """Scores of the entities a to e, in the order of their ids, for queries for tails and for heads: [2, N]."""
    labels = store.entity_labels().to_pylist()
    return torch.tensor([[float(row.split()["abcde".index(label)]) for label in labels] for row in (tails, heads)])


def test_a_peer_is_ranked_filtered_with_ties_halved_and_in_both_directions(store: Store) -> None:
    by_side = scores_by_label(store, "1 9 1 9 0", "2 3 5 1 4")

    def score(queries: np.ndarray) -> torch.Tensor:
        return by_side[torch.from_numpy(queries[:, 1] >= store.num_relations).long()]

    # (a, r) → c: b and d are known, a ties, e is below: rank 1.5. (c, r⁻¹) → a: c, e and b are above: rank 4.
    assert Validation(store).mrr(score) == pytest.approx((1 / 1.5 + 1 / 4) / 2)


def test_plain_complex_is_ranked_as_distkg_ranks_the_same_vectors(store: Store) -> None:
    torch.manual_seed(0)
    plain = PlainComplEx(store.num_entities, store.num_relations, 6, 1.0)
    with torch.no_grad():
        ours = SmallModel(plain.entities.data, plain.relations.data, scorer="complex")
        valid = store.triples("valid")
        ranking = rank_answers(ours, valid, known_answers_of(store, valid))
    assert Validation(store).mrr(plain.scores) == ranking_metrics(ranking)["mrr"]


def test_distinct_queries_have_all_their_answers() -> None:
    queries, starts, answers = distinct_queries(np.array([(0, 0, 1), (0, 0, 2), (2, 1, 1)], np.int32), 2)
    found = {
        tuple(q): sorted(answers[s:e].tolist()) for q, s, e in zip(queries.tolist(), starts, starts[1:], strict=False)
    }
    assert found == {(0, 0): [1, 2], (1, 2): [0], (2, 2): [0], (2, 1): [1], (1, 3): [2]}


@pytest.mark.parametrize("grouped", [False, True], ids=["single", "grouped"])
def test_an_epoch_has_every_query_and_answer_once(store: Store, grouped: bool) -> None:
    setting = Setting(dim=2, batch_size=3, learning_rate=0.1, n3=0.0, grouped=grouped)
    pairs, sizes, last = [], [], 0.0
    for queries, answers, counts, done in batches(store, setting, np.random.default_rng(0)):
        pairs += [
            (*query, answer)
            for query, answer in zip(queries.repeat_interleave(counts, 0).tolist(), answers, strict=True)
        ]
        sizes.append(len(queries))
        last = done
    triples = [*store.triples("train").tolist()]
    backwards = [(t, r + store.num_relations, h) for h, r, t in triples]
    expected = sorted((h, r, t) for h, r, t in [*triples, *backwards])
    assert sorted((a, r, int(b)) for (a, r), b in [((p[0], p[1]), p[2]) for p in pairs]) == expected
    assert (sizes[0], sum(sizes), last) == (3, 8, 1.0)


def test_the_plain_loss_is_cross_entropy_and_n3() -> None:
    """Two entities and a relation with entries 0 and 1: scores are 0 but of (1 + i) with itself."""
    model = PlainComplEx(entities=2, relations=1, dim=2, initial_scale=0.0)
    with torch.no_grad():
        model.entities[1] = torch.tensor([1.0, 1.0])
        model.relations[0] = torch.tensor([2.0, 0.0])
    queries = torch.tensor([(1, 0), (0, 1)])
    loss = model.loss(queries, torch.tensor([1, 0, 1]), torch.tensor([2, 1]), n3=0.5).item()
    # (1 + i) · 2 · conj(1 + i) = 4. −log P: of 1 and of 0 for the first query, of 1 for the second, whose scores are 0.
    first = np.log(np.exp(4) + 1)
    cross_entropy = (first - 4) + first + np.log(2)
    # Σ |x|³: |1 + i|³ = 2√2 for the anchor twice and the answer 1 twice, |2|³ = 8 for the relation twice.
    penalty = 2 * (2**1.5 + 8) + 2 * 2**1.5
    assert loss == pytest.approx((cross_entropy + 0.5 * penalty) / 3, rel=1e-6)


def test_pykeen_scores_both_directions_with_its_own_inverse_relations() -> None:
    from pykeen.triples import CoreTriplesFactory

    from benchmarks import pykeen_complex

    factory = CoreTriplesFactory(torch.tensor([(0, 0, 1), (1, 1, 2)]), 3, 2, create_inverse_triples=True)
    setting = pykeen_complex.Setting("lcwa", dim=4, batch_size=2, optimizer="Adagrad", learning_rate=0.1)
    model = pykeen_complex.make_model(factory, setting, seed=0)
    entities, relations = (
        part[0](None).detach() for part in (model.entity_representations, model.relation_representations)
    )
    with torch.no_grad():
        found = pykeen_complex.scores(model, 2, np.array([(0, 1), (2, 3)], np.int32))
    # PyKEEN numbers relation r as 2r and its inverse as 2r + 1.
    for row, (anchor, relation) in zip(found, [(0, 2), (2, 3)], strict=True):
        expected = (entities[anchor] * relations[relation] * entities.conj()).sum(1).real
        torch.testing.assert_close(row, expected)


def test_pykeen_weighs_a_query_by_its_answers() -> None:
    from benchmarks.pykeen_complex import AnswerCounts

    weight = AnswerCounts(np.array([(0, 0, 1), (0, 0, 2), (2, 1, 1)], np.int32), num_relations=2)
    queries = {(0, 0): 2.0, (2, 2): 1.0, (1, 1): 1.0, (2, 1): 1.0, (1, 3): 1.0}
    found = {query: weight(*torch.tensor(query)[:, None], None).tolist() for query in queries}
    assert found == {query: [answers] for query, answers in queries.items()}


def test_validation_is_not_training_time(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that only this test moves: 3 s of training, a validation of 10 s, 1 s, 1 s, and a validation."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    validation = Validation(store)

    def validate(score: object) -> float:
        now[0] += 10
        return 0.25

    monkeypatch.setattr(validation, "mrr", validate)
    curve = ValidationCurve(validation, lambda queries: torch.zeros(0), tmp_path / "curve", interval=2.0)
    for seconds, epoch in ((3, 0.5), (1, 1.0), (1, 1.5)):
        now[0] += seconds
        curve.after_step(epoch)
    lines = [json.loads(line) for line in (tmp_path / "curve").read_text().splitlines()]
    assert lines == [
        {"training_seconds": 3.0, "validation_seconds": 10.0, "epoch": 0.5, "mrr": 0.25},
        {"training_seconds": 5.0, "validation_seconds": 20.0, "epoch": 1.5, "mrr": 0.25},
    ]


def test_points_have_the_minutes_of_the_command() -> None:
    reports = [
        {"seconds": {"compute": 20.0, "data": 1.0}},
        {"seconds": {"compute": 9.0}, "valid": {"mrr": 0.3}},
    ]
    ours = Distkg("complex_umls")
    assert ours.point(60.0, reports[:1]) is None
    assert ours.point(90.0, reports) == Point(1.5, 30.0, 0.3)
    line = {"training_seconds": 40.0, "validation_seconds": 30.0, "epoch": 1.0, "mrr": 0.2}
    assert Peer("plain_complex", {}).point(90.0, [line]) == Point(1.0, 40.0, 0.2)


def test_a_target_counts_within_the_limit() -> None:
    points = [Point(0.5, 20.0, 0.2), Point(1.0, 50.0, 0.41), Point(1.5, 80.0, 0.39), Point(2.1, 110.0, 0.5)]
    targets = (0.2, 0.4, 0.45)
    assert columns(points, targets, 2.0) == {
        ".20, min": 0.5,
        ".20, training s": 20.0,
        ".40, min": 1.0,
        ".40, training s": 50.0,
        "best MRR": 0.41,
    }
    assert missed(points, targets, 2.0) == ".45: not within 2 minutes"
    assert missed(points, targets, 2.5) == ""


class Script(Peer):
    """A contender that runs a line of Python with the path of its records as its argument."""

    def command(self, run: Run) -> list[str]:
        return ["-c", self.program, str(self.records(run))]


WRITES = """
import sys, time
with open(sys.argv[1], "a") as file:
    for mrr in (0.1, 0.3, 0.2, 0.9):
        print('{"training_seconds": 1, "validation_seconds": 0, "mrr": %s}' % mrr, file=file, flush=True)
time.sleep(600)
"""


def run_in(folder: Path) -> Run:
    return Run("store", folder, 0, 1.0)


def test_a_contender_ends_at_the_last_target_or_at_the_limit(tmp_path: Path) -> None:
    found = validations(Script(WRITES + "#", {}), run_in(tmp_path), limit=5.0, target=0.9)
    assert [point.mrr for point in found] == [0.1, 0.3, 0.2, 0.9]
    (tmp_path / "second").mkdir()
    found = validations(Script(WRITES, {}), run_in(tmp_path / "second"), limit=1 / 60, target=0.95)
    assert [point.mrr for point in found] == [0.1, 0.3, 0.2, 0.9]
    (tmp_path / "third").mkdir()
    assert validations(Script("pass", {}), run_in(tmp_path / "third"), limit=5.0, target=0.9) == []


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"exit code 1:\n.*no such optimizer"):
        validations(Script("raise SystemExit('no such optimizer')", {}), run_in(tmp_path), limit=5.0, target=0.9)


def test_a_store_must_have_the_name_of_a_graph() -> None:
    assert graph_of(Path("stores/codex_s")) is GRAPHS["codex_s"]
    with pytest.raises(
        BenchmarkError, match=r"stores/umls: no contenders are set for it. Name the store's folder codex_s"
    ):
        graph_of(Path("stores/umls"))
