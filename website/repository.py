"""Files of the repository as pages of the site, and links between the two."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GUIDES = "docs"
"""Folder of the guides, which mkdocs reads."""

PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""Documents outside the guides' folder that are pages of the site: path in the repository → path in the site."""

_LINK = re.compile(r"(?P<text>\[(?:[^\[\]]|\[[^\]]*\])*\])\((?P<target>[^()\s]+)\)")
_FENCE = re.compile(r"^\s*(```|~~~)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".json": "json", ".md": "markdown"}


class LinkError(ValueError):
    """A link leads to a file that the repository does not have."""


def site_path(path: str) -> str:
    """Return the source path in the site of a file or folder of the repository.

    Args:
        path: relative to the repository's root, such as ``benchmarks/README.md``.

    Raises:
        LinkError: nothing is there.
    """
    if path in PAGES:
        return PAGES[path]
    target = ROOT / path
    if not target.exists():
        raise LinkError(f"{path} does not exist in the repository")
    if path.startswith(f"{GUIDES}/") and not target.is_dir():
        return path.removeprefix(f"{GUIDES}/")
    if target.is_dir() and f"{path.rstrip('/')}/README.md" in PAGES:
        return PAGES[f"{path.rstrip('/')}/README.md"]
    if target.suffix == ".svg":
        return f"repository/{path}"
    return f"repository/{path.rstrip('/')}.md"


def repository_path(page: str) -> str:
    """Return the path in the repository of a page, given its source path in the site."""
    known = {site: path for path, site in PAGES.items()}
    return known.get(page, f"{GUIDES}/{page}")


def resolve(document: str, target: str) -> tuple[str, str]:
    """Return (path in the repository, fragment with its ``#`` or nothing) of a relative link in a document."""
    path, mark, fragment = target.partition("#")
    joined = posixpath.normpath(posixpath.join(posixpath.dirname(document), path)) if path else document
    return joined, mark + fragment


def is_relative(target: str) -> bool:
    """Tell whether a link's target is a path, not an address with a scheme."""
    return not re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE)


def prose_lines(markdown: str) -> Iterator[tuple[int, str]]:
    """Yield (index, line) of the lines outside fenced blocks."""
    inside = False
    for number, line in enumerate(markdown.splitlines()):
        if _FENCE.match(line):
            inside = not inside
        elif not inside:
            yield number, line


def links(markdown: str) -> list[str]:
    """Return the targets of the relative links in a document, in order, those in fenced blocks left out."""
    text = "\n".join(line for _, line in prose_lines(markdown))
    text = re.sub(r"(`+)(?:(?!\1).)+\1", "", text)
    return [match["target"] for match in _LINK.finditer(text) if is_relative(match["target"])]


def rewrite_links(markdown: str, page: str) -> str:
    """Point the relative links of a document at pages of the site.

    A link to a file that the repository does not have stays as it is: mkdocs warns of it.

    Args:
        markdown: the document as the repository has it.
        page: its source path in the site.
    """
    document = repository_path(page)

    def moved(match: re.Match[str]) -> str:
        target = match["target"]
        if not is_relative(target) or target.startswith("#"):
            return match[0]
        path, fragment = resolve(document, target)
        try:
            there = posixpath.relpath(site_path(path), posixpath.dirname(page) or ".")
        except LinkError:
            return match[0]
        return f"{match['text']}({there}{fragment})"

    lines = markdown.splitlines()
    for number, line in prose_lines(markdown):
        lines[number] = _LINK.sub(moved, line)
    return "\n".join(lines) + "\n"


def linked_files(documents: dict[str, str]) -> list[str]:
    """Return the paths of repository files and folders, outside the guides, that documents link to.

    Args:
        documents: path in the repository → Markdown.
    """
    found: dict[str, None] = {}
    for document, markdown in documents.items():
        for target in links(markdown):
            path, _ = resolve(document, target)
            if not target.startswith("#") and (ROOT / path).exists() and site_path(path).startswith("repository/"):
                found[path] = None
    return list(found)


def source_page(path: str) -> str:
    """Return a page with the text of a repository file, or with the list of a folder's files."""
    target = ROOT / path
    title = f"# `{path}`\n\n"
    if target.is_dir():
        names = sorted(entry.name for entry in target.iterdir() if not entry.name.startswith((".", "__")))
        return title + "".join(f"- `{name}`\n" for name in names)
    language = _LANGUAGES.get(target.suffix, "text")
    return f"{title}````{language}\n{target.read_text('utf-8').rstrip()}\n````\n"
