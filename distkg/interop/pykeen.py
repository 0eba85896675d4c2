"""distkg's negative sources as negative samplers of PyKEEN (https://github.com/pykeen/pykeen).

Importing this module adds every source to PyKEEN's ``negative_sampler_resolver``, under its name with the prefix
``distkg_``:

    import distkg.interop.pykeen
    pipeline(dataset="Nations", model="TransE", negative_sampler="distkg_relational",
             negative_sampler_kwargs={"num_negs_per_pos": 10, "options": {"integrate": True}})

As in the negative-sampling extension of PyKEEN (d'Amato et al. 2025, arXiv 2508.05587), half of a triple's negatives,
chosen at random, replace the head and the others the tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import torch
from pykeen.sampling import NegativeSampler, negative_sampler_resolver
from torch import Tensor

from distkg.config import ConfigError
from distkg.data.storage.location import Location
from distkg.data.storage.working_copy import folder_at
from distkg.data.store.classes import Classes, encode_classes, read_declared
from distkg.embedding.load_run import load_run
from distkg.embedding.sharded_model_view import ShardedModelView
from distkg.graph.directions import both_directions
from distkg.kernels.scores.similarity import Similarity
from distkg.negatives import SOURCES, Negatives, NegativeSource, Queries, SourceError, TrainingGraph, make_source
from distkg.sharding.ranks import Ranks


class SourceSampler(NegativeSampler):
    """Base class of the samplers; each has one negative source."""

    source_name: ClassVar[str]

    def __init__(
        self,
        *,
        mapped_triples: Tensor,
        options: Mapping[str, Any] | None = None,
        classes: str | Path | None = None,
        run: str | Path | None = None,
        store: str | Path = "",
        entity_to_id: Mapping[str, int] | None = None,
        relation_to_id: Mapping[str, int] | None = None,
        **others: Any,
    ) -> None:
        """Create the sampler.

        Args:
            mapped_triples: the training triples, int64 [n, 3].
            options: options of the source, as ``negatives.options``.
            classes: folder with ``entity_types.tsv`` and ``relation_domain_range.tsv``, for sources that need classes.
            run: folder of a distkg run or its address in an object store, for sources that read the vectors of a model;
                the model is not updated.
            store: address of the run's store, if it has moved.
            entity_to_id, relation_to_id: ids of the triples factory; required with ``classes`` or ``run``.
            others: arguments of PyKEEN's ``NegativeSampler``.

        Raises:
            ConfigError, SourceError: as ``make_source``; ``classes`` or ``run`` without the ids of labels.
        """
        super().__init__(mapped_triples=mapped_triples, **others)
        if (classes or run) and not (entity_to_id and relation_to_id):
            raise ConfigError("classes and run use labels: pass entity_to_id and relation_to_id of the triples factory")
        ids = entity_to_id or {}, relation_to_id or {}
        known = _read_classes(classes, *ids) if classes else None
        graph = TrainingGraph.of_triples(mapped_triples.numpy(), self.num_entities, self.num_relations, known)
        self.source: NegativeSource = make_source(self.source_name, options or {}, graph)
        if run:
            self.source.attach(RelabelledModel(run, *ids, store=str(store)))
        self._generator = torch.Generator().manual_seed(int(torch.randint(1 << 31, (1,))))

    def sample(self, positive_batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return negatives int64 [b, K, 3] and a mask bool [b, K], True for valid negatives; the mask is None if all
        are valid."""
        negatives, valid = self._corrupt(positive_batch)
        allowed = None if self.filterer is None else self.filterer(negative_batch=negatives)
        if valid is None or allowed is None:
            return negatives, allowed if valid is None else valid
        return negatives, valid & allowed

    def corrupt_batch(self, positive_batch: Tensor) -> Tensor:
        """Return negatives alone, int64 [b, K, 3], with the positive triple where there is no negative."""
        return self._corrupt(positive_batch)[0]

    def _corrupt(self, positive: Tensor) -> tuple[Tensor, Tensor | None]:
        flat, count = positive.reshape(-1, 3), self.num_negs_per_pos
        head, relation, tail = flat.unbind(1)
        queries = Queries(*both_directions(head, relation, tail, num_relations=self.num_relations))
        drawn = _with_made(self.source.draw(queries, count, self._generator))
        heads = self._heads(len(flat), count)
        valid = torch.ones(len(queries), count, dtype=torch.bool) if drawn.mask is None else ~drawn.mask
        for_tail, for_head = drawn.entities.chunk(2)
        tail_valid, head_valid = valid.chunk(2)
        chosen = torch.where(heads, head_valid, tail_valid)
        negatives = flat[:, None, :].repeat(1, count, 1)
        negatives[..., 0] = torch.where(heads & chosen, for_head, negatives[..., 0])
        negatives[..., 2] = torch.where(~heads & chosen, for_tail, negatives[..., 2])
        shape = (*positive.shape[:-1], count)
        return negatives.view(*shape, 3), None if drawn.mask is None else chosen.view(shape)

    def _heads(self, triples: int, count: int) -> Tensor:
        """Return the mask of negatives that replace the head, a random half of each row: bool [b, K]."""
        order = torch.rand(triples, count, generator=self._generator).argsort(1)
        half = torch.full((triples, 1), count // 2)
        if count % 2:
            half += torch.randint(2, (triples, 1), generator=self._generator)
        return order < half


def _with_made(drawn: Negatives) -> Negatives:
    """Replace as many drawn negatives by the generated ones, because PyKEEN has one kind of negative."""
    generated = drawn.made
    if generated is None:
        return drawn
    if generated.entities is None:
        raise SourceError(
            "PyKEEN trains on entities, and this source generates vectors: pass options={'negatives': 'snap', ...}"
        )
    count = drawn.entities.shape[1]
    mask = torch.zeros(drawn.entities.shape, dtype=torch.bool) if drawn.mask is None else drawn.mask
    entities = torch.cat([generated.entities, drawn.entities], dim=1)[:, :count]
    return Negatives(entities, torch.cat([generated.mask, mask], dim=1)[:, :count])


class RelabelledModel:
    """``ModelView`` of a run's model with other ids of entities and relations."""

    def __init__(
        self, run: str | Path, entity_to_id: Mapping[str, int], relation_to_id: Mapping[str, int], store: str = ""
    ) -> None:
        """Load the model.

        Args:
            store: address of the run's store, if it has moved.

        Raises:
            StoreMismatchError: the store is not the one that the run was trained on.
            StoreError: the run's graph has no entity or relation of some label.
        """
        with folder_at(run) as folder:
            model, own, _ = load_run(folder, Ranks.single(), store, scope="labels", held=True)
        self._view = ShardedModelView(model)
        self.similarity: Similarity = self._view.similarity
        self._relations, self._theirs = own.num_relations, len(relation_to_id)
        self._entity = _places(entity_to_id, own.entity_id)
        self._relation = _places(relation_to_id, own.relation_id)
        self.ranks = Ranks.single()
        self.entities, self.first = len(self._entity), 0

    def query(self, anchor: Tensor, relation: Tensor) -> Tensor:
        inverse, own = relation >= self._theirs, self._relation[relation % self._theirs]
        return self._view.query(self._entity[anchor], own + inverse * self._relations)

    def relations(self) -> Tensor:
        return self._view.relations()[self._relation]

    def candidates(self, entities: Tensor) -> Tensor:
        return self._view.candidates(self._entity[entities])

    def own_candidates(self) -> Tensor:
        return self._view.candidates(self._entity)


def _places(ids: Mapping[str, int], place: Any) -> Tensor:
    places = torch.empty(len(ids), dtype=torch.int64)
    for label, number in ids.items():
        places[number] = place(label)
    return places


def _read_classes(folder: str | Path, entities: Mapping[str, int], relations: Mapping[str, int]) -> Classes | None:
    declared = read_declared(Location.of(str(folder)))
    if declared is None:
        return None
    in_order = (pa.array(sorted(ids, key=ids.__getitem__)) for ids in (entities, relations))
    return encode_classes(declared, *in_order)[0]


def _sampler(name: str) -> type[SourceSampler]:
    title = "".join(part.title() for part in name.split("_"))
    attributes = {"source_name": name, "__doc__": f"distkg's source ``{name}``: {SOURCES[name].__doc__}"}
    return type(f"Distkg{title}NegativeSampler", (SourceSampler,), attributes)


SAMPLERS = {name: _sampler(name) for name in SOURCES}
"""Name of the source → PyKEEN sampler class."""

for _name, _class in SAMPLERS.items():
    negative_sampler_resolver.register(_class, raise_on_conflict=False)
