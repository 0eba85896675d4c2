"""Models as folders, and published checkpoints: what is kept, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from distkg.config import ConfigError
from distkg.foundation import ModelFileError, import_checkpoint, is_model, load_model, make_model, save_model

SMALL = {"width": 4, "layers": 2, "hidden": 6}


def test_a_saved_model_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make_model("ultra", SMALL)
    save_model(model, tmp_path / "m")
    loaded = load_model(tmp_path / "m")
    assert is_model(tmp_path / "m")
    assert not loaded.training
    assert loaded.options == model.options
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_wrong_options_name_the_right_ones() -> None:
    with pytest.raises(ConfigError, match=r"model.options.depth.*width, layers, hidden"):
        make_model("ultra", {"depth": 3})


def write_checkpoint(path: Path, changes: dict[str, torch.Tensor | None]) -> Path:
    weights = make_model("ultra", {}).state_dict() | changes
    torch.save({"model": {name: tensor for name, tensor in weights.items() if tensor is not None}}, path)
    return path


def test_missing_and_extra_keys_are_named(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "x.pth", {"entity_model.mlp.2.bias": None, "decoder.bias": torch.ones(1)})
    message = "x.pth does not fit ultra: missing: entity_model.mlp.2.bias; not known to the model: decoder.bias"
    with pytest.raises(ModelFileError, match=message):
        import_checkpoint(file)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    file = write_checkpoint(tmp_path / "x.pth", {"entity_model.mlp.2.bias": torch.ones(3)})
    with pytest.raises(ModelFileError, match=r"entity_model.mlp.2.bias has shape \[3\] instead of \[1\]"):
        import_checkpoint(file)


class Code:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("this must not run",)


def test_no_code_of_a_checkpoint_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": {}, "optimizer": Code()}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match="cannot be read as a checkpoint"):
        import_checkpoint(tmp_path / "x.pth")
    assert capsys.readouterr().out == ""


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match="holds no weights"):
        import_checkpoint(tmp_path / "list.pth")
    with pytest.raises(ModelFileError, match=r"holds no foundation model.*import-checkpoint"):
        load_model(tmp_path)
    save_model(make_model("ultra", SMALL), tmp_path / "m")
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**described, "format_version": 9}))
    with pytest.raises(ModelFileError, match=r"format version 9.*Upgrade distkg"):
        load_model(tmp_path / "m")
