"""Sections of a configuration: every key with its default, bounds, help text, and the settings with which it acts.

The same help text serves ``distkg config`` and the documentation, so it is written here once.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import ValidationInfo, field_validator, model_validator

from distkg.config.fields import Conditions, Section, course, fixed, free, section
from distkg.config.node_labels import check_accelerator_type, check_label_selector

SAMPLED = ("margin", "logistic", "self_adversarial", "sampled_softmax")
ALL_ENTITIES = ("one_vs_all", "k_vs_all")
BUILT_IN = (*SAMPLED, *ALL_ENTITIES, "query_sampling", "non_negative")
"""Objectives of distkg. With the objective of a plug-in, all keys of ``objective`` act."""

EMBEDDING: Conditions = {"family": ("embedding",)}
FOUNDATION: Conditions = {"family": ("foundation",)}
GRAPH_MODEL: Conditions = {"family": ("foundation", "relation_prediction")}
ACTORS: Conditions = {"negatives.pool.actors": ()}
GENERATED: Conditions = {"data.generated.share": ()}
STORED: Conditions = {**EMBEDDING, "model.entities": ("table",)}
"""Models whose entity vectors are stored, one row each."""


def objective(*names: str) -> Conditions:
    """Return the condition that ``objective.name`` is one of ``names``."""
    return {"objective.name": names}


class GeneratedConfig(Section):
    share: float = course(
        0.0,
        ge=0,
        le=1,
        description="Share of the steps that learn from generated graphs with planted rules (those of `distkg generate "
        "--rules`) instead of data.graphs, drawn for each step and worker; 1: data.graphs serve validation and test "
        "alone.",
    )
    steps_per_graph: int = course(
        1,
        ge=1,
        description="Number of consecutive steps for which a worker keeps a generated graph, before it makes another.",
        acts=GENERATED,
    )
    entities: list[int] = course(
        default_factory=lambda: [50, 500],
        min_length=2,
        max_length=2,
        description="Smallest and largest number of entities of a generated graph, drawn on a logarithmic scale.",
        acts=GENERATED,
    )
    relations: list[int] = course(
        default_factory=lambda: [4, 30],
        min_length=2,
        max_length=2,
        description="Smallest and largest number of relations of a generated graph, drawn on a logarithmic scale.",
        acts=GENERATED,
    )
    curriculum: float = course(
        0.0,
        ge=0,
        le=1,
        description="Share of the epochs in which the largest numbers of data.generated.entities and relations grow "
        "from the smallest ones, on a logarithmic scale; 0: all sizes from the first step on.",
        acts=GENERATED,
    )

    @field_validator("entities", "relations")
    @classmethod
    def _ascending_within_bounds(cls, value: list[int], info: ValidationInfo) -> list[int]:
        low, high = (12, 100_000) if info.field_name == "entities" else (2, 1000)
        if not low <= value[0] <= value[1] <= high:
            raise ValueError(f"must be two numbers from {low} to {high:,}, the smaller one first, such as [{low}, 100]")
        return value


class DataConfig(Section):
    store: str = fixed("", description="Folder (or address such as s3://…) of a store made by `distkg prepare`.")
    graphs: list[str] = fixed(
        default_factory=list,
        description="Folders or addresses of several stores, for a foundation model that trains on all of them.",
        acts=GRAPH_MODEL,
    )
    fanouts: list[int] = course(
        default_factory=list,
        description="Neighbour sampling for a foundation model on graphs too large to be read whole: number of facts "
        "of an entity to follow at each step away from anchors and candidates, such as [10, 5, 5]. Empty: whole graph.",
        acts=FOUNDATION,
    )
    sampler: Literal["compiled", "dgl"] = course(
        "compiled",
        description="Neighbour sampler for data.fanouts: compiled (built in) or dgl. Both sample from the same "
        "distribution.",
        acts={"data.fanouts": ()},
    )
    generated: GeneratedConfig = section(
        GeneratedConfig, "Generated graphs that a foundation model learns from too.", GRAPH_MODEL
    )


class NodePieceConfig(Section):
    anchors: int = fixed(1000, ge=1, description="Number of entities that are anchors, each with a vector of its own.")
    by_degree: float = fixed(
        0.4, ge=0, le=1, description="Share of the anchors that are the entities of highest degree; others are random."
    )
    nearest: int = fixed(
        20, ge=1, le=255, description="Number of nearest anchors, with their distances, among the tokens of an entity."
    )
    relations: int = fixed(
        12, ge=0, description="Number of relations, the most frequent of its facts, among the tokens of an entity."
    )
    seed: int = fixed(0, ge=0, description="Random seed of the anchors that are not chosen by degree.")
    encoder: Literal["sum", "mlp"] = fixed(
        "sum", description="Entity vector from tokens: the sum of their vectors, without or with (mlp) a network of it."
    )


class ModelConfig(Section):
    name: str = fixed(
        "complex",
        description="Scorer or foundation model, such as complex or ultra; `distkg presets --scorers` lists the "
        "scorers.",
    )
    dim: int = fixed(
        256, ge=1, description="Floats of an entity vector (a complex number counts as two).", acts=EMBEDDING
    )
    inverse: Literal["learned", "tied"] = fixed(
        "learned",
        description="Inverse relations r⁻¹: `learned` as separate (reciprocal) relations, or `tied` to r.",
        acts=EMBEDDING,
    )
    dropout: float = course(
        0.0, ge=0, lt=1, description="Embedding dropout on the anchor and relation vectors.", acts=EMBEDDING
    )
    dtype: Literal["float32", "bfloat16"] = fixed(
        "float32", description="Data type in which the entity table is stored.", acts=STORED
    )
    entities: Literal["table", "nodepiece"] = fixed(
        "table",
        description="Entity vectors: a table with a row for each entity, or nodepiece, composed of the vectors of "
        "anchors and relations, whose number does not depend on that of the entities.",
        acts=EMBEDDING,
    )
    nodepiece: NodePieceConfig = section(
        NodePieceConfig, "Tokens that entity vectors are composed of.", {"model.entities": ("nodepiece",)}
    )
    start: str = fixed(
        "",
        description="Folder of a foundation model whose weights training starts from; empty: random weights.",
        acts=GRAPH_MODEL,
    )
    keep_start: bool = fixed(
        False,
        description="Freeze the weights loaded from model.start; only the other parameters of the model are trained.",
        acts={"model.start": ()},
    )
    options: dict[str, Any] = fixed(
        default_factory=dict, description="Options of the model, such as {norm: l1} for transe."
    )


class ObjectiveConfig(Section):
    name: str = course(
        "one_vs_all",
        description="Objective. With negatives: margin, logistic, self_adversarial, sampled_softmax; over all "
        "entities: one_vs_all, k_vs_all; over all entities for a share of the queries: query_sampling (HaLE); without "
        "negatives: non_negative.",
    )
    margin: float = course(
        9.0,
        description="Margin γ of the objectives margin and self_adversarial, in units of the score.",
        acts=objective("margin", "self_adversarial"),
    )
    temperature: float = course(
        1.0,
        ge=0,
        description="self_adversarial: factor of scores in the softmax that weights negatives; 0: equal weights.",
        acts=objective("self_adversarial"),
    )
    label_smoothing: float = course(
        0.0, ge=0, lt=1, description="k_vs_all: label smoothing.", acts=objective("k_vs_all")
    )
    group_answers: bool = course(
        True,
        description="one_vs_all: score each distinct query once with all its answers. Same objective, fewer products.",
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
        description="query_sampling: share α of the queries for which scores of all entities are lowered.",
        acts=objective("query_sampling"),
    )
    uniformity: float = course(
        1.0,
        ge=0,
        description="query_sampling: weight λ of the loss over all entities; non_negative: weight of the spread loss, "
        "which keeps entities at objective.radius from their centre.",
        acts=objective("query_sampling", "non_negative"),
    )
    radius: float = course(
        1.0,
        gt=0,
        description="non_negative: target distance of each entity vector from the mean of all entity vectors.",
        acts=objective("non_negative"),
    )
    square_positives: bool = course(
        True, description="query_sampling: square the activated distance of answers.", acts=objective("query_sampling")
    )
    activation: Literal["none", "hanon", "halin", "x_exp", "double", "artanh"] = fixed(
        "none",
        description="Hardness-aware activation of squared distances in training, with a learned factor for each "
        "relation (HaLE). For scorers with a squared L2 distance.",
        acts=EMBEDDING,
    )
    activation_limit: float = course(
        10.0,
        gt=0,
        description="Upper bound γ of the activations hanon and halin.",
        acts={"objective.activation": ("hanon", "halin")},
    )
    activation_steepness: float | None = course(
        None,
        gt=0,
        description="Steepness β of the activations hanon (default 3) and halin (default 10).",
        acts={"objective.activation": ("hanon", "halin")},
    )
    relation_scale: bool = fixed(
        True,
        description="Learn the activation's factor of each relation; if false, the factor is 1.",
        acts={"objective.activation": ("hanon", "halin", "x_exp", "double", "artanh")},
    )
    relation_prediction: float = course(
        0.0,
        ge=0,
        description="Weight λ of an auxiliary loss, −log P(relation | anchor, answer) by the same scores among all "
        "relations of the query's direction, added to the loss of each query; 0: none.",
        acts=EMBEDDING,
    )
    products: Literal["float32", "bfloat16"] = course(
        "float32",
        description="Precision of the matrix products over all entities; sums are float32.",
        acts=objective(*ALL_ENTITIES, "query_sampling"),
    )


class RegularizerConfig(Section):
    name: Literal["none", "n3", "l2", "dura"] = course(
        "none",
        description="Penalty on the vectors that a batch uses: norms n3 or l2; dura, for bilinear scorers, penalises "
        "h, t and their products with the relation, hR and tRᵀ.",
    )
    weight: float = course(
        0.0,
        ge=0,
        description="Weight of the penalty: n3 and l2, on entity vectors; dura, on all terms.",
        acts={"regularizer.name": ("n3", "l2", "dura")},
    )
    relation_weight: float | None = course(
        None,
        ge=0,
        description="Weight of the penalty on relation vectors; default: regularizer.weight.",
        acts={"regularizer.name": ("n3", "l2")},
    )
    vector_factor: float = course(
        1.0,
        ge=0,
        description="dura: factor of regularizer.weight on ‖h‖² + ‖t‖²; published: 0.5 for cp and complex, 2 for "
        "rescal.",
        acts={"regularizer.name": ("dura",)},
    )
    product_factor: float = course(
        1.0,
        ge=0,
        description="dura: factor of regularizer.weight on ‖hR‖² + ‖tRᵀ‖²; published: 1.5 for cp and complex, 0.5 for "
        "rescal.",
        acts={"regularizer.name": ("dura",)},
    )


class PoolConfig(Section):
    actors: int = course(
        0,
        ge=0,
        description="Number of Ray actors that draw negatives ahead of training steps, for sources whose draws depend "
        "on the query; 0: steps draw all negatives.",
    )
    cpus_per_actor: float = free(
        1.0, ge=0, description="CPUs that Ray reserves for each actor that draws negatives.", acts=ACTORS
    )
    gpus_per_actor: float = free(
        0.0,
        ge=0,
        description="GPUs, or share of one, that Ray reserves for each actor that draws negatives.",
        acts=ACTORS,
    )
    placement: Literal["pack", "spread"] = free(
        "pack", description="Put actors on as few nodes as possible (pack) or on as many (spread).", acts=ACTORS
    )
    depth: int = course(
        16, ge=1, description="Number of steps ahead of the current one for which negatives are requested.", acts=ACTORS
    )
    max_age: int = course(
        1000,
        ge=0,
        description="Maximum age, in steps, of the vectors that an actor's reply was computed from; an older reply is "
        "not used.",
        acts=ACTORS,
    )
    timeout: float = course(
        0.05,
        ge=0,
        description="Maximum seconds that a step waits for an actor's reply; then it draws with pool.fallback.",
        acts=ACTORS,
    )
    hung_after: float = free(
        60.0, gt=0, description="Seconds without a reply after which an actor is killed and restarted.", acts=ACTORS
    )
    fallback: str = course(
        "uniform",
        description="Negative source that draws in the step if an actor's reply is late, too old, broken or lost.",
        acts=ACTORS,
    )
    on_error: Literal["fail", "fallback"] = course(
        "fail",
        description="Reaction to a source that raises in an actor or returns something other than was requested: fail "
        "ends the run; fallback warns once, counts, and draws with pool.fallback. Default: fallback if pool.fallback "
        "is set, else fail.",
        acts=ACTORS,
    )
    sync: bool = course(False, description="Wait for every reply of the actors: slower, but reproducible.", acts=ACTORS)

    @model_validator(mode="before")
    @classmethod
    def _fallback_was_chosen(cls, data: object) -> object:
        # A configuration that names a fallback source is meant to continue with it after an error.
        chosen = isinstance(data, dict) and "fallback" in data and "on_error" not in data
        return {**data, "on_error": "fallback"} if chosen and isinstance(data, dict) else data


class NegativesConfig(Section):
    source: str = course(
        "uniform",
        description="Negative source; `distkg negatives` lists the sources and shows examples of their negatives.",
    )
    options: dict[str, Any] = course(
        default_factory=dict, description="Options of the negative source, such as {hops: 3}."
    )
    count: int = course(
        128, ge=1, description="Number of negatives per query; each triple gives two queries, so twice this per triple."
    )
    shared: bool = course(
        True,
        description="Share negatives among the queries of a chunk (fast), or draw separately for each query; sources "
        "that depend on the query always draw for each query.",
        acts=EMBEDDING,
    )
    chunk_size: int = course(
        256,
        ge=1,
        description="Number of queries that share negatives.",
        acts={**EMBEDDING, "negatives.shared": ()},
    )
    filter: bool = course(False, description="Mask negatives that are known training facts (exact).", acts=EMBEDDING)
    vectors: str = course(
        "",
        description="Run folder of an embedding model of the same store, whose vectors a negative source such as dans "
        "reads when a foundation model is trained.",
        acts=FOUNDATION,
    )
    pool: PoolConfig = section(PoolConfig, "Ray actors that draw negatives ahead of training steps.")


class OptimizerConfig(Section):
    name: Literal["rowwise_adagrad", "adagrad", "adam"] = fixed(
        "adagrad",
        description="Optimizer. rowwise_adagrad keeps one float per row; adam is lazy: it does not update rows without "
        "a gradient.",
    )
    learning_rate: float = course(
        0.1,
        gt=0,
        description="Learning rate of entity vectors, and of all other parameters unless relation_learning_rate is "
        "set.",
    )
    relation_learning_rate: float | None = course(
        None,
        gt=0,
        description="Learning rate of relation vectors and networks; default: optimizer.learning_rate.",
    )
    schedule: Literal["constant", "linear", "cosine", "plateau"] = course(
        "constant",
        description="Learning rate schedule, by epochs or by the time limit, whichever is further; plateau halves the "
        "learning rate when validation MRR stops rising.",
    )
    warmup_epochs: float = course(0.0, ge=0, description="Epochs of linear warm-up of the learning rate.")
    weight_decay: float = course(
        0.0,
        ge=0,
        description="Decoupled weight decay (AdamW) of relation vectors and networks, times the learning rate.",
    )
    clip_norm: float | None = course(
        None, gt=0, description="Maximum gradient norm of relation vectors and networks; default: no clipping."
    )


class TrainConfig(Section):
    workers: int = free(1, ge=1, description="Number of training workers; each holds 1/workers of the entity table.")
    epochs: int = free(
        50,
        ge=1,
        description="Number of passes over the training triples. A resumed run may have another number; a linear or "
        "cosine schedule then continues on the curve of the new number.",
    )
    batch_size: int = course(
        1024,
        ge=1,
        description="Triples (distinct queries, if grouped; queries of a foundation model) per step, over all workers.",
    )
    facts: Literal["all", "new"] = course(
        "all",
        description="Training facts of a grown graph to learn from: all, or the new ones that `distkg extend` added. "
        "Objectives over all entities learn each query of a new fact with all its answers.",
        acts=EMBEDDING,
    )
    old_rows: Literal["free", "frozen"] = course(
        "free",
        description="Treatment of what a model had learned before `distkg extend` grew its graph: free trains it "
        "further; frozen trains only rows of new entities and relations, so that scores of old facts stay.",
        acts=STORED,
    )
    steps_per_epoch: int | None = course(
        None,
        ge=1,
        description="Steps in an epoch of a foundation model; default: one query for each training fact.",
        acts=GRAPH_MODEL,
    )
    seed: int = course(0, ge=0, description="Random seed of initial vectors, order of triples, negatives and dropout.")
    time_limit_seconds: float | None = free(
        None, gt=0, description="Stop training after this many seconds of wall time; default: no limit."
    )
    patience: int | None = free(
        None,
        ge=1,
        description="Stop training after this many validations without a better MRR; default: never.",
    )
    average: Literal["none", "ema", "mean"] = course(
        "none",
        description="Average of the weights at the ends of epochs, beside those that are trained: ema (exponential, by "
        "train.average_decay) or mean (of all from train.average_from on). Validation ranks with both, and those with "
        "the better MRR are the model. Takes the memory of one more table.",
    )
    average_decay: float = course(
        0.9,
        ge=0,
        lt=1,
        description="Decay of the exponential average at the end of each epoch.",
        acts={"train.average": ("ema",)},
    )
    average_from: int = course(
        1,
        ge=1,
        description="First epoch, from 1, whose weights are averaged.",
        acts={"train.average": ("ema", "mean")},
    )
    overlap: bool = course(
        False,
        description="Exchange rows of the entity table during computation: faster over a network, but the rows of a "
        "step may lack the two latest updates.",
        acts=STORED,
    )
    resident_share: float = course(
        1.0,
        gt=0,
        le=1,
        description="Share of the entities among which an epoch trains at a time. Below 1, it visits the triples in "
        "buckets of entity partitions and draws uniform negatives from the partitions in use, so that with "
        "train.table_storage: disk the other rows stay on disk; 1 is the random order.",
        acts={**EMBEDDING, **objective(*SAMPLED)},
    )
    table_storage: Literal["memory", "disk"] = free(
        "memory",
        description="Storage of each worker's part of the entity table and its optimizer state: memory, or disk, a "
        "memory-mapped file that may be larger than the memory. On CPUs, with objectives that sample negatives.",
        acts={**STORED, **objective(*SAMPLED)},
    )
    table_folder: str = free(
        "",
        description="Folder on a local disk of each worker's machine for the files of train.table_storage: disk; "
        "they have no names and vanish with the worker. Default: the folder of temporary files (TMPDIR).",
        acts={"train.table_storage": ("disk",)},
    )
    precision: Literal["float32", "bfloat16"] = course(
        "float32",
        description="Precision on a GPU of relation transforms and networks (autocast), and of inner products with "
        "negatives that queries share; sums are float32.",
        acts=EMBEDDING,
    )
    compile: bool = free(False, description="Compile the query transform with torch.compile.", acts=EMBEDDING)


class EvaluateConfig(Section):
    every: int = free(5, ge=1, description="Epochs between validations; the last epoch is always validated.")
    batch_size: int = free(
        256, ge=1, description="Number of queries ranked together; embedding models lower it to fit evaluate.memory_mb."
    )
    memory_mb: int = free(256, ge=1, description="Memory for one block of scores (MiB per worker).", acts=EMBEDDING)
    max_valid_triples: int | None = free(
        None,
        ge=1,
        description="Number of valid triples, a fixed random subset, that validations during training rank; default: "
        "all. result.json is not affected.",
    )
    max_final_triples: int | None = free(
        None,
        ge=1,
        description="Number of triples of valid and of test, fixed random subsets, that are ranked at the end; "
        "default: all.",
    )


class CheckpointConfig(Section):
    every: int = free(1, ge=1, description="Epochs between checkpoints.")
    every_steps: int | None = free(
        None, ge=1, description="Steps between checkpoints within an epoch; default: only at the end of epochs."
    )
    keep: int = free(2, ge=2, description="Number of newest checkpoints kept in addition to the best one.")


class ClusterConfig(Section):
    address: str | None = free(
        None,
        description="Ray address: `auto` joins a running cluster, `local` starts one; default: auto in a Ray job, else "
        "local, or no Ray for one worker without actors, which trains in the process of the command.",
    )
    cpus_per_worker: float = free(
        1.0, gt=0, description="CPUs that Ray reserves for each worker, which computes on as many threads."
    )
    gpus_per_worker: float = free(0.0, ge=0, description="GPUs that Ray reserves for each worker.")
    label_selector: dict[str, str] = free(
        default_factory=dict,
        description="Ray labels of the nodes on which workers are placed, each with a value, !VALUE, in(A, B) or "
        '!in(A, B), such as {ray.io/market-type: "!spot"}; default: any node.',
    )
    accelerator_type: str | None = free(
        None,
        description="Ray's accelerator type of the nodes on which workers are placed, such as H100; default: any.",
    )
    actor_label_selector: dict[str, str] = free(
        default_factory=dict,
        description="Ray labels of the nodes on which actors of negatives.pool are placed, as cluster.label_selector.",
        acts=ACTORS,
    )
    actor_accelerator_type: str | None = free(
        None,
        description="Ray's accelerator type of the nodes on which actors of negatives.pool are placed; default: any.",
        acts=ACTORS,
    )
    min_workers: int | None = free(
        None,
        ge=1,
        description="Minimum number of workers of an elastic run, which continues with fewer workers when nodes are "
        "lost; default: not elastic.",
    )
    max_failures: int = free(3, ge=0, description="Number of restarts after lost workers before the run is given up.")
    hung_after: float = free(
        120.0, gt=0, description="Seconds without a heartbeat after which a worker is killed and replaced."
    )
    wait_seconds: float | None = free(
        None, gt=0, description="Maximum seconds to wait for nodes or free resources; default: no limit."
    )
    metrics_port: int | None = free(
        None,
        ge=1024,
        le=65535,
        description="Port on 127.0.0.1 at which a Ray that the run starts on this machine exports metrics for "
        "Prometheus; default: none. A cluster that the run joins has its own (`ray start --metrics-export-port`).",
    )
    memory_per_worker_gb: float | None = free(
        None,
        gt=0,
        description="Memory (GiB) that `distkg plan` assumes for each worker; default: this machine's memory divided "
        "by its workers.",
    )

    @property
    def threads(self) -> int:
        """Number of threads of one worker: its whole CPUs, at least one."""
        return max(1, math.floor(self.cpus_per_worker))

    @field_validator("label_selector", "actor_label_selector", mode="before")
    @classmethod
    def _labels_can_be_selected(cls, value: object) -> object:
        return check_label_selector(value)

    @field_validator("accelerator_type", "actor_accelerator_type")
    @classmethod
    def _accelerator_type_is_a_name(cls, value: str | None) -> str | None:
        return check_accelerator_type(value)
