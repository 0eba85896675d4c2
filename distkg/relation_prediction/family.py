"""Family of models that rank the relations between two entities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from distkg.config import RunConfig
from distkg.foundation.family import FoundationFamily, facts_of
from distkg.foundation.model_files import ModelFileError, described_model, load_model
from distkg.foundation.models import MODELS
from distkg.relation_prediction.learner import RelationLearner
from distkg.relation_prediction.predictions import predict_relations
from distkg.relation_prediction.ranking import evaluate_relations
from distkg.sharding.ranks import Ranks
from distkg.training.family import GraphChoice, Predictor, QuestionError
from distkg.training.schedule import Schedule
from distkg.training.services import Services


class RelationFamily(FoundationFamily):
    """``Family`` of models that rank relations; graphs, files and plans are those of foundation models."""

    def learner(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> RelationLearner:
        return RelationLearner(config, ranks, schedule, services)

    def holds_model(self, folder: Path) -> bool:
        try:
            name = described_model(folder)
        except ModelFileError:
            return False  # loading the model raises the error
        return name is not None and name in MODELS and MODELS[name].ranks == "relations"

    @contextmanager
    def open(self, folder: Path, ranks: Ranks, graph: GraphChoice) -> Iterator[Predictor]:
        if graph.fanouts:
            raise QuestionError(
                f"--fanouts: for foundation models that rank entities; {folder} does not hold one. Leave --fanouts out"
            )
        model = load_model(folder)
        with facts_of(model, graph) as store:
            yield Predictor(
                model=model.name,
                store=store,
                evaluate=lambda split, triples: evaluate_relations(model, store, split, triples=triples, ranks=ranks),
                top_relations=partial(predict_relations, model, store),
            )


FAMILY = RelationFamily()
