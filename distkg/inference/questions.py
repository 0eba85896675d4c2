"""Questions to an opened model, which one process or several workers together answer; picklable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distkg.data.storage.working_copy import folder_at
from distkg.data.store.known_answers import Known
from distkg.inference.predict import Prediction, predict, predict_file
from distkg.inference.untrained import untrained_warnings
from distkg.sharding.ranks import Ranks
from distkg.training.family import Predictor, QuestionError, cannot_rank


@dataclass(frozen=True)
class Evaluation:
    """Filtered metrics of a split, or of a random subset of ``triples`` of it."""

    split: str
    triples: int | None

    def __call__(self, predictor: Predictor, ranks: Ranks) -> dict[str, Any]:
        return predictor.evaluate(self.split, self.triples)


@dataclass(frozen=True)
class BestAnswers:
    """Best answers to one query by labels.

    Attributes:
        inverse: True for heads of (·, relation, anchor) instead of tails.
        explain: number of paths of facts for each answer.
    """

    anchor: str
    relation: str
    inverse: bool
    top: int
    known: Known
    explain: int = 0

    def __call__(self, predictor: Predictor, ranks: Ranks) -> tuple[list[Prediction], list[list[Any]], Sequence[str]]:
        """Return the answers, the paths to each if asked for, and warnings."""
        if predictor.topk is None:
            raise cannot_rank(predictor.model, "entities")
        if self.explain and predictor.explain is None:
            raise QuestionError(f"--explain is for foundation models, and {predictor.model} is a model of embeddings")
        facts = predictor.store
        anchor = facts.entity_id(self.anchor)
        relation = facts.relation_id(self.relation) + self.inverse * facts.num_relations
        (answers,) = predict(predictor.topk, facts, [anchor], [relation], self.top, self.known)
        paths: list[list[Any]] = []
        if self.explain and predictor.explain is not None and ranks.first:
            paths = predictor.explain(anchor, relation, [answer.entity for answer in answers], self.explain)
        return answers, paths, list(untrained_warnings(facts, [anchor], [relation]))


@dataclass(frozen=True)
class AnswersOfFile:
    """Best answers to the queries of a file, written to another file by the first rank."""

    queries: Path
    output: Path
    top: int
    known: Known

    def __call__(self, predictor: Predictor, ranks: Ranks) -> tuple[int, Sequence[str]]:
        """Return the number of answers, and warnings."""
        if predictor.topk is None:
            raise cannot_rank(predictor.model, "entities")
        warnings: list[str] = []
        written = predict_file(
            predictor.topk,
            predictor.store,
            self.queries,
            self.output,
            self.top,
            self.known,
            writes=ranks.first,
            warn=warnings.append,
        )
        return written, warnings


@dataclass(frozen=True)
class Export:
    """Export of entity vectors to a folder or an address, with an index of nearest neighbours on request."""

    folder: str
    index: bool

    def __call__(self, predictor: Predictor, ranks: Ranks) -> None:
        assert predictor.export is not None
        with folder_at(self.folder, fetch=False) as folder:
            predictor.export(folder, self.index)
