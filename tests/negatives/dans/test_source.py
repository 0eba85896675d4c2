"""The source of DANS-KGC on a small model: what it makes, for whom, and what it leaves out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distkg.kernels.scores.similarity import SQUARED_L2
from distkg.negatives import Queries, SourceError, TrainingGraph, TrainingProgress, make_source
from distkg.negatives.base import GeneratedNegatives
from distkg.negatives.dans.source import Dans
from distkg.sharding.ranks import Ranks
from tests.with_dgl import SAMPLERS

ENTITIES, RELATIONS, WIDTH = 30, 2, 6
SMALL = {"made": 2, "neighbours": 2, "refresh": 2.0, "every": 1, "renewed": 1000, "diffusion": {"steps": 20}}


def graph() -> TrainingGraph:
    rows = np.random.default_rng(0).integers(0, [ENTITIES, RELATIONS, ENTITIES], (90, 3))
    return TrainingGraph.of_triples(np.unique(rows, axis=0), ENTITIES, RELATIONS)


class TableModel:
    """A query is the anchor's vector plus the relation's; a candidate the entity's own."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(4)
        self.table = torch.randn(ENTITIES, WIDTH, generator=generator)
        self.relations = torch.randn(2 * RELATIONS, WIDTH, generator=generator)
        self.ranks, self.similarity, self.entities, self.first = Ranks.single(), SQUARED_L2, ENTITIES, 0

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        return self.table[anchor] + self.relations[relation]

    def candidates(self, entities: Tensor) -> Tensor:
        return self.table[entities]

    def own_candidates(self) -> Tensor:
        return self.table


def queries() -> Queries:
    return Queries(*torch.from_numpy(graph().queries()).T.contiguous())


def source(**options: Any) -> Dans:
    made = make_source("dans", {**SMALL, **options}, graph())
    made.attach(TableModel())
    assert isinstance(made, Dans)
    return made


def made_by(dans: Dans, *, epochs: float = 0.0, progress: float = 0.0, seed: int = 0) -> GeneratedNegatives:
    dans.advance(TrainingProgress(epochs, progress, int(10 * epochs)))
    made = dans.draw(queries(), 5, torch.Generator().manual_seed(seed)).made
    assert made is not None
    return made


def test_snapped_negatives_are_entities_that_are_no_known_answers() -> None:
    made, asked = made_by(source()), queries()
    known: dict[tuple[int, int], set[int]] = {}
    for anchor, relation, answer in graph().queries().tolist():
        known.setdefault((anchor, relation), set()).add(answer)
    assert made.entities is not None
    assert made.entities.shape == made.mask.shape == (len(asked), 2)
    assert not made.mask.any()
    for anchor, relation, found in zip(
        asked.anchor.tolist(), asked.relation.tolist(), made.entities.tolist(), strict=True
    ):
        assert not known[anchor, relation] & set(found)
    assert made.growth.tolist() == [1.0] * len(asked), "margins start from their base"
    assert made.weight == 0.25


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_neighbours_are_sampled_by_either(sampler: str) -> None:
    made, asked = made_by(source(sampler=sampler)), queries()
    assert made.entities is not None
    assert made.entities.shape == (len(asked), 2)
    assert not bool((made.entities == asked.answer[:, None]).any())


def test_embeddings_near_their_answer_are_left_out() -> None:
    near = made_by(source(negatives="embedding", least_distance=0.0))
    assert near.entities is None
    assert near.vectors is not None
    assert near.vectors.shape == (len(queries()), 2, WIDTH)
    assert not near.mask.any()
    far = made_by(source(negatives="embedding", least_distance=1e6))
    assert far.mask.all()


def test_what_was_made_is_kept_until_it_is_refreshed() -> None:
    dans = source(negatives="embedding", curriculum_sharpness=1e6)  # the hardest band alone, at the end
    # The first renewal of a key comes up to an epoch early, the later ones when they are due.
    _, _, first, again, later = (made_by(dans, epochs=epochs, progress=1.0) for epochs in (0.0, 2.0, 4.0, 5.5, 6.0))
    assert first.vectors is not None
    assert again.vectors is not None
    assert later.vectors is not None
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, later.vectors)


@pytest.mark.parametrize("kind", ["snap", "embedding"])
def test_it_makes_for_some_queries_at_some_draws_and_the_others_have_none_until_then(kind: str) -> None:
    dans = source(negatives=kind, every=3, renewed=40, least_distance=0.0)
    with_some = [int((~made_by(dans, epochs=draw / 100, seed=draw).mask.all(1)).sum()) for draw in range(7)]
    assert with_some == [40, 40, 40, 80, 80, 80, 120]
    assert len(queries()) > 120, "or there would be nothing to wait for"


def test_the_diffusion_model_learns_at_the_draws_that_make() -> None:
    dans = source(every=3)
    learned = []
    for draw in range(7):
        made_by(dans, epochs=draw / 100, seed=draw)
        learned.append(next(iter(dans.weights().values())).detach().clone())
    assert [not torch.equal(before, after) for before, after in pairwise(learned)] == [False, False, True] * 2


def test_the_curriculum_goes_from_far_to_near_and_margins_grow() -> None:
    table = TableModel().table
    answers = table[queries().answer][:, None]
    distances, growths = [], []
    for progress in (0.0, 1.0):
        dans = source(negatives="embedding", curriculum_sharpness=50.0, least_distance=0.0, made=8)
        for seed in range(400):
            made_by(dans, epochs=0.0, seed=seed)  # learns
        made = made_by(dans, epochs=2.0, progress=progress)
        assert made.vectors is not None
        distances.append(float((made.vectors - answers).norm(dim=2).mean()))
        growths.append(float(made.growth.mean()))
    assert distances[1] < distances[0]
    assert growths == pytest.approx([1.0, 1.5])


def test_without_a_curriculum_margins_stay() -> None:
    assert made_by(source(curriculum="none"), progress=1.0).growth.tolist() == [1.0] * len(queries())


def test_replicas_meet_in_the_middle() -> None:
    first, second = source(), source()
    made_by(first), made_by(second, seed=1)
    before = {name: tensor.detach().clone() for name, tensor in first.weights().items()}
    other = {name: tensor.detach().clone() for name, tensor in second.weights().items()}
    assert any(not torch.equal(before[name], other[name]) for name in before)
    first.blend(other)
    for name, tensor in first.weights().items():
        assert torch.allclose(tensor, (before[name] + other[name]) / 2)


def test_it_shows_nothing_without_a_model() -> None:
    with pytest.raises(SourceError, match="dans draws from the vectors of a model in training"):
        make_source("dans", {}, graph()).draw(queries(), 2, torch.Generator())


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="steps"):
        make_source("dans", {"diffusion": {"steps": 8}}, graph())
