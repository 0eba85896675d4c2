"""The rooms of the package: imports go down, libraries stay in their room, no folder is crowded."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "distkg"

FLOORS = [
    ["config", "registry", "documents", "strict_json", "termination", "compilation", "printable", "redaction",
     "host_memory", "process_memory", "torch_variables", "randomness", "hashing"],
    ["data", "graph"],
    ["sharding", "kernels"],
    ["embedding.scorers", "embedding.composed", "embedding.activation", "embedding.model", "foundation.base",
     "foundation.models", "foundation.layers", "foundation.graphs.knowledge_graph", "foundation.graphs.sampling",
     "foundation.graphs.entity_tokens", "foundation.model_files", "foundation.paths", "foundation.graph_scorer",
     "objectives"],
    ["negatives"],
    ["evaluation"],
    ["training", "planning", "search"],
    ["embedding", "foundation", "relation_prediction"],
    ["cluster", "inference", "reporting", "interop"],
    ["cli", "demo", "warm", "__main__"],
]  # fmt: skip
"""Rooms from the lowest floor up; a part of a room may lie on a floor of its own."""

LIBRARIES = {
    "ray": ["cluster"],
    "optuna": ["cluster"],
    "dgl": ["graph"],
    "typer": ["cli", "demo", "printable"],
    "pyoxigraph": ["data"],
    "tokenizers": ["data"],
    "faiss": ["kernels"],
    "triton": ["kernels"],
    "pykeen": ["interop"],
}
CROWDED = 16
OF_ONE_KIND = {"embedding/scorers"}
"""Folders that may hold more modules, as all are of one kind of thing."""


def modules() -> list[str]:
    return sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))


@cache
def parsed(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))


def imports_of(module: str, *, lazy: bool) -> Iterator[str]:
    """Names that a module imports, as it is loaded or, ``lazy``, anywhere; not those for type checkers alone."""
    tree = parsed(module)
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree) if lazy else tree.body:
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{name.name}" for name in node.names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def floor_of(name: str) -> int:
    """Floor of a module or of a name in it, by the longest part of a room that it lies in."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        for floor, rooms in enumerate(FLOORS):
            if ".".join(parts[:end]) in rooms:
                return floor
    raise AssertionError(f"{name} lies in no room: give it one in FLOORS and in docs/architecture.md")


@pytest.mark.parametrize("module", [module for module in modules() if module != "__init__"])
def test_imports_go_down(module: str) -> None:
    own = module.removesuffix(".__init__")
    upward = [
        name
        for name in imports_of(module, lazy=False)
        if name.startswith("distkg.")
        and name != "distkg.__version__"
        and floor_of(name.removeprefix("distkg.")) > floor_of(own)
    ]
    assert not upward, f"{own} imports from floors above its own"


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_in_its_room_alone(library: str) -> None:
    users = {
        module.split(".")[0]
        for module in modules()
        if library in {n.split(".")[0] for n in imports_of(module, lazy=True)}
    }
    assert users <= set(LIBRARIES[library])


def test_no_folder_is_crowded() -> None:
    crowded = {
        str(folder.relative_to(PACKAGE)): len(list(folder.glob("*.py")))
        for folder in [PACKAGE, *PACKAGE.rglob("*")]
        if folder.is_dir() and len(list(folder.glob("*.py"))) > CROWDED
    }
    assert set(crowded) <= OF_ONE_KIND, crowded
