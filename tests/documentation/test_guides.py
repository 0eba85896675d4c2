"""The README and the guides: marks, commands, links and counts say what is true."""

from __future__ import annotations

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distkg.cli import app
from distkg.config import load_config, preset_names
from website import commands as walk
from website import repository, shell_blocks

ROOT = repository.ROOT
DOCUMENTS = [
    *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")),
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
]
NUMBERS = {13: "thirteen", 14: "fourteen", 15: "fifteen", 16: "sixteen", 17: "seventeen", 21: "twenty-one"}


def text_of(document: str) -> str:
    return (ROOT / document).read_text("utf-8")


def shell_commands(document: str) -> list[str]:
    """The lines of a document's shell blocks."""
    found = [block for block in shell_blocks.blocks(text_of(document)) if block.language in shell_blocks.SHELL]
    return [line for block in found for line in shell_blocks.commands(block.code)]


def commands_in_sentences(document: str) -> list[str]:
    """The commands, often shortened, that stand in a document's sentences and tables."""
    prose = " ".join(line for _, line in repository.prose_lines(text_of(document)))
    return [span.replace("\\|", "|") for span in re.findall(r"`((?:distkg|python -m benchmarks)[ .][^`]*)`", prose)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_has_a_language_and_every_shell_block_a_mark(document: str) -> None:
    for block in shell_blocks.blocks(text_of(document)):
        assert block.language, f"{document}:{block.line}: name the block's language (bash, python, yaml, text)"
        if block.language in shell_blocks.SHELL:
            assert block.mark, f"{document}:{block.line}: say whether a test runs it: <!-- tested: tests/… -->"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_mark_names_a_test_that_is_there(document: str) -> None:
    for block in shell_blocks.blocks(text_of(document)):
        named = re.findall(r"(?:tests|\.ci)/[\w/.]+(?:::\w+)?", block.mark.text) if block.mark else []
        assert named or not (block.mark and block.mark.tested), (document, block.line)
        for address in named:
            path, _, function = address.partition("::")
            assert (ROOT / path).is_file(), (document, address)
            assert not function or f"def {function}(" in text_of(path), (document, address)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_blocks_parse(document: str) -> None:
    for line in shell_commands(document):
        words = shlex.split(re.split(r"\s[|>]\s", line)[0])
        if words[0].endswith("distkg"):
            done = CliRunner().invoke(app, [*words[1:], "--help"])
            assert done.exit_code == 0, (document, line, done.output)
            check_keys(words, f"{document}: {line}")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_and_scripts_that_are_named_exist(document: str) -> None:
    tree = dict(command_tree_of_distkg())
    for line in [*shell_commands(document), *commands_in_sentences(document)]:
        words = line.split()
        if words[:2] == ["python", "-m"] and not words[2].endswith("SCRIPT"):
            assert ROOT.joinpath(*words[2].split(".")).with_suffix(".py").is_file(), (document, line)
        if words[0] == "distkg" and re.fullmatch(r"[a-z]+(-[a-z]+)*", words[1]):
            options = {word.strip("[]") for word in words if word.startswith("--") and word[2:3].isalpha()}
            known = walk.option_names(tree[f"distkg {words[1]}"])
            assert options <= known, (document, line)


def command_tree_of_distkg() -> list[tuple[str, Any]]:
    return list(walk.walk(walk.command_tree(app), "distkg"))


def check_keys(words: list[str], where: str) -> None:
    """Load the preset of a command with all of its changes."""
    others = ("--space", "--cluster")
    presets = [word for word in words if word.startswith("preset:") and words[words.index(word) - 1] not in others]
    changes = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    if presets and presets[0].removeprefix("preset:") in preset_names():
        load_config(presets[0], changes)
    elif presets:
        assert "NAME" in presets[0], where


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document: str) -> None:
    for target in repository.links(text_of(document)):
        path, _ = repository.resolve(document, target)
        assert (ROOT / path).exists(), (document, target)
    for source in re.findall(r'(?:src|srcset)="([^"]+)"', text_of(document)):
        assert (ROOT / Path(document).parent / source).is_file(), (document, source)


def test_documents_that_code_names_exist() -> None:
    named = set()
    for folder in ("distkg", "benchmarks", "jobs", "tests"):
        for path in [*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.yaml")]:
            named |= set(re.findall(r"\bdocs/[\w/-]+\.md", path.read_text("utf-8")))
    assert named, "nothing names a document: the search is wrong"
    assert [name for name in sorted(named) if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("document", [document for document in DOCUMENTS if document != "CHANGELOG.md"])
def test_files_of_code_that_are_named_exist(document: str) -> None:
    prose = "\n".join(line for _, line in repository.prose_lines(text_of(document)))
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)(?:::\w+)?`", prose):
        places = [ROOT, ROOT / "distkg", ROOT / "benchmarks", (ROOT / document).parent]
        listed = "/" not in name and list((ROOT / "distkg").rglob(name))
        assert listed or any((place / name).is_file() for place in places), (document, name)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_imports_of_examples_are_there(document: str) -> None:
    for block in shell_blocks.blocks(text_of(document)):
        if block.language == "python":
            imports = r"^(?:from|import) (distkg[\w.]*)(?: import (\w+))?"
            for module, name in re.findall(imports, block.code, re.MULTILINE):
                specification = find_spec(module)
                assert specification is not None, (document, module)
                source = Path(str(specification.origin)).read_text("utf-8")
                assert not name or re.search(rf"\b{name}\b", source), (document, module, name)


def test_promises_name_tests_that_are_there() -> None:
    path = ""
    for line in text_of("docs/reliability.md").splitlines():
        for named, function in re.findall(r"`(tests/[\w/.]+)?(?:::(\w+))?`", line):
            if named or function:
                path = named or path
                assert (ROOT / path).is_file(), line
                assert not function or f"def {function}(" in text_of(path), line


def listed(*command: str) -> list[str]:
    """The names in the first column of a table that a command prints."""
    return re.findall(r"^  ([a-z][a-z_]+)  ", CliRunner().invoke(app, list(command)).stdout, re.MULTILINE)[1:]


def test_the_readme_is_short_and_its_counts_are_those_of_the_code() -> None:
    readme, sources = text_of("README.md"), NUMBERS[len(listed("negatives"))]
    assert len(readme.split()) <= 900
    assert f"{NUMBERS[len(listed('presets', '--scorers'))]} embedding scorers" in readme
    assert f"{sources} sources" in readme
    assert f"## The {sources} sources" in text_of("docs/negatives/guide.md")
    assert f"{sources.capitalize()} negative sources" in text_of("CHANGELOG.md")


def test_the_table_of_the_guide_lists_every_source() -> None:
    for name in listed("negatives"):
        assert f"| `{name}` |" in text_of("docs/negatives/guide.md"), name


def test_presets_read_the_stores_that_the_guides_prepare() -> None:
    prepared = set(re.findall(r"--store (stores/\w+)", text_of("docs/results.md")))
    for preset in ("complex_wn18rr", "complex_fb15k237", "complex_codex_s", "complex_umls", "complex_kinship"):
        assert load_config(f"preset:{preset}").data.store in prepared
    for preset in ("hale_wn18rr", "hale_fb15k237", "hale_codex_s"):
        assert load_config(f"preset:{preset}").data.store in prepared


def test_points_of_the_picture_stand_in_the_tables() -> None:
    content = json.loads((ROOT / "benchmarks" / "quality.json").read_text("utf-8"))
    results = text_of("docs/results.md")
    for row in content["points"]:
        shown = f"{row['mrr']:.3f}".removeprefix("0")
        assert shown in results, row
        assert row["by"] == "distkg" or row["source"], row
    assert all(row["source"] for row in content["references"])
