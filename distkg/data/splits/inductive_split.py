"""Split of one graph into a training and an inference graph without common entities, and optionally relations.

Entities are divided by growing neighbourhoods (``distkg.graph.growth``); facts between the two sides are left out. If
relations must differ too, they are divided first, by their number of facts, and each side grows along its own
relations. Facts of each graph are held out as in ``distkg.data.splits.holdout``, such that train keeps all entities and
relations. Both graphs become stores in the layout of ``distkg.data.splits.inductive``, with the classes, tokens and
relation texts of the source.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distkg.data.assemble import Graph, PrepareReport, SplitPart, StorePlan, assemble
from distkg.data.errors import IngestError
from distkg.data.prepare import check_split, report
from distkg.data.readers.problems import Problems
from distkg.data.splits.duplicates import first_occurrences
from distkg.data.splits.holdout import split_part
from distkg.data.splits.inductive import INFERENCE, TRAINING
from distkg.data.spool import Spool
from distkg.data.storage.location import Location, address_within, without_secrets
from distkg.data.store.graph_store import Store
from distkg.data.store.relation_text import RELATION_TEXT
from distkg.data.store.writer import StoreWriter
from distkg.data.tokens.token_store import read_modalities, write_modality
from distkg.graph.growth import grow_two_sides, largest_component
from distkg.redaction import is_remote

Kind = Literal["entities", "entities-and-relations"]


@dataclass(frozen=True)
class InductiveSplit:
    """Report of ``inductive_split``.

    Attributes:
        training, inference: reports of the two stores.
        shared_entities, shared_relations: number of labels in both, counted in the written stores.
        left_out: number of facts of the source that are in neither.
        connected: share of entities in the largest connected component, for each store.
        carried: names of the files copied from the source, such as ``tokens text``.
    """

    training: PrepareReport
    inference: PrepareReport
    shared_entities: int
    shared_relations: int
    left_out: int
    connected: tuple[float, float]
    carried: list[str]


def inductive_split(
    source: str,
    to: str,
    *,
    kind: Kind,
    seed: int,
    share: float = 0.5,
    split: tuple[float, float, float] = (0.8, 0.1, 0.1),
) -> InductiveSplit:
    """Split all facts of a store (its own splits are ignored) into stores ``training`` and ``inference`` in a folder.

    Memory holds the facts.

    Args:
        source: address of the store.
        to: new or empty folder, or an address.
        kind: what the two graphs must not share: ``entities``, or ``entities-and-relations``.
        seed: random seed; equal seeds make equal stores.
        share: share of the entities (and, by facts, of the relations) for training.
        split: shares of train, valid and test in each graph.

    Raises:
        IngestError: the graph cannot be split with these options; says why.
        StoreError: no such store, or the folder is not free.
    """
    if kind not in get_args(Kind):
        raise IngestError(f"kind {kind!r} is unknown. Known: {', '.join(get_args(Kind))}")
    if not 0 < share < 1:
        raise IngestError(f"share {share} must lie between 0 and 1")
    check_split(split)
    store = Store.open(source)
    facts = _distinct_facts(store)
    sides = _sides(facts, store, kind, share, seed)
    for name, in_graph in zip((TRAINING, INFERENCE), sides, strict=True):
        if not in_graph.any():
            raise IngestError(f"the {name} graph would have no facts; choose another seed or share")
    plan = StorePlan(f"{without_secrets(source)}, split by {kind}", seed, 1, "random")
    reports, stores = [], []
    for name, in_graph in zip((TRAINING, INFERENCE), sides, strict=True):
        reports.append(_write(store, facts[in_graph], address_within(to, name), plan, split))
        stores.append(Store.open(address_within(to, name)))
    carried = [copy_extras(store, new_store) for new_store in stores]
    labels = [(new_store.entity_labels(), new_store.relation_labels()) for new_store in stores]
    return InductiveSplit(
        training=reports[0],
        inference=reports[1],
        shared_entities=_count_shared(labels[0][0], labels[1][0]),
        shared_relations=_count_shared(labels[0][1], labels[1][1]),
        left_out=len(facts) - int(sides.sum()),
        connected=(_largest_component_share(facts[sides[0]]), _largest_component_share(facts[sides[1]])),
        carried=carried[0],
    )


def _distinct_facts(store: Store) -> NDArray[np.int32]:
    facts = np.concatenate([store.triples(split) for split in store.manifest.triples])
    return facts[first_occurrences(facts) == np.arange(len(facts))]


def _sides(facts: NDArray[np.int32], store: Store, kind: Kind, share: float, seed: int) -> NDArray[np.bool_]:
    """Assign the facts to the two graphs: bool [2, T]."""
    allowed = np.ones((2, len(facts)), bool)
    if kind == "entities-and-relations":
        side = relation_sides(np.bincount(facts[:, 1], minlength=store.num_relations), share, seed)
        allowed = side[facts[:, 1]] == np.arange(2)[:, None]
    ends = facts[:, [0, 2]]
    first = min(max(round(share * store.num_entities), 1), store.num_entities - 1)
    entity_side = grow_two_sides((ends[allowed[0]], ends[allowed[1]]), store.num_entities, first, seed)
    inside: NDArray[np.bool_] = (entity_side[ends] == np.arange(2)[:, None, None]).all(axis=2)
    return allowed & inside


def relation_sides(counts: np.ndarray, share: float, seed: int) -> NDArray[np.int8]:
    """Assign relations to sides, 0 for training and 1 for inference: int8 [R].

    In descending order of their facts, relations are assigned at random, with probability proportional to the facts
    that a side still lacks. Both sides thus get their shares of the facts, however skewed the relations are. InGram
    divides relations by their number instead.

    Args:
        counts: integer [R], number of facts of each relation.

    Raises:
        IngestError: one side would get no relation.
    """
    rng = np.random.default_rng([seed, 2])
    lacking = np.array([share, 1 - share]) * counts.sum()
    side = np.zeros(len(counts), np.int8)
    for relation in np.argsort(-counts, kind="stable"):
        side[relation] = rng.random() * lacking.sum() >= lacking[0]
        lacking[side[relation]] = max(lacking[side[relation]] - counts[relation], 0)
    if len(set(side.tolist())) < 2:
        raise IngestError(
            f"{len(counts)} relations cannot be divided {share:g} to {1 - share:g}; choose another share or seed"
        )
    return side


def _write(
    store: Store, facts: NDArray[np.int32], address: str, plan: StorePlan, shares: tuple[float, float, float]
) -> PrepareReport:
    started = time.perf_counter()
    entities, ends = np.unique(facts[:, [0, 2]], return_inverse=True)
    relations, kinds = np.unique(facts[:, 1], return_inverse=True)
    ends = ends.reshape(-1, 2)
    with StoreWriter(address, private=is_remote(store.address)) as writer:
        spool = Spool(writer.scratch / "all", plan.source)
        spool.append(np.stack([ends[:, 0], kinds, ends[:, 1]], axis=1).astype(np.int32))
        spool.finish()
        problems = Problems("fail", writer.open_rejects)
        sizes = len(entities), len(relations)
        parts = split_part(SplitPart(spool), *sizes, shares, plan.seed, writer.scratch, problems)
        graph = Graph(
            parts,
            store.entity_labels().take(pa.array(entities)).cast(pa.large_utf8()),
            store.relation_labels().take(pa.array(relations)).cast(pa.large_utf8()),
            store.declared_classes(entities, relations),
        )
        manifest = assemble(writer, graph, plan, problems, lambda stage, done: None)
    return report(address, manifest, time.perf_counter() - started)


def copy_extras(source: Store, made: Store) -> list[str]:
    """Copy relation texts and tokens of the source; return their names."""
    carried = []
    text = Location.of(source.address).child(RELATION_TEXT)
    if text.is_file():
        Location.of(made.address).child(RELATION_TEXT).write_bytes(text.read_bytes())
        carried.append(RELATION_TEXT)
    modalities = read_modalities(source)
    if modalities:
        places = pc.index_in(made.entity_labels(), source.entity_labels()).to_numpy(zero_copy_only=False)
    for name, modality in modalities.items():
        rows, described = modality.rows()[places], modality.description
        write_modality(made, name, [rows], modality.tokens, modality.codebook(), described.source)
        carried.append(f"tokens {name}")
    return carried


def _count_shared(labels: pa.Array, others: pa.Array) -> int:
    return int(pc.sum(pc.is_in(labels, others)).as_py() or 0)


def _largest_component_share(facts: NDArray[np.int32]) -> float:
    entities, ends = np.unique(facts[:, [0, 2]], return_inverse=True)
    return largest_component(ends.reshape(-1, 2), len(entities)) / len(entities)
