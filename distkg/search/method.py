"""Method of a search, ``method.yaml`` in its folder: ASHA by validation MRR, rungs on k-cores, or MRR and a cost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from distkg.documents import DocumentError, read_yaml, yaml_of
from distkg.search.front import Cost
from distkg.search.rungs import Rung, rung_sizes
from distkg.search.trials import SearchError


@dataclass(frozen=True)
class Options:
    """Options that choose the method of a search.

    Attributes:
        rungs: number of rungs on k-cores; 0 for none.
        budget: cost of all rungs together, in full runs; None for a full run for each rung.
        against: cost that is the second objective.
    """

    rungs: int = 0
    budget: float | None = None
    against: Cost | None = None

    def check(self, trials: int) -> None:
        """Raise SearchError if options contradict each other, or ``trials`` are too few for the rungs."""
        if self.rungs and self.against:
            raise SearchError(
                f"--against {self.against} and --rungs exclude each other: a rung promotes trials by their MRR alone, "
                "and costs on a core are not those of the whole graph. Leave one of them out"
            )
        if self.budget is not None and not self.rungs:
            raise SearchError("--budget is that of all rungs, and there are none. Give --rungs too, or leave it out")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise SearchError(f"--budget {self.budget} must be a finite number of full runs above 0, such as 3")
        if self.rungs:
            rung_sizes(trials, self.rungs)

    @property
    def full_runs(self) -> float:
        """Budget of all rungs, in full runs."""
        return float(self.rungs) if self.budget is None else self.budget


@dataclass(frozen=True)
class Method:
    """Method of a search.

    Attributes:
        against: cost that is the second objective.
        budget: cost of all rungs together, in full runs.
        rungs: rungs on k-cores; none for ASHA, and for two objectives.
    """

    against: Cost | None = None
    budget: float | None = None
    rungs: tuple[Rung, ...] = ()

    @property
    def stops_early(self) -> bool:
        """True if poor trials are stopped: not in a rung, nor with two objectives, where a poor MRR may be cheap."""
        return not self.rungs and self.against is None

    def total(self, trials: int) -> int:
        """Return the number of trials of all rungs, or ``trials``."""
        return sum(rung.trials for rung in self.rungs) or trials

    def check_options(self, options: Options, trials: int, folder: Path) -> None:
        """Raise SearchError if a resumed search was started with other options."""
        budget = options.full_runs if options.rungs else None
        same = (self.against, len(self.rungs), self.budget) == (options.against, options.rungs, budget)
        if not same or (self.rungs and self.rungs[0].trials != trials):
            raise SearchError(
                f"the search in {folder} was started {self.describe()}. Continue it with the same options, or use "
                "another folder for a new search"
            )

    def describe(self) -> str:
        """Return the options that choose this method."""
        if self.rungs:
            return f"with --trials {self.rungs[0].trials} --rungs {len(self.rungs)} --budget {self.budget:g}"
        return f"with --against {self.against}" if self.against else "without --rungs and --against"


_METHOD = TypeAdapter(Method)


def method_yaml(method: Method) -> str:
    """Return the method as YAML that `read_method` reads to the same method."""
    tree = {"against": method.against, "budget": method.budget, "rungs": [asdict(rung) for rung in method.rungs]}
    return yaml_of(tree, sort_keys=False, default_flow_style=None)


def read_method(path: Path) -> Method:
    """Read the method of a search; ASHA if there is no such file.

    Raises:
        SearchError: it is not a method; the message names the file.
    """
    if not path.exists():
        return Method()
    try:
        return _METHOD.validate_python(read_yaml(path, str(path)))
    except (DocumentError, ValidationError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise SearchError(f"{path} cannot be read: {reason}. Use another folder for a new search") from None
