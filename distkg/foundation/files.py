"""Models as folders: ``model.safetensors`` with the weights and ``model.json`` with what they belong to.

Nothing is unpickled into objects: published checkpoints, which are pickles, are read by torch's loader of plain
tensors, which refuses anything else.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from distkg.data.identity import StoreIdentity
from distkg.data.location import Location
from distkg.foundation.base import MODELS, FoundationModel
from distkg.registry import UnknownNameError

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
TRAINED_ON = "store.json"  # of a model with vectors for the entities or relations of one store
MODEL_FOLDER = "model"  # of a run
FORMAT_VERSION = 1
PublishedFormat = Literal["ultra", "trix", "trix_relations", "motif", "semma"]

# Beginnings of names in files of a format → those of the model. TRIX's file was written before its code called the two
# networks over facts by numbers; files that the code writes now have these.
RENAMED: dict[str, dict[str, str]] = {
    "trix": {"entity_model_1.": "entity_model_mini.", "entity_model_2.": "entity_model."}
}


class ModelFileError(ValueError):
    """A model cannot be read; the message names the file and what is wrong with it."""


def make_model(name: str, options: Mapping[str, Any]) -> FoundationModel:
    """The model of that name.

    Raises:
        UnknownNameError: there is none.
        ConfigError: wrong options.
    """
    kind = MODELS[name]
    return kind.of(options)


def is_model(path: Path) -> bool:
    """Whether a folder is that of a model, or of a run that trained one."""
    return _place(path) is not None


def _place(path: Path) -> Path | None:
    return next((folder for folder in (path, path / MODEL_FOLDER) if (folder / DESCRIPTION).is_file()), None)


def save_model(model: FoundationModel, folder: Path) -> None:
    """Write a model; its description comes last, so that a folder with one is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    (folder / TRAINED_ON).unlink(missing_ok=True)
    if model.trained_on is not None:
        (folder / TRAINED_ON).write_text(model.trained_on.model_dump_json(indent=1) + "\n", encoding="utf-8")
    described = {"format_version": FORMAT_VERSION, "model": model.name, "options": model.options.model_dump()}
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=2) + "\n")


def load_model(folder: Path) -> FoundationModel:
    """The model of a folder, in evaluation mode.

    Raises:
        ModelFileError: no model there, or one that does not fit its description.
    """
    found = _place(folder)
    if found is None:
        raise ModelFileError(
            f"{folder} holds no foundation model ({DESCRIPTION} is missing). Make one with `distkg import-checkpoint`"
        )
    folder = found
    try:
        described = json.loads((folder / DESCRIPTION).read_text())
        if described["format_version"] > FORMAT_VERSION:
            raise ModelFileError(
                f"{folder / DESCRIPTION} has format version {described['format_version']}; this distkg reads up to "
                f"{FORMAT_VERSION}. Upgrade distkg"
            )
        model = make_model(described["model"], described["options"])
        weights = load_file(folder / WEIGHTS)
        model.trained_on = _trained_on(folder)
    except (KeyError, TypeError, json.JSONDecodeError, SafetensorError, OSError, UnknownNameError) as error:
        raise ModelFileError(f"{folder}: the model cannot be read: {error}") from None
    return _filled(model, weights, folder / WEIGHTS)


def _trained_on(folder: Path) -> StoreIdentity | None:
    file = folder / TRAINED_ON
    try:
        return StoreIdentity.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None
    except ValueError as error:
        raise ModelFileError(f"{file} is damaged: {error}") from None


def weights_sha256(path: Path) -> str | None:
    """Checksum of the weights in the folder of a model, or of a run that trained one; None where there are none."""
    folder = _place(path)
    if folder is None or not (folder / WEIGHTS).is_file():
        return None
    return Location.of(str(folder / WEIGHTS)).sha256()


def import_checkpoint(file: Path, format: PublishedFormat = "ultra") -> FoundationModel:
    """A model of the published sizes with the weights of a published file.

    Args:
        format: the model whose file it is.

    Raises:
        ModelFileError: not such a file; names missing and extra keys.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ModelFileError(f"{file} cannot be read as a checkpoint: {str(error).splitlines()[0]}") from None
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ModelFileError(f"{file} holds no weights: a dictionary of tensors, or one under `model`, is expected")
    weights = {_renamed(name, RENAMED.get(format, {})): tensor for name, tensor in weights.items()}
    return _filled(make_model(format, {}), weights, file)


def _renamed(name: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _filled(model: FoundationModel, weights: Mapping[str, Tensor], file: Path) -> FoundationModel:
    own = model.state_dict()
    problems = [
        f"missing: {_listed(own.keys() - weights.keys())}" if own.keys() - weights.keys() else "",
        f"not known to the model: {_listed(weights.keys() - own.keys())}" if weights.keys() - own.keys() else "",
        *(
            f"{name} has shape {list(weights[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise ModelFileError(f"{file} does not fit {model.name}: {'; '.join(problems)}")
    model.load_state_dict(dict(weights))
    return model.eval()


def _listed(names: set[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
