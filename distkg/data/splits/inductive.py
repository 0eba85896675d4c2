"""Inductive benchmarks: folders with a training graph, and an inference graph whose entities are all new.

A file ``inference`` next to train, valid and test marks such a folder. Two protocols are distinguished by their files:

- GraIL (Teru et al. 2020, as used by NBFNet and ULTRA), with ``train_valid`` and ``train_test``: a model is validated
  on held-out facts of the training graph, and ``valid`` and ``test`` together are the test set of the inference graph;
- InGram and ILPC (Lee et al. 2023; Galkin et al. 2022), without these files: ``valid`` and ``test`` belong to the
  inference graph, and the training graph has no held-out facts.

In both, each graph becomes its own store, with its facts as ``train``, and ranks are filtered by all triples of that
store, as in the published results.
"""

from __future__ import annotations

from distkg.data.errors import IngestError
from distkg.data.readers.sources import ReadOptions, SourceFile, files_in_folder
from distkg.data.storage.location import Location, without_secrets

TRAINING, INFERENCE = "training", "inference"
NAMES = ("train", "valid", "test", "inference", "train_valid", "train_test")

InductiveGraphs = dict[str, dict[str, list[SourceFile]]]
"""``training`` and ``inference`` → split → files."""


def inductive_graphs(folder: Location, options: ReadOptions) -> InductiveGraphs | None:
    """Find the two graphs of a folder; None if it holds one graph.

    Raises:
        IngestError: a file of the protocol is missing.
    """
    files = files_in_folder(folder, NAMES, options)
    if "inference" not in files:
        return None
    grail = "train_valid" in files or "train_test" in files
    missing = {"train", "test", *(("valid", "train_valid") if grail else ())} - set(files)
    if missing:
        raise IngestError(
            f"folder {without_secrets(folder.path)} holds inference triples, so it is read as two graphs, but there is "
            f"no file for {', '.join(sorted(missing))}"
        )

    def files_of(*names: str) -> list[SourceFile]:
        return [files[name] for name in names if name in files]

    if grail:
        inference = {"train": files_of("inference"), "test": files_of("valid", "test")}
    else:
        inference = {"train": files_of("inference"), "valid": files_of("valid"), "test": files_of("test")}
    training = {"train": files_of("train"), "valid": files_of("train_valid"), "test": files_of("train_test")}
    return {TRAINING: training, INFERENCE: inference}
