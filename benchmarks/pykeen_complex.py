"""ComplEx in PyKEEN: its LCWA loop on inverse triples, or its sLCWA loop with drawn negatives.

A peer of ``time_to_mrr``, started as a program of its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pykeen.models import ERModel
from pykeen.training import LCWATrainingLoop, SLCWATrainingLoop, TrainingLoop
from pykeen.training.callbacks import TrainingCallback
from pykeen.triples import CoreTriplesFactory
from pykeen.triples.weights import LossWeighter
from torch import Tensor

from benchmarks.validation_curve import Answers, Graph, ValidationCurve

EPOCHS = 1_000_000


@dataclass(frozen=True)
class Setting:
    """Settings of a training.

    Attributes:
        loop: ``lcwa`` scores all entities for distinct queries of triples and inverse triples, ``slcwa`` scores triples
            and drawn negatives.
        dim: real floats of a vector; PyKEEN counts half as many complex numbers.
        batch_size: queries (lcwa) or triples (slcwa) of a step.
        optimizer: name of a class in ``torch.optim``.
        learning_rate: of the optimizer.
        loss: name that PyKEEN gives it.
        n3: weight of the mean over vectors of Σ |x|³.
        initial_scale: standard deviation of the initial vectors; 1 is PyKEEN's.
        negatives: per triple; only for ``slcwa``.
        by_answers: weigh the cross entropy of a query by its number of answers, so that every triple weighs the same;
            only for ``lcwa``.
    """

    loop: Literal["lcwa", "slcwa"]
    dim: int
    batch_size: int
    optimizer: str
    learning_rate: float
    loss: str = "crossentropy"
    n3: float = 0.0
    initial_scale: float = 1.0
    negatives: int = 1
    by_answers: bool = False


class AnswerCounts(LossWeighter):
    """Weights of PyKEEN's queries for tails: the number of answers of each."""

    def __init__(self, triples: np.ndarray, num_relations: int) -> None:
        train = Answers(triples, num_relations)
        anchor, relation = train.queries.T
        inverse = relation >= num_relations
        relations = 2 * (relation - num_relations * inverse) + inverse  # PyKEEN's numbers
        anchors, counts = anchor.tolist(), np.diff(train.starts).tolist()
        self._counts = dict(zip(zip(anchors, relations.tolist(), strict=True), counts, strict=True))

    def __call__(self, h: Any, r: Any, t: Any) -> Tensor:
        """Return the weight of one query (h [1], r [1], None): float32 [1]."""
        return torch.tensor([float(self._counts[int(h[0]), int(r[0])])])


class _AfterBatch(TrainingCallback):
    """Passes the share of epochs that is done to a curve."""

    def __init__(self, curve: ValidationCurve, batches: int) -> None:
        super().__init__()
        self._curve, self._batches, self._done = curve, batches, 0

    def post_batch(self, epoch: int, batch: Any, **kwargs: Any) -> None:
        self._done += 1
        self._curve.after_step(self._done / self._batches)


def make_model(factory: CoreTriplesFactory, setting: Setting, seed: int) -> ERModel[Any, Any, Any]:
    """Return the model as PyKEEN's class ComplEx builds it, with N3."""
    vectors = {
        "shape": setting.dim // 2,
        "dtype": torch.cfloat,
        "initializer": partial(torch.nn.init.normal_, std=setting.initial_scale),
        "regularizer": "powersum" if setting.n3 else None,
        "regularizer_kwargs": {"weight": setting.n3, "p": 3.0} if setting.n3 else None,
    }
    return ERModel(
        triples_factory=factory,
        interaction="ComplEx",
        entity_representations_kwargs=vectors,
        relation_representations_kwargs=vectors,
        loss=setting.loss,
        random_seed=seed,
    )


def scores(model: ERModel[Any, Any, Any], num_relations: int, queries: Tensor) -> Tensor:
    """Score all entities for queries int64 [b, 2], as the model's predictions of tails and heads do: float32 [b, N].

    A product of real matrices takes a small part of the time of those predictions, which multiply complex numbers.
    """
    (entities,), (relations,) = (
        [part(None) for part in parts] for parts in (model.entity_representations, model.relation_representations)
    )
    anchor, relation = queries.T
    inverse = relation >= num_relations
    relation = relation - num_relations * inverse
    if model.use_inverse_triples:  # relation 2r + 1 is the inverse of relation 2r
        vector = relations[2 * relation + inverse.long()]
    else:
        vector = torch.where(inverse[:, None], relations[relation].conj(), relations[relation])
    query = entities[anchor] * vector
    return torch.view_as_real(query.resolve_conj()).flatten(1) @ torch.view_as_real(entities).flatten(1).T


def train(graph: Graph, setting: Setting, curve_file: Path, interval: float, seed: int) -> None:
    """Train until the process is ended."""
    entities, relations = graph["sizes"].tolist()
    triples, all_entities = torch.from_numpy(graph["train"]).long(), setting.loop == "lcwa"
    factory = CoreTriplesFactory(triples, entities, relations, create_inverse_triples=all_entities)
    model = make_model(factory, setting, seed)
    optimizer = getattr(torch.optim, setting.optimizer)(model.parameters(), lr=setting.learning_rate)
    shared = {"model": model, "triples_factory": factory, "optimizer": optimizer}
    loop: TrainingLoop[Any]
    if all_entities:
        weighter = AnswerCounts(graph["train"], relations) if setting.by_answers else None
        loop = LCWATrainingLoop(**shared, loss_weighter=weighter)
    else:
        drawn = {"num_negs_per_pos": setting.negatives}
        loop = SLCWATrainingLoop(**shared, negative_sampler="basic", negative_sampler_kwargs=drawn)
    items = len(Answers(graph["train"], relations).queries) if all_entities else len(triples)
    curve = ValidationCurve(graph, partial(scores, model, relations), curve_file, interval)
    callback = _AfterBatch(curve, -(-items // setting.batch_size))
    loop.train(
        factory, num_epochs=EPOCHS, batch_size=setting.batch_size, use_tqdm=False, callbacks=callback, pin_memory=False
    )


def main() -> None:
    """``GRAPH.npz CURVE THREADS INTERVAL SEED SETTING``: train, and append each validation to CURVE."""
    graph, curve, threads, interval, seed, setting = sys.argv[1:]
    torch.set_num_threads(int(threads))
    with np.load(graph) as arrays:
        train(dict(arrays), Setting(**json.loads(setting)), Path(curve), float(interval), int(seed))


if __name__ == "__main__":
    main()
