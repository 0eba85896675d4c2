"""Models as folders, and published checkpoints: what is kept, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest
import torch

from distkg.config import ConfigError
from distkg.foundation.model_files import (
    ModelFileError,
    import_checkpoint,
    is_model,
    load_model,
    make_model,
    save_model,
)

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


def write_trix(path: Path, numbered: bool, mask: str = "") -> dict[str, torch.Tensor]:
    """A file as TRIX publishes it, or as its code writes it since; returns the weights by the model's names."""
    torch.manual_seed(0)
    weights = {name: torch.randn_like(tensor) for name, tensor in make_model("trix", {}).state_dict().items()}
    written = {}
    for name, tensor in weights.items():
        network, _, rest = name.partition(".")
        number = {"entity_model_mini": "entity_model_1", "entity_model": "entity_model_2"} if numbered else {}
        written[f"{number.get(network, network)}.{rest}"] = tensor
    torch.save({"model": {name: tensor for name, tensor in written.items() if name != mask}}, path)
    return weights


@pytest.mark.parametrize("numbered", [False, True])
def test_trix_is_read_by_either_of_its_names(tmp_path: Path, numbered: bool) -> None:
    weights = write_trix(tmp_path / "trix.pth", numbered)
    model = import_checkpoint(tmp_path / "trix.pth", format="trix")
    assert model.name == "trix"
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == 87_138
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_a_trix_file_of_another_model_names_its_keys(tmp_path: Path) -> None:
    write_trix(tmp_path / "trix.pth", True, mask="entity_model_1.mlp.0.bias")
    with pytest.raises(ModelFileError, match=r"trix.pth does not fit trix: missing: entity_model_mini.mlp.0.bias$"):
        import_checkpoint(tmp_path / "trix.pth", format="trix")
    with pytest.raises(ModelFileError, match=r"not known to the model: entity_model_1.layers.0.layer_norm.bias.* more"):
        import_checkpoint(tmp_path / "trix.pth", format="ultra")


@pytest.mark.parametrize("name", ["motif", "semma", "trix_relations"])
def test_other_published_models_are_read_by_their_names(
    tmp_path: Path, name: Literal["motif", "semma", "trix_relations"]
) -> None:
    torch.manual_seed(0)
    model = make_model(name, {})
    torch.save({"model": model.state_dict(), "optimizer": {}}, tmp_path / "x.pth")
    found = import_checkpoint(tmp_path / "x.pth", format=name)
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in found.state_dict().items())


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
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("model: {name: ultra}\n")
    with pytest.raises(ModelFileError, match=r"unfinished has no model yet: it has not finished.*--resume"):
        load_model(tmp_path / "unfinished")
    save_model(make_model("ultra", SMALL), tmp_path / "m")
    described = json.loads((tmp_path / "m" / "model.json").read_text())
    (tmp_path / "m" / "model.json").write_text(json.dumps({**described, "format_version": 9}))
    with pytest.raises(ModelFileError, match=r"format version 9.*Upgrade distkg"):
        load_model(tmp_path / "m")
