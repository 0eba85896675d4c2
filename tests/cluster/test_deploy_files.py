"""Dockerfile, deploy/kubernetes and deploy/systemd: what they name exists, and KubeRay's schemas take the manifests."""

from __future__ import annotations

import configparser
import gzip
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from distkg.cli import app
from distkg.cluster.session.ray_session import TRAIN_SLOT
from distkg.config import load_config
from distkg.config.node_labels import check_label_selector

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES, SYSTEMD = ROOT / "deploy" / "kubernetes", ROOT / "deploy" / "systemd"
CRD = {"RayJob": "ray.io_rayjobs.yaml.gz", "RayCluster": "ray.io_rayclusters.yaml.gz"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def manifest(name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((KUBERNETES / f"{name}.yaml").read_text("utf-8"))
    return tree


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, their lines joined."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M)
    found = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in found]


def arguments(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def test_the_image_copies_what_is_there_and_what_is_not_ignored() -> None:
    copied = [source for rest in arguments("COPY") for source in rest.split()[:-1]]
    assert copied == ["pyproject.toml", "README.md", "distkg", "jobs"]
    rules = (ROOT / ".dockerignore").read_text("utf-8").split("\n")
    for source in copied:
        assert (ROOT / source).exists(), source
        kept = [not rule.startswith("!") for rule in rules if rule and fnmatch(source, rule.lstrip("!"))]
        assert kept[-1:] == [False], f"{source} is not sent to the builder"


def test_the_image_pins_a_python_that_the_project_supports_and_runs_as_a_number_that_is_not_root() -> None:
    (version,) = (rest.partition("=")[2] for rest in arguments("ARG") if rest.startswith("PYTHON_VERSION="))
    assert re.fullmatch(r"3\.11\.\d+", version), "DGL's wheels end at 3.11"
    (base,) = arguments("FROM")
    assert base.startswith("python:${PYTHON_VERSION}-")
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["1000:1000"]
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :]), "files of the image belong to root"
    assert any("useradd --uid 1000" in rest for rest in arguments("RUN"))


def test_the_image_installs_what_the_project_asks_for() -> None:
    torch = next(each for each in PROJECT["dependencies"] if each.startswith("torch"))
    commands = [part.strip() for rest in arguments("RUN") for part in rest.split("&&")]
    installs = [shlex.split(command) for command in commands if command.startswith("uv pip install")]
    assert torch in installs[0], "torch goes first, as in the Makefile"
    assert f"'{torch}'" in (ROOT / "Makefile").read_text("utf-8")
    assert installs[0][installs[0].index("--index-url") + 1] == "$TORCH_INDEX"
    assert "TORCH_INDEX=https://download.pytorch.org/whl/cpu" in arguments("ARG")
    extras = [installs[1][place + 1] for place, word in enumerate(installs[1]) if word == "--extra"]
    assert installs[1][installs[1].index("-r") + 1] == "pyproject.toml"
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert {"cluster", "s3"} <= set(extras)
    assert "--no-deps" in installs[2]


def test_uv_accepts_the_options_of_the_image() -> None:
    uv = Path(sys.executable).parent / "uv"
    if not uv.exists():
        pytest.skip("uv is not installed beside this Python")
    known = subprocess.run([uv, "pip", "install", "--help"], capture_output=True, text=True, check=True).stdout
    used = {word for rest in arguments("RUN") if "uv pip" in rest for word in re.findall(r"--[a-z-]+", rest)}
    assert {option for option in used - {"--no-cache-dir"} if option not in known} == set()


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Schema that refuses unknown keys, which Kubernetes would drop without a word."""
    strict_schema: dict[str, Any] = {
        key: {name: strict(each) for name, each in value.items()} if key == "properties" else value
        for key, value in schema.items()
    }
    if isinstance(schema.get("items"), dict):
        strict_schema["items"] = strict(schema["items"])
    if isinstance(schema.get("additionalProperties"), dict):
        strict_schema["additionalProperties"] = strict(schema["additionalProperties"])
    elif "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict_schema["additionalProperties"] = False
    return strict_schema


@pytest.fixture(scope="module")
def schema_of(shared_schemas: Callable[[str], Path]) -> Callable[[str], dict[str, Any]]:
    def schema(kind: str) -> dict[str, Any]:
        with gzip.open(shared_schemas("kuberay") / CRD[kind], "rt", encoding="utf-8") as file:
            definition = yaml.load(file, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
        return strict(version["schema"]["openAPIV3Schema"])

    return schema


@pytest.mark.parametrize(("name", "kind"), [("rayjob", "RayJob"), ("raycluster", "RayCluster")])
def test_kuberay_accepts_a_manifest_and_refuses_a_misspelt_key(
    schema_of: Callable[[str], dict[str, Any]], name: str, kind: str
) -> None:
    tree, schema = manifest(name), schema_of(kind)
    assert (tree["apiVersion"], tree["kind"]) == ("ray.io/v1", kind)
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(tree)
    group = cluster_of(tree)["workerGroupSpecs"][0]
    group["template"]["spec"]["containers"][0]["imagee"] = "x"
    with pytest.raises(jsonschema.ValidationError, match="imagee"):
        validator.validate(tree)


def cluster_of(tree: dict[str, Any]) -> dict[str, Any]:
    cluster: dict[str, Any] = tree["spec"].get("rayClusterSpec", tree["spec"])
    return cluster


@pytest.mark.parametrize("name", ["rayjob", "raycluster"])
def test_a_cluster_on_kubernetes_has_no_volume_that_stays_and_no_root(name: str) -> None:
    cluster = cluster_of(manifest(name))
    ray = next(each for each in PROJECT["optional-dependencies"]["cluster"] if each.startswith("ray["))
    assert f">={cluster['rayVersion'].rpartition('.')[0]}," in ray
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert all(set(volume) == {"name", "emptyDir"} for volume in pod["volumes"])
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        assert {port["name"] for port in container["ports"]} >= {"metrics"}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
    for group in cluster["workerGroupSpecs"]:
        assert (group["minReplicas"], group["maxReplicas"] >= 1) == (0, True)
        assert json.loads(json.loads(group["rayStartParams"]["resources"])) == {TRAIN_SLOT: 1}
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_cluster_has_a_group_of_spot_nodes_beside_one_that_stays() -> None:
    cluster = cluster_of(manifest("raycluster"))
    kinds = [check_label_selector(group["labels"]) for group in cluster["workerGroupSpecs"]]
    assert kinds == [{"ray.io/market-type": kind} for kind in ("on-demand", "spot")]
    assert cluster["autoscalerOptions"]["version"] == "v2", "version 1 knows no labels"
    stays, spot = (group["template"]["spec"] for group in cluster["workerGroupSpecs"])
    assert "nodeSelector" not in stays
    assert spot["nodeSelector"] == {"karpenter.sh/capacity-type": "spot"}
    assert spot["terminationGracePeriodSeconds"] <= 120
    assert spot["containers"] == stays["containers"]


def test_the_job_trains_from_s3_into_s3_with_settings_that_act() -> None:
    words = shlex.split(manifest("rayjob")["spec"]["entrypoint"])
    assert words[:2] == ["distkg", "train"]
    options = {word for word in words if word.startswith("--")}
    shown = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    assert {option for option in options if option not in shown} == set()
    changes = [words[place + 1] for place, word in enumerate(words) if word == "--set"]
    config = load_config(words[2], changes)
    assert config.data.store.startswith("s3://")
    assert words[words.index("--run") + 1].startswith("s3://")
    assert "--resume" in words
    slots = cluster_of(manifest("rayjob"))["workerGroupSpecs"][0]["maxReplicas"]
    assert int(words[words.index("--workers") + 1]) == slots
    assert config.cluster.min_workers is not None
    assert config.cluster.min_workers <= slots


def test_secrets_are_placeholders_and_monitored_pods_are_those_of_ray() -> None:
    keys = manifest("credentials")["stringData"]
    assert (keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"]) == ("CHANGE", "CHANGE")
    assert manifest("credentials")["metadata"]["name"] == "distkg-s3"
    assert manifest("podmonitor")["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(strict=True, interpolation=None, delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    text = (SYSTEMD / f"ray-{name}.service").read_text("utf-8").replace("\\\n", " ")
    parser.read_string(text)
    return parser


@pytest.mark.parametrize("name", ["head", "worker"])
def test_a_unit_of_systemd_starts_ray_with_options_that_it_has(name: str) -> None:
    from ray.scripts.scripts import start

    words = shlex.split(unit(name)["Service"]["ExecStart"])
    assert words[:2] == ["/opt/distkg/bin/ray", "start"]
    known = {option for parameter in start.params for option in parameter.opts}
    options = {word.partition("=")[0]: word.partition("=")[2] for word in words[2:]}
    assert set(options) <= known
    assert "--block" in options, "systemd must see when Ray ends"
    ports = [int(value) for option, value in options.items() if option.endswith("port")]
    low, high = int(options["--min-worker-port"]), int(options["--max-worker-port"])
    others = [port for port in ports if port not in (low, high)]
    assert len(set(others)) == len(others)
    assert not any(low <= port <= high for port in others)
    assert unit(name)["Service"]["KillMode"] == "mixed"
    assert unit(name)["Service"]["User"] != "root"


def test_all_nodes_of_systemd_use_the_same_ports() -> None:
    head, worker = (
        dict(re.findall(r"--([a-z-]*port)=(\d+)", unit(name)["Service"]["ExecStart"])) for name in ("head", "worker")
    )
    assert head.pop("port") == "6379"
    assert "head.internal:6379" in unit("worker")["Service"]["ExecStart"]
    assert head == worker
    resources = re.search(r"--resources='(.*)'", unit("worker")["Service"]["ExecStart"])
    assert resources is not None
    assert json.loads(resources[1]) == {TRAIN_SLOT: 2}
