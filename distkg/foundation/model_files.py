"""Models as folders: ``model.safetensors`` with the weights and ``model.json`` with their description.

Nothing is unpickled into objects: published checkpoints, which are pickles, are read by torch's loader of plain
tensors, which refuses anything else.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from distkg.data.storage.atomic_file import replace_text
from distkg.data.storage.file_changes import changed
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import Location
from distkg.data.storage.tensor_files import TensorFileError, TensorHeader, read_header, write_tensors
from distkg.data.storage.torch_files import TorchFileError, is_plain, read_torch_file
from distkg.data.storage.working_copy import delete, fetch
from distkg.data.store.identity import StoreIdentity
from distkg.foundation.models import MODELS, FoundationModel
from distkg.kernels.finite import non_finite
from distkg.strict_json import JsonError, read_json

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
TRAINED_ON = "store.json"  # identity of the store for whose entities or relations the model has vectors
MODEL_FOLDER = "model"  # in the folder of a run
MADE_FOR_EACH = 4  # parameters created during construction per final parameter: some modules are replaced
FORMAT_VERSION = 1
PublishedFormat = Literal["ultra", "trix", "trix_relations", "motif", "semma"]

# Prefixes of parameter names in files of a format → prefixes in the model. TRIX's published file is older than the
# numbered names of the two networks over facts; files that its code writes now have numbered names.
RENAMED: dict[str, dict[str, str]] = {
    "trix": {"entity_model_1.": "entity_model_mini.", "entity_model_2.": "entity_model."}
}


class ModelFileError(ValueError):
    """Error of a model that cannot be read; the message names the file and the problem."""


def make_model(name: str, options: Mapping[str, Any]) -> FoundationModel:
    """Create the model of that name.

    Raises:
        UnknownNameError: there is none.
        ConfigError: wrong options.
    """
    kind = MODELS[name]
    return kind.of(options)


def is_model(path: Path) -> bool:
    """Return whether a folder holds a model, or a run that trained one."""
    return _place(local_path(path, "model folder")) is not None


def described_model(path: Path) -> str | None:
    """Return the name of a folder's model; None where it holds none.

    Raises:
        ModelFileError: its description cannot be read.
    """
    found = _place(local_path(path, "model folder"))
    return None if found is None else _description(found / DESCRIPTION).model


def _place(path: Path) -> Path | None:
    return next((folder for folder in (path, path / MODEL_FOLDER) if _holds_model(folder)), None)


def _holds_model(folder: Path) -> bool:
    """Return whether a folder holds a model; an export of embeddings has a ``model.json`` too, but its vectors are
    in files of other names."""
    vectors = (folder / "entities.safetensors", folder / "entities.index.json")
    is_export = any(file.exists() for file in vectors) and not os.path.lexists(folder / WEIGHTS)
    return os.path.lexists(folder / DESCRIPTION) and not is_export


class ModelDescription(BaseModel):
    """Content of ``model.json``: the model to which the weights belong."""

    model_config = ConfigDict(extra="forbid", strict=True)

    format_version: int = Field(ge=1)
    model: str
    options: dict[str, JsonValue]


def save_model(model: FoundationModel, folder: Path) -> None:
    """Write a model; the description is written last, so a folder with a description is complete.

    Raises:
        ModelFileError: a weight is NaN or infinite; nothing is written.
    """
    folder = local_path(folder, "model folder")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    _refuse_non_finite(weights, f"the {model.name} model for {folder}")
    folder.mkdir(parents=True, exist_ok=True)
    delete(folder / DESCRIPTION)
    write_tensors(folder / WEIGHTS, weights)
    changed(folder / WEIGHTS)
    delete(folder / TRAINED_ON)
    if model.trained_on is not None:
        replace_text(folder / TRAINED_ON, model.trained_on.model_dump_json(indent=1) + "\n")
    described = ModelDescription(format_version=FORMAT_VERSION, model=model.name, options=model.options.model_dump())
    replace_text(folder / DESCRIPTION, json.dumps(described.model_dump(), indent=2) + "\n")


def load_model(folder: Path) -> FoundationModel:
    """Load the model of a folder, in evaluation mode.

    The description is checked against the header of the weights before memory for a model of that size is allocated.

    Raises:
        ModelFileError: the folder holds no model, or weights that do not match the description.
    """
    folder = local_path(folder, "model folder")
    place = _place(folder)
    if place is None:
        if (folder / "config.yaml").is_file():  # a run folder
            raise ModelFileError(
                f"the run in {folder} has no model yet: it has not finished. Continue it with the same command and "
                "--resume"
            )
        raise ModelFileError(
            f"{folder} holds no foundation model ({DESCRIPTION} is missing). Make one with `distkg import-checkpoint`"
        )
    described, file = _description(place / DESCRIPTION), place / WEIGHTS
    fetch(file)
    try:
        header = read_header(file)
    except TensorFileError as error:
        raise ModelFileError(f"{file}: the model cannot be read: {error}") from None
    skeleton = _skeleton(described, len(header), place / DESCRIPTION)
    _check_fit(skeleton, header, file)
    try:
        weights = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{file}: the model cannot be read: {error}") from None
    model = make_model(described.model, described.options)
    model.trained_on = _trained_on(place)
    return _filled(model, weights, file)


def _description(file: Path) -> ModelDescription:
    try:
        tree = read_json(file)
        version = tree.get("format_version") if isinstance(tree, dict) else None
        if type(version) is int and version > FORMAT_VERSION:
            raise ModelFileError(
                f"{file} has format version {version}; this distkg reads up to {FORMAT_VERSION}. Upgrade distkg"
            )
        return ModelDescription.model_validate(tree)
    except (JsonError, ValidationError) as error:
        raise ModelFileError(f"{file}: the model cannot be read: {_first_problem(error)}") from None


def _first_problem(error: JsonError | ValidationError) -> str:
    if isinstance(error, JsonError):
        return str(error)
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(ascii(part).strip("'") for part in problem["loc"])
    return f"{place}: {problem['msg']}"


def _skeleton(described: ModelDescription, tensors: int, file: Path) -> FoundationModel:
    """Create the described model on the meta device, without memory for weights; fail if it has far more than
    ``tensors`` parameters."""
    try:
        with torch.device("meta"), _at_most(MADE_FOR_EACH * tensors):
            return make_model(described.model, described.options)
    except Exception as error:  # options of an untrusted file may raise anything
        lines = str(error).splitlines()
        raise ModelFileError(
            f"{file}: the model cannot be made: {lines[0][:300] if lines else type(error).__name__}"
        ) from None


@contextmanager
def _at_most(parameters: int) -> Iterator[None]:
    """Limit the number of parameters that modules create in this context: options may ask for a billion layers."""
    remaining = iter(range(parameters))

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        if next(remaining, None) is None:
            raise ModelFileError(f"its options describe far more tensors than {WEIGHTS} has")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _trained_on(folder: Path) -> StoreIdentity | None:
    file = folder / TRAINED_ON
    if not os.path.lexists(file):
        return None
    try:
        return StoreIdentity.model_validate(read_json(file))
    except (JsonError, ValidationError) as error:
        raise ModelFileError(f"{file} is damaged: {_first_problem(error)}") from None


def weights_sha256(path: Path) -> str | None:
    """Return the checksum of the weights in the folder of a model, or of a run that trained one; None if there are
    none."""
    folder = _place(path)
    if folder is None or not (folder / WEIGHTS).is_file():
        return None
    return Location.of(str(folder / WEIGHTS)).sha256()


def import_checkpoint(file: Path, format: PublishedFormat = "ultra") -> FoundationModel:
    """Create a model of the published sizes with the weights of a published file.

    Args:
        format: the model whose file it is.

    Raises:
        ModelFileError: the file does not fit; the message names missing and extra keys.
    """
    file = local_path(file, "checkpoint", "file")
    try:
        content = read_torch_file(file)
    except TorchFileError as error:
        raise ModelFileError(f"{file} cannot be read as a checkpoint: {error}") from None
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(name, str) and is_plain(weights[name]) for name in weights):
        raise ModelFileError(f"{file} holds no weights: a dictionary of tensors, or one under `model`, is expected")
    weights = {_renamed(name, RENAMED.get(format, {})): tensor for name, tensor in weights.items()}
    return _filled(make_model(format, {}), weights, file)


def _renamed(name: str, beginnings: Mapping[str, str]) -> str:
    for old, new in beginnings.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _filled(model: FoundationModel, weights: Mapping[str, Tensor], file: Path) -> FoundationModel:
    _check_fit(model, {name: TensorHeader.of(tensor) for name, tensor in weights.items()}, file)
    _refuse_non_finite(weights, str(file))
    model.load_state_dict(dict(weights))
    return model.eval()


def _check_fit(model: FoundationModel, weights: Mapping[str, TensorHeader], file: Path) -> None:
    own = model.state_dict()
    problems = [
        f"missing: {_listed(own.keys() - weights.keys())}" if own.keys() - weights.keys() else "",
        f"not known to the model: {_listed(weights.keys() - own.keys())}" if weights.keys() - own.keys() else "",
        *(
            f"{name} has shape {list(weights[name].shape)} instead of {list(tensor.shape)}"
            for name, tensor in own.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
        *(
            f"{name} is {weights[name]} instead of {tensor.dtype}"
            for name, tensor in own.items()
            if name in weights and weights[name].dtype.is_floating_point != tensor.dtype.is_floating_point
        ),
    ]
    problems = [problem for problem in problems if problem]
    if problems:
        raise ModelFileError(f"{file} does not fit {model.name}: {'; '.join(problems)}")


def _refuse_non_finite(weights: Mapping[str, Tensor], what: str) -> None:
    broken = non_finite(weights)
    if broken:
        raise ModelFileError(
            f"{what} holds NaN or infinity in {_listed(set(broken))}: its training had diverged. "
            "Use an earlier checkpoint"
        )


def _listed(names: set[str]) -> str:
    ordered = [ascii(name)[1:-1][:100] for name in sorted(names)]
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")
