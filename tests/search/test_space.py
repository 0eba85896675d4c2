"""Spaces of a search: what is read, what is refused and with which words."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from distkg.config import RunConfig, load_config, parse_config
from distkg.config.families import FAMILY_OF_MODEL
from distkg.embedding.scorers import SCORERS
from distkg.foundation.initial_model import check_settings
from distkg.planning.preflight import check_run
from distkg.search.space import (
    SPACES_OF_MODELS,
    Choice,
    Interval,
    SpaceError,
    check_space,
    parameters_of,
    parse_space,
    read_space,
    space_names,
    space_of_model,
    space_yaml,
    with_parameters,
)

TEXT = """
optimizer.learning_rate: {log_uniform: [1e-4, 1e-1]}
objective.query_share: {choice: [5e-2, 0.1, 0.2]}
model.dim: {choice: [32, 64]}
model.options.norm: {choice: [l1, l2]}
train.batch_size: {int_log_uniform: [128, 2048]}
train.patience: {int_uniform: [1, 5]}
objective.uniformity: {uniform: [0, 2]}
"""


def test_every_kind_of_distribution_is_read(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(TEXT)
    assert read_space(str(path)) == {
        "optimizer.learning_rate": Interval(0.0001, 0.1, whole=False, log=True),
        "objective.query_share": Choice((0.05, 0.1, 0.2)),
        "model.dim": Choice((32, 64)),
        "model.options.norm": Choice(("l1", "l2")),
        "train.batch_size": Interval(128, 2048, whole=True, log=True),
        "train.patience": Interval(1, 5, whole=True, log=False),
        "objective.uniformity": Interval(0.0, 2.0, whole=False, log=False),
    }


def test_a_space_written_is_the_space_read() -> None:
    space = parse_space(yaml.safe_load(TEXT), "space.yaml")
    assert parse_space(yaml.safe_load(space_yaml(space)), "again") == space


SECTIONS = "data, model, objective, regularizer, negatives, optimizer, train, evaluate, checkpoint, cluster"
KINDS = "choice, uniform, log_uniform, int_uniform, int_log_uniform"


@pytest.mark.parametrize(
    ("key", "form", "message"),
    [
        (
            "dim",
            {"choice": [1]},
            f"s.yaml: dim: must be of the form section.key, such as model.dim; sections: {SECTIONS}",
        ),
        (
            "modle.dim",
            {"choice": [1]},
            f"s.yaml: modle.dim: must be of the form section.key, such as model.dim; sections: {SECTIONS}",
        ),
        ("model.dimm", {"choice": [1]}, "s.yaml: model.dimm: is not a key of model; known: name, dim, inverse, "),
        ("model.dim.x", {"choice": [1]}, "s.yaml: model.dim.x: is not a key of model; known: name, dim, inverse, "),
        (
            "data.store",
            {"choice": ["a"]},
            "s.yaml: data.store: must not vary: all trials train on one graph. Set it in ",
        ),
        (
            "evaluate.every",
            {"choice": [1]},
            "s.yaml: evaluate.every: must not vary: all trials are evaluated in the same way. Set ",
        ),
        (
            "train.workers",
            {"choice": [1]},
            "s.yaml: train.workers: must not vary: it says where a run is executed, not what it",
        ),
        (
            "model.dim",
            [32],
            f"s.yaml: model.dim: must be one distribution, such as {{choice: [32, 64]}}; known distributions: {KINDS}",
        ),
        (
            "model.dim",
            {"normal": [0, 1]},
            f"s.yaml: model.dim: 'normal' is not a distribution; known distributions: {KINDS}",
        ),
        ("model.dim", {"choice": 32}, "s.yaml: model.dim: choice takes a list in brackets, not 32"),
        ("model.dim", {"choice": []}, "s.yaml: model.dim: choice needs at least one value"),
        ("model.dim", {"choice": [1, 1.0]}, "s.yaml: model.dim: choice lists 1 twice (1, 1.0 and true are equal)"),
        (
            "model.dim",
            {"choice": [[1]]},
            "s.yaml: model.dim: choice takes numbers, words, true, false and null, not [1]",
        ),
        ("model.dim", {"uniform": [1]}, "s.yaml: model.dim: uniform takes two numbers, [LOW, HIGH], not [1]"),
        (
            "model.dim",
            {"int_uniform": [1, 2.5]},
            "s.yaml: model.dim: int_uniform takes two whole numbers, [LOW, HIGH], ",
        ),
        (
            "model.dim",
            {"uniform": [2, 1]},
            "s.yaml: model.dim: uniform must go from a lower to a higher finite number, n",
        ),
        ("model.dim", {"log_uniform": [0, 1]}, "s.yaml: model.dim: log_uniform must begin above 0, not at 0"),
    ],
)
def test_a_mistake_is_named_with_its_key_and_what_is_allowed(key: str, form: Any, message: str) -> None:
    with pytest.raises(SpaceError) as caught:
        parse_space({key: form}, "s.yaml")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("tree", [None, [], {}, "x"])
def test_a_space_without_keys_is_refused(tree: Any) -> None:
    with pytest.raises(SpaceError, match=r"^s\.yaml must map keys of a run to distributions, with lines such as `opt"):
        parse_space(tree, "s.yaml")


def test_a_file_that_is_missing_or_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"no\.yaml' is not a file\. Write lines such as `optimizer\.learning_rate: "):
        read_space(str(tmp_path / "no.yaml"))
    (tmp_path / "torn.yaml").write_text("model.dim: {choice: [1")
    with pytest.raises(SpaceError, match=r"torn\.yaml is not valid YAML: "):
        read_space(str(tmp_path / "torn.yaml"))


def test_parameters_change_their_keys_and_no_others() -> None:
    config = with_parameters(RunConfig(), {"model.dim": 48, "model.options.norm": "l1", "train.patience": None})
    assert (config.model.dim, config.model.options, config.train.patience) == (48, {"norm": "l1"}, None)
    assert config.objective == RunConfig().objective
    assert RunConfig().model.options == {}


def tried(form: dict[str, Any], key: str = "model.dim") -> list[Any]:
    values = []
    space = parse_space({key: form}, "s")
    section, name = key.split(".")
    base = parse_config({"objective": {"name": "margin"}}, "s")
    check_space(space, base, lambda config: values.append(getattr(getattr(config, section), name)), "s")
    return values


def test_ends_inside_and_choices_are_tried_before_anything_starts() -> None:
    assert tried({"choice": [32, 7, 64]}) == [32, 7, 64]
    # 128 × 16^.381966 = 369.06…; 100 + 100 × .381966 = 138.1966.
    assert tried({"int_log_uniform": [128, 2048]}) == [128, 2048, 369]
    assert tried({"uniform": [100, 200]}, "objective.margin") == [100, 200, pytest.approx(138.1966)]


def test_a_value_that_cannot_be_run_is_refused_with_the_reason() -> None:
    space = parse_space({"objective.query_share": {"uniform": [0.5, 1.5]}}, "s.yaml")
    with pytest.raises(SpaceError) as caught:
        check_space(space, parse_config({"objective": {"name": "query_sampling"}}, "s"), lambda config: None, "s.yaml")
    assert str(caught.value) == (
        "s.yaml: objective.query_share: the space offers 1.5, with which no run can start. Narrow the distribution, "
        "or change CONFIG. parameters objective.query_share=1.5: objective.query_share: Input should be less than or "
        "equal to 1"
    )


def test_a_key_that_acts_with_no_point_of_the_space_is_refused() -> None:
    space = parse_space({"objective.margin": {"uniform": [1, 9]}}, "s.yaml")
    with pytest.raises(SpaceError, match=r"objective\.margin: belongs to objective\.name: margin or self_adversarial"):
        check_space(space, RunConfig(), lambda config: None, "s.yaml")
    names = {"objective.name": {"choice": ["one_vs_all", "margin"]}, "objective.margin": {"uniform": [1, 9]}}
    check_space(parse_space(names, "s.yaml"), RunConfig(), lambda config: None, "s.yaml")


def test_a_key_of_one_choice_is_left_out_with_the_other() -> None:
    names = {"objective.name": "one_vs_all", "objective.margin": 3.0}
    assert with_parameters(RunConfig(), names) == RunConfig()
    names["objective.name"] = "margin"
    assert with_parameters(RunConfig(), names).objective.margin == 3.0


def test_real_numbers_for_a_key_of_whole_ones_are_refused() -> None:
    space = parse_space({"model.dim": {"log_uniform": [32, 64]}}, "s.yaml")
    with pytest.raises(SpaceError, match=r"the space offers 41\.6997, with which no run.*valid integer"):
        check_space(space, RunConfig(), lambda config: None, "s.yaml")


def test_what_the_check_refuses_is_refused() -> None:
    def check(config: RunConfig) -> None:
        if config.model.dim % 2:
            raise ValueError("model.dim must be even.")

    space = parse_space({"model.dim": {"choice": [32, 33]}}, "s.yaml")
    with pytest.raises(SpaceError, match=r"model\.dim: the space offers 33, .* model\.dim must be even\.$"):
        check_space(space, RunConfig(), check, "s.yaml")


def test_the_base_is_a_point_of_the_space_where_all_its_values_are() -> None:
    base = RunConfig.model_validate({"model": {"dim": 64, "options": {"norm": "l2"}}, "train": {"batch_size": 2048}})
    inside = {"model.dim": {"choice": [64]}, "model.options.norm": {"choice": ["l2"]}}
    ends = {"train.batch_size": {"int_uniform": [128, 2048]}}
    found = parameters_of(base, parse_space(inside | ends, "s"))
    assert found == {"model.dim": 64, "model.options.norm": "l2", "train.batch_size": 2048}
    assert parameters_of(base, parse_space(inside | {"train.batch_size": {"int_uniform": [128, 2047]}}, "s")) is None
    # true is no 1, and 1 no true.
    assert parameters_of(base, parse_space({"negatives.shared": {"choice": [1, 0]}}, "s")) is None
    assert parameters_of(base, parse_space({"model.options.bias": {"choice": [False]}}, "s")) is None


def test_spaces_that_come_with_distkg_are_read_by_name_and_fit_their_presets() -> None:
    assert space_names() == sorted([*SPACES_OF_MODELS, "hale"])
    assert parameters_of(load_config("preset:ultra"), read_space("preset:ultra")) is not None
    space = read_space("preset:hale")
    assert space["objective.query_share"] == Choice((0.05, 0.1, 0.2))
    for name in ("hale_wn18rr", "hale_fb15k237", "hale_codex_s"):
        assert parameters_of(load_config(f"preset:{name}"), space) is not None
    with pytest.raises(SpaceError, match=r"there is no space 'preset:hail'\. Known: bilinear, conve, .*, ultra"):
        read_space("preset:hail")


OWN = {"conve": {"dim": 32}, "tucker": {"dim": 32}, "tofu": {"options": {"modalities": {}}}}


def config_of(model: str, store: str) -> RunConfig:
    """The smallest configuration of a model: its family's presets have the loss and the optimizer."""
    base = {"data": {"store": store}, "model": {"name": model, **OWN.get(model, {"dim": 32})}}
    if model in FAMILY_OF_MODEL:
        base["model"].pop("dim", None)
        base["objective"] = {"name": "self_adversarial", "margin": 0.0}
        base["optimizer"] = {"name": "adam"}
        if model in ("motif", "semma", "tofu", "trix", "trix_relations", "ultra"):
            base["data"] = {"graphs": [store]}
    return parse_config(base, model, dead_keys_are="dropped")


@pytest.mark.parametrize("model", [*SCORERS, *FAMILY_OF_MODEL])
def test_every_model_has_a_space_of_which_every_point_is_a_configuration_that_can_run(
    model: str, small_store: str
) -> None:
    config, space = config_of(model, small_store), read_space(f"preset:{space_of_model(model)}")
    # A plan of a foundation model computes on the graph: its settings are checked alone.
    check = check_settings if model in FAMILY_OF_MODEL else check_run
    check_space(space, config, check, "the space")
    rng = np.random.default_rng(0)
    for _ in range(3):
        point = {key: form.samples()[rng.integers(len(form.samples()))] for key, form in space.items()}
        check(with_parameters(config, point))


def test_each_space_is_for_other_models_and_a_scorer_of_a_plug_in_has_none() -> None:
    models = [model for covered in SPACES_OF_MODELS.values() for model in covered]
    assert len(models) == len(set(models))
    with pytest.raises(SpaceError, match=r"no space comes with distkg for model\.name = mine: give one with --space"):
        space_of_model("mine")
