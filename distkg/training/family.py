"""Interface of a family of models to training, planning, evaluation, prediction, serving and reports.

A family is found by ``model.name`` (`family_of`), or by the folder of a trained model (`family_of_folder`). No other
code in distkg depends on the family of a model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pydantic import BaseModel

from distkg.config import RunConfig
from distkg.config import family_of as family_name
from distkg.config.families import FAMILY_OF_MODEL, FamilyName
from distkg.data.store.graph_store import Store
from distkg.data.store.identity import Scope
from distkg.training.run_dir import RunFolder

if TYPE_CHECKING:
    from distkg.evaluation.topk import TopK
    from distkg.planning.plan import Plan
    from distkg.planning.resources import Resources
    from distkg.sharding.ranks import Ranks
    from distkg.training.learner import Learner
    from distkg.training.schedule import Schedule
    from distkg.training.services import Services


class QuestionError(ValueError):
    """Error of a question that a model cannot answer, or of an option that does not apply to it; the message names an
    alternative."""


@dataclass(frozen=True)
class GraphChoice:
    """Graph on which a trained model is evaluated or queried.

    Attributes:
        store: address of a store. For a run of embeddings: the new address of its own store, if that has moved. For
            other models: the store whose training facts the model reads.
        triples: file or folder of facts that the model reads instead of a store.
        fanouts: number of facts of an entity to follow at each step away from an anchor; empty for the whole graph.
        scope: files of a run's own store that must not have changed since training.
        offered: command-line options that name a graph, for messages.
        tell: function called with every notice about the facts in ``triples``.
    """

    store: str | None = None
    triples: str | None = None
    fanouts: Sequence[int] = ()
    scope: Scope = "graph"
    offered: str = "either --store or --graph"
    tell: Callable[..., None] | None = None


FirstRows = Literal["neighbours", "random"]
"""First rows of the new entities of a grown graph."""


@dataclass(frozen=True)
class Extensible:
    """Checkpoint of a run whose graph may grow.

    Attributes:
        store: store of the run.
        config: configuration of the run.
        checkpoint: folder of the checkpoint.
        check: function (grown store, configuration of the new run) that raises ConfigError if the run could not train.
        write: function (grown store, configuration of the new run, first rows, new folder of a checkpoint, its
            progress) that writes the checkpoint of the grown graph, and returns the number of new entities whose rows
            are made from their neighbours.
    """

    store: Store
    config: RunConfig
    checkpoint: Path
    check: Callable[[Store, RunConfig], None]
    write: Callable[[Store, RunConfig, FirstRows, Path, Mapping[str, Any]], int]


@dataclass(frozen=True)
class Predictor:
    """Trained model opened on a graph. Calls are collective among the ranks that opened it.

    Attributes:
        model: name of the model.
        store: store of the graph: labels and known facts.
        evaluate: function (split, number of its triples or None for all) → filtered metrics, in total and by part.
        topk: function that finds the best answers to queries; None if the model does not rank entities.
        top_relations: function (head, tail, number of relations, treatment of known facts) → the best relations; None
            if the model does not rank relations.
        explain: function (anchor, relation, answers, number of paths for each) → the most influential paths of facts;
            None if the model does not read facts.
        export: function (folder, whether to write an index of nearest neighbours) that writes entity vectors; None if
            the model has none.
    """

    model: str
    store: Store
    evaluate: Callable[[str, int | None], dict[str, Any]]
    topk: TopK | None = None
    top_relations: Callable[..., list[Any]] | None = None
    explain: Callable[[int, int, Sequence[int], int], list[list[Any]]] | None = None
    export: Callable[[Path, bool], None] | None = None


class Family(Protocol):
    """A family of models."""

    shares_graphs: bool
    """True if the processes of a node share graphs, each built once by ``make_shared``."""
    has_vectors: bool
    """True if a trained model has entity vectors, which can be exported."""

    def addresses(self, config: RunConfig) -> list[str]:
        """Return the addresses of the stores that a run trains on.

        Raises:
            ConfigError: none is named.
        """
        ...

    def stores(self, config: RunConfig) -> list[Store]:
        """Open the stores that a run trains on.

        Raises:
            ConfigError, StoreError: none is named, or one cannot be opened.
        """
        ...

    def model_options(self, name: str) -> type[BaseModel]:
        """Return the class of ``model.options``.

        Raises:
            UnknownNameError: no such model.
        """
        ...

    def inputs(self, config: RunConfig) -> dict[str, str | None]:
        """Return the models that a configuration starts from: dotted key → checksum, None if it cannot be read."""
        ...

    def plan(self, config: RunConfig, resources: Resources) -> Plan:
        """Validate a run before anything starts, and compute its memory and time.

        Raises:
            ConfigError, UnknownNameError, StoreError, SourceError: its workers would raise this error.
            PlanError: the run does not fit into memory.
        """
        ...

    def published_bytes(self, config: RunConfig) -> int:
        """Return the bytes in the object store of each node of what the workers of a run send to negative actors:
        published vectors, requests and replies.

        Raises:
            ConfigError, StoreError: as ``stores``.
        """
        ...

    def actor_bytes(self, config: RunConfig) -> int:
        """Return the planned bytes of the largest negative actor, which Ray reserves for each; 0 without actors.

        Raises:
            ConfigError, UnknownNameError, StoreError: as ``plan``.
        """
        ...

    def learner(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> Learner:
        """Create the model of a run with its batches, optimizer and training loop; collective."""
        ...

    def make_shared(self, config: RunConfig, address: str) -> Any:
        """Build the part of the graph at an address that the processes of a node share; called if ``shares_graphs``."""
        ...

    def holds_model(self, folder: Path) -> bool:
        """Return True for a folder that holds a model of the family, apart from a run."""
        ...

    def open(self, folder: Path, ranks: Ranks, graph: GraphChoice) -> AbstractContextManager[Predictor]:
        """Open a trained model from a run folder or a model folder; collective.

        Raises:
            QuestionError: an option of ``graph`` does not apply to the family.
            ConfigError, CheckpointError, ModelFileError: there is no such model, or it is damaged.
            StoreError, StoreMismatchError: the graph cannot be opened, or is not the graph of the run.
        """
        ...

    def open_to_extend(self, run: Path, store: str) -> Extensible:
        """Open the best checkpoint of a run, the newest if none was validated, to extend its graph.

        Args:
            store: address of the run's store, if it has moved.

        Raises:
            QuestionError: the family's models have no rows of entities, so they need not be extended.
            ConfigError, CheckpointError: there is no such run, or it has no sound checkpoint.
            StoreError, StoreMismatchError: the store cannot be opened, or is not the store of the run.
        """
        ...


def family_of(config: RunConfig) -> Family:
    """Return the family of the configured model."""
    return _family(family_name(config.model.name))


def family_of_folder(folder: Path) -> Family:
    """Return the family of the model in a folder, from the configuration of a run or the description of a model.

    A folder that is neither belongs to embeddings, which raise that it is not a run.

    Raises:
        ConfigError: the configuration of the run cannot be read.
    """
    run = RunFolder(folder)
    if run.config.is_file():
        return family_of(run.read_config())
    others: list[FamilyName] = ["relation_prediction", "foundation"]
    return next((family for family in map(_family, others) if family.holds_model(folder)), _family("embedding"))


def cannot_rank(model: str, what: str) -> QuestionError:
    """Return the error for a query for ``entities`` to a model that ranks relations, or the reverse."""
    ranks_relations = family_name(model) == "relation_prediction"
    others = [name for name, family in FAMILY_OF_MODEL.items() if (family == "relation_prediction") != ranks_relations]
    other = "relations" if what == "entities" else "entities"
    hint = f", or query {model} with `distkg predict-relation`" if ranks_relations else ""
    return QuestionError(
        f"{model} ranks {other}, not {what}. Use a model that ranks {what}: {', '.join(sorted(others))}{hint}"
    )


def _family(name: FamilyName) -> Family:
    # Imported by name, because families import this module.
    family: Family = import_module(f"distkg.{name}.family").FAMILY
    return family
