"""cluster.yaml against Ray's own schema, and against what the project needs of a cluster."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from distkg.cluster.session.ray_session import TRAIN_SLOT

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = Path(ray.autoscaler.__file__).parent / "ray-schema.json"


@pytest.fixture
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def test_it_fits_rays_schema(cluster: dict[str, Any]) -> None:
    jsonschema.validate(cluster, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_the_schema_refuses_a_misspelt_key(cluster: dict[str, Any]) -> None:
    cluster["max_worker"] = cluster.pop("max_workers")
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.validate(cluster, json.loads(SCHEMA.read_text(encoding="utf-8")))


def test_rays_launcher_accepts_it_with_its_defaults_filled_in(cluster: dict[str, Any]) -> None:
    validate_config(prepare_config(cluster))


def test_the_head_takes_no_training_workers(cluster: dict[str, Any]) -> None:
    head = cluster["available_node_types"][cluster["head_node_type"]]
    assert head["resources"] == {"CPU": 0}


def test_gpu_workers_scale_from_zero_and_offer_train_slots(cluster: dict[str, Any]) -> None:
    worker = cluster["available_node_types"]["gpu_worker"]
    assert (worker["min_workers"], worker["max_workers"]) == (0, 4)
    assert worker["resources"] == {TRAIN_SLOT: 1}


def test_every_mounted_file_of_the_project_exists(cluster: dict[str, Any]) -> None:
    mounted = [Path(local) for local in cluster["file_mounts"].values() if not local.startswith("~")]
    assert Path("distkg") in mounted
    assert Path("pyproject.toml") in mounted
    for path in mounted:
        assert (ROOT / path).exists(), f"cluster.yaml mounts {path}, which the project lacks"


def test_head_and_workers_start_with_token_authentication(cluster: dict[str, Any]) -> None:
    for role in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = cluster[role][-1]
        assert "RAY_AUTH_MODE=token ray start" in start.replace("RAY_USAGE_STATS_ENABLED=0 ", "")
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
