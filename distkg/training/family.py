"""Family of models: what trains, plans, evaluates, predicts, serves and reports knows of a model.

A family is found by ``model.name`` (`family_of`), or by the folder of a trained model (`family_of_folder`). Nothing
else in distkg asks which family a model belongs to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from distkg.config import RunConfig
from distkg.config import family_of as family_name
from distkg.config.families import FAMILIES, FAMILY_OF_MODEL, FamilyName
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
    """A question that a model cannot answer, or an option that it has no use for; the message says what can."""


@dataclass(frozen=True)
class GraphChoice:
    """The graph that a trained model is asked about.

    Attributes:
        store: address of a store: of a run of embeddings its own store, where that has moved; of other models the one
            whose training facts they reason from.
        triples: file or folder of facts to reason from, in place of a store.
        fanouts: facts of an entity to follow at each step away from an anchor; empty for the whole graph.
        scope: files of a run's own store that must be as they were while it was trained.
        offered: options by which the caller lets its user name a graph, for messages.
        tell: called with every remark on the facts read from ``triples``.
    """

    store: str | None = None
    triples: str | None = None
    fanouts: Sequence[int] = ()
    scope: Scope = "graph"
    offered: str = "either --store or --graph"
    tell: Callable[..., None] | None = None


@dataclass(frozen=True)
class Predictor:
    """A trained model on a graph, opened to be asked. Calls are collective among the ranks that opened it.

    Attributes:
        model: name of the model.
        store: the graph: labels and known facts.
        evaluate: split, and how many of its triples (None for all) → filtered metrics, whole and in parts.
        topk: the best answers to queries; None where the model does not rank entities.
        top_relations: head, tail, how many, what happens to known facts → the best relations; None where the model does
            not rank relations.
        explain: anchor, relation, answers, paths for each → the facts that speak for them; None where the model does
            not reason along facts.
        export: folder, whether to write an index of nearest neighbours; None where the model has no vectors of
            entities.
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
    """True where the processes of a node read graphs that are made once, by ``make_shared``."""
    has_vectors: bool
    """True where a trained model has vectors of entities, which can be exported."""

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
        """Return the models that a configuration starts from: dotted key → checksum, None where it cannot be read."""
        ...

    def plan(self, config: RunConfig, resources: Resources) -> Plan:
        """Check a run before anything starts, and count what it takes.

        Raises:
            ConfigError, UnknownNameError, StoreError, SourceError: whatever it would raise on its workers.
            PlanError: it does not fit.
        """
        ...

    def learner(self, config: RunConfig, ranks: Ranks, schedule: Schedule, services: Services) -> Learner:
        """Make the model of a run and all that trains it; collective."""
        ...

    def make_shared(self, config: RunConfig, address: str) -> Any:
        """Make what the processes of a node share of the graph at an address; asked where ``shares_graphs``."""
        ...

    def holds_model(self, folder: Path) -> bool:
        """Return True for a folder that holds a model of the family, apart from a run."""
        ...

    def open(self, folder: Path, ranks: Ranks, graph: GraphChoice) -> AbstractContextManager[Predictor]:
        """Open a trained model: of a run folder or of a folder of its own; collective.

        Raises:
            QuestionError: ``graph`` asks for something that the family has no use for.
            ConfigError, CheckpointError, ModelFileError: there is no such model, or it is damaged.
            StoreError, StoreMismatchError: the graph cannot be opened, or is not the one of the run.
        """
        ...


def family_of(config: RunConfig) -> Family:
    """Return the family of the configured model."""
    return _family(family_name(config.model.name))


def family_of_folder(folder: Path) -> Family:
    """Return the family of the model that a folder holds: a run says it in its configuration, a model of its own in its
    description. A folder that is neither goes to embeddings, which say that it is no run.

    Raises:
        ConfigError: the configuration of the run cannot be read.
    """
    run = RunFolder(folder)
    if run.config.is_file():
        return family_of(run.read_config())
    others: list[FamilyName] = ["relation_prediction", "foundation"]
    return next((family for family in map(_family, others) if family.holds_model(folder)), _family("embedding"))


def cannot_rank(model: str, what: str) -> QuestionError:
    """Return the error for a model that is asked for ``entities`` or ``relations`` and ranks the other."""
    ranks_relations = family_name(model) == "relation_prediction"
    others = [name for name, family in FAMILY_OF_MODEL.items() if (family == "relation_prediction") != ranks_relations]
    other = "relations" if what == "entities" else "entities"
    hint = "; `distkg predict-relation` asks this one" if ranks_relations else ""
    return QuestionError(
        f"{model} ranks {other}, and was asked for {what}. Take a model that ranks those: "
        f"{', '.join(sorted(others))}{hint}"
    )


def describe_family(model: str) -> str:
    """Return how messages call the models of a model's family."""
    return FAMILIES[family_name(model)]


def _family(name: FamilyName) -> Family:
    # By name: a family is imported when a model of it is asked for, and stands on this module.
    family: Family = import_module(f"distkg.{name}.family").FAMILY
    return family
