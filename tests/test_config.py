import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from distkg.config import (
    ConfigError,
    PoolConfig,
    RunConfig,
    Section,
    StrictModel,
    flatten,
    load_config,
    parse_config,
    parse_options,
    preset_names,
    resume_class,
)
from distkg.documents import parse_yaml


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def sections() -> list[tuple[str, type[BaseModel]]]:
    found = [(name, type(getattr(RunConfig(), name))) for name in RunConfig.model_fields]
    return [*found, ("negatives.pool", PoolConfig)]


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "model: {name: rotate, dim: 64}\ntrain: {epochs: 3}\n"))
    assert (config.model.name, config.model.dim, config.train.epochs) == ("rotate", 64, 3)
    assert config.train.batch_size == 1024


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == RunConfig()


def test_overrides_are_typed_and_come_last(tmp_path: Path) -> None:
    source = write(tmp_path, "model: {dim: 64}\n")
    overrides = ["model.dim=128", "negatives.shared=false", "model.options.norm=l1", "train.time_limit_seconds=2.5"]
    config = load_config(source, overrides)
    assert (config.model.dim, config.negatives.shared) == (128, False)
    assert config.model.options == {"norm": "l1"}
    assert config.train.time_limit_seconds == 2.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dim", r"must read section\.key=value"),
        ("dim=3", r"must read section\.key=value"),
        ("model.dim.x=3", "is a value, not a section"),
        ("model.dim=-1", r"model\.dim: .*greater than or equal to 1"),
        ("model.dimm=1", r"model\.dimm: is not a key of model; known: name, dim,"),
        ("modle.dim=1", r"modle: is not a key of the configuration; known: data, model,"),
        ("train.batch_size=many", r"train\.batch_size: .*valid integer"),
        ("model.dtype=float64", r"model\.dtype: .*'float32' or 'bfloat16'"),
    ],
)
def test_a_bad_override_names_the_key_and_the_way_out(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, "model: {dim: 64}\n"), [override])


def test_every_mistake_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, "model: {dim: 0}\ntrain: {epochz: 3}\n"))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == ["model.dim", "train.epochz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [("model: [", "not valid YAML"), ("- 1\n- 2\n", "it holds a list"), ("model: 3\n", "model: ")],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_names_both_ways(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a file.*preset:NAME"):
        load_config(str(tmp_path / "no.yaml"))


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'preset:nope'\. Known: .*demo"):
        load_config("preset:nope")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads(name: str) -> None:
    assert load_config(f"preset:{name}").model.dim > 0


def test_yaml_gives_the_same_configuration_back() -> None:
    tree: dict[str, Any] = {
        "model": {"name": "transe", "options": {"norm": "l1"}},
        "optimizer": {"learning_rate": 1e-05, "clip_norm": 1.0},
        "data": {"store": "s3://bücket/größe: x"},
    }
    config = parse_config(tree, "test")
    for text in (config.to_yaml(), config.to_yaml(help_text=True)):
        assert parse_config(yaml.safe_load(text), "test") == config


@pytest.mark.parametrize(("name", "section"), sections())
def test_every_key_has_help_and_prints_it_above_itself(name: str, section: type[BaseModel]) -> None:
    lines = RunConfig().to_yaml(help_text=True).splitlines()
    *above, last = name.split(".")
    start = lines.index(f"{'  ' * len(above)}{last}:")
    pad = "  " * (len(above) + 1)
    assert issubclass(section, Section)
    for key, field in section.model_fields.items():
        place = next(i for i in range(start, len(lines)) if lines[i].startswith(f"{pad}{key}:"))
        assert lines[place - 1] == f"{pad}# {field.description}"


def test_a_configuration_read_back_has_the_same_hash() -> None:
    config = RunConfig()
    assert parse_config(yaml.safe_load(config.to_yaml(help_text=True)), "test").sha256() == config.sha256()


def test_the_hash_follows_the_content() -> None:
    same, other = RunConfig(), RunConfig()
    other.train.seed = 1
    assert RunConfig().sha256() == same.sha256()
    assert len(same.sha256()) == 64
    assert other.sha256() != same.sha256()


def test_assignment_is_validated_too() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RunConfig().train.epochs = 0


def keys() -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for name, section in sections():
        found += [f"{name}.{key}" for key in section.model_fields if f"{name}.{key}" != "negatives.pool"]
    return found


FIXED = {
    *("data.store", "data.graphs"),
    *("model.name", "model.dim", "model.inverse", "model.dtype", "model.start", "model.keep_start", "model.options"),
    *("objective.activation", "objective.relation_scale", "optimizer.name"),
}


@pytest.mark.parametrize("key", keys())
def test_every_key_says_whether_a_resumed_run_may_change_it(key: str) -> None:
    assert resume_class(key) in ("fixed", "course", "free")


def test_what_gives_stored_tensors_their_meaning_is_fixed() -> None:
    assert {key for key in keys() if resume_class(key) == "fixed"} == FIXED


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("train.seed", "course"),
        ("train.batch_size", "course"),
        ("objective.name", "course"),
        ("negatives.source", "course"),
        ("negatives.options.hops", "course"),
        ("regularizer.weight", "course"),
        ("optimizer.learning_rate", "course"),
        ("optimizer.schedule", "course"),
        ("model.dropout", "course"),
        ("train.epochs", "free"),
        ("train.time_limit_seconds", "free"),
        ("train.patience", "free"),
        ("train.workers", "free"),
        ("cluster.address", "free"),
        ("evaluate.every", "free"),
        ("checkpoint.every_steps", "free"),
        ("model.options.norm", "fixed"),
        ("model.dimm", None),
        ("nothing", None),
        ("train", None),
    ],
)
def test_the_class_of_a_key(key: str, kind: str | None) -> None:
    assert resume_class(key) == kind


def test_a_flat_configuration_has_every_key_with_its_value() -> None:
    config = parse_config({"model": {"options": {"norm": "l1"}}, "negatives": {"pool": {"actors": 3}}}, "test")
    found = flatten(config)
    assert found["model.options.norm"] == "l1"
    assert found["negatives.pool.actors"] == 3
    assert set(found) == {*keys(), "model.options.norm"} - {"model.options", "negatives.options"}


def test_the_documentation_names_every_key_that_a_resumed_run_may_not_change_freely() -> None:
    page = (Path(__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = {
        kind: next(line for line in page.splitlines() if line.startswith(f"| {kind} |")) for kind in ("fixed", "course")
    }
    for kind, row in rows.items():
        named = set(re.findall(r"`([a-z_.]+(?:\.\*)?)`", row))
        for key in (key for key in keys() if resume_class(key) == kind):
            assert key in named or any(name.endswith(".*") and key.startswith(name[:-1]) for name in named), key


@pytest.mark.parametrize(
    ("pool", "on_error"),
    [
        ({}, "fail"),
        ({"actors": 2}, "fail"),
        ({"fallback": "uniform"}, "fallback"),
        ({"fallback": "degree", "on_error": "fail"}, "fail"),
        ({"on_error": "fallback"}, "fallback"),
    ],
)
def test_who_names_a_source_to_stand_in_wants_the_run_to_go_on(pool: dict[str, Any], on_error: str) -> None:
    config = parse_config({"negatives": {"pool": pool}}, "test")
    assert config.negatives.pool.on_error == on_error
    # On its way to the workers, and read back from a run folder, every key is set.
    again = parse_config(yaml.safe_load(config.to_yaml()), "test")
    assert again == config
    again.negatives.pool.actors = 3
    assert again.negatives.pool.on_error == on_error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {workers: true}", r"train\.workers: Input should be a number, not true or false"),
        ("negatives: {shared: 1}", r"negatives\.shared: Input should be true or false, not a number"),
        ("data: {fanouts: [true]}", r"data\.fanouts: Input should be a number"),
        ("optimizer: {learning_rate: .nan}", r"optimizer\.learning_rate: Input should be a finite number"),
        ("objective: {margin: .inf}", r"objective\.margin: Input should be a finite number"),
        ("objective: {margin: 1e400}", r"objective\.margin: Input should be a finite number"),
        ("train: {seed: 99999999999999999999}", r"train\.seed: Input should fit into 64 bits"),
        ("data: {store: 7}", r"data\.store: Input should be a valid string, not a number; put it in quotes"),
        ("model: {dim: 8, dim: 16}", "the key 'dim' is given twice"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_words_for_true_and_false_serve_keys_that_take_them(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "negatives: {shared: no, filter: on}\nmodel: {start: off}\n"))
    assert (config.negatives.shared, config.negatives.filter, config.model.start) == (False, True, "off")


def test_a_section_without_keys_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "model:\n"), ["model.dim=64"]).model.dim == 64


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.options={norm: l1",
            r"override 'model\.options=\{norm: l1' is not valid YAML: .*--set 'model\.options=…'",
        ),
        ("model.dim=", r"override 'model\.dim=' has no value; write model\.dim='' for an empty text, or null"),
        ("model.dim=0", r"override 'model\.dim=0': model\.dim: "),
        ("model.dimm=1", r"Did you mean dim\?"),
        ("model.dim=" + "9" * 5000, r"override 'model\.dim=9{90,120}…'"),
    ],
)
def test_a_bad_override_is_named_itself(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(write(tmp_path, "train: {epochs: 3}\n"), [override])
    assert "\n" not in str(caught.value)


def test_of_one_key_the_last_override_counts(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), ["model.dim=8", "model.dim=16"]).model.dim == 16


@pytest.mark.parametrize("source", ["preset:../presets/demo", "preset:", "preset:spaces/hale", "preset:demo.yaml"])
def test_presets_are_names_not_paths(source: str) -> None:
    with pytest.raises(ConfigError, match="there is no preset"):
        load_config(source)


@pytest.mark.parametrize("source", ["", "a\0b", "x" * 300, "x/" * 3000, "/dev/zero", "/"])
def test_what_is_no_file_is_a_message(source: str) -> None:
    with pytest.raises(ConfigError, match="is not a file"):
        load_config(source)


def test_a_thousand_mistakes_are_not_all_listed(tmp_path: Path) -> None:
    text = "model: {" + ", ".join(f"key{number}: 1" for number in range(1000)) + "}"
    with pytest.raises(ConfigError, match="980 further keys are wrong") as caught:
        load_config(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 21


def test_a_misspelt_option_is_told_before_what_it_leaves_missing() -> None:
    class Options(StrictModel):
        parts: list[int]

    with pytest.raises(
        ConfigError, match=r"options\.part: .*not permitted.*Options of mixture: parts\. Did you mean parts\?"
    ):
        parse_options(Options, {"part": [1]}, "options", "mixture")


def test_yaml_for_ascii_reads_back_the_same() -> None:
    config = parse_config({"data": {"store": "größe/💥 1e3"}, "model": {"start": "1e3"}}, "test")
    text = config.to_yaml(help_text=True, ascii_only=True)
    assert "größe" not in text
    assert parse_config(parse_yaml(text, "text"), "text") == config
