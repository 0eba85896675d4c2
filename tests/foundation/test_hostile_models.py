"""Folders of foundation models as a stranger's input: the model as it was saved, or ModelFileError."""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded_memory import bounded_memory
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from distkg.cli import app
from distkg.foundation.model_files import (
    ModelFileError,
    import_checkpoint,
    is_model,
    load_model,
    make_model,
    save_model,
)
from distkg.foundation.models import MODELS, FoundationModel

OPTIONS = {"width": 4, "layers": 2, "hidden": 4}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[FoundationModel, Path]:
    torch.manual_seed(3)
    model = make_model("ultra", OPTIONS)
    folder = tmp_path_factory.mktemp("models") / "ultra"
    save_model(model, folder)
    return model, folder


@pytest.fixture
def folder(saved: tuple[FoundationModel, Path], tmp_path: Path) -> Path:
    return shutil.copytree(saved[1], tmp_path / "ultra")


def described(folder: Path, **changes: Any) -> None:
    tree = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps({key: value for key, value in tree.items() if value is not None}))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_comes_back(tmp_path: Path, name: str) -> None:
    kind = MODELS[name]
    options: dict[str, Any] = {"relations": 5} if kind.knows_relations else {}
    options |= {"entities": 7} if kind.knows_entities else {}
    options |= {"modalities": {"image": 8}} if name == "tofu" else {}
    model = make_model(name, options)
    save_model(model, tmp_path / name)
    loaded = load_model(tmp_path / name)
    assert loaded.options == model.options
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"width": 10**6}, "does not fit ultra"),
        ({"width": 10**12}, "does not fit ultra|cannot be made"),
        ({"width": 2**70}, "cannot be made"),
        ({"layers": 10**9}, "its options describe far more tensors than model.safetensors has"),
        ({"layers": 3}, "does not fit ultra: missing: "),
        ({"width": -4}, "cannot be made"),
        ({"width": "4"}, "cannot be made|does not fit"),
        ({"depth": 3}, "cannot be made"),
    ],
)
def test_options_that_the_weights_do_not_have_make_no_model(folder: Path, options: dict[str, Any], why: str) -> None:
    described(folder, options=OPTIONS | options)
    if options == {"width": "4"}:  # which pydantic reads as 4
        assert load_model(folder).options.width == 4  # type: ignore[attr-defined]
        return
    with bounded_memory(), pytest.raises(ModelFileError, match=why):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "nothing"}, "cannot be made: .*nothing"),
        ({"model": 3}, "model: "),
        ({"model": ["ultra"]}, "model: "),
        ({"model": None}, "model: Field required"),
        ({"options": []}, "options: "),
        ({"format_version": "1"}, "format_version: "),
        ({"format_version": 0}, "format_version: "),
        ({"format_version": True}, "format_version: "),
        ({"format_version": 2}, "has format version 2; this distkg reads up to 1. Upgrade distkg"),
        ({"run": "rm -rf"}, "run: Extra inputs are not permitted"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(folder: Path, changes: dict[str, Any], why: str) -> None:
    described(folder, **changes)
    with pytest.raises(ModelFileError, match=why) as caught:
        load_model(folder)
    assert str(folder / "model.json") in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"[" * 200_000, b'{"model": NaN}', b"\xff\xfe", b'{"model": 1, "model": 2}']
)
def test_descriptions_that_cannot_be_read_are_refused(folder: Path, content: bytes) -> None:
    (folder / "model.json").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"model\.json: the model cannot be read"):
        load_model(folder)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["link", "pipe", "folder", "empty", "absent"])
def test_what_is_not_the_file_itself_is_refused(folder: Path, tmp_path: Path, name: str, what: str) -> None:
    path = folder / name
    path.rename(tmp_path / name)
    if what == "link":
        path.symlink_to(tmp_path / name)
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what == "empty":
        path.write_bytes(b"")
    with pytest.raises(ModelFileError, match=str(folder)):
        load_model(folder)


def test_weights_of_another_shape_or_kind_are_refused_by_their_header(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "entity_model.mlp.2.bias"
    for change, why in (
        (torch.zeros(2), rf"{name} has shape \[2\] instead of \[1\]"),
        (torch.zeros(1, dtype=torch.int64), rf"{name} is int64 \[1\] instead of torch.float32"),
        (torch.tensor([math.nan]), f"holds NaN or infinity in {name}"),
        (torch.tensor([-math.inf]), f"holds NaN or infinity in {name}"),
    ):
        save_file(weights | {name: change}, folder / "model.safetensors")
        with pytest.raises(ModelFileError, match=why):
            load_model(folder)


def test_a_model_that_has_diverged_is_not_saved(tmp_path: Path) -> None:
    model = make_model("ultra", OPTIONS)
    next(iter(model.parameters())).data.view(-1)[0] = math.nan
    with pytest.raises(ModelFileError, match="holds NaN or infinity"):
        save_model(model, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_an_export_of_embeddings_is_no_foundation_model(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text(json.dumps({"format_version": 1, "scorer": "complex"}))
    save_file({"vectors": torch.zeros(2, 2)}, tmp_path / "entities.safetensors")
    assert not is_model(tmp_path)
    with pytest.raises(ModelFileError, match="holds no foundation model"):
        load_model(tmp_path)
    done = CliRunner().invoke(app, ["evaluate", str(tmp_path)])
    assert done.exit_code == 2
    assert "is no run folder" in done.stderr


places = st.floats(0, 1, exclude_max=True)


@settings(max_examples=120)
@given(
    name=st.sampled_from(["model.json", "model.safetensors"]),
    bytes_at=st.lists(st.tuples(places, st.integers(0, 255)), max_size=3),
    insertion=st.tuples(places, st.binary(max_size=6)),
    cut=st.just(1.0) | places,
)
def test_whatever_bytes_are_there_no_other_error_comes(
    saved: tuple[FoundationModel, Path],
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    bytes_at: list[tuple[float, int]],
    insertion: tuple[float, bytes],
    cut: float,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "mutated"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(saved[1], folder)
    content = bytearray((folder / name).read_bytes())
    for place, value in bytes_at:
        content[int(place * min(len(content), 900))] = value
    at = int(insertion[0] * min(len(content), 900))
    content[at:at] = insertion[1]
    (folder / name).write_bytes(content[: int(cut * len(content))])
    with bounded_memory():
        try:
            model = load_model(folder)
        except ModelFileError:
            return
    assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@pytest.mark.parametrize(
    "content",
    [
        {"model": {1: torch.zeros(1)}},
        {"model": {"a": torch.eye(2).to_sparse()}},
        {"model": {"a": torch.zeros(2, device="meta")}},
        {"model": {"a": torch.zeros(1).expand(10**6, 10**6)}},
        {"model": [torch.zeros(1)]},
        {1: 2},
        {},
        torch.zeros(3),
    ],
)
def test_published_files_that_hold_no_weights_are_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "x.pth")
    with bounded_memory(), pytest.raises(ModelFileError, match=r"x\.pth"):
        import_checkpoint(tmp_path / "x.pth")


def test_a_published_file_with_nan_is_refused(tmp_path: Path) -> None:
    weights = make_model("ultra", {}).state_dict()
    weights["entity_model.mlp.2.bias"] = torch.tensor([math.nan])
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=r"holds NaN or infinity in entity_model.mlp.2.bias"):
        import_checkpoint(tmp_path / "x.pth")
