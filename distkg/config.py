"""The schema of a run: every key with its default, bounds and help text.

The same help text serves ``distkg config`` and the documentation, so it is written here once.
Keys unknown to the schema are errors: a misspelt key must never be ignored in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from distkg.documents import DocumentError, is_regular_file, parse_yaml, read_yaml, yaml_of
from distkg.printable import printable_lines
from distkg.redaction import is_remote, redact_tree

PRESETS = Path(__file__).parent / "presets"
SHOWN = 20
"""Mistakes of one configuration that an error lists."""
LONGEST_SHOWN = 120
"""Characters of an override that an error shows."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key and what to write instead."""


class StrictModel(BaseModel):
    """Base of every section and of all options: unknown keys, NaN, infinity, booleans for numbers and numbers for
    booleans are refused, and whole numbers fit into 64 bits."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_other_kinds(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = set(_leaf_types(cls.model_fields[str(info.field_name)].annotation))
        if any(issubclass(kind, BaseModel) for kind in kinds):
            return value  # which looks at its own fields
        numeric = bool(kinds & {int, float})
        for leaf in _leaves(value):
            if isinstance(leaf, bool) and numeric and bool not in kinds:
                raise PydanticCustomError("bool_for_number", "Input should be a number, not true or false")
            if isinstance(leaf, int | float) and not isinstance(leaf, bool) and bool in kinds and not numeric:
                raise PydanticCustomError("number_for_bool", "Input should be true or false, not a number")
            if isinstance(leaf, int) and not -LARGEST <= leaf <= LARGEST:
                raise PydanticCustomError("number_too_large", "Input should fit into 64 bits")
        return value


LARGEST = 2**63 - 1
"""The largest whole number of a setting: what NumPy, torch and Arrow hold in 64 bits."""


def _leaf_types(annotation: Any) -> Iterator[type]:
    """Types of the values that a field holds, alone, in lists and behind keys."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType) or origin in (list, tuple):
        for each in arguments:
            yield from _leaf_types(each)
    elif origin is dict:
        yield from _leaf_types(arguments[1])
    elif isinstance(annotation, type) and annotation is not NoneType:
        yield annotation


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each)
    elif isinstance(value, dict):
        for each in value.values():
            yield from _leaves(each)
    else:
        yield value


AnyOptions = TypeVar("AnyOptions", bound=BaseModel)


def parse_options(model: type[AnyOptions], given: Mapping[str, Any], key: str, owner: str) -> AnyOptions:
    """The options of a registered class, such as a scorer, from what a configuration gives.

    Raises:
        ConfigError: names the key, below ``key``, what is wrong, and the options that ``owner`` has.
    """
    try:
        return model.model_validate(given)
    except ValidationError as error:
        # A misspelt name is told before what it leaves missing.
        problem = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        location = [str(part) for part in problem["loc"]]
        known = ", ".join(model.model_fields) or "none"
        hint = _did_you_mean(location[-1], model.model_fields) if problem["type"] == "extra_forbidden" else ""
        place = ".".join([key, *location])
        raise ConfigError(f"{place}: {problem['msg']}. Options of {owner}: {known}{hint}") from None


def parse_mapping(text: str, where: str) -> dict[str, Any]:
    """Keys and values written as YAML in one line, such as ``{hops: 3}``.

    Raises:
        ConfigError: it is no such mapping; ``where`` says whose text it is.
    """
    try:
        tree = parse_yaml(text, where)
    except DocumentError as error:
        raise ConfigError(f"{error}. Write it as '{{key: value}}'") from None
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{where}: {text!r} is not a mapping; write it as '{{key: value}}'")
    return tree or {}


class Section(StrictModel):
    model_config = ConfigDict(validate_assignment=True)


Resume = Literal["fixed", "course", "free"]
"""Whether a key may differ when a run is resumed.

``fixed``: it gives stored tensors their meaning and never may. ``course``: it steers the course of training and may on
request, which is recorded. ``free``: it decides how long, where and how fast, and may.
"""


def fixed(*default: Any, **settings: Any) -> Any:
    """A field that is ``fixed`` on resume; arguments as of pydantic's ``Field``."""
    return _field("fixed", *default, **settings)


def course(*default: Any, **settings: Any) -> Any:
    """A field that is ``course`` on resume; arguments as of pydantic's ``Field``."""
    return _field("course", *default, **settings)


def free(*default: Any, **settings: Any) -> Any:
    """A field that is ``free`` on resume; arguments as of pydantic's ``Field``."""
    return _field("free", *default, **settings)


def _field(resume: Resume, *default: Any, **settings: Any) -> Any:
    return Field(*default, json_schema_extra={"resume": resume}, **settings)


class DataConfig(Section):
    store: str = fixed("", description="Folder (or address such as s3://…) of a store made by `distkg prepare`.")
    graphs: list[str] = fixed(
        default_factory=list, description="Several stores, for a foundation model, which learns from all at once."
    )
    fanouts: list[int] = course(
        default_factory=list,
        description="For a foundation model on graphs too large to be looked at whole: facts of an entity that are "
        "followed at each step away from anchors and candidates, such as [10, 5, 5]. Empty for the whole graph.",
    )
    sampler: Literal["compiled", "dgl"] = course(
        "compiled", description="What follows them: own compiled code, or DGL; both draw alike."
    )


class ModelConfig(Section):
    name: str = fixed("complex", description="Scorer; `distkg presets --scorers` lists them.")
    dim: int = fixed(256, ge=1, description="Real floats per entity (a complex number counts as two).")
    inverse: Literal["learned", "tied"] = fixed(
        "learned",
        description="Inverse relations r⁻¹: `learned` as relations of their own (reciprocal), or `tied` to r.",
    )
    dropout: float = course(0.0, ge=0, lt=1, description="Embedding dropout on the anchor and relation vectors.")
    dtype: Literal["float32", "bfloat16"] = fixed("float32", description="Storage of the entity table.")
    start: str = fixed("", description="Folder of a foundation model to go on from; empty: begin with random weights.")
    keep_start: bool = fixed(
        False, description="Leave the weights of `start` as they are; what the model has besides learns alone."
    )
    options: dict[str, Any] = fixed(
        default_factory=dict, description="Options of the scorer, such as {norm: l1} for transe."
    )


class ObjectiveConfig(Section):
    name: str = course(
        "one_vs_all",
        description="With negatives: margin, logistic, self_adversarial, sampled_softmax; over all entities: "
        "one_vs_all, k_vs_all; over all entities for some queries: query_sampling (HaLE); without any: non_negative.",
    )
    margin: float = course(9.0, description="Margin γ of margin and self_adversarial (in units of the score).")
    temperature: float = course(
        1.0, ge=0, description="Sharpness of the weights of self_adversarial; 0: all negatives alike."
    )
    label_smoothing: float = course(0.0, ge=0, lt=1, description="Label smoothing of k_vs_all.")
    group_answers: bool = course(
        True,
        description="one_vs_all: ask each distinct query once with all its answers. Same objective, fewer products.",
    )
    score_memory_mb: int = free(
        64, ge=1, description="Memory for one block of scores in objectives over all entities (MiB per worker)."
    )
    query_share: float = course(
        0.1,
        gt=0,
        le=1,
        description="query_sampling: share α of the queries that all entities are kept away from.",
    )
    uniformity: float = course(
        1.0, ge=0, description="query_sampling: weight λ of keeping them away; non_negative: weight of the spread."
    )
    radius: float = course(
        1.0, gt=0, description="non_negative: distance from the centre of all entities that each is to keep."
    )
    square_positives: bool = course(True, description="query_sampling: square the activated distance of answers.")
    activation: Literal["none", "hanon", "halin", "x_exp", "double", "artanh"] = fixed(
        "none",
        description="Hardness-aware activation of squared distances while training, with a learned factor for each "
        "relation (HaLE). For scorers that compare by squared L2 distance.",
    )
    activation_limit: float = course(10.0, gt=0, description="Upper bound γ of hanon and halin.")
    activation_steepness: float | None = course(
        None, gt=0, description="Steepness β of hanon (default 3) and halin (default 10)."
    )
    relation_scale: bool = fixed(True, description="Learn the factor of each relation; else it is 1.")
    products: Literal["float32", "bfloat16"] = course(
        "float32", description="Precision of the matrix products over all entities (sums stay float32)."
    )


class RegularizerConfig(Section):
    name: Literal["none", "n3", "l2"] = course("none", description="Penalty on the vectors that a batch uses.")
    weight: float = course(0.0, ge=0, description="Its weight on entity vectors.")
    relation_weight: float | None = course(None, ge=0, description="Its weight on relation vectors; default: weight.")


class PoolConfig(Section):
    actors: int = course(
        0, ge=0, description="Ray actors that draw ahead of time what looks at queries; 0: drawn in the step."
    )
    cpus_per_actor: float = free(1.0, ge=0, description="CPUs reserved for each.")
    gpus_per_actor: float = free(0.0, ge=0, description="GPUs, or a share of one, reserved for each.")
    placement: Literal["pack", "spread"] = free(
        "pack", description="Actors on as few nodes as possible, or on as many as possible."
    )
    depth: int = course(16, ge=1, description="Steps ahead of the current one for which negatives are asked.")
    max_age: int = course(1000, ge=0, description="Steps after which the vectors that a draw looked at are too old.")
    timeout: float = course(0.05, ge=0, description="Seconds that a step waits at most; then it draws for itself.")
    hung_after: float = free(60.0, gt=0, description="Seconds after which an actor that owes a reply is restarted.")
    fallback: str = course("uniform", description="Source, drawn in the step, of what did not arrive.")
    on_error: Literal["fail", "fallback"] = course(
        "fail",
        description="What follows where a source raises in an actor, or returns something else than was requested: "
        "fail ends the run; fallback warns once, counts, and draws with pool.fallback. Default: fail, or fallback "
        "where pool.fallback is set and this is not.",
    )
    sync: bool = course(False, description="Wait for every delivery: slower, and the same from run to run.")

    @model_validator(mode="before")
    @classmethod
    def _fallback_was_chosen(cls, data: object) -> object:
        # Who names a source to stand in wants the run to go on with it.
        chosen = isinstance(data, dict) and "fallback" in data and "on_error" not in data
        return {**data, "on_error": "fallback"} if chosen and isinstance(data, dict) else data


class NegativesConfig(Section):
    source: str = course(
        "uniform", description="How wrong answers are drawn: `distkg negatives` lists the sources, and shows examples."
    )
    options: dict[str, Any] = course(default_factory=dict, description="Options of the source, such as {hops: 3}.")
    count: int = course(
        128, ge=1, description="Negatives per query; a triple is two queries, so twice this per triple."
    )
    shared: bool = course(
        True,
        description="Share the negatives of a chunk of queries (fast), or draw for each query, as sources that look at "
        "the query always do.",
    )
    chunk_size: int = course(256, ge=1, description="Queries that share negatives.")
    filter: bool = course(False, description="Leave out negatives that are known training facts (exact).")
    vectors: str = course(
        "",
        description="For a foundation model, which has no vectors of entities: trained run of the same store whose "
        "vectors a source looks at that needs some, such as dans.",
    )
    pool: PoolConfig = Field(default_factory=PoolConfig, description="Actors that draw negatives ahead of time.")


class OptimizerConfig(Section):
    name: Literal["rowwise_adagrad", "adagrad", "adam"] = fixed(
        "adagrad", description="rowwise_adagrad keeps one float per row; adam is lazy: rows without gradient rest."
    )
    learning_rate: float = course(0.1, gt=0, description="For entity vectors, and for the rest unless set apart.")
    relation_learning_rate: float | None = course(None, gt=0, description="For relations and small networks.")
    schedule: Literal["constant", "linear", "cosine", "plateau"] = course(
        "constant",
        description="Learning rate over the run (by epochs or by the time limit, whichever is further); plateau halves "
        "it when validation MRR stops rising.",
    )
    warmup_epochs: float = course(0.0, ge=0, description="Epochs of linear warm-up.")
    weight_decay: float = course(
        0.0, ge=0, description="Decoupled decay (AdamW) of relations and networks, times the learning rate."
    )
    clip_norm: float | None = course(None, gt=0, description="Gradient norm bound of dense parts.")


class TrainConfig(Section):
    workers: int = free(1, ge=1, description="Ray Train workers; each holds 1/workers of the entity table.")
    epochs: int = free(
        50,
        ge=1,
        description="Passes over the training triples. A resumed run may have another number; a linear or cosine "
        "schedule then follows the curve of the new number from there on.",
    )
    batch_size: int = course(
        1024, ge=1, description="Triples (distinct queries, where grouped) per step, over all workers."
    )
    steps_per_epoch: int | None = course(
        None, ge=1, description="For a foundation model; default: as many as ask about every fact once."
    )
    seed: int = course(0, ge=0, description="Decides initial vectors, order, negatives and dropout.")
    time_limit_seconds: float | None = free(None, gt=0, description="Stop training after this wall time.")
    patience: int | None = free(None, ge=1, description="Stop after this many evaluations without a better valid MRR.")
    overlap: bool = course(
        False,
        description="Exchange rows while computing: the rows of a step may lack the two latest updates. Pays over a "
        "network.",
    )
    precision: Literal["float32", "bfloat16"] = course("float32", description="Autocast of dense parts on GPU.")
    compile: bool = free(False, description="torch.compile the query transform.")


class EvaluateConfig(Section):
    every: int = free(5, ge=1, description="Epochs between validations; the last epoch is always validated.")
    batch_size: int = free(256, ge=1, description="Queries ranked together; lowered to fit memory_mb.")
    memory_mb: int = free(256, ge=1, description="Memory for one block of scores (MiB per worker).")
    max_valid_triples: int | None = free(
        None, ge=1, description="Validate on a fixed random part of valid while training; result.json uses all of it."
    )
    max_final_triples: int | None = free(
        None,
        ge=1,
        description="Rank a fixed random part of valid and of test at the end, where all of them would take too long.",
    )


class CheckpointConfig(Section):
    every: int = free(1, ge=1, description="Epochs between checkpoints.")
    every_steps: int | None = free(None, ge=1, description="Steps between checkpoints within an epoch.")
    keep: int = free(2, ge=2, description="Checkpoints kept besides the best one.")


class ClusterConfig(Section):
    address: str | None = free(
        None,
        description="Ray address: `auto` joins a running cluster, `local` starts one; default: auto in a job.",
    )
    cpus_per_worker: float = free(1.0, gt=0, description="CPUs that Ray reserves for a worker.")
    gpus_per_worker: float = free(0.0, ge=0, description="GPUs that Ray reserves for a worker.")
    min_workers: int | None = free(
        None, ge=1, description="Elastic: go on with as few workers as this when nodes are lost."
    )
    max_failures: int = free(3, ge=0, description="Worker failures after which the run gives up.")
    hung_after: float = free(
        120.0, gt=0, description="Seconds without a sign of life after which a worker is killed and replaced."
    )
    wait_seconds: float | None = free(
        None, gt=0, description="Seconds to wait for nodes or free resources before giving up; default: without end."
    )
    memory_per_worker_gb: float | None = free(
        None,
        gt=0,
        description="What the planner may count on for a worker; default: this node's memory / workers on it.",
    )


class RunConfig(Section):
    """Everything that decides a run."""

    data: DataConfig = Field(default_factory=DataConfig, description="The graph.")
    model: ModelConfig = Field(default_factory=ModelConfig, description="What is learned.")
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig, description="What is minimised.")
    regularizer: RegularizerConfig = Field(default_factory=RegularizerConfig, description="What keeps vectors small.")
    negatives: NegativesConfig = Field(default_factory=NegativesConfig, description="Wrong answers to learn from.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="How vectors move.")
    train: TrainConfig = Field(default_factory=TrainConfig, description="How long, how wide, in what order.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Exact filtered ranking.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What survives a crash.")
    cluster: ClusterConfig = Field(default_factory=ClusterConfig, description="Where it runs.")

    def to_yaml(self, *, help_text: bool = False, ascii_only: bool = False) -> str:
        """YAML with every key, addresses without secrets.

        Args:
            help_text: put each key's help above it as a comment.
            ascii_only: escape all other characters of values.
        """
        shown = self.redacted()
        if not help_text:
            return _yaml(shown.model_dump(), ascii_only, sort_keys=False)
        return "\n".join(_documented(shown, 0, ascii_only)) + "\n"

    def redacted(self) -> RunConfig:
        """The configuration as it is written and shown: without the secrets of its addresses (`distkg.redaction`)."""
        return RunConfig.model_validate(redact_tree(self.model_dump()))

    @property
    def private(self) -> bool:
        """Whether what it reads lies where one needs permission, so that what is made of it is for its owner alone."""
        addresses = [self.data.store, *self.data.graphs, self.model.start, self.negatives.vectors]
        return any(map(is_remote, addresses))

    def sha256(self) -> str:
        """Hash of the resolved configuration, as written to result.json."""
        return hashlib.sha256(self.to_yaml().encode()).hexdigest()


def json_schema() -> dict[str, Any]:
    """JSON Schema of configuration files, from which editors complete keys and check values.

    ``resume`` of a key says whether it may differ when a run is resumed, as of ``Resume``.
    """
    schema = RunConfig.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "distkg configuration"}


def flatten(config: RunConfig) -> dict[str, Any]:
    """Values by dotted key, such as model.dim; a mapping, such as model.options, has a key for each of its own."""
    return flatten_tree(config.model_dump())


def flatten_tree(tree: Mapping[str, Any]) -> dict[str, Any]:
    """As ``flatten``, of nested mappings that need not be a valid configuration.

    >>> flatten_tree({"model": {"dim": 8, "options": {"norm": "l1"}}, "negatives": {"options": {}}})
    {'model.dim': 8, 'model.options.norm': 'l1'}
    """
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{below}": each for below, each in flatten_tree(value).items()}
        else:
            found[key] = value
    return found


def resume_class(key: str) -> Resume | None:
    """Class of a dotted key when a run is resumed; None where there is no such key."""
    section: type[BaseModel] = RunConfig
    for name in key.split("."):
        field = section.model_fields.get(name)
        if field is None:
            return None
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            section = kind
            continue
        extra = field.json_schema_extra
        return extra.get("resume") if isinstance(extra, dict) else None  # type: ignore[return-value]
    return None


def _yaml(value: Any, ascii_only: bool = False, **options: Any) -> str:
    """A value as YAML that can be printed: letters as they are, unless something is unprintable among them."""
    text = yaml_of(value, ascii_only=ascii_only, **options)
    return text if printable_lines(text) == text else yaml_of(value, ascii_only=True, **options)


def _documented(section: Section, indent: int, ascii_only: bool) -> list[str]:
    pad, lines = "  " * indent, []
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        lines.append(f"{pad}# {field.description}")
        if isinstance(value, Section):
            lines.append(f"{pad}{key}:")
            lines.extend(_documented(value, indent + 1, ascii_only))
        else:
            text = _yaml(value, ascii_only, default_flow_style=True, width=1000)
            lines.append(f"{pad}{key}: " + text.removesuffix("...\n").strip())
    return lines


def preset_names() -> list[str]:
    """Names usable as ``preset:NAME``."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_config(source: str, overrides: list[str] | None = None) -> RunConfig:
    """Read a YAML file or ``preset:NAME`` and apply ``section.key=value`` overrides, in their order.

    Raises:
        ConfigError: no such file or preset, not YAML, an unknown key or a value out of bounds.
    """
    tree = _read_tree(source)
    changed = {_apply(tree, override): override for override in overrides or []}
    return parse_config(tree, source, changed)


def parse_config(tree: dict[str, Any], source: str, overrides: Mapping[str, str] | None = None) -> RunConfig:
    """Validate a nested dict.

    Args:
        source: names it in errors.
        overrides: dotted keys that an override has set → the override, which errors of these keys name instead.

    Raises:
        ConfigError: names every key that is wrong.
    """
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, source, overrides or {})) from None


def preset_file(source: str, folder: Path, kind: str, error: type[ConfigError]) -> Path | None:
    """The file of ``preset:NAME`` in a folder of presets; None where ``source`` names a file of the user's.

    Raises:
        ConfigError: no preset of that name.
    """
    if not source.startswith("preset:"):
        return None
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    name = source.removeprefix("preset:")
    if name not in known:
        raise error(f"there is no {kind} {source!r}. Known: {', '.join(known)}{_did_you_mean(name, known)}")
    return folder / f"{name}.yaml"


def _read_tree(source: str) -> dict[str, Any]:
    path = preset_file(source, PRESETS, "preset", ConfigError) or Path(source)
    if not is_regular_file(path):
        raise ConfigError(f"configuration {source!r} is not a file. Write a YAML file or name a preset: preset:NAME.")
    try:
        tree = read_yaml(path, source)
    except DocumentError as error:
        raise ConfigError(str(error)) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{source} must hold sections such as `model:`; it holds {_kind_of(tree)}")
    return tree


def _apply(tree: dict[str, Any], override: str) -> str:
    """Set the key of ``section.key=value`` and return it."""
    dotted, separator, text = override.partition("=")
    keys = dotted.split(".")
    if not separator or len(keys) < 2:
        raise ConfigError(f"override {_shown(override)} must read section.key=value, such as model.dim=128")
    if not text.strip():
        raise ConfigError(f"override {_shown(override)} has no value; write {dotted}='' for an empty text, or null")
    node = tree
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"override {_shown(override)}: {key!r} is a value, not a section")
    try:
        node[keys[-1]] = parse_yaml(text, f"override {_shown(override)}")
    except DocumentError as error:
        raise ConfigError(f"{error}. Quote the whole override for the shell: --set '{dotted}=…'") from None
    return dotted


def _shown(override: str) -> str:
    return repr(override if len(override) <= LONGEST_SHOWN else f"{override[:LONGEST_SHOWN]}…")


def _kind_of(value: Any) -> str:
    names: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _explain(error: ValidationError, source: str, overrides: Mapping[str, str]) -> str:
    problems = error.errors()
    lines = [_explain_one([str(part) for part in each["loc"]], each, source, overrides) for each in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"{source}: {len(problems) - SHOWN:,} further keys are wrong")
    return "\n".join(lines)


def _explain_one(location: list[str], problem: Mapping[str, Any], source: str, overrides: Mapping[str, str]) -> str:
    message = problem["msg"]
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        message = f"is not a key of {'.'.join(location[:-1]) or 'the configuration'}; known: {', '.join(known)}"
        message += _did_you_mean(location[-1], known)
    elif problem["type"] == "string_type":
        message += f", not {_kind_of(problem['input'])}; put it in quotes if it is text"
    return f"{_origin(location, source, overrides)}: {'.'.join(location)}: {message}"


def _origin(location: list[str], source: str, overrides: Mapping[str, str]) -> str:
    """The override that has set a key, or something in it; else the file."""
    for dotted, override in overrides.items():
        if all(one == other for one, other in zip(dotted.split("."), location, strict=False)):
            return f"override {_shown(override)}"
    return source


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, list(known), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def _known_keys(path: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for key in path:
        section = type(getattr(section(), key))
    return list(section.model_fields)
