"""The launcher's decisions; Ray itself is not started here."""

from pathlib import Path
from typing import Any

import pytest
import ray

from distkg.cluster import launch
from distkg.cluster.launch import check_scaling, launch_training
from distkg.cluster.session.address import ClusterError
from distkg.cluster.watch.lease import RunInUseError, hold_lease
from distkg.cluster.watch.run_folder import describe_failure
from distkg.config import RunConfig
from distkg.data.generate import generate
from distkg.data.store.identity import StoreMismatchError
from distkg.sharding.ranks import Ranks
from distkg.training.resume import ResumeError
from distkg.training.run import train_on_rank


def test_more_least_workers_than_workers_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"min_workers=5 is more than train\.workers=4"):
        check_scaling(RunConfig.model_validate({"train": {"workers": 4}, "cluster": {"min_workers": 5}}))
    check_scaling(RunConfig.model_validate({"train": {"workers": 4}, "cluster": {"min_workers": 4}}))


def test_a_failure_in_words() -> None:
    record = {"time": 1.0, "rank": 3, "error": "OSError: disk full", "restart": False}
    assert describe_failure(record) == "worker 3 failed: OSError: disk full. The run ends here."


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Any]:
    """Configuration of a finished run in ``tmp_path / "run"``, trained without Ray."""
    for name, seed in (("store", 1), ("again", 2)):
        generate(str(tmp_path / name), entities=40, relations=3, triples=300, seed=seed)
    tree = {
        "data": {"store": str(tmp_path / "store")},
        "model": {"name": "distmult", "dim": 8},
        "train": {"epochs": 1},
    }
    train_on_rank(RunConfig.model_validate(tree), tmp_path / "run", Ranks.single())
    return tree


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_cannot_go_on_is_refused_before_ray_starts(trained: dict[str, Any], tmp_path: Path) -> None:
    before = contents(tmp_path / "run")
    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"model": {"name": "complex", "dim": 8}}, ResumeError, r"model\.name: distmult in the run, complex now"),
        ({"train": {"epochs": 2, "seed": 1}}, ResumeError, r"train\.seed: 0 in the run, 1 now"),
        ({"data": {"store": str(tmp_path / "again")}}, StoreMismatchError, r"store .*again differs from the one that"),
    ]
    for sections, error, said in refused:
        with pytest.raises(error, match=said):
            launch_training(RunConfig.model_validate(trained | sections), tmp_path / "run", resume=True)
        assert not ray.is_initialized()
        assert contents(tmp_path / "run") == before


def test_a_run_in_use_is_refused_before_ray_starts(trained: dict[str, Any], tmp_path: Path) -> None:
    config = RunConfig.model_validate(trained)
    with hold_lease(tmp_path / "run"):
        before = contents(tmp_path / "run")
        for resume in (True, False):
            with pytest.raises(RunInUseError, match="in use by process"):
                launch_training(config, tmp_path / "run", resume=resume)
        assert contents(tmp_path / "run") == before


def test_accepted_and_free_changes_are_said_and_reach_the_workers(
    trained: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reached: list[Any] = []

    def on_workers(train: Any, config: RunConfig, place: launch.Place, *_: Any) -> dict[str, Any]:
        assert (place.folder / "lease.json").exists()
        assert place.address == str(tmp_path / "run")
        reached.append(train)
        return {}

    monkeypatch.setattr(launch, "_launch", on_workers)
    config = RunConfig.model_validate(trained | {"train": {"epochs": 3, "seed": 1}})
    launch_training(config, tmp_path / "run", resume=True, accept_changes=True)
    assert capsys.readouterr().out.splitlines() == [
        "continuing with changed settings: train.seed: 0 in the run, 1 now",
        "continuing with train.epochs: 1 in the run, 3 now",
    ]
    result = reached[0](config, tmp_path / "run", Ranks.single(), resume=True)
    assert [change["key"] for change in result["accepted_changes"]] == ["train.seed"]
    assert not (tmp_path / "run" / "lease.json").exists()
