"""Objectives over all entities against the dense losses of torch, by rank, by block and by bound on memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from distributed import run_ranks
from plain_similarity import PLAIN, Plain, query_width
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distkg.config import ObjectiveConfig
from distkg.kernels.scores import log_sum_exp
from distkg.kernels.scores.distance_sums import distance_log_sum_exp
from distkg.kernels.scores.log_sum_exp import LogSumExp, SoftmaxLogSumExp
from distkg.kernels.scores.similarity import DOT, L2, DotSimilarity, Similarity
from distkg.objectives import ALL_ENTITIES, AllEntitiesObjective, Answers, Reduced
from distkg.objectives import all_entities as module
from distkg.sharding.ranks import Ranks
from distkg.sharding.shards import Shards

LN2, LN3 = math.log(2), math.log(3)
NAMES = ["one_vs_all", "k_vs_all"]
SIMILARITIES = {similarity.name: (similarity, plain) for similarity, plain in PLAIN}
CHOSEN = ["dot", "squared_l2", "l2", "l1", "rotl", "hyperbolic"]


@dataclass(frozen=True)
class Problem:
    """Queries [B, Q], all candidates [N, C], and the answers as pairs (query, entity) [a, 2], sorted by query."""

    query: Tensor
    candidates: Tensor
    pairs: Tensor

    def answers(self, ranks: Ranks) -> Answers:
        low, high = Shards(len(self.candidates), ranks.size).range(ranks.rank)
        own = self.pairs[(self.pairs[:, 1] >= low) & (self.pairs[:, 1] < high)]
        count = torch.bincount(self.pairs[:, 0], minlength=len(self.query)).float()
        return Answers(own[:, 0].contiguous(), own[:, 1] - low, count)


def problem(similarity: Similarity, queries: int = 21, entities: int = 50, width: int = 6) -> Problem:
    """Random; one to four answers a query, and none at all for every fifth, which only fills the batch up."""
    generator = torch.Generator().manual_seed(queries + entities)
    spread = 0.3 if similarity.name == "rotl" else 0.7
    query = spread * torch.randn(queries, query_width(similarity, width), generator=generator)
    candidates = spread * torch.randn(entities, width, generator=generator)
    pairs = {
        (i, int(entity))
        for i in range(queries)
        if i % 5 != 4
        for entity in torch.randint(entities, (1 + i % 4,), generator=generator)
    }
    return Problem(query, candidates, torch.tensor(sorted(pairs)))


def make(name: str, *, label_smoothing: float = 0.0, memory_mb: int = 64) -> AllEntitiesObjective:
    config = ObjectiveConfig(name=name, label_smoothing=label_smoothing, score_memory_mb=memory_mb)
    return ALL_ENTITIES[name](config)


def reduce(objective: AllEntitiesObjective, similarity: Similarity, given: Problem, ranks: Ranks) -> Reduced:
    """What the objective says on this rank, which sees its own candidates only."""
    low, high = Shards(len(given.candidates), ranks.size).range(ranks.rank)
    own = given.candidates[low:high].clone()
    return objective(similarity, given.query, own, given.answers(ranks), ranks, len(given.candidates))


def dense(name: str, plain: Plain, given: Problem, label_smoothing: float = 0.0) -> Reduced:
    """The loss by torch's own functions on the whole matrix of scores in float64, and its gradients by autograd."""
    query = given.query.double().requires_grad_()
    candidates = given.candidates.double().requires_grad_()
    scores = plain(query[:, None], candidates)
    asked, entity = given.pairs.T
    if name == "one_vs_all":
        loss = F.cross_entropy(scores[asked], entity)
    else:
        labels = torch.zeros_like(scores).index_put_((asked, entity), torch.ones((), dtype=torch.float64))
        if label_smoothing:
            labels = (1 - label_smoothing) * labels + 1 / len(candidates)
        live = asked.unique()
        loss = F.binary_cross_entropy_with_logits(scores[live], labels[live])
    return Reduced(loss.detach(), *torch.autograd.grad(loss, (query, candidates)))


def assert_same(got: Reduced, expected: Reduced, tolerance: float = 1e-5) -> None:
    assert float(got.loss) == pytest.approx(float(expected.loss), rel=tolerance)
    for mine, theirs in ((got.query, expected.query), (got.candidates, expected.candidates)):
        assert mine.dtype == torch.float32
        room = 10 * tolerance * float(theirs.abs().max())
        torch.testing.assert_close(mine.double(), theirs.double(), rtol=10 * tolerance, atol=room)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks small enough that small problems take several of them both ways."""
    monkeypatch.setattr(log_sum_exp, "BLOCK_ROWS", 16)
    monkeypatch.setattr(distance_log_sum_exp, "_LEAST_ROWS", 16)
    monkeypatch.setattr(distance_log_sum_exp, "_BLOCK_SCORES", 128)
    monkeypatch.setattr(module, "_BLOCK_QUERIES", 8)


def test_one_vs_all_by_hand() -> None:
    given = Problem(torch.ones(1, 1), torch.tensor([[0.0], [LN2], [0.0]]), torch.tensor([[0, 1]]))
    reduced = reduce(make("one_vs_all"), DOT, given, Ranks.single())
    assert reduced.loss.item() == pytest.approx(2 * LN2 - LN2)  # log(1 + 2 + 1) less the answer's score
    assert reduced.candidates.flatten().tolist() == pytest.approx([0.25, -0.5, 0.25])
    assert reduced.query.item() == pytest.approx(-0.5 * LN2)


def test_k_vs_all_by_hand() -> None:
    given = Problem(torch.ones(1, 1), torch.tensor([[0.0], [LN3]]), torch.tensor([[0, 1]]))
    reduced = reduce(make("k_vs_all"), DOT, given, Ranks.single())
    assert reduced.loss.item() == pytest.approx((LN2 + 2 * LN2 - LN3) / 2)
    assert reduced.candidates.flatten().tolist() == pytest.approx([0.25, -0.125])  # (σ - y) / 2
    smoothed = reduce(make("k_vs_all", label_smoothing=0.1), DOT, given, Ranks.single())
    assert smoothed.loss.item() == pytest.approx((LN2 + 2 * LN2 - 1.4 * LN3) / 2)  # labels 0.5 and 0.9 + 0.5
    assert smoothed.candidates.flatten().tolist() == pytest.approx([0.0, -0.325])


@pytest.mark.parametrize("similarity", CHOSEN)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.usefixtures("small_blocks")
def test_objectives_are_the_dense_losses_of_torch(name: str, similarity: str) -> None:
    compare, plain = SIMILARITIES[similarity]
    given = problem(compare)
    assert_same(reduce(make(name), compare, given, Ranks.single()), dense(name, plain, given), 3e-5)


@pytest.mark.usefixtures("small_blocks")
def test_label_smoothing_is_that_of_dense_labels() -> None:
    given = problem(DOT)
    got = reduce(make("k_vs_all", label_smoothing=0.2), DOT, given, Ranks.single())
    assert_same(got, dense("k_vs_all", SIMILARITIES["dot"][1], given, label_smoothing=0.2))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_their_true_size(name: str) -> None:
    given = problem(DOT, queries=300, entities=2500)
    assert_same(reduce(make(name), DOT, given, Ranks.single()), dense(name, SIMILARITIES["dot"][1], given))


@pytest.mark.parametrize("similarity", CHOSEN)
@pytest.mark.usefixtures("small_blocks")
def test_scores_kept_and_scores_computed_again_agree(similarity: str) -> None:
    compare, _ = SIMILARITIES[similarity]
    given, kept, again = problem(compare), make("one_vs_all"), make("one_vs_all")
    again.memory = 0
    assert_same(reduce(again, compare, given, Ranks.single()), reduce(kept, compare, given, Ranks.single()))


@pytest.mark.usefixtures("small_blocks")
def test_a_query_asked_once_with_all_its_answers_is_as_if_asked_for_each() -> None:
    grouped = problem(DOT)
    asked, entity = grouped.pairs.T
    single = Problem(grouped.query[asked], grouped.candidates, torch.stack([torch.arange(len(asked)), entity], 1))
    apart = reduce(make("one_vs_all"), DOT, single, Ranks.single())
    summed = torch.zeros_like(grouped.query).index_add_(0, asked, apart.query)
    together = reduce(make("one_vs_all"), DOT, grouped, Ranks.single())
    assert_same(together, Reduced(apart.loss, summed, apart.candidates))


@pytest.mark.parametrize("name", NAMES)
def test_queries_that_only_fill_up_have_no_say(name: str) -> None:
    given = problem(DOT)
    idle = torch.arange(len(given.query)) % 5 == 4
    changed = Problem(torch.where(idle[:, None], 7.0, given.query), given.candidates, given.pairs)
    first, second = (reduce(make(name), DOT, which, Ranks.single()) for which in (given, changed))
    assert_same(first, second)
    assert not first.query[idle].any()


CASES = [(name, similarity, 21, 50) for name in NAMES for similarity in CHOSEN] + [
    (name, "dot", 9, 4)
    for name in NAMES  # the third rank of three owns none of 4 entities
]
# Two ranks own 2571 and 2570 entities: 101 queries' scores fit into 1 MiB on one and 102 on the other.
UNEVEN = ("one_vs_all", "dot", 150, 5141)


def on_ranks(ranks: Ranks) -> dict[Any, Reduced]:
    outcome = {UNEVEN: reduce(make(UNEVEN[0], memory_mb=1), DOT, problem(DOT, *UNEVEN[2:]), ranks)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_sum_exp, "BLOCK_ROWS", 16)
        patch.setattr(module, "_BLOCK_QUERIES", 8)
        patch.setattr(distance_log_sum_exp, "_LEAST_ROWS", 16)
        patch.setattr(distance_log_sum_exp, "_BLOCK_SCORES", 128)
        for case in CASES:
            name, similarity, queries, entities = case
            compare, _ = SIMILARITIES[similarity]
            outcome[case] = reduce(make(name), compare, problem(compare, queries, entities), ranks)
    return outcome


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_ranks_says_the_same(size: int) -> None:
    alone, shared = on_ranks(Ranks.single()), run_ranks(size, on_ranks)
    for case, expected in alone.items():
        parts = [outcome[case] for outcome in shared]
        loss, query = sum(part.loss for part in parts), sum(part.query for part in parts)
        assert isinstance(loss, Tensor)
        assert isinstance(query, Tensor)
        assert_same(Reduced(loss, query, torch.cat([part.candidates for part in parts])), expected)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation gives."""

    floats = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.floats = max([self.floats, *sizes])
        return result


@pytest.mark.parametrize("similarity", ["dot", "l2", "l1"])
@pytest.mark.parametrize("name", NAMES)
def test_no_matrix_of_all_queries_and_all_entities_is_ever_made(name: str, similarity: str) -> None:
    compare, _ = SIMILARITIES[similarity]
    given = problem(compare, queries=300, entities=20_000, width=4)
    objective, answers = make(name, memory_mb=1), given.answers(Ranks.single())
    with LargestTensor() as largest:
        objective(compare, given.query, given.candidates, answers, Ranks.single(), 20_000)
    assert largest.floats <= (1 << 20) / 4  # of 6,000,000 scores
    assert largest.floats >= 20_000 * 4  # the gradient of the candidates was seen


@pytest.mark.parametrize(
    ("memory_mb", "rows", "expected"),
    [(64, 1000, (256, True)), (1, 2571, (101, True)), (1, 4096, (64, True)), (1, 4097, (256, False))],
)
def test_scores_are_kept_while_those_of_enough_queries_fit(
    memory_mb: int, rows: int, expected: tuple[int, bool]
) -> None:
    seen: list[tuple[int, bool]] = []

    class Spy(SoftmaxLogSumExp):
        def first_pass(self) -> Tensor:
            log_sum = super().first_pass()
            kept = sum(scores.numel() for scores in self._kept)
            assert 4 * kept <= memory_mb << 20
            assert bool(kept) is expected[1]
            return log_sum

    class Watched(DotSimilarity):
        def log_sum_exp(self, query: Tensor, candidates: Tensor, *, keep: bool) -> LogSumExp:
            seen.append((len(query), keep))
            return Spy(self, query, candidates, keep=keep)

    reduce(make("one_vs_all", memory_mb=memory_mb), Watched(), problem(DOT, 600, rows, 2), Ranks.single())
    assert seen[0] == expected


def test_scores_that_the_gradient_must_compute_again_are_not_kept() -> None:
    given = problem(L2)
    log_sum = SoftmaxLogSumExp(L2, given.query, given.candidates, keep=True)
    log_sum.first_pass()
    assert not log_sum._kept


@pytest.mark.parametrize("name", NAMES)
def test_nan_reaches_the_loss(name: str) -> None:
    given = problem(DOT)
    given.candidates[7, 0] = math.nan
    assert reduce(make(name), DOT, given, Ranks.single()).loss.isnan()
