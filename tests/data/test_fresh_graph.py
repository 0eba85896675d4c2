"""A user's folder as a graph: which files are read, what becomes of them, and what is said of a wrong folder."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from distkg.cli import app
from distkg.data.assemble import PrepareReport
from distkg.data.errors import IngestError
from distkg.data.fresh_graph import fresh_graph
from distkg.data.tokens.token_store import read_modalities
from distkg.foundation.model_files import make_model, save_model

TRIPLES = [("paris", "in", "france"), ("lyon", "in", "france"), ("turin", "in", "italy"), ("rome", "near", "turin")]
SAID = {"paris": "a large city", "france": "a country", "italy": "a country", "turin": "a city"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "graph"
    place.mkdir()
    (place / "triples.tsv").write_text("".join("\t".join(triple) + "\n" for triple in TRIPLES))
    (place / "descriptions.tsv").write_text("".join(f"{label}\t{text}\n" for label, text in SAID.items()))
    (place / "numeric.tsv.gz").write_bytes(gzip.compress(b"paris\tpeople\t2.1\nlyon\tpeople\t0.5\n"))
    return place


def test_tokens_are_made_of_what_the_model_reads(folder: Path) -> None:
    with fresh_graph(str(folder), reads=["text", "numeric", "image"]) as store:
        assert store.manifest.triples == {"train": 4, "valid": 0, "test": 0}
        found = read_modalities(store)
        assert {name: each.covered for name, each in found.items()} == {"numeric": 2, "text": 4}
        rows = found["text"].rows()
        country, italy = (rows[store.entity_id(label)].tolist() for label in ("france", "italy"))
        assert country == italy != rows[store.entity_id("paris")].tolist()
        assert rows[store.entity_id("rome")].tolist() == [-1] * 8
    with fresh_graph(str(folder), reads=["numeric"]) as store:
        assert list(read_modalities(store)) == ["numeric"]


def test_a_folder_needs_one_file_of_triples(folder: Path) -> None:
    (folder / "triples.tsv.gz").write_bytes(gzip.compress(b"a\tb\tc\n"))
    with pytest.raises(IngestError, match=r"graph has triples.tsv, triples.tsv.gz, where one file triples.tsv is"):
        fresh_graph(str(folder)).__enter__()
    for file in ("triples.tsv", "triples.tsv.gz"):
        (folder / file).unlink()
    with pytest.raises(IngestError, match=r"has descriptions.tsv, numeric.tsv.gz, where one file .* `distkg prepare`"):
        fresh_graph(str(folder)).__enter__()


def test_the_command_line_reads_descriptions(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model("tofu", {"width": 8, "layers": 2, "hidden": 8, "modalities": {"text": 384}})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    save_model(model, tmp_path / "model")
    asked = ["predict", str(tmp_path / "model"), "--anchor", "rome", "--relation", "in", "--json", "--graph"]

    def answers() -> list[dict[str, object]]:
        result = CliRunner().invoke(app, [*asked, str(folder)])
        assert result.exit_code == 0, result.output
        found: list[dict[str, object]] = json.loads(result.output)
        return found

    told = answers()
    (folder / "descriptions.tsv").write_text("france\ta country\nitaly\tno country\n")
    told_otherwise = answers()
    (folder / "descriptions.tsv").unlink()
    assert told != told_otherwise != answers()


def test_a_file_is_read_as_prepare_reads_it(tmp_path: Path) -> None:
    told: list[PrepareReport] = []
    (tmp_path / "x.csv").write_text("tail;relation;head\nfrance;in;paris\nfrance;in;lyon\n")
    with fresh_graph(str(tmp_path / "x.csv"), tell=told.append) as store:
        assert store.entity_labels_of(store.triples("train")[:, 2]) == ["france", "france"]
    assert told[0].warnings == {"header_lines": 1}
    assert told[0].notes[0] == "x.csv: read as semicolon-separated, although its extension is .csv"
    (tmp_path / "x.csv").write_text("a,r,b,1\nb,r,c,2\n")
    with pytest.raises(IngestError, match=r"--columns 1,2,3 .*build a store with it, and pass the store with --store"):
        fresh_graph(str(tmp_path / "x.csv")).__enter__()


def test_what_is_said_may_be_compressed_in_any_way(folder: Path) -> None:
    (folder / "descriptions.tsv").unlink()
    (folder / "descriptions.tsv.bz2").write_bytes(bz2.compress("\ufeffparis\ta large city\r\n".encode()))
    with fresh_graph(str(folder), reads=["text"]) as store:
        assert read_modalities(store)["text"].covered == 1


def test_the_command_line_says_how_a_graph_was_read(tmp_path: Path) -> None:
    model = make_model("ultra", {"width": 8, "layers": 2})
    save_model(model, tmp_path / "model")
    (tmp_path / "x.csv").write_text("from;rel;to\nparis;in;france\nparis ;in;france\n")
    asked = ["predict", str(tmp_path / "model"), "--anchor", "paris", "--relation", "in", "--graph"]
    result = CliRunner().invoke(app, [*asked, str(tmp_path / "x.csv")])
    assert result.exit_code == 0, result.output
    assert "note: x.csv: read as semicolon-separated, although its extension is .csv" in result.stderr
    assert "warning: header_lines: 1, first at x.csv:1" in result.stderr
    assert "warning: labels_that_differ_in_spaces_or_unicode_form: 1, such as 'paris' and 'paris '" in result.stderr
