"""Hooks of mkdocs: generated pages, links that leave the guides' folder, pictures, marks of shell blocks."""

from __future__ import annotations

import re
from typing import Any

from mkdocs.structure.files import File, Files

from distkg import cli
from distkg.config import json_schema
from website import api, commands, configuration, repository, shell_blocks, tables

_PICTURE = re.compile(
    r'<picture>\s*<source[^>]*srcset="(?P<dark>[^"]+)"[^>]*>\s*<img (?P<image>[^>]*)>\s*</picture>', re.DOTALL
)


def on_config(config: Any) -> Any:
    """Put a page for each package into the navigation, under "API"."""
    pages: list[Any] = [f"{api.FOLDER}/index.md", *({name: api.page_path(name)} for name in api.packages())]
    _replace(config["nav"], "API", pages)
    return config


def _replace(entries: list[Any], title: str, pages: list[Any]) -> None:
    for entry in entries:
        for name, inner in entry.items() if isinstance(entry, dict) else ():
            if name == title:
                entry[name] = pages
            elif isinstance(inner, list):
                _replace(inner, title, pages)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made at build time."""
    for path, content in _generated(files).items():
        files.append(File.generated(config, path, content=content))
    return files


def _generated(files: Files) -> dict[str, str]:
    guides = {f"{repository.GUIDES}/{file.src_uri}": file.content_string for file in files.documentation_pages()}
    documents = {path: (repository.ROOT / path).read_text("utf-8") for path in repository.PAGES}
    pages = {repository.PAGES[path]: text for path, text in documents.items()}
    pages["index.md"] = "---\nhide: [navigation]\n---\n" + pages["index.md"]
    pages["reference/configuration.md"] = configuration.configuration_page(json_schema())
    pages["reference/commands.md"] = commands.commands_page(cli.app)
    pages[f"{api.FOLDER}/index.md"] = api.index_page()
    pages |= {api.page_path(package): api.package_page(package) for package in api.packages()}
    linked = repository.linked_files({**guides, **documents})
    return pages | {repository.site_path(path): repository.source_page(path) for path in linked}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite pictures, links and marks of a guide for the site."""
    path = page.file.src_uri
    if path.startswith(("reference/", "repository/")):
        return markdown
    markdown = _PICTURE.sub(_theme_images, markdown)
    markdown = repository.rewrite_links(markdown, path)
    return tables.unescape_pipes(shell_blocks.show_marks(markdown))


def _theme_images(match: re.Match[str]) -> str:
    """Turn a picture that follows the browser's scheme into two images that follow the site's."""
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', match["image"]))
    light, dark, text = attributes["src"], match["dark"], attributes.get("alt", "")
    return f"![{text}]({light}#only-light)\n![{text}]({dark}#only-dark)"
