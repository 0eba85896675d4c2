"""Tokens of entities: nearest anchors with distances, and relations (NodePiece, Galkin et al. 2022, arXiv 2106.12144).

Anchors are some of the entities, a share of them those of highest degree (section 3.1 there). The tokens of an entity
are its nearest anchors, by facts in either direction, the distance to each, and the relations of its facts, inverse
ones included. All are functions of the training triples and the settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distkg.config import NodePieceConfig
from distkg.data.store.graph_store import Store
from distkg.graph.csr import Csr
from distkg.graph.directions import both_directions
from distkg.kernels.jit import kernel
from distkg.randomness import Purpose, stream

FARTHEST = 15
"""Largest distance that has a token of its own; larger ones share it."""

_MOST_STEPS = 255


@dataclass(frozen=True)
class Vocabulary:
    """Numbers of tokens of each kind, whose ids follow each other: anchors, distances, relations, and that of entities
    without any other token."""

    anchors: int
    relations: int

    @classmethod
    def of(cls, settings: NodePieceConfig, entities: int, relations: int) -> Vocabulary:
        """Return the vocabulary of a graph; ``relations`` without inverses."""
        return cls(min(settings.anchors, entities), 2 * relations)

    @property
    def distances(self) -> int:
        """Id of the first distance."""
        return self.anchors

    @property
    def first_relation(self) -> int:
        """Id of the first relation."""
        return self.anchors + FARTHEST + 1

    @property
    def none(self) -> int:
        """Id of the token of entities without any other."""
        return self.first_relation + self.relations

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.none + 1


def tokens_per_entity(settings: NodePieceConfig) -> int:
    """Return the number of places for tokens of an entity."""
    return 2 * settings.nearest + settings.relations


def entity_tokens(store: Store, settings: NodePieceConfig, low: int, high: int) -> Tensor:
    """Return the tokens of entities low … high - 1 of a store: int32 [high - low, K], -1 where there are fewer."""
    triples = store.triples("train")
    vocabulary = Vocabulary.of(settings, store.num_entities, store.num_relations)
    anchors = choose_anchors(store.degrees(), vocabulary.anchors, settings.by_degree, settings.seed)
    graph = Csr.undirected(triples[:, ::2], store.num_entities)
    nearest, distances = nearest_anchors(graph, anchors, settings.nearest)
    nearest, distances = nearest[low:high], distances[low:high]
    relations = frequent_relations(triples, store.num_relations, settings.relations, low, high)
    steps = np.where(nearest < 0, -1, vocabulary.distances + np.minimum(distances, FARTHEST).astype(np.int32))
    relations = np.where(relations < 0, -1, vocabulary.first_relation + relations)
    tokens = np.concatenate([nearest, steps, relations], axis=1, dtype=np.int32)
    tokens[(tokens < 0).all(1), 0] = vocabulary.none
    return torch.from_numpy(tokens)


def choose_anchors(degrees: NDArray[np.int64], count: int, by_degree: float, seed: int) -> NDArray[np.int64]:
    """Choose anchors among all entities: those of highest degree, then others at random: int64 [count].

    Args:
        degrees: int64 [N].
        by_degree: share of the anchors that are chosen by degree.
    """
    order = np.argsort(-degrees, kind="stable")
    first = round(by_degree * count)
    shuffled = torch.randperm(len(order) - first, generator=stream(Purpose.ANCHORS, seed)).numpy()
    return np.concatenate([order[:first], order[first:][shuffled[: count - first]]])


def nearest_anchors(graph: Csr, anchors: np.ndarray, count: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Find the nearest anchors of every node by breadth-first search from all anchors at once.

    Of equally distant ones, the first in ``anchors`` are taken. An anchor that a node does not keep is no nearer than
    those that it keeps for whoever is reached through it, so only kept ones go on: count · edges operations.

    Returns:
        positions in ``anchors`` int32 [n, count], nearest first and -1 where there are fewer, and their distances
        uint8 [n, count].
    """
    nodes = len(graph.offsets) - 1
    nearest, distances = np.full((nodes, count), -1, np.int32), np.zeros((nodes, count), np.uint8)
    nearest[anchors, 0] = np.arange(len(anchors))
    before, kept = np.zeros(nodes, np.int32), (nearest[:, 0] >= 0).astype(np.int32)
    seen, candidates = np.full(len(anchors), -1, np.int64), np.empty(len(anchors), np.int32)
    for step in range(1, _MOST_STEPS + 1):
        filled = kept.copy()
        if not _advance(
            graph.offsets, graph.neighbours, nearest, distances, before, kept, filled, step, seen, candidates
        ):
            break
        before, kept = kept, filled
    return nearest, distances


@kernel
def _advance(
    offsets: np.ndarray,
    neighbours: np.ndarray,
    nearest: np.ndarray,
    distances: np.ndarray,
    before: np.ndarray,
    kept: np.ndarray,
    filled: np.ndarray,
    step: int,
    seen: np.ndarray,
    candidates: np.ndarray,
) -> bool:
    """Give every node that has room the anchors that its neighbours got in the last step; return whether any did.

    Args:
        before, kept: int32 [n], numbers of anchors of each node before the last step and after it.
        filled: as ``kept``, to be raised.
        seen: int64 [anchors], marks of those that a node has met; ``candidates``: int32 [anchors], buffer.
    """
    grown, nodes, most = False, nearest.shape[0], nearest.shape[1]
    for node in range(nodes):
        room, found = most - kept[node], 0
        if room == 0:
            continue
        mark = np.int64(step) * nodes + node
        for i in range(kept[node]):
            seen[nearest[node, i]] = mark
        for edge in range(offsets[node], offsets[node + 1]):
            other = neighbours[edge]
            for i in range(before[other], kept[other]):
                anchor = nearest[other, i]
                if seen[anchor] != mark:
                    seen[anchor] = mark
                    candidates[found] = anchor
                    found += 1
        if found > 0:
            candidates[:found].sort()
            new = min(found, room)
            nearest[node, kept[node] : kept[node] + new] = candidates[:new]
            distances[node, kept[node] : kept[node] + new] = step
            filled[node], grown = kept[node] + new, True
    return grown


def frequent_relations(triples: np.ndarray, relations: int, count: int, low: int, high: int) -> NDArray[np.int32]:
    """Return the relations in [0, 2R) of the facts of entities low … high - 1, the most frequent of each first.

    Args:
        triples: int [n, 3].
        relations: R.

    Returns:
        int32 [high - low, count], -1 where an entity has fewer; of equally frequent ones the lowest ids are taken.
    """
    anchor, relation, _ = both_directions(*triples.T, num_relations=relations)
    own = (anchor >= low) & (anchor < high)
    keys = (anchor[own].astype(np.int64) - low) * (2 * relations) + relation[own]
    keys, times = np.unique(keys, return_counts=True)
    entity = keys // (2 * relations)
    order = np.lexsort((keys, -times, entity))
    keys, entity = keys[order], entity[order]
    place = np.arange(len(keys)) - np.searchsorted(entity, entity)
    chosen = place < count
    table = np.full((high - low, count), -1, np.int32)
    table[entity[chosen], place[chosen]] = keys[chosen] % (2 * relations)
    return table
