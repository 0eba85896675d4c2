"""Sections of a configuration: every key with its default, bounds, help text, and the settings with which it acts.

The same help text serves ``distkg config`` and the documentation, so it is written here once.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from distkg.config.fields import Conditions, Section, course, fixed, free, section

SAMPLED = ("margin", "logistic", "self_adversarial", "sampled_softmax")
ALL_ENTITIES = ("one_vs_all", "k_vs_all")
BUILT_IN = (*SAMPLED, *ALL_ENTITIES, "query_sampling", "non_negative")
"""Objectives of distkg. With one of a plug-in every key of an objective acts."""

EMBEDDING: Conditions = {"family": ("embedding",)}
FOUNDATION: Conditions = {"family": ("foundation",)}
GRAPH_MODEL: Conditions = {"family": ("foundation", "relation_prediction")}
ACTORS: Conditions = {"negatives.pool.actors": ()}


def objective(*names: str) -> Conditions:
    return {"objective.name": names}


class DataConfig(Section):
    store: str = fixed("", description="Folder (or address such as s3://…) of a store made by `distkg prepare`.")
    graphs: list[str] = fixed(
        default_factory=list,
        description="Several stores, for a foundation model, which learns from all at once.",
        acts=GRAPH_MODEL,
    )
    fanouts: list[int] = course(
        default_factory=list,
        description="For a foundation model on graphs too large to be looked at whole: facts of an entity that are "
        "followed at each step away from anchors and candidates, such as [10, 5, 5]. Empty for the whole graph.",
        acts=FOUNDATION,
    )
    sampler: Literal["compiled", "dgl"] = course(
        "compiled",
        description="What follows them: own compiled code, or DGL; both draw alike.",
        acts={"data.fanouts": ()},
    )


class ModelConfig(Section):
    name: str = fixed("complex", description="Scorer; `distkg presets --scorers` lists them.")
    dim: int = fixed(256, ge=1, description="Real floats per entity (a complex number counts as two).", acts=EMBEDDING)
    inverse: Literal["learned", "tied"] = fixed(
        "learned",
        description="Inverse relations r⁻¹: `learned` as relations of their own (reciprocal), or `tied` to r.",
        acts=EMBEDDING,
    )
    dropout: float = course(
        0.0, ge=0, lt=1, description="Embedding dropout on the anchor and relation vectors.", acts=EMBEDDING
    )
    dtype: Literal["float32", "bfloat16"] = fixed("float32", description="Storage of the entity table.", acts=EMBEDDING)
    start: str = fixed(
        "",
        description="Folder of a foundation model to go on from; empty: begin with random weights.",
        acts=GRAPH_MODEL,
    )
    keep_start: bool = fixed(
        False,
        description="Leave the weights of `start` as they are; what the model has besides learns alone.",
        acts={"model.start": ()},
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
    margin: float = course(
        9.0,
        description="Margin γ of margin and self_adversarial (in units of the score).",
        acts=objective("margin", "self_adversarial"),
    )
    temperature: float = course(
        1.0,
        ge=0,
        description="Sharpness of the weights of self_adversarial; 0: all negatives alike.",
        acts=objective("self_adversarial"),
    )
    label_smoothing: float = course(
        0.0, ge=0, lt=1, description="Label smoothing of k_vs_all.", acts=objective("k_vs_all")
    )
    group_answers: bool = course(
        True,
        description="one_vs_all: ask each distinct query once with all its answers. Same objective, fewer products.",
        acts=objective("one_vs_all"),
    )
    score_memory_mb: int = free(
        64,
        ge=1,
        description="Memory for one block of scores in objectives over all entities (MiB per worker).",
        acts=objective(*ALL_ENTITIES, "query_sampling"),
    )
    query_share: float = course(
        0.1,
        gt=0,
        le=1,
        description="query_sampling: share α of the queries that all entities are kept away from.",
        acts=objective("query_sampling"),
    )
    uniformity: float = course(
        1.0,
        ge=0,
        description="query_sampling: weight λ of keeping them away; non_negative: weight of the spread.",
        acts=objective("query_sampling", "non_negative"),
    )
    radius: float = course(
        1.0,
        gt=0,
        description="non_negative: distance from the centre of all entities that each is to keep.",
        acts=objective("non_negative"),
    )
    square_positives: bool = course(
        True, description="query_sampling: square the activated distance of answers.", acts=objective("query_sampling")
    )
    activation: Literal["none", "hanon", "halin", "x_exp", "double", "artanh"] = fixed(
        "none",
        description="Hardness-aware activation of squared distances while training, with a learned factor for each "
        "relation (HaLE). For scorers that compare by squared L2 distance.",
        acts=EMBEDDING,
    )
    activation_limit: float = course(
        10.0, gt=0, description="Upper bound γ of hanon and halin.", acts={"objective.activation": ("hanon", "halin")}
    )
    activation_steepness: float | None = course(
        None,
        gt=0,
        description="Steepness β of hanon (default 3) and halin (default 10).",
        acts={"objective.activation": ("hanon", "halin")},
    )
    relation_scale: bool = fixed(
        True,
        description="Learn the factor of each relation; else it is 1.",
        acts={"objective.activation": ("hanon", "halin", "x_exp", "double", "artanh")},
    )
    products: Literal["float32", "bfloat16"] = course(
        "float32",
        description="Precision of the matrix products over all entities (sums stay float32).",
        acts=objective(*ALL_ENTITIES, "query_sampling"),
    )


class RegularizerConfig(Section):
    name: Literal["none", "n3", "l2"] = course("none", description="Penalty on the vectors that a batch uses.")
    weight: float = course(
        0.0, ge=0, description="Its weight on entity vectors.", acts={"regularizer.name": ("n3", "l2")}
    )
    relation_weight: float | None = course(
        None,
        ge=0,
        description="Its weight on relation vectors; default: weight.",
        acts={"regularizer.name": ("n3", "l2")},
    )


class PoolConfig(Section):
    actors: int = course(
        0, ge=0, description="Ray actors that draw ahead of time what looks at queries; 0: drawn in the step."
    )
    cpus_per_actor: float = free(1.0, ge=0, description="CPUs reserved for each.", acts=ACTORS)
    gpus_per_actor: float = free(0.0, ge=0, description="GPUs, or a share of one, reserved for each.", acts=ACTORS)
    placement: Literal["pack", "spread"] = free(
        "pack", description="Actors on as few nodes as possible, or on as many as possible.", acts=ACTORS
    )
    depth: int = course(
        16, ge=1, description="Steps ahead of the current one for which negatives are asked.", acts=ACTORS
    )
    max_age: int = course(
        1000, ge=0, description="Steps after which the vectors that a draw looked at are too old.", acts=ACTORS
    )
    timeout: float = course(
        0.05, ge=0, description="Seconds that a step waits at most; then it draws for itself.", acts=ACTORS
    )
    hung_after: float = free(
        60.0, gt=0, description="Seconds after which an actor that owes a reply is restarted.", acts=ACTORS
    )
    fallback: str = course("uniform", description="Source, drawn in the step, of what did not arrive.", acts=ACTORS)
    on_error: Literal["fail", "fallback"] = course(
        "fail",
        description="What follows where a source raises in an actor, or returns something else than was requested: "
        "fail ends the run; fallback warns once, counts, and draws with pool.fallback. Default: fail, or fallback "
        "where pool.fallback is set and this is not.",
        acts=ACTORS,
    )
    sync: bool = course(
        False, description="Wait for every delivery: slower, and the same from run to run.", acts=ACTORS
    )

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
        acts=EMBEDDING,
    )
    chunk_size: int = course(
        256, ge=1, description="Queries that share negatives.", acts={**EMBEDDING, "negatives.shared": ()}
    )
    filter: bool = course(
        False, description="Leave out negatives that are known training facts (exact).", acts=EMBEDDING
    )
    vectors: str = course(
        "",
        description="For a foundation model, which has no vectors of entities: trained run of the same store whose "
        "vectors a source looks at that needs some, such as dans.",
        acts=FOUNDATION,
    )
    pool: PoolConfig = section(PoolConfig, "Actors that draw negatives ahead of time.")


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
        None,
        ge=1,
        description="For a foundation model; default: as many as ask about every fact once.",
        acts=GRAPH_MODEL,
    )
    seed: int = course(0, ge=0, description="Decides initial vectors, order, negatives and dropout.")
    time_limit_seconds: float | None = free(None, gt=0, description="Stop training after this wall time.")
    patience: int | None = free(None, ge=1, description="Stop after this many evaluations without a better valid MRR.")
    overlap: bool = course(
        False,
        description="Exchange rows while computing: the rows of a step may lack the two latest updates. Pays over a "
        "network.",
        acts=EMBEDDING,
    )
    precision: Literal["float32", "bfloat16"] = course(
        "float32", description="Autocast of dense parts on GPU.", acts=EMBEDDING
    )
    compile: bool = free(False, description="torch.compile the query transform.", acts=EMBEDDING)


class EvaluateConfig(Section):
    every: int = free(5, ge=1, description="Epochs between validations; the last epoch is always validated.")
    batch_size: int = free(256, ge=1, description="Queries ranked together; lowered to fit memory_mb.")
    memory_mb: int = free(256, ge=1, description="Memory for one block of scores (MiB per worker).", acts=EMBEDDING)
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
