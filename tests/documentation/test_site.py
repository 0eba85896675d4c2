"""Pages of the site that are made at build time, and what becomes of guides on it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from distkg.cli import app
from distkg.config import RunConfig, flatten, json_schema
from website import api, commands, repository
from website.configuration import configuration_page
from website.shell_blocks import Mark, blocks, read_mark, show_marks
from website.shell_blocks import commands as commands_of
from website.tables import cell, unescape_pipes

UNION: dict[str, Any] = {
    "$defs": {
        "Embedding": {
            "title": "EmbeddingConfig",
            "type": "object",
            "properties": {
                "name": {"enum": ["transe", "rotate", "complex", "rote", "rotl"], "type": "string"},
                "dim": {
                    "type": "integer",
                    "minimum": 1,
                    "default": 256,
                    "description": "Floats per entity.",
                    "resume": "fixed",
                },
            },
        },
        "Foundation": {
            "title": "FoundationConfig",
            "type": "object",
            "required": ["start"],
            "properties": {
                "name": {"const": "ultra"},
                "start": {"type": "string", "description": "Folder | model.", "acts_with": {"train.epochs": []}},
            },
        },
        "EmbeddingRun": {
            "type": "object",
            "title": "EmbeddingRunConfig",
            "properties": {
                "model": {"$ref": "#/$defs/Embedding", "description": "What is learned."},
                "train": {"$ref": "#/$defs/Train"},
            },
        },
        "FoundationRun": {
            "type": "object",
            "title": "FoundationRunConfig",
            "properties": {"model": {"$ref": "#/$defs/Foundation"}, "train": {"$ref": "#/$defs/Train"}},
        },
        "Train": {
            "type": "object",
            "properties": {
                "epochs": {"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "null"}], "default": None},
                "sizes": {"type": "array", "items": {"type": "integer"}},
                "pool": {"type": "object", "properties": {"actors": {"type": "integer", "default": 0}}},
            },
        },
    },
    "oneOf": [{"$ref": "#/$defs/EmbeddingRun"}, {"$ref": "#/$defs/FoundationRun"}],
}


def test_a_union_of_families_has_one_section_with_the_models_of_each_key() -> None:
    lines = configuration_page(UNION).splitlines()
    assert [line for line in lines if line.startswith("#")] == [
        "# Configuration",
        "## model",
        "## train",
        "### train.pool",
    ]
    assert "| `dim`{ #model.dim } | embedding | integer ≥ 1 | `256` | fixed | Floats per entity. |" in lines
    start = "| `start`{ #model.start } | foundation | string | required |  | Folder \\| model."
    assert f"{start} Acts with `train.epochs` set. |" in lines
    assert "| `epochs`{ #train.epochs } | integer > 0 or `null` | `null` |  |  |" in lines
    assert "| `sizes`{ #train.sizes } | list of integers | `[]` |  |  |" in lines
    assert "| `actors`{ #train.pool.actors } | integer | `0` |  |  |" in lines


def test_a_section_says_for_which_models_and_settings_it_is() -> None:
    pool = {"$ref": "#/$defs/Train", "description": "More.", "acts_with": {"family": ["a"], "model.name": ["x", "y"]}}
    runs = {
        "EmbeddingRun": {**UNION["$defs"]["EmbeddingRun"], "properties": {"pool": pool}},
        "FoundationRun": UNION["$defs"]["FoundationRun"],
    }
    page = configuration_page({**UNION, "$defs": {**UNION["$defs"], **runs}})
    assert "## pool\n\nMore. Only for embedding. Acts with `model.name` `x` or `y`.\n" in page


def test_a_tagged_union_within_a_section_is_labelled_by_its_tags() -> None:
    tagged = {
        "$defs": UNION["$defs"],
        "type": "object",
        "properties": {
            "model": {
                "oneOf": [{"$ref": "#/$defs/Embedding"}, {"$ref": "#/$defs/Foundation"}],
                "discriminator": {
                    "propertyName": "name",
                    "mapping": {"ultra": "#/$defs/Foundation", **{f"m{n}": "#/$defs/Embedding" for n in range(9)}},
                },
            }
        },
    }
    page = configuration_page(tagged)
    assert "| `start`{ #model.start } | ultra | string | required |" in page
    assert "| `dim`{ #model.dim } | embedding | integer ≥ 1 |" in page


def test_the_reference_has_every_key_of_a_run() -> None:
    page = configuration_page(json_schema())
    anchors = set(re.findall(r"\{ #([\w.]+) \}", page))
    # Mappings without keys of their own, such as model.options, are missing in the flat form.
    assert set(flatten(RunConfig())) <= anchors
    assert page.count("{ #negatives.pool.actors }") == 1


def test_the_reference_has_every_command_and_option() -> None:
    page = commands.commands_page(app)
    tree = dict(commands.walk(commands.command_tree(app), "distkg"))
    assert {"distkg train", "distkg predict-relation", "distkg config"} <= set(tree)
    for name, command in tree.items():
        section = page.split(f"## {name}\n", 1)[1].split("\n## ", 1)[0]
        for option in commands.option_names(command) - {"--help"}:
            assert f"`{option}`" in section, (name, option)


def test_every_package_has_a_page_and_every_module_a_place() -> None:
    packages = api.packages()
    assert {"distkg", "distkg.data", "distkg.cluster"} <= set(packages)
    modules = {module for package in packages for module in api.modules(package)}
    files = (repository.ROOT / "distkg").rglob("*.py")
    names = {".".join(path.relative_to(repository.ROOT).with_suffix("").parts) for path in files}
    assert modules == {name for name in names if not name.rpartition(".")[2].startswith("_")}
    assert f"::: {api.modules('distkg.data')[0]}\n" in api.package_page("distkg.data")


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("index.md", "[x](docs/data.md#rdf)", "[x](data.md#rdf)"),
        ("data.md", "[x](../README.md)", "[x](index.md)"),
        ("negatives/guide.md", "[x](../data.md)", "[x](../data.md)"),
        ("negatives/guide.md", "[x](../../benchmarks/common.py)", "[x](../repository/benchmarks/common.py.md)"),
        ("index.md", "[x](benchmarks/results)", "[x](repository/benchmarks/results.md)"),
        ("index.md", "[x](https://ray.io) [y](#here)", "[x](https://ray.io) [y](#here)"),
    ],
)
def test_links_lead_to_pages_of_the_site(page: str, link: str, moved: str) -> None:
    assert repository.rewrite_links(link, page) == f"{moved}\n"


def test_links_to_nothing_stay_for_mkdocs_to_warn_of_and_code_is_left_alone() -> None:
    with pytest.raises(repository.LinkError, match=r"benchmarks/no\.md does not exist"):
        repository.site_path("benchmarks/no.md")
    assert repository.rewrite_links("[x](no.md)", "data.md") == "[x](no.md)\n"
    assert repository.linked_files({"docs/data.md": "[x](../no.py)"}) == []
    code = "```python\na[0](no.md)\n```"
    assert repository.rewrite_links(code, "data.md") == code + "\n"
    assert repository.links(code + "\n`[x](y.md)` [z](data.md)") == ["data.md"]


def test_repository_files_that_guides_link_to_become_pages() -> None:
    found = repository.linked_files({"docs/data.md": "[a](../benchmarks/common.py) [b](data.md) [c](../Makefile)"})
    assert found == ["benchmarks/common.py", "Makefile"]
    assert repository.source_page("benchmarks/common.py").startswith("# `benchmarks/common.py`\n\n````python\n")
    assert "- `2026-11-21-memory.json`" in repository.source_page("benchmarks/results")


GUIDE = """text
<!-- tested: tests/test_demo.py -->
```bash
make demo  # it
distkg train a \\
  --run b
```
- item
  <!-- not tested: needs a cluster -->
  ```console
  $ ray status
  ```
"""


def test_marks_belong_to_the_block_below() -> None:
    first, second = blocks(GUIDE)
    assert (first.language, first.mark, first.line) == ("bash", Mark(True, "tests/test_demo.py"), 3)
    assert commands_of(first.code) == ["make demo", "distkg train a --run b"]
    assert (second.mark, commands_of(second.code)) == (Mark(False, "needs a cluster"), ["ray status"])
    assert read_mark("<!-- a comment -->") is None


def test_marks_are_shown_on_the_site() -> None:
    shown = show_marks(GUIDE)
    assert "tested by `tests/test_demo.py`\n{ .shell-mark .tested }\n\n```bash" in shown
    assert "  not tested: needs a cluster\n  { .shell-mark .untested }\n\n  ```console" in shown


def test_doctests_of_docstrings_are_code_and_brackets_no_links() -> None:
    pytest.importorskip("griffe", reason="griffe comes with mkdocstrings")
    from website.docstrings import as_markdown

    assert as_markdown("Do.\n\n>>> f(1)\n['a']\n\nEnd [b](c).") == (
        "Do.\n\n```pycon\n>>> f(1)\n['a']\n```\n\nEnd [b]\\(c)."
    )
    assert as_markdown("    >>> f(1)\n    2") == "    ```pycon\n    >>> f(1)\n    2\n    ```"
    several = "Args:\n    a, b: float32 [n],\n        in order.\n    c: other."
    one_by_one = "Args:\n    a: float32 [n],\n        in order.\n    b: float32 [n],\n        in order.\n    c: other."
    assert as_markdown(several) == one_by_one


def test_cells_are_escaped_where_they_are_no_code() -> None:
    assert cell("a | b\n  `x|y` <c>") == "a \\| b `x|y` &lt;c>"
    assert unescape_pipes("| `a \\| b` | c \\| d |\n`a \\| b`") == "| `a | b` | c \\| d |\n`a \\| b`\n"
