"""Assignment of hosted negative sources to the actors of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from distkg.cluster.shared_graphs import SharedGraphs, graphs_of_node
from distkg.config import RunConfig
from distkg.data.store.graph_store import Store
from distkg.embedding.scorers import make_scorer
from distkg.foundation.mining import relation_miners
from distkg.negatives import SOURCES, TrainingGraph
from distkg.negatives.prefetch.prefetched_source import hosted_parts
from distkg.negatives.prefetch.source_server import SourceServer, make_server


@dataclass(frozen=True)
class Hosting:
    """Source that actors host.

    Attributes:
        name, options: name and options of the source.
        places: indices of the actors that host it: one actor if its reply is a table of similarities, which is computed
            once, else all.
    """

    name: str
    options: Mapping[str, Any]
    places: range


def hosted_sources(config: RunConfig, graphs: SharedGraphs) -> dict[str, Hosting]:
    """Return the hosted sources by key (``PoolOf``): one for each shared graph, by address, else ``hosted_parts``.

    ``graphs`` are those of ``share_graphs``; each is assigned to one actor, round-robin.
    """
    chosen, actors = config.negatives, config.negatives.pool.actors
    if graphs:
        places = (range(place % actors, place % actors + 1) for place in range(len(graphs)))
        return {key: Hosting(chosen.source, chosen.options, at) for key, at in zip(graphs, places, strict=True)}
    parts = hosted_parts(chosen.source, chosen.options)
    return {
        key: Hosting(name, options, range(1 if SOURCES[name].hosted_reply == "similarities" else actors))
        for key, (name, options) in parts.items()
    }


def make_servers(config: RunConfig, graphs: SharedGraphs, place: int) -> dict[str, SourceServer[Any, Any]]:
    """Create the servers of the sources that the actor at index ``place`` hosts, by key; raises as ``make_source``."""
    own = {key: each for key, each in hosted_sources(config, graphs).items() if place in each.places}
    graph_of = graphs_of_node(graphs)
    if graph_of is not None:
        miners = relation_miners(config, [graph_of(address) for address in own])
        return {key: SourceServer(miner) for key, miner in zip(own, miners, strict=True)}
    if not own:
        return {}
    graph, pool = TrainingGraph.of_store(Store.open(config.data.store)), config.negatives.pool
    with torch.device("meta"):
        similarity = make_scorer(config.model).similarity
    device = "cuda" if pool.gpus_per_actor and torch.cuda.is_available() else "cpu"
    return {key: make_server(each.name, each.options, graph, similarity, device) for key, each in own.items()}
