import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from distkg.config import (
    ConfigError,
    GeneratedConfig,
    NodePieceConfig,
    PoolConfig,
    RunConfig,
    Section,
    StrictModel,
    default_values,
    family_of,
    flatten,
    load_config,
    load_written_config,
    parse_config,
    parse_options,
    preset_names,
    resume_class,
)
from distkg.documents import parse_yaml
from distkg.embedding.scorers import SCORERS
from distkg.foundation.models import MODELS


def write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def sections() -> list[tuple[str, type[BaseModel]]]:
    found = [(name, type(getattr(RunConfig(), name))) for name in RunConfig.model_fields]
    nested = [("negatives.pool", PoolConfig), ("data.generated", GeneratedConfig), ("model.nodepiece", NodePieceConfig)]
    return [*found, *nested]


def test_a_file_sets_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "model: {name: rotate, dim: 64}\ntrain: {epochs: 3}\n"))
    assert (config.model.name, config.model.dim, config.train.epochs) == ("rotate", 64, 3)
    assert config.train.batch_size == 1024


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == RunConfig()


def test_overrides_are_typed_and_come_last(tmp_path: Path) -> None:
    source = write(tmp_path, "model: {dim: 64}\nobjective: {name: margin}\n")
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


VARIANTS: list[dict[str, Any]] = [
    {},
    {
        "objective": {"name": "self_adversarial"},
        "negatives": {"pool": {"actors": 1}},
        "regularizer": {"name": "n3"},
        "train": {"table_storage": "disk", "average": "ema"},
    },
    {"objective": {"name": "query_sampling", "activation": "hanon"}},
    {"objective": {"name": "non_negative"}, "model": {"entities": "nodepiece"}},
    {"objective": {"name": "k_vs_all"}, "regularizer": {"name": "dura"}},
    {"model": {"name": "ultra", "start": "models/x"}, "objective": {"name": "margin"}, "data": {"fanouts": [3]}},
    {"model": {"name": "ultra"}, "objective": {"name": "margin"}, "data": {"generated": {"share": 0.5}}},
    {"model": {"name": "trix_relations"}, "objective": {"name": "margin"}},
]
"""Configurations that have, together, every key."""


@pytest.mark.parametrize(("name", "section"), sections())
def test_every_key_has_help_and_prints_it_above_itself(name: str, section: type[BaseModel]) -> None:
    assert issubclass(section, Section)
    printed = [parse_config(variant, "test").to_yaml(help_text=True).splitlines() for variant in VARIANTS]
    *above, last = name.split(".")
    pad = "  " * (len(above) + 1)
    for key, field in section.model_fields.items():
        lines = [lines for lines in printed if _line_of(lines, f"{'  ' * len(above)}{last}:", f"{pad}{key}:")]
        assert lines, f"{name}.{key} is printed by no variant"
        place = _line_of(lines[0], f"{'  ' * len(above)}{last}:", f"{pad}{key}:")
        assert lines[0][place - 1] == f"{pad}# {field.description}"


def _line_of(lines: list[str], section: str, key: str) -> int:
    """Index of a key's line below that of its section; 0 where there is none."""
    if section not in lines:
        return 0
    return next((i for i in range(lines.index(section), len(lines)) if lines[i].startswith(key)), 0)


DEAD = [
    # Of embeddings, for a foundation model.
    *(("ultra", "margin", key, "embedding models") for key in (
        "model.dim", "model.dropout", "model.dtype", "model.entities", "model.inverse", "regularizer.name",
        "regularizer.weight", "negatives.shared", "negatives.chunk_size", "negatives.filter", "train.overlap",
        "train.precision", "train.compile", "evaluate.memory_mb", "objective.activation",
        "objective.relation_prediction",
    )),
    # Of foundation models, for an embedding.
    *(("complex", "margin", key, "foundation models") for key in (
        "data.graphs", "data.fanouts", "train.steps_per_epoch", "model.start", "negatives.vectors",
    )),
    ("complex", "margin", "model.nodepiece.anchors", "model.entities: nodepiece"),
    # Of objectives.
    ("complex", "one_vs_all", "objective.margin", "objective.name: margin or self_adversarial"),
    ("complex", "one_vs_all", "negatives.count", "margin, logistic, self_adversarial or sampled_softmax"),
    ("complex", "one_vs_all", "objective.label_smoothing", "objective.name: k_vs_all"),
    ("complex", "margin", "objective.group_answers", "objective.name: one_vs_all"),
    ("complex", "margin", "objective.temperature", "objective.name: self_adversarial"),
    ("complex", "margin", "objective.products", "objective.name: one_vs_all, k_vs_all or query_sampling"),
    ("complex", "margin", "objective.query_share", "objective.name: query_sampling"),
    ("complex", "query_sampling", "objective.radius", "objective.name: non_negative"),
    # Of relation prediction, where all relations compete.
    ("trix_relations", "margin", "negatives.source", "embedding models and foundation models"),
    # Of what is switched off.
    ("complex", "margin", "regularizer.weight", "regularizer.name: n3, l2 or dura"),
    ("complex", "margin", "regularizer.product_factor", "regularizer.name: dura"),
    ("complex", "margin", "negatives.pool.depth", "negatives.pool.actors"),
    ("complex", "query_sampling", "objective.activation_limit", "objective.activation: hanon or halin"),
    ("ultra", "margin", "data.sampler", "data.fanouts"),
    ("ultra", "margin", "data.generated.curriculum", "data.generated.share"),
    ("complex", "margin", "data.generated.share", "foundation models and models that rank relations"),
    ("ultra", "margin", "train.average_decay", "train.average: ema"),
    ("complex", "margin", "train.average_from", "train.average: ema or mean"),
    ("ultra", "margin", "model.keep_start", "model.start"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "objective", "key", "owner"), DEAD)
def test_a_key_that_does_not_act_is_refused_by_what_it_belongs_to(
    tmp_path: Path, model: str, objective: str, key: str, owner: str
) -> None:
    value = json.dumps(default_values()[key]).replace("null", "3")
    file = write(tmp_path, f"model: {{name: {model}}}\nobjective: {{name: {objective}}}\n")
    with pytest.raises(ConfigError, match=rf"^override '{key}=.*: {key}: belongs to .*{owner}"):
        load_config(file, [f"{key}={value}"])
    section, name = key.rsplit(".", 1)
    tree: dict[str, Any] = {"model": {"name": model}, "objective": {"name": objective}}
    node = tree
    for part in section.split("."):
        node = node.setdefault(part, {})
    node[name] = default_values()[key]
    with pytest.raises(ConfigError, match=rf"^mine\.yaml: {key}: belongs to .*{owner}"):
        parse_config(tree, "mine.yaml")
    assert key not in flatten(parse_config(tree, "mine.yaml", dead_keys_are="dropped"))


def test_an_override_takes_the_keys_of_the_other_choice_with_it() -> None:
    config = load_config("preset:dans_complex", ["objective.name=one_vs_all"])
    assert set(config.model_dump()) == set(RunConfig().model_dump())
    assert config == load_config(
        "preset:complex_codex_s",
        [
            *("model.dim=128", "optimizer.name=adam", "optimizer.learning_rate=0.02", "optimizer.schedule=linear"),
            *("train.workers=1", "train.epochs=1000", "train.batch_size=512", "train.time_limit_seconds=60"),
            "checkpoint.every=5",
        ],
    )
    with pytest.raises(ConfigError, match=r"override 'objective\.margin=3'"):
        load_config("preset:dans_complex", ["objective.name=one_vs_all", "objective.margin=3"])


def test_with_an_objective_of_a_plug_in_every_key_of_objectives_acts() -> None:
    tree = {"objective": {"name": "theirs", "margin": 2, "label_smoothing": 0.1}, "negatives": {"count": 3}}
    assert parse_config(tree, "test").negatives.count == 3


def test_what_earlier_versions_wrote_is_read(tmp_path: Path) -> None:
    written = write(tmp_path, "model: {name: ultra, dim: 256}\nobjective: {name: margin, radius: 1.0}\n")
    assert load_written_config(written) == load_config(
        write(tmp_path, "model: {name: ultra}\nobjective: {name: margin}\n")
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_its_way_to_the_workers_a_configuration_stays_the_same(variant: dict[str, Any]) -> None:
    config = parse_config(variant, "test")
    assert parse_config(config.model_dump(), "sent") == config
    assert parse_config(yaml.safe_load(config.to_yaml(help_text=True)), "written") == config


def test_foundation_models_are_known_by_name_without_importing_one() -> None:
    assert {name for name in MODELS if family_of(name) == "foundation"} == {
        name for name in MODELS if MODELS[name].ranks == "entities"
    }
    assert {name for name in MODELS if family_of(name) == "relation_prediction"} == {
        name for name in MODELS if MODELS[name].ranks == "relations"
    }
    assert {family_of(name) for name in SCORERS} == {"embedding"}


def test_a_configuration_read_back_has_the_same_hash() -> None:
    config = RunConfig()
    assert parse_config(yaml.safe_load(config.to_yaml(help_text=True)), "test").sha256() == config.sha256()


def test_the_hash_follows_the_content() -> None:
    same, other = RunConfig(), RunConfig()
    other.train.seed = 1
    assert RunConfig().sha256() == same.sha256()
    assert len(same.sha256()) == 64
    assert other.sha256() != same.sha256()


@pytest.mark.parametrize(
    ("value", "message"),
    [("[500, 50]", "from 12 to 100,000, the smaller one first"), ("[3, 50]", "from 12"), ("[50]", "at least 2 items")],
)
def test_sizes_of_generated_graphs_are_two_ascending_numbers(value: str, message: str) -> None:
    changes = ["data.graphs=[a]", "data.generated.share=0.5", f"data.generated.entities={value}"]
    with pytest.raises(ConfigError, match=rf"data\.generated\.entities: .*{message}"):
        load_config("preset:ultra", changes)


def test_assignment_is_validated_too() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        RunConfig().train.epochs = 0


NESTED = ("negatives.pool", "data.generated", "model.nodepiece")


def keys() -> list[str]:
    """Every key of the schema, dotted."""
    found = []
    for name, section in sections():
        found += [f"{name}.{key}" for key in section.model_fields if f"{name}.{key}" not in NESTED]
    return found


FIXED = {
    *("data.store", "data.graphs"),
    *("model.name", "model.dim", "model.inverse", "model.dtype", "model.start", "model.keep_start", "model.options"),
    *("model.entities", *(f"model.nodepiece.{key}" for key in NodePieceConfig.model_fields)),
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
        ("cluster.label_selector.ray.io/market-type", "free"),
    ],
)
def test_the_class_of_a_key(key: str, kind: str | None) -> None:
    assert resume_class(key) == kind


def test_a_flat_configuration_has_every_key_with_its_value() -> None:
    tree = {"model": {"options": {"norm": "l1"}}, "objective": {"name": "margin"}, "negatives": {"pool": {"actors": 3}}}
    found = flatten(parse_config(tree, "test"))
    assert found["model.options.norm"] == "l1"
    assert found["negatives.pool.actors"] == 3
    every = {key for variant in VARIANTS for key in flatten(parse_config(variant, "test"))}
    of_mappings = {"model.options", "negatives.options", "cluster.label_selector", "cluster.actor_label_selector"}
    assert every == set(keys()) - of_mappings


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
    tree = {"objective": {"name": "margin"}, "negatives": {"pool": {"actors": 1} | pool}}
    config = parse_config(tree, "test")
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
    config = load_config(
        write(tmp_path, "negatives: {shared: no, filter: on}\nobjective: {name: margin}\ndata: {store: off}\n")
    )
    assert (config.negatives.shared, config.negatives.filter, config.data.store) == (False, True, "off")


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
    config = parse_config({"data": {"store": "größe/💥 1e3"}, "cluster": {"address": "1e3"}}, "test")
    text = config.to_yaml(help_text=True, ascii_only=True)
    assert "größe" not in text
    assert parse_config(parse_yaml(text, "text"), "text") == config
