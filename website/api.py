"""Pages of the API reference: one for each package, found in the source tree."""

from __future__ import annotations

from pathlib import Path

from website.repository import ROOT

FOLDER = "reference/api"


def packages(root: Path = ROOT) -> list[str]:
    """Return the dotted names of distkg and of every package inside it, in alphabetical order."""
    found = sorted(path.parent for path in (root / "distkg").rglob("__init__.py"))
    return [".".join(path.relative_to(root).parts) for path in found]


def modules(package: str, root: Path = ROOT) -> list[str]:
    """Return the dotted names of a package's own modules, those with a leading underscore left out."""
    folder = root.joinpath(*package.split("."))
    return [f"{package}.{path.stem}" for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")]


def page_path(package: str) -> str:
    """Return the source path in the site of a package's page."""
    return f"{FOLDER}/{package}.md"


def package_page(package: str) -> str:
    """Return the page of a package: its docstring, then each module with its public names."""
    members = "".join(f"::: {module}\n\n" for module in modules(package))
    return f"# {package}\n\n::: {package}\n    options:\n      show_root_heading: false\n\n{members}"


def index_page() -> str:
    """Return the page that lists all packages."""
    rows = "".join(f"- [`{package}`]({package}.md)\n" for package in packages())
    return f"# API reference\n\nEvery page is made from the docstrings of one package.\n\n{rows}"
