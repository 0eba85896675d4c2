"""A step with sampled negatives beside its formula in plain torch and double precision, for every scorer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from distkg.config import RunConfig
from distkg.embedding.batches import SampledBatch
from distkg.embedding.model import TrainingModel
from distkg.embedding.scorers import SCORERS
from distkg.embedding.scorers.complex import ComplEx
from distkg.embedding.steps.queries import ComposedQueries, composes
from distkg.embedding.steps.sampled import SampledStep
from distkg.kernels.threads import computing_threads
from distkg.objectives import EXCLUDED, SAMPLED
from distkg.sharding.ranks import Ranks

ENTITIES, RELATIONS, QUERIES, NEGATIVES, SHARING = 23, 3, 10, 5, 4
COMPOSED = ["complex", "distmult", "rotate", "transe"]


def config_of(scorer: str, objective: str = "logistic", **others: object) -> RunConfig:
    tree = {
        "model": {"name": scorer, "dim": 16},
        "objective": {"name": objective, "margin": 2.0} if "adversarial" in objective else {"name": objective},
        "negatives": {"count": NEGATIVES},
        "train": {"workers": 1},
        **others,
    }
    return RunConfig.model_validate(tree)


def batch_of(*, sharing: int, masked: bool, rows: int = ENTITIES) -> SampledBatch:
    generator = torch.Generator().manual_seed(7)

    def draw(*shape: int, below: int = rows) -> Tensor:
        return torch.randint(below, shape, generator=generator)

    drawings = QUERIES if sharing == 1 else -(-QUERIES // sharing)
    return SampledBatch(
        ids=torch.arange(rows),
        anchor=draw(QUERIES),
        answer=draw(QUERIES),
        relation=draw(QUERIES, below=2 * RELATIONS),
        negatives=draw(drawings, NEGATIVES),
        sharing=sharing,
        mask=torch.rand(QUERIES, NEGATIVES, generator=generator) < 0.3 if masked else None,
        queries=QUERIES,
    )


def plain_step(model: TrainingModel, config: RunConfig, batch: SampledBatch, rows: Tensor) -> tuple[Tensor, ...]:
    """Loss, and its gradients by rows and relations: every score by itself, all in double precision."""
    scorer, similarity = copy.deepcopy(model.scorer).double(), model.training_similarity
    rows, relations = rows.double().requires_grad_(), model.relations.detach().double().requires_grad_()
    query = scorer.query(rows[batch.anchor], relations[batch.relation])
    candidates = scorer.candidates(rows)
    negatives = batch.negatives.repeat_interleave(batch.sharing, 0)[:QUERIES]
    compared = similarity.pairs(query.repeat_interleave(NEGATIVES, 0), candidates[negatives.flatten()])
    negative = compared.view(QUERIES, NEGATIVES)
    if batch.mask is not None:
        negative = negative.masked_fill(batch.mask, EXCLUDED)
    positive = similarity.pairs(query, candidates[batch.answer])
    loss = SAMPLED[config.objective.name](config.objective)(positive, negative).sum() / batch.queries
    loss.backward()
    assert rows.grad is not None
    assert relations.grad is not None
    return loss.detach(), rows.grad, relations.grad


def assert_plain(config: RunConfig, batch: SampledBatch) -> TrainingModel:
    model = TrainingModel(config, ENTITIES, RELATIONS, Ranks.single()).eval()  # without the dropout of layers
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(ENTITIES, model.scorer.entity_width, generator=generator) / 2
    with torch.no_grad():
        model.relations.add_(torch.randn(model.relations.shape, generator=generator) / 2)
    expected = plain_step(model, config, batch, rows)
    done = SampledStep(model, config)(batch, rows)
    assert model.relations.grad is not None
    for got, exact in zip((done.loss, done.rows, model.relations.grad), expected, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=2e-3, atol=2e-5)
    return model


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sharing", [1, SHARING])
@pytest.mark.parametrize("scorer", sorted(SCORERS))
def test_every_scorer(scorer: str, sharing: int, masked: bool) -> None:
    assert_plain(config_of(scorer), batch_of(sharing=sharing, masked=masked))


@pytest.mark.parametrize("norm", ["l1", "l2", "squared_l2"])
@pytest.mark.parametrize("sharing", [1, SHARING])
@pytest.mark.parametrize("objective", sorted(SAMPLED))
def test_every_objective(objective: str, sharing: int, norm: str) -> None:
    model = {"name": "transe", "dim": 16, "options": {"norm": norm}}
    assert_plain(config_of("transe", objective, model=model), batch_of(sharing=sharing, masked=True))


@pytest.mark.parametrize("scorer", COMPOSED)
def test_a_scorer_with_a_composition_is_composed(scorer: str) -> None:
    """In float32, as the scorer's own query is: any width, and relations that a batch names or not."""
    for width in (2, 18, 34):
        config = config_of(scorer, model={"name": scorer, "dim": width})
        model = TrainingModel(config, ENTITIES, 40, Ranks.single())
        assert composes(model, config)
        for relation in (torch.randint(80, (QUERIES,)), torch.arange(80)):
            rows, batch = torch.randn(ENTITIES, model.scorer.entity_width), batch_of(sharing=1, masked=False)
            chosen = SampledBatch(
                **{**vars(batch), "relation": relation, "anchor": torch.randint(ENTITIES, relation.shape)}
            )
            expected = model.query(rows[chosen.anchor], relation)
            torch.testing.assert_close(ComposedQueries(model, chosen, rows).query, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "others",
    [
        {"model": {"name": "distmult", "dim": 16, "dropout": 0.1}},
        {"model": {"name": "rotate", "dim": 16}, "regularizer": {"name": "n3", "weight": 0.1}},
        {"model": {"name": "rote", "dim": 16}},
    ],
)
def test_what_a_composition_leaves_out_is_not_composed(others: dict[str, object]) -> None:
    config = config_of("distmult", **others)
    assert not composes(TrainingModel(config, ENTITIES, RELATIONS, Ranks.single()), config)


@pytest.mark.parametrize("inverse", ["learned", "tied"])
@pytest.mark.parametrize("regularizer", ["n3", "l2", "dura"])
@pytest.mark.parametrize("scorer", ["complex", "distmult"])
def test_a_compiled_penalty_is_that_of_autograd(scorer: str, regularizer: str, inverse: str) -> None:
    others = {"vector_factor": 0.5, "product_factor": 1.5} if regularizer == "dura" else {"relation_weight": 0.2}
    penalty = {"name": regularizer, "weight": 0.3, **others}
    config = config_of(scorer, model={"name": scorer, "dim": 16, "inverse": inverse}, regularizer=penalty)
    model = TrainingModel(config, ENTITIES, RELATIONS, Ranks.single())
    with torch.no_grad():
        model.relations.normal_(generator=torch.Generator().manual_seed(2))
    rows = torch.randn(ENTITIES, 16, generator=torch.Generator().manual_seed(1))
    batch, results = batch_of(sharing=SHARING, masked=True), []
    for composed in (True, False):
        step = SampledStep(model, config)
        assert step._composes
        step._composes = composed
        model.zero_grad()
        done = step(batch, rows)
        assert model.relations.grad is not None
        results.append((done.loss, done.rows, model.relations.grad.clone()))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert results[0][0] > 1  # the loss without the penalty is about log 2 + log 2


def test_inverses_that_are_tied_are_composed_of_their_relations() -> None:
    config = config_of("complex", model={"name": "complex", "dim": 16, "inverse": "tied"})
    model = TrainingModel(config, ENTITIES, RELATIONS, Ranks.single())
    batch, rows = batch_of(sharing=1, masked=False), torch.randn(ENTITIES, 16)
    queries = ComposedQueries(model, batch, rows)
    torch.testing.assert_close(queries.query, model.query(rows[batch.anchor], batch.relation))
    to_query, to_rows = torch.randn(QUERIES, 16), torch.zeros_like(rows)
    queries.backward(to_query, to_rows)
    composed, model.relations.grad = model.relations.grad, None
    leaf = rows.clone().requires_grad_()
    model.query(leaf[batch.anchor], batch.relation).backward(to_query)
    torch.testing.assert_close(to_rows, leaf.grad)
    torch.testing.assert_close(composed, model.relations.grad)


def test_a_step_without_queries_has_no_loss_and_no_gradient() -> None:
    config = config_of("distmult")
    model = TrainingModel(config, ENTITIES, RELATIONS, Ranks.single())
    none = torch.empty(0, dtype=torch.int64)
    empty = SampledBatch(none, none, none, none, none.view(0, NEGATIVES), SHARING, None, 0)
    done = SampledStep(model, config)(empty, torch.empty(0, 16))
    assert done.loss.item() == 0
    assert done.rows.shape == (0, 16)


@pytest.mark.parametrize("sharing", [1, SHARING])
@pytest.mark.parametrize("scorer", COMPOSED)
def test_threads_change_no_step(scorer: str, sharing: int) -> None:
    config, batch = config_of(scorer), batch_of(sharing=sharing, masked=True)
    model = TrainingModel(config, ENTITIES, RELATIONS, Ranks.single())
    rows = torch.randn(ENTITIES, model.scorer.entity_width, generator=torch.Generator().manual_seed(1))
    results = []
    for threads in (1, 3):
        model.zero_grad()
        with computing_threads(threads):
            computed = SampledStep(model, config)(batch, rows)
        assert model.relations.grad is not None
        results.append((computed.loss, computed.rows, model.relations.grad.clone()))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_query_of_its_own_is_not_computed_as_its_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ComplEx):
        def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
            return super().query(anchor, relation) + 1

    assert not Shifted.is_composed
    assert not Shifted.bilinear
    monkeypatch.setitem(SCORERS._entries, "complex", Shifted)
    assert_plain(config_of("complex"), batch_of(sharing=SHARING, masked=True))
