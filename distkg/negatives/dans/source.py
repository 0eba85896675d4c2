"""Negative source of DANS-KGC: the negatives that its diffusion model generates, cached for each training query."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from distkg.data.store.known_answers import SORTED_QUERY_BYTES
from distkg.graph.directions import query_keys
from distkg.graph.structure import structure
from distkg.graph.walks import dgl_walks, plain_walks
from distkg.kernels.nearest_neighbours import cluster
from distkg.negatives.base import (
    SOURCES,
    GeneratedNegatives,
    Negatives,
    NegativeSource,
    Queries,
    Requires,
    RunSizes,
    SourceError,
    SourceOptions,
    TrainingProgress,
    make_source,
)
from distkg.negatives.dans.clusters import default_kinds, nearest_centres, sampled_entities, spread, two_nearest
from distkg.negatives.dans.curriculum import BANDS, Curriculum, band_margins, band_weights
from distkg.negatives.dans.generator import DenoiserConditions, Generator, GeneratorOptions
from distkg.negatives.dans.nearest_entity import nearest_of_some, some_entities
from distkg.negatives.known_facts import known_facts
from distkg.negatives.model_based.cached import RowsByKey
from distkg.negatives.model_view import ModelView
from distkg.negatives.training_graph import TrainingGraph
from distkg.sharding.shards import Shards

LEARNED = 512  # maximum number of triples of a batch on which the generator is trained
ENTITY_BYTES = 200  # of an entity: its structural features while they are computed, and its type
EDGE_BYTES = 40  # of an end of an edge, in walks and structural features
SAMPLED_ROWS = 512  # entities whose nearest neighbours give the usual distance


class DansOptions(SourceOptions):
    negatives: Literal["embedding", "snap"] = Field(
        "snap", description="Negatives: embedding (the generated vectors) or snap (the entities nearest to them)."
    )
    made: int = Field(2, ge=1, description="Number of generated negatives per query and hardness band.")
    weight: float = Field(
        0.25, ge=0, description="Loss weight η of generated negatives, relative to 1 for uniform ones."
    )
    curriculum: Curriculum = Field(
        "resolved", description="Curriculum: resolved (from easy to hard), paper (as printed) or none."
    )
    curriculum_sharpness: float = Field(
        4.0, ge=0, description="Sharpness λ of the curriculum's change to hard negatives."
    )
    margin_growth: float = Field(0.5, ge=0, le=1, description="Relative growth β of the margin of the hardest band.")
    refresh: float = Field(20.0, gt=0, description="Epochs after which cached negatives are generated again.")
    every: int = Field(
        8, ge=1, description="Draws between two steps that train the diffusion model and generate negatives."
    )
    renewed: int = Field(256, ge=1, description="Maximum number of queries for which such a step generates negatives.")
    least_distance: float = Field(
        0.5,
        ge=0,
        description="With negatives: embedding, minimum distance of a generated vector from the answer, in multiples "
        "of the median distance of nearest entities; nearer vectors are masked.",
    )
    kinds: int | None = Field(
        None, ge=2, description="Number of entity types (k-means clusters); default: √entities / 2."
    )
    neighbours: int = Field(8, ge=1, le=32, description="Number of sampled neighbours of the anchor.")
    sampler: Literal["compiled", "dgl"] = Field(
        "compiled", description="Neighbour sampler: compiled (built in) or dgl."
    )
    pivots: int = Field(256, ge=1, description="Number of entities from which betweenness and closeness are estimated.")
    diffusion: GeneratorOptions = Field(default_factory=GeneratorOptions, description="Options of the diffusion model.")


@SOURCES.register("dans")
class Dans(NegativeSource):
    """Uniform negatives and negatives that a diffusion model generates from the answers (DANS-KGC, arXiv 2511.07901).

    The model is trained on batches for which negatives are drawn. The hardness band of each query is drawn at random,
    with the weights of the curriculum.
    """

    Options = DansOptions
    needs = "a model"
    requires: ClassVar[Requires] = "both"
    generates = True

    @classmethod
    def memory(cls, options: SourceOptions, sizes: RunSizes) -> int:
        assert isinstance(options, DansOptions)
        vector_bytes = BANDS * options.made * (4 if options.negatives == "snap" else 4 * sizes.width)
        table = RowsByKey.memory(-(-sizes.queries // sizes.workers), vector_bytes)
        # Of the negatives of a draw, one band for each query; and of their scores and gradients in the step.
        drawn = sizes.drawn * options.made * (32 if options.negatives == "snap" else 6 * 4 * sizes.width)
        width, hidden = sizes.width, options.diffusion.hidden * sizes.width
        # Weights, gradients and Adam's state; and the inputs and layers of a batch, with their gradients.
        network = 4 * (5 * (5 * width * hidden) + LEARNED * 12 * (3 * width + hidden))
        graph = EDGE_BYTES * sizes.queries
        clusters = options.kinds or default_kinds(sizes.entities)
        sample = len(sampled_entities(sizes.entities, clusters)) * sizes.width * 4 * 3  # FAISS copies it
        known, entities = SORTED_QUERY_BYTES * sizes.queries, ENTITY_BYTES * sizes.entities
        return known + table + drawn + entities + sample + network + graph

    @classmethod
    def generated_bytes(cls, options: SourceOptions, width: int) -> int:
        assert isinstance(options, DansOptions)
        return 12 + options.made * (1 + (4 if options.negatives == "snap" else 4 * width))

    def __init__(self, graph: TrainingGraph, options: SourceOptions) -> None:
        super().__init__(graph, options)
        assert isinstance(options, DansOptions)
        self._options = options
        self._beside = make_source("uniform", {}, graph)
        walker = {"compiled": plain_walks, "dgl": dgl_walks}[options.sampler]
        self._walk = walker(graph.triples[:, ::2], graph.entities)
        self._started, self._draws = False, 0
        self._model: ModelView | None = None
        self._now, self._refreshed = TrainingProgress(), -torch.inf

    def attach(self, model: ModelView) -> None:
        self._model = model

    def advance(self, moment: TrainingProgress) -> None:
        self._now = moment

    def weights(self) -> dict[str, Tensor]:
        return dict(self._generator.named_parameters()) if self._started else {}

    def draw(self, queries: Queries, count: int, generator: torch.Generator) -> Negatives:
        """Draw negatives; collective among the ranks of the model."""
        if self._model is None:
            raise SourceError(
                "negatives.source: dans draws from the vectors of a model in training: use it in a training run"
            )
        beside = self._beside.draw(queries, count, generator)
        return Negatives(beside.entities, beside.mask, self._made(self._model, queries, generator))

    def pool_sizes(self, queries: Queries) -> Tensor:
        return self._beside.pool_sizes(queries)

    def _made(self, model: ModelView, queries: Queries, generator: torch.Generator) -> GeneratedNegatives:
        if self._now.epochs - self._refreshed >= self._options.refresh:
            self._refreshed = self._now.epochs
            self._look_around(model)
        rows, old, first = self._table.look_up(self._keys(queries), self._now.epochs)
        if self._draws % self._options.every == 0:
            self._learn(model, queries, generator)
            some = torch.randperm(len(old), generator=generator)[: self._options.renewed]
            self._table.renew(old[some], self._make(model, queries[first[some]], generator), self._now.epochs)
        self._draws += 1
        chances = band_weights(self._now.progress, self._options.curriculum_sharpness, self._options.curriculum)
        band = torch.multinomial(chances, max(len(queries), 1), replacement=True, generator=generator)[: len(queries)]
        return self._of_band(queries, self._table.values[rows, band], band)

    def _of_band(self, queries: Queries, values: Tensor, band: Tensor) -> GeneratedNegatives:
        options = self._options
        growing = options.margin_growth if options.curriculum != "none" else 0.0
        growth = band_margins(self._now.progress, 1.0, growing)[band]
        if options.negatives == "snap":
            return GeneratedNegatives(values.long().clamp_min(0), None, values < 0, band, growth, options.weight)
        mask = values[..., 0].isnan()
        return GeneratedNegatives(None, values.nan_to_num(), mask, band, growth, options.weight)

    def _learn(self, model: ModelView, queries: Queries, generator: torch.Generator) -> None:
        """Train the generator on a sample of the triples."""
        some = queries[torch.randperm(len(queries), generator=generator)[:LEARNED]]
        known = self._conditions(model, some)
        if len(some):
            losses = -model.similarity.pairs(known.query, known.vector)
            self._generator.learn(known, losses, generator)

    def _make(self, model: ModelView, queries: Queries, generator: torch.Generator) -> Tensor:
        """Return generated negatives of all bands: float32 [b, bands, made, C], NaN for vectors too near the answer;
        or int32 [b, bands, made], -1 for none."""
        per_band, known = self._options.made, self._conditions(model, queries)
        vectors, noise = self._generator.make(known.repeat(per_band), generator)
        vectors = vectors.view(len(queries), per_band, BANDS, vectors.shape[2]).transpose(1, 2).contiguous()
        if self._options.negatives == "embedding":
            distance = (vectors - known.vector[:, None, None]).norm(dim=3, keepdim=True)
            return vectors.where(distance >= self._options.least_distance * self._usual_distance, torch.nan)
        noise = noise.view(len(queries), per_band, BANDS).transpose(1, 2).flatten(1)
        some = some_entities(self.entities, generator)
        wrong = ~known_facts(self.graph.known, queries.anchor, queries.relation, some.expand(len(queries), -1), 1)
        wrong &= some != queries.answer[:, None]
        places = nearest_of_some(vectors.flatten(1, 2), noise, model.candidates(some).cpu(), wrong, generator)
        return torch.where(places < 0, -1, some[places]).view(len(queries), BANDS, per_band).int()

    def _conditions(self, model: ModelView, queries: Queries) -> DenoiserConditions:
        neighbours = self._neighbours(queries.anchor)
        ids, place = torch.unique(torch.cat([queries.answer[:, None], neighbours], dim=1), return_inverse=True)
        rows = model.candidates(ids).cpu()
        return DenoiserConditions(
            answer=queries.answer,
            vector=rows[place[:, 0]],
            kind=self._centres[self._kinds[queries.anchor]],
            query=model.query(queries.anchor, queries.relation).cpu(),
            around=rows[place[:, 1:]].mean(1),
        )

    def _neighbours(self, anchor: Tensor) -> Tensor:
        starts = anchor.repeat_interleave(self._options.neighbours).numpy()
        walks = self._walk(starts, 1, self._now.step)
        return torch.from_numpy(np.ascontiguousarray(walks[:, 1])).view(len(anchor), self._options.neighbours)

    def _look_around(self, model: ModelView) -> None:
        """Recompute entity types, scale and usual distance from the current vectors; collective.

        Centres, mean and deviation come from a sample of the entities, which is all of them in a graph of usual size.
        Each rank finds the types of its own entities, and looks among these for neighbours of ``SAMPLED_ROWS`` others.
        """
        count = self._options.kinds or default_kinds(self.entities)
        rows = model.candidates(sampled_entities(self.entities, count)).cpu()
        self._centres = cluster(rows, min(count, len(rows)))
        own = model.own_candidates()
        self._kinds = _of_all_ranks(nearest_centres(own, self._centres), model)
        some = model.candidates(spread(SAMPLED_ROWS, self.entities)).cpu()
        nearest = model.ranks.all_gather(two_nearest(some, own).to(model.ranks.device)).cpu()
        second = nearest.view(model.ranks.size, len(some), 2).transpose(0, 1).flatten(1).topk(2, largest=False).values
        self._usual_distance = float(second[:, 1].median())
        if not self._started:
            self._start(rows.shape[1], model)
        self._generator.scale_to(rows)

    def _start(self, width: int, model: ModelView) -> None:
        features = structure(self.graph.triples, self.entities, pivots=self._options.pivots).standardised()
        queried = model.query(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)).shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same first weights in every replica
            self._generator = Generator(self._options.diffusion, torch.from_numpy(features), width, queried)
        shape = (0, BANDS, self._options.made)
        if self._options.negatives == "snap":
            empty, fill = torch.empty(shape, dtype=torch.int32), -1.0
        else:
            empty, fill = torch.empty(*shape, width), torch.nan
        self._table = RowsByKey(empty, fill, refresh=self._options.refresh)
        self._started = True

    def _keys(self, queries: Queries) -> Tensor:
        return query_keys(queries.anchor, queries.relation, self.graph.relations) * self.entities + queries.answer


def _of_all_ranks(own: Tensor, model: ModelView) -> Tensor:
    """Return the values int32 [n] of all entities from those of each rank's entities; collective."""
    ranks, shards = model.ranks, Shards(model.entities, model.ranks.size)
    padded = torch.zeros(shards.per_rank, dtype=torch.int32, device=ranks.device)
    padded[: len(own)] = own
    return ranks.all_gather(padded)[: model.entities].cpu()
