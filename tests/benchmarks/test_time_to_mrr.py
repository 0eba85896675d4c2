"""Time to a validation MRR: peers are ranked as distkg is, do the published work, and are timed without validations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small_model import SmallModel, random_model

from benchmarks.common import BenchmarkError, begin
from benchmarks.peers import write_graph
from benchmarks.plain_complex import Epochs, PlainComplEx, Setting, train
from benchmarks.time_to_mrr import GRAPHS, Distkg, Peer, Point, Run, columns, graph_of, missed, validations
from benchmarks.validation_curve import Answers, Graph, Validation, ValidationCurve
from distkg.config import load_config
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.data.store.known_answers import KnownAnswers
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


@pytest.fixture(scope="module")
def graph(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("arrays") / "graph.npz"
    write_graph(store, path)
    return dict(np.load(path))


def scores_by_label(store: Store, tails: str, heads: str) -> torch.Tensor:
    """Scores of the entities a to e, in the order of their ids, for queries for tails and for heads: [2, N]."""
    labels = store.entity_labels().to_pylist()
    return torch.tensor([[float(row.split()["abcde".index(label)]) for label in labels] for row in (tails, heads)])


def test_a_peer_is_ranked_filtered_with_ties_halved_and_in_both_directions(store: Store, graph: Graph) -> None:
    by_side = scores_by_label(store, "1 9 1 9 0", "2 3 5 1 4")

    def score(queries: torch.Tensor) -> torch.Tensor:
        return by_side[(queries[:, 1] >= store.num_relations).long()]

    # (a, r) → c: b and d are known, a ties, e is below: rank 1.5. (c, r⁻¹) → a: c, e and b are above: rank 4.
    assert Validation(graph).mrr(score) == pytest.approx((1 / 1.5 + 1 / 4) / 2)
    with pytest.raises(ValueError, match="not finite"):
        Validation(graph).mrr(lambda queries: score(queries) * torch.nan)


@pytest.mark.parametrize("integers", [True, False], ids=["ties", "no ties"])
def test_a_peer_is_ranked_as_distkg_is(integers: bool) -> None:
    rng = np.random.default_rng(0)
    facts = rng.integers(0, [60, 3, 60], (900, 3)).astype(np.int32)
    splits = dict(zip(("train", "valid", "test"), np.split(facts, [400, 700]), strict=True))
    model = SmallModel(*random_model(60, 3, 6, seed=0, integers=integers, scorer="complex"), scorer="complex")
    plain = PlainComplEx(60, 3, 6, 1.0)
    plain.entities.data, plain.relations.data = model.entities.whole, model.relations
    ours = rank_answers(model, splits["valid"], KnownAnswers.from_triples(facts, 3))
    graph = {"sizes": np.array([60, 3]), **splits}
    assert Validation(graph).mrr(plain.scores) == pytest.approx(ranking_metrics(ours)["mrr"], rel=1e-12)
    assert (ours.equal.sum() > 100) == integers


def test_distinct_queries_have_all_their_answers() -> None:
    found = Answers(np.array([(0, 0, 1), (0, 0, 2), (2, 1, 1)], np.int32), 2)
    assert found.queries.tolist() == [[0, 0], [1, 2], [1, 3], [2, 1], [2, 2]]
    answers, counts = found.of(np.array([4, 0, 1]))
    assert (answers.tolist(), counts.tolist()) == ([0, 1, 2, 0], [1, 2, 1])


@pytest.mark.parametrize(("grouped", "items"), [(False, 8), (True, 7)], ids=["single", "grouped"])
def test_an_epoch_has_every_query_and_answer_once(grouped: bool, items: int) -> None:
    triples = np.array([(0, 0, 1), (0, 0, 2), (2, 1, 3), (3, 1, 0)], np.int32)
    graph = {"sizes": np.array([4, 2]), "train": triples}
    setting = Setting(dim=2, batch_size=3, learning_rate=0.1, n3=0.0, grouped=grouped)
    triples_seen, sizes, last = [], [], 0.0
    for queries, answers, counts, done in Epochs(graph, setting, seed=0).batches():
        asked = queries.repeat_interleave(counts, 0)
        triples_seen += torch.cat([asked, answers[:, None]], 1).tolist()
        sizes.append(len(queries))
        last = done
    expected = [[0, 0, 1], [0, 0, 2], [0, 3, 3], [1, 2, 0], [2, 1, 3], [2, 2, 0], [3, 1, 0], [3, 3, 2]]
    assert sorted(triples_seen) == expected
    assert (sizes[0], sum(sizes), last) == (3, items, 1.0)


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


def test_the_sampled_loss_is_cross_entropy_among_the_answer_and_the_negatives() -> None:
    """The vectors of the test above: (1, 0) scores 4 for entity 1 and 0 for entity 0, which is drawn twice."""
    model = PlainComplEx(entities=2, relations=1, dim=2, initial_scale=0.0)
    with torch.no_grad():
        model.entities[1] = torch.tensor([1.0, 1.0])
        model.relations[0] = torch.tensor([2.0, 0.0])
    loss = model.sampled_loss(torch.tensor([(1, 0)]), torch.tensor([1]), torch.tensor([0, 0]), n3=0.5)
    penalty = 2**1.5 + 8 + 2**1.5
    assert loss.item() == pytest.approx(np.log(np.exp(4) + 2) - 4 + 0.5 * penalty, rel=1e-6)
    loss.backward()
    assert model.entities.grad is not None
    assert model.entities.grad.is_sparse


def test_a_plain_training_ends_at_a_rate_of_zero_with_a_validation(tmp_path: Path, graph: Graph) -> None:
    setting = Setting(dim=4, batch_size=100, learning_rate=0.1, n3=0.0, epochs=1)
    train(graph, setting, tmp_path / "curve", interval=600.0, seed=0)
    (line,) = [json.loads(line) for line in (tmp_path / "curve").read_text().splitlines()]
    torch.manual_seed(0)
    untrained = PlainComplEx(*graph["sizes"].tolist(), 4, 1e-3)  # the only step has a rate of 0
    assert (line["epoch"], line["mrr"]) == (1, Validation(graph).mrr(untrained.scores))


@pytest.mark.parametrize("loop", ["lcwa", "slcwa"])
def test_pykeen_is_ranked_by_the_scores_of_its_own_predictions(loop: str) -> None:
    from pykeen.triples import CoreTriplesFactory

    from benchmarks import pykeen_complex

    triples = torch.tensor([(0, 0, 1), (1, 1, 2)])
    factory = CoreTriplesFactory(triples, 3, 2, create_inverse_triples=loop == "lcwa")
    setting = pykeen_complex.Setting(loop, dim=4, batch_size=2, optimizer="Adagrad", learning_rate=0.1)
    model = pykeen_complex.make_model(factory, setting, seed=0)
    with torch.no_grad():
        found = pykeen_complex.scores(model, 2, torch.tensor([(0, 1), (2, 2), (1, 3)]))
        tails = model.predict_t(torch.tensor([(0, 1)]))
        heads = model.predict_h(torch.tensor([(0, 2), (1, 1)]))
    torch.testing.assert_close(found, torch.cat([tails, heads]))


def test_pykeen_weighs_a_query_by_its_answers() -> None:
    from benchmarks.pykeen_complex import AnswerCounts

    weight = AnswerCounts(np.array([(0, 0, 1), (0, 0, 2), (2, 1, 1)], np.int32), num_relations=2)
    queries = {(0, 0): 2.0, (2, 2): 1.0, (1, 1): 1.0, (2, 1): 1.0, (1, 3): 1.0}
    found = {query: weight(*torch.tensor(query)[:, None], None).tolist() for query in queries}
    assert found == {query: [answers] for query, answers in queries.items()}


def test_validation_is_not_training_time(tmp_path: Path, graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of the test: a validation takes 10 s, 2 s and a tenth of the training lie between two."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def validate(self: Validation, score: object) -> float:
        now[0] += 10
        return 0.25

    monkeypatch.setattr(Validation, "mrr", validate)
    curve = ValidationCurve(graph, lambda queries: torch.zeros(0), tmp_path / "curve", interval=2.0)
    for seconds, epoch in ((30, 0.5), (2.5, 1.0), (0.5, 1.5), (3.0, 2.0), (0.3, 2.5)):
        now[0] += seconds
        curve.after_step(epoch)
    lines = [json.loads(line) for line in (tmp_path / "curve").read_text().splitlines()]
    assert lines == [
        {"training_seconds": 30.0, "validation_seconds": 10.0, "epoch": 0.5, "mrr": 0.25},
        {"training_seconds": 33.0, "validation_seconds": 20.0, "epoch": 1.5, "mrr": 0.25},
        {"training_seconds": pytest.approx(36.3), "validation_seconds": 30.0, "epoch": 2.5, "mrr": 0.25},
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
    assert missed(points, targets, 2.0) == ".45: not within 2 minutes, last validated after 2.1"
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


def test_settings_of_all_rows_are_known() -> None:
    from benchmarks import pykeen_complex

    settings = {"plain_complex": Setting, "pykeen_complex": pykeen_complex.Setting}
    for graph in GRAPHS.values():
        assert not set(graph.contenders) & set(graph.others)
        for contender in (*graph.contenders.values(), *graph.others.values()):
            if isinstance(contender, Distkg):
                assert load_config(f"preset:{contender.preset}", contender.changes).evaluate.max_valid_triples is None
            else:
                assert isinstance(contender, Peer)
                settings[contender.program](**contender.setting)


def test_rows_are_the_contenders_or_those_that_are_named() -> None:
    def rows(*typed: str) -> list[str]:
        return GRAPHS["wn18rr"].rows(begin("x.py", "Title", [*typed], "variants"))

    assert rows() == ["distkg", "distkg, sampled", "plain PyTorch", "PyKEEN"]
    assert rows("--variants", "distkg, two workers", "PyKEEN") == ["distkg, two workers", "PyKEEN"]


def test_a_store_must_have_the_name_of_a_graph() -> None:
    assert graph_of(Path("stores/codex_s")) is GRAPHS["codex_s"]
    with pytest.raises(
        BenchmarkError, match=r"stores/umls: no contenders are set for it. Name the store's folder codex_s"
    ):
        graph_of(Path("stores/umls"))
