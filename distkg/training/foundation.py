"""Foundation models as a run trains them: every rank draws a graph at each step, and asks about some of its facts.

As ULTRA is pre-trained (Galkin et al. 2024, section 5.1): graphs in proportion to their facts; half of a batch asks
for tails and half for heads; the facts that are asked about are hidden; negatives are never known answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distkg.config import ConfigError, RunConfig
from distkg.data.known import KnownAnswers
from distkg.data.store import Store
from distkg.foundation import MODELS, FoundationModel, KnowledgeGraph, load_model, make_model, save_model
from distkg.foundation.files import MODEL_FOLDER
from distkg.foundation.reasoner import Reasoner
from distkg.negatives import (
    SOURCES,
    Moment,
    Negatives,
    NegativeSource,
    Queries,
    TrainingGraph,
    known_facts,
    make_source,
)
from distkg.negatives.kmas import Kmas
from distkg.objectives import EXCLUDED, SAMPLED
from distkg.sharding.ranks import Ranks
from distkg.training.checkpoint import State
from distkg.training.clock import Clock
from distkg.training.dense import DenseParameters
from distkg.training.embedding import some_of
from distkg.training.metrics import evaluate_ranks, known_answers_of, ranking_metrics
from distkg.training.randomness import Purpose, mixed_seed, seed_dropout, stream
from distkg.training.ranking import rank_by_scores
from distkg.training.record import Record
from distkg.training.schedule import Schedule

REDRAWS = 4  # of negatives that turn out to be known answers
WINDOW = 8  # steps between questions whether to go on


def is_foundation(config: RunConfig) -> bool:
    """Whether the configured model is a foundation model."""
    return config.model.name in MODELS


def graphs_of(config: RunConfig) -> list[str]:
    """Addresses of the stores that a foundation model learns from.

    Raises:
        ConfigError: there is none.
    """
    found = config.data.graphs or ([config.data.store] if config.data.store else [])
    if not found:
        raise ConfigError(
            "data.graphs is empty: name stores made by `distkg prepare`, as in --set 'data.graphs=[stores/x, stores/y]'"
        )
    return found


def check_foundation(config: RunConfig) -> str:
    """What a run of these settings will do, in a line for people.

    Raises:
        ConfigError, UnknownNameError: settings that exclude each other, or wrong options.
        StoreError: a graph cannot be opened.
        SourceError: a graph lacks what the negative source needs.
    """
    chosen = config.negatives
    if config.objective.name not in SAMPLED:
        raise ConfigError(
            f"objective.name: {config.objective.name} is for embeddings; {config.model.name} learns from negatives: "
            f"{', '.join(SAMPLED)}"
        )
    if SOURCES[chosen.source].looks_at not in ("nothing", "relations"):
        raise ConfigError(
            f"negatives.source: {chosen.source} looks at vectors of entities, which {config.model.name} has none of"
        )
    if chosen.pool.actors:
        raise ConfigError("negatives.pool.actors: a foundation model draws its negatives in the step. Set it to 0")
    graphs = [LearnedGraph.open(address, config) for address in graphs_of(config)]
    facts = sum(graph.store.manifest.triples["train"] for graph in graphs)
    model = start_of(config, graphs)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    learnt = "1 graph" if len(graphs) == 1 else f"{len(graphs)} graphs"
    return f"{model.name}, {parameters:,} parameters, learns from {learnt} with {facts:,} facts"


@dataclass(frozen=True)
class LearnedGraph:
    """A store that a model learns from.

    Attributes:
        store: its training facts are reasoned from, and asked about while they are hidden.
        name: of the store's folder, for reports.
    """

    store: Store
    name: str
    source: NegativeSource

    @classmethod
    def open(cls, address: str, config: RunConfig) -> LearnedGraph:
        store, chosen = Store.open(address), config.negatives
        source = make_source(chosen.source, chosen.options, TrainingGraph.of_store(store))
        name = "/".join(Path(address.rstrip("/")).parts[-2:])
        return cls(store, name, source)

    @cached_property
    def facts(self) -> KnowledgeGraph:
        return KnowledgeGraph.of_store(self.store)

    @property
    def known(self) -> KnownAnswers:
        return self.source.graph.known


@dataclass(frozen=True)
class Asked:
    """Queries of one step on this rank, with the facts that they hide.

    Attributes:
        learned: the graph whose facts they are.
        queries: with their answers, b of them.
        weight: float32 [E] of the graph's facts, on the model's device, 0 where hidden.
        generator: what else falls by lot in this step.
    """

    learned: LearnedGraph
    queries: Queries
    weight: Tensor
    generator: torch.Generator

    @property
    def graph(self) -> KnowledgeGraph:
        return self.learned.facts


class FoundationBatches:
    """Batches as a function of (seed, epoch, step, rank)."""

    def __init__(self, graphs: Sequence[LearnedGraph], config: RunConfig, ranks: Ranks) -> None:
        self._graphs, self._ranks, self._seed = graphs, ranks, config.train.seed
        self._size = max(2, config.train.batch_size // ranks.size)
        self._sizes = torch.tensor([graph.store.manifest.triples["train"] for graph in graphs], dtype=torch.float64)
        asked = self._size * ranks.size
        self.steps = config.train.steps_per_epoch or max(1, round(float(self._sizes.sum()) / asked))
        self.triples = self.steps * asked

    def batch(self, epoch: int, step: int) -> Asked:
        """This rank's."""
        generator = stream(Purpose.GRAPH, self._seed, epoch, step, self._ranks.rank)
        learned = self._graphs[int(torch.multinomial(self._sizes, 1, generator=generator))]
        graph = learned.facts
        chosen = torch.randint(len(graph.triples), (self._size,), generator=generator)
        queries = both_ways(graph.triples[chosen], graph.relations)
        device = self._ranks.device
        weight = graph.mask_without(*(side.to(device) for side in (queries.anchor, queries.relation, queries.answer)))
        return Asked(learned, queries, weight, generator)


def negatives_for(asked: Asked, states: Tensor, count: int, moment: Moment) -> Negatives:
    """Wrong answers, known ones drawn again; ``states`` float32 [b, 2R, d] are the model's, of relations."""
    source, queries, generator = asked.learned.source, asked.queries, asked.generator
    source.advance(moment)
    if isinstance(source, Kmas):
        similarity = similarity_to_own(states, queries.relation.to(states.device)).cpu()
        drawn = source.draw_by(similarity, queries, count, generator)
    else:
        drawn = source.draw(queries, count, generator)
    right = partial(known_facts, asked.learned.known, queries.anchor, queries.relation, per_row=1)
    entities = drawn.entities
    for _ in range(REDRAWS):
        wrong = right(entities)
        if not bool(wrong.any()):
            break
        entities = torch.where(wrong, torch.randint(source.entities, entities.shape, generator=generator), entities)
    left_out = right(entities)
    return Negatives(entities, left_out if drawn.left_out is None else left_out | drawn.left_out)


def similarity_to_own(states: Tensor, relation: Tensor) -> Tensor:
    """Cosines of each query's relation with all others, by their states: float32 [b, R] of states [b, 2R, d] and
    relations int64 [b] in [0, 2R), all without inverses."""
    relations = states.shape[1] // 2
    directed = F.normalize(states.detach()[:, :relations], dim=-1)
    own = directed[torch.arange(len(relation), device=relation.device), relation % relations]
    return torch.einsum("brd,bd->br", directed, own)


def both_ways(triples: Tensor, relations: int) -> Queries:
    """The first half of triples int64 [b, 3] as queries for their tails, the second for their heads."""
    half = len(triples) // 2
    (head, relation, tail), (other_head, inverse, other_tail) = triples[:half].T, triples[half:].T
    return Queries(
        anchor=torch.cat([head, other_tail]),
        relation=torch.cat([relation, inverse + relations]),
        answer=torch.cat([tail, other_head]),
    )


class FoundationLoop:
    """Steps of a foundation model, gradients summed over ranks."""

    def __init__(
        self,
        model: FoundationModel,
        batches: FoundationBatches,
        dense: DenseParameters,
        config: RunConfig,
        rate: Callable[[int, int], float],
        ranks: Ranks,
    ) -> None:
        self.clock = Clock()
        self.bytes_exchanged = self.steps = 0
        self._model, self._batches, self._dense, self._ranks = model, batches, dense, ranks
        self._objective = SAMPLED[config.objective.name](config.objective)
        self._rate, self._seed, self._count = rate, config.train.seed, config.negatives.count
        self._epochs = config.train.epochs
        self._loss, self._losses = torch.zeros((), device=ranks.device), 0

    def run(self, epoch: int, first: int, last: int, go_on: Callable[[int], bool]) -> int:
        before = self._ranks.traffic.bytes
        self._model.train()
        for step in range(first, last):
            if (step - first) % WINDOW == 0 and not go_on(step):
                last = step
                break
            self._step(epoch, step)
        self.bytes_exchanged += self._ranks.traffic.bytes - before
        return last

    def _step(self, epoch: int, step: int) -> None:
        with self.clock("data"):
            asked = self._batches.batch(epoch, step)
        with self.clock("compute"):
            seed_dropout(self._ranks.device, mixed_seed(Purpose.DROPOUT, self._seed, epoch, step, self._ranks.rank))
            loss = self.loss(asked, self._moment(epoch, step))
            (loss / self._ranks.size).backward()
            self._loss += loss.detach() / self._ranks.size
            self._losses += 1
        with self.clock("exchange"):
            self._dense.reduce().wait()
        with self.clock("optimizer"):
            self._dense.step(self._rate(epoch, step))
        self.steps += 1

    def _moment(self, epoch: int, step: int) -> Moment:
        done = epoch + step / self._batches.steps
        return Moment(done, min(1.0, done / self._epochs), epoch * self._batches.steps + step)

    def loss(self, asked: Asked, moment: Moment) -> Tensor:
        """Mean over the queries."""
        model, graph, queries = self._model, asked.graph, asked.queries
        device = self._ranks.device
        query = queries.anchor.to(device), queries.relation.to(device)
        states = model.relation_states(graph, *query, asked.weight)
        negatives = negatives_for(asked, states, self._count, moment)
        candidates = torch.cat([queries.answer[:, None], negatives.entities], dim=1).to(device)
        scores = model.scores(graph, states, *query, asked.weight, candidates)
        assert negatives.left_out is not None
        negative = scores[:, 1:].masked_fill(negatives.left_out.to(device), EXCLUDED)
        return self._objective(scores[:, 0], negative).mean()

    def take_loss(self) -> float:
        total = self._loss / max(self._losses, 1)
        self._ranks.all_reduce(total)
        self._loss, self._losses = torch.zeros_like(total), 0
        return float(total)


class FoundationLearner:
    """A ``Learner``: a foundation model, and the graphs that it learns from."""

    def __init__(self, config: RunConfig, ranks: Ranks, schedule: Schedule) -> None:
        self._config, self._ranks, self._schedule = config, ranks, schedule
        self.graphs = [LearnedGraph.open(address, config) for address in graphs_of(config)]
        torch.manual_seed(stream(Purpose.NETWORK, config.train.seed).initial_seed())
        self.model = start_of(config, self.graphs).to(ranks.device)
        batches = FoundationBatches(self.graphs, config, ranks)
        self.steps_per_epoch, self.triples_per_epoch = batches.steps, batches.triples
        self._dense = DenseParameters(self.model, config.optimizer, ranks)
        self.loop = FoundationLoop(self.model, batches, self._dense, config, self._rate, ranks)

    def _rate(self, epoch: int, step: int) -> float:
        return self._schedule.factor(epoch + step / self.steps_per_epoch)

    def model_state(self) -> State:
        return State({}, {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}, 0)

    def state(self) -> State:
        dense = {f"dense_optimizer.{name}": tensor for name, tensor in self._dense.state().items()}
        return State({}, self.model_state().replicated | dense, 0)

    def telemetry(self) -> Record:
        return {}

    def validate(self) -> dict[str, float] | None:
        """Means over the graphs that have something to validate on."""
        found = []
        for graph in self.graphs:
            if graph.store.manifest.triples.get("valid"):
                triples = some_of(graph.store.triples("valid"), self._config)
                ranking = self._rank(graph, triples, known_answers_of(graph.store, triples))
                found.append(ranking_metrics(ranking))
        return {name: float(np.mean([each[name] for each in found])) for name in found[0]} if found else None

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """Splits with means over graphs as ``metrics``, and those of each graph as ``by_graph``."""
        found: dict[str, dict[str, Any]] = {}
        for split in ("valid", "test"):
            graphs = [graph for graph in self.graphs if graph.store.manifest.triples.get(split)]
            if not graphs:
                continue
            each = [evaluate_ranks(graph.store, split, partial(self._rank, graph))["metrics"] for graph in graphs]
            means = {name: float(np.mean([metrics[name] for metrics in each])) for name in each[0]}
            by_graph = [{"graph": graph.name, **metrics} for graph, metrics in zip(graphs, each, strict=True)]
            found[split] = {"metrics": means, "by_graph": by_graph}
        return found

    def _rank(self, graph: LearnedGraph, triples: np.ndarray, known: KnownAnswers) -> Any:
        reasoner = Reasoner(self.model, graph.facts)
        relations, batch_size = graph.store.num_relations, self._config.evaluate.batch_size
        return rank_by_scores(reasoner.scores, triples, known, relations, batch_size=batch_size, ranks=self._ranks)

    def leave_model(self, folder: Path) -> None:
        save_model(self.model, folder / MODEL_FOLDER)

    def describe(self) -> Record:
        counts = [graph.store.manifest for graph in self.graphs]
        splits = ("train", "valid", "test")
        return {
            "entities": sum(each.entities for each in counts),
            "relations": sum(each.relations for each in counts),
            "triples": {split: sum(each.triples.get(split, 0) for each in counts) for split in splits},
            "graphs": [graph.name for graph in self.graphs],
        }


def start_of(config: RunConfig, graphs: Sequence[LearnedGraph]) -> FoundationModel:
    """The model that training begins with.

    Raises:
        ConfigError: wrong options, or a model to go on from that is another one; several graphs for a model whose
            relations are those of one.
        ModelFileError: there is none to go on from.
    """
    name, options = config.model.name, dict(config.model.options)
    if MODELS[name].knows_relations:
        if len(graphs) > 1:
            raise ConfigError(
                f"data.graphs: {name} has vectors for the relations of one graph; {len(graphs)} are given"
            )
        options["relations"] = graphs[0].store.num_relations
    if not config.model.start:
        return make_model(name, options)
    model = load_model(Path(config.model.start))
    if model.name != config.model.name:
        raise ConfigError(f"model.start: {config.model.start} is {model.name}, and model.name is {config.model.name}")
    return model
