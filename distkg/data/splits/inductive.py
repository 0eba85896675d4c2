"""Folders that hold two graphs: one to learn from, and one that is asked about, whose entities are all new.

``inference`` beside train, valid and test marks such a folder. Two protocols are in use, told apart by their files:

- GraIL's (Teru et al. 2020, as NBFNet and ULTRA take it), with ``train_valid`` and ``train_test``: a model is validated
  on held-out facts of the training graph, and ``valid`` and ``test`` together are what is asked of the other graph;
- that of InGram and ILPC (Lee et al. 2023; Galkin et al. 2022), without: ``valid`` and ``test`` are asked of the other
  graph, and of the training graph nothing.

Either way each graph becomes a store of its own, with its facts as ``train``, and ranks are filtered by all triples of
that store, as published figures are.
"""

from __future__ import annotations

from distkg.data.errors import IngestError
from distkg.data.readers.sources import Format, ReadOptions, SourceFile, files_in_folder
from distkg.data.storage.location import Location, without_secrets

TRAINING, INFERENCE = "training", "inference"
NAMES = ("train", "valid", "test", "inference", "train_valid", "train_test")

Graphs = dict[str, dict[str, list[SourceFile]]]
"""``training`` and ``inference`` → split → files."""


def inductive_graphs(folder: Location, format: Format, options: ReadOptions | None = None) -> Graphs | None:
    """The two graphs of a folder; None where it holds one.

    Raises:
        IngestError: the folder lacks a file of its protocol.
    """
    files = files_in_folder(folder, NAMES, format, options)
    if "inference" not in files:
        return None
    grail = "train_valid" in files or "train_test" in files
    missing = {"train", "test", *(("valid", "train_valid") if grail else ())} - set(files)
    if missing:
        raise IngestError(
            f"folder {without_secrets(folder.path)} holds inference triples, so it is read as two graphs, but there is "
            f"no file for {', '.join(sorted(missing))}"
        )

    def found(*names: str) -> list[SourceFile]:
        return [files[name] for name in names if name in files]

    if grail:
        asked = {"train": found("inference"), "test": found("valid", "test")}
    else:
        asked = {"train": found("inference"), "valid": found("valid"), "test": found("test")}
    learned = {"train": found("train"), "valid": found("train_valid"), "test": found("train_test")}
    return {TRAINING: learned, INFERENCE: asked}
