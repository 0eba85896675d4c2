"""The command line: parse, call one function, print what it returns."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    from distkg.config import RunConfig
    from distkg.data.prepare import PrepareReport
    from distkg.data.store import Store
    from distkg.inference.predict import Best
    from distkg.inference.zero_shot import Reason
    from distkg.training.plan import Plan
    from distkg.training.search_folder import Trial

MISTAKE, REFUSED = 2, 3


class Format(StrEnum):
    auto = "auto"
    tsv = "tsv"
    parquet = "parquet"
    nt = "nt"


class Partitioner(StrEnum):
    random = "random"
    metis = "metis"


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"


class Split(StrEnum):
    train = "train"
    valid = "valid"
    test = "test"


class Known(StrEnum):
    exclude = "exclude"
    mark = "mark"
    keep = "keep"


class PublishedFormat(StrEnum):
    ultra = "ultra"


class Commands(TyperGroup):
    """Says in one message what a user can mend; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            if _debugging(ctx) or not _is_message(error):
                raise
            typer.echo(f"error: {error}", err=True)
            raise SystemExit(_exit_code(error)) from None


app = typer.Typer(
    name="distkg",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: distkg prepare data/wn18rr --store stores/wn18rr && "
    "distkg train preset:complex_wn18rr --run runs/wn18rr --set data.store=stores/wn18rr",
)

StoreOption = Annotated[str, typer.Option("--store", help="Folder of the store to make, or an address (s3://…).")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `distkg train` wrote.")]
ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="Run folder that `distkg train` wrote, or folder of a foundation model, with --store."
    ),
]
StoreOfModelOption = Annotated[
    str | None, typer.Option("--store", help="Whose training facts a foundation model reasons from.")
]
ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="YAML file, or preset:NAME.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Change one key; may be repeated.")
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Short for --set train.workers=W.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run ``distkg`` with these arguments (default: those of the process) and exit.

    Exits with 0 on success, 2 after a mistake that the user can mend, 3 where a plan refuses the run, and 1
    otherwise.
    """
    app(args=None if argv is None else list(argv), prog_name="distkg")
    sys.exit(0)


def _version(wanted: bool) -> None:
    if wanted:
        from distkg import __version__

        typer.echo(f"distkg {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of every error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Knowledge-graph completion at scale: train, evaluate and query embeddings on a Ray cluster."""


@app.command(epilog="Example: distkg prepare data/wn18rr --store stores/wn18rr")
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file of triples, or a folder with train|valid|test.{tsv,tsv.gz,txt,csv,parquet,nt,nt.gz}; with "
            "inference.* beside them, two graphs and two stores.",
        ),
    ],
    store: StoreOption,
    format: Annotated[Format, typer.Option(help="Format of the files; auto goes by their endings.")] = Format.auto,
    valid: Annotated[str | None, typer.Option(help="File of the validation triples.")] = None,
    test: Annotated[str | None, typer.Option(help="File of the test triples.")] = None,
    split: Annotated[
        str, typer.Option(help="Shares of train, valid and test, where SOURCE is one file.")
    ] = "0.9,0.05,0.05",
    partitions: Annotated[int, typer.Option(min=1, help="Contiguous ranges of entities to form.")] = 1,
    partitioner: Annotated[
        Partitioner, typer.Option(help="Which entities share a range: random, or metis for fewer cut edges.")
    ] = Partitioner.random,
    on_error: Annotated[
        OnError, typer.Option(help="Stop at a bad line, or skip it and write it to rejects.tsv.")
    ] = OnError.fail,
    seed: Annotated[int, typer.Option(help="Decides the order of entities and the split.")] = 0,
) -> None:
    """Read a graph (TSV, CSV, Parquet or N-Triples) into a store."""
    from distkg.data import prepare as ingest
    from distkg.reporting.stages import show_stages

    with show_stages() as progress:
        report = ingest.prepare(
            source,
            store,
            format=format.value,
            valid=valid,
            test=test,
            split=_shares(split),
            partitions=partitions,
            partitioner=partitioner.value,
            on_error=on_error.value,
            seed=seed,
            progress=progress,
        )
    _print_store(report)


@app.command(
    epilog="Example: distkg generate --store stores/toy --entities 10000 --relations 12 --triples 60000 --seed 1"
)
def generate(
    store: StoreOption,
    entities: Annotated[int, typer.Option(min=1, help="Number of entities.")],
    relations: Annotated[int, typer.Option(min=1, help="Number of relations.")],
    triples: Annotated[int, typer.Option(min=1, help="Number of triples.")],
    seed: Annotated[int, typer.Option(help="Equal seeds make equal graphs.")],
    partitions: Annotated[int, typer.Option(min=1, help="Contiguous ranges of entities to form.")] = 1,
) -> None:
    """Make a graph with known logical rules and skewed degrees."""
    from distkg.data import generate as synthetic

    _print_store(
        synthetic.generate(
            store, entities=entities, relations=relations, triples=triples, seed=seed, partitions=partitions
        )
    )


@app.command(
    epilog="Example: distkg train preset:complex_wn18rr --run runs/wn18rr --workers 2 --set data.store=stores/wn18rr"
)
def train(
    config: ConfigArgument,
    run: Annotated[Path, typer.Option(help="Folder for configuration, metrics, checkpoints and report.")],
    changes: SetOption = None,
    workers: WorkersOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint in RUN.")] = False,
) -> None:
    """Train a model, evaluate it on the test split and write a report."""
    settings = _resolved(config, changes, workers)
    _print_plan(_planned(settings))
    from distkg.cluster.launch import launch_training
    from distkg.reporting.report import write_report
    from distkg.reporting.tables import metrics_table

    result = launch_training(settings, run, resume=resume)
    _print(metrics_table(result["metrics"], "Filtered ranks among all entities"))
    if result.get("by_graph"):
        _print(metrics_table({row["graph"]: row for row in result["by_graph"]}, "By graph, on test"))
    typer.echo(f"report: {write_report(run)}")


@app.command(
    epilog="Example: distkg tune preset:complex_wn18rr --space space.yaml --run searches/wn18rr --trials 12 "
    "--set train.time_limit_seconds=300"
)
def tune(
    config: ConfigArgument,
    space: Annotated[
        str,
        typer.Option(
            metavar="SPACE",
            help="YAML file of keys to vary (optimizer.learning_rate: {log_uniform: [1e-4, 1]}), or preset:NAME.",
        ),
    ],
    run: Annotated[Path, typer.Option(help="Folder for trials, log, best.yaml and report.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of an earlier launch included.")] = 20,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Trials at once, each on train.workers workers.")] = 1,
    changes: SetOption = None,
    workers: WorkersOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the search in RUN.")] = False,
) -> None:
    """Search for the configuration with the best validation MRR and write it to best.yaml."""
    settings = _resolved(config, changes, workers)
    from distkg.training.space import read_space

    found = read_space(space)
    _print_plan(_planned(settings))
    from distkg.cluster.tune import launch_search
    from distkg.reporting.search import changes_table, read_search, trial_line, write_search_report

    def ended(trial: Trial) -> None:
        typer.echo(trial_line(trial, trials, read_search(run).trials))
        write_search_report(run)

    launch_search(settings, found, run, trials=trials, max_concurrent=max_concurrent, resume=resume, ended=ended)
    record = read_search(run)
    typer.echo(f"report: {write_search_report(run)}")
    if record.best is None:
        typer.echo("error: no trial has finished, so there is no best configuration; the report says why", err=True)
        raise typer.Exit(1)
    _print(changes_table(record))
    typer.echo(f"best configuration: {run / 'best.yaml'}")


@app.command(epilog="Example: distkg evaluate runs/wn18rr --split valid")
def evaluate(
    model: ModelArgument,
    store: StoreOfModelOption = None,
    split: Annotated[Split, typer.Option(help="Which triples to rank.")] = Split.test,
    as_json: JsonOption = False,
) -> None:
    """Rank a split exactly among all entities; show metrics by side, relation and category."""
    from distkg.reporting.tables import metrics_table

    found = _evaluated_foundation(model, store, split) if _is_foundation(model) else _evaluated_run(model, store, split)
    if as_json:
        typer.echo(json.dumps(found))
        return
    _print(metrics_table({split.value: found["metrics"], **found["by_side"]}, "Filtered ranks among all entities"))
    _print(metrics_table(found["by_category"], "By category of relation"))
    by_relation = sorted(found["by_relation"], key=lambda row: -row["queries"])
    _print(metrics_table({row["relation"]: row for row in by_relation}, "By relation"))


@app.command(epilog="Example: distkg predict runs/wn18rr --anchor 01984902 --relation _hypernym --top 5")
def predict(
    model: ModelArgument,
    anchor: Annotated[str | None, typer.Option(help="Label of the entity that is known.")] = None,
    relation: Annotated[str | None, typer.Option(help="Label of the relation.")] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Ask for heads: which X has (X, relation, anchor)?")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Answers per query.")] = 10,
    known: Annotated[
        Known, typer.Option(help="Facts of the store: leave out, mark, or keep unmarked.")
    ] = Known.exclude,
    queries: Annotated[
        Path | None, typer.Option(help="Batch: lines ANCHOR<TAB>RELATION[<TAB>forward|inverse].")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Batch: .tsv or .parquet to write.")] = None,
    store: StoreOfModelOption = None,
    graph: Annotated[
        str | None, typer.Option(help="A file of triples that a foundation model reasons from, in place of --store.")
    ] = None,
    explain: Annotated[
        int, typer.Option(min=0, help="Paths of facts to print for each answer of a foundation model.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """List the best answers to a query, or to a file of queries."""
    if queries is None and (anchor is None or relation is None):
        raise typer.BadParameter("give --anchor and --relation, or --queries and --output")
    if (queries is None) != (output is None):
        raise typer.BadParameter("--queries and --output belong together")
    from distkg.inference import predict as inference

    with _answering(model, store, graph) as (best, facts):
        if queries is not None and output is not None:
            written = inference.predict_file_with(best, facts, queries, output, top, known.value)
            typer.echo(f"{written:,} answers: {output}")
            return
        query = facts.entity_id(str(anchor)), facts.relation_id(str(relation)) + inverse * facts.num_relations
        (found,) = inference.predict_with(best, facts, [query[0]], [query[1]], top, known.value)
        reasons = _reasons(model, facts, query, [answer.entity for answer in found], explain) if explain else []
    if as_json:
        rows = [asdict(answer) for answer in found]
        for row, paths in zip(rows, reasons, strict=False):
            row["reasons"] = [asdict(path) for path in paths]
        typer.echo(json.dumps(rows))
        return
    from distkg.reporting.tables import predictions_table

    _print(predictions_table(found))
    for answer, paths in zip(found, reasons, strict=False):
        typer.echo(f"{answer.label}:" + ("" if paths else " no path of facts leads there"))
        for path in paths:
            typer.echo(f"  {path.importance:+.3f}  {path.path}")


@app.command(
    name="import-checkpoint",
    epilog="Example: distkg import-checkpoint ultra_3g.pth --format ultra --to models/ultra_3g",
)
def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Published checkpoint, such as ultra_3g.pth.")],
    to: Annotated[Path, typer.Option(metavar="MODEL", help="New folder for the model.")],
    format: Annotated[PublishedFormat, typer.Option(help="Whose checkpoint it is.")] = PublishedFormat.ultra,
) -> None:
    """Make a model folder of a published checkpoint of a foundation model."""
    from distkg import foundation

    model = foundation.import_checkpoint(file, format.value)
    foundation.save_model(model, to)
    typer.echo(f"{model.name}, {sum(part.numel() for part in model.parameters()):,} parameters: {to}")


@app.command(epilog="Example: distkg negatives stores/fb15k237 --source relational --show 5")
def negatives(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="Store made by `distkg prepare`; without it, list the sources."),
    ] = None,
    source: Annotated[str, typer.Option(help="Name of the source, as negatives.source.")] = "uniform",
    options: Annotated[str, typer.Option(help="Its options as YAML, such as '{integrate: true}'.")] = "{}",
    run: Annotated[
        Path | None, typer.Option(help="Trained run of the same store, for sources that look at a model's vectors.")
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries to show with their negatives.")] = 5,
    count: Annotated[int, typer.Option(min=1, help="Negatives per query.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="Training queries to look at.")] = 5000,
    seed: Annotated[int, typer.Option(help="Decides the sample and the draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what a negative source draws: examples, sizes of its pools, wrong negatives, and its cost."""
    from distkg.reporting.catalogue import describe_sources
    from distkg.reporting.tables import examination_table, examples_table, text_table

    if store is None:
        rows = [(entry.name, entry.summary, entry.needs, entry.options) for entry in describe_sources()]
        _print(text_table(["source", "", "needs", "options"], rows))
        return
    from distkg.config import parse_mapping
    from distkg.data.store import Store
    from distkg.negatives.examination import examine

    chosen, graph, model = parse_mapping(options, "--options"), Store.open(store), None
    if run is not None:
        from distkg.training.run import view_of_run

        model = view_of_run(run, graph)
    found = examine(graph, source, chosen, sample=sample, count=count, show=show, seed=seed, model=model)
    if as_json:
        typer.echo(json.dumps(asdict(found), ensure_ascii=False))
        return
    _print(examples_table(found))
    _print(examination_table(found))


@app.command(epilog="Example: distkg export runs/wn18rr --to exports/wn18rr")
def export(
    run: RunArgument,
    to: Annotated[Path, typer.Option(help="Folder for vectors, labels and model.json.")],
    index: Annotated[bool, typer.Option("--index", help="Also write a FAISS index of the entities.")] = False,
) -> None:
    """Write vectors and labels as safetensors and Parquet, so that NumPy alone can recompute a score."""
    from distkg.inference.export import export_model
    from distkg.sharding.ranks import Ranks
    from distkg.training.run import load_run

    model, store, config = load_run(run, Ranks.single())
    export_model(model, store, config.model, to, index=index)
    typer.echo(f"export: {to}")


@app.command(epilog="Example: distkg plan preset:complex_wn18rr --set data.store=stores/wn18rr --workers 2")
def plan(
    config: ConfigArgument, changes: SetOption = None, workers: WorkersOption = None, as_json: JsonOption = False
) -> None:
    """Count the memory of a worker and estimate the time of an epoch; refuse a run that cannot fit."""
    found = _planned(_resolved(config, changes, workers))
    if as_json:
        typer.echo(json.dumps(found.to_dict()))
    else:
        _print_plan(found)


@app.command(epilog="Example: distkg report runs/wn18rr runs/wn18rr-rotate --to comparison.html")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders that `distkg train` wrote; several are compared."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="Page to write; default: report.html in the folder of one RUN, comparison.html here for several.",
        ),
    ] = None,
) -> None:
    """Write one self-contained page from what a run has so far, or about several runs side by side."""
    if len(runs) > 1:
        from distkg.reporting.comparison import write_comparison

        typer.echo(write_comparison(runs, to))
        return
    from distkg.reporting.report import write_report
    from distkg.reporting.search import is_search, write_search_report

    typer.echo((write_search_report if is_search(runs[0]) else write_report)(runs[0], to))


@app.command(epilog="Example: distkg presets --scorers")
def presets(
    scorers: Annotated[bool, typer.Option("--scorers", help="List the scorers and their options instead.")] = False,
) -> None:
    """List the configurations and search spaces that come with distkg, to be named preset:NAME."""
    from distkg.reporting.catalogue import describe_presets, describe_scorers, describe_spaces
    from distkg.reporting.tables import text_table

    if scorers:
        _print(text_table(["scorer", "", "options"], [(e.name, e.summary, e.options) for e in describe_scorers()]))
    else:
        _print(text_table(["preset", ""], [(e.name, e.summary) for e in describe_presets()]))
        _print(text_table(["search space", ""], [(e.name, e.summary) for e in describe_spaces()]))


@app.command(epilog="Example: distkg config preset:complex_wn18rr --set model.dim=128 > my.yaml")
def config(config: ConfigArgument, changes: SetOption = None, workers: WorkersOption = None) -> None:
    """Print the resolved configuration as YAML, with every key's help as a comment."""
    typer.echo(_resolved(config, changes, workers).to_yaml(help_text=True), nl=False)


@app.command(epilog="Example: distkg demo --folder runs/demo")
def demo(
    folder: Annotated[
        Path | None, typer.Option(help="Where to put the graph and the run; default: a new folder in runs/.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Ray Train workers on this machine.")] = 2,
) -> None:
    """Generate a small graph with known rules, train on it, and show metrics and predictions."""
    from distkg.demo import run_demo

    run_demo(folder, workers)


def _resolved(config: str, changes: list[str] | None, workers: int | None) -> RunConfig:
    from distkg.config import load_config

    return load_config(config, [*(changes or []), *([f"train.workers={workers}"] if workers else [])])


def _planned(config: RunConfig) -> Plan:
    from distkg.training.preflight import plan_run

    return plan_run(config)


def _shares(text: str) -> tuple[float, float, float]:
    parts = text.split(",")
    try:
        train, valid, test = map(float, parts)
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be three shares such as 0.9,0.05,0.05", param_hint="--split") from None
    return train, valid, test


def _print(table: Any) -> None:
    from distkg.reporting.tables import make_console

    make_console().print(table)


def _print_plan(plan: Plan) -> None:
    from distkg.reporting.tables import graphs_table, plan_summary, plan_table

    if plan.graphs:
        _print(graphs_table(plan.graphs))
    _print(plan_table(plan))
    typer.echo(plan_summary(plan))


def _is_foundation(model: Path) -> bool:
    from distkg.foundation.files import is_model

    return is_model(model)


def _evaluated_run(run: Path, store: str | None, split: Split) -> dict[str, Any]:
    from distkg.sharding.ranks import Ranks
    from distkg.training.metrics import evaluate_triples
    from distkg.training.run import load_run

    _refuse_other_graph(run, store)
    model, own, config = load_run(run, Ranks.single())
    settings = config.evaluate
    return evaluate_triples(model, own, split.value, batch_size=settings.batch_size, memory_mb=settings.memory_mb)


def _evaluated_foundation(model: Path, store: str | None, split: Split) -> dict[str, Any]:
    from distkg.data.store import Store
    from distkg.foundation import load_model
    from distkg.inference.zero_shot import evaluate_zero_shot

    if store is None:
        raise typer.BadParameter(f"{model} is a foundation model: give the graph to be asked about with --store")
    return evaluate_zero_shot(load_model(model), Store.open(store), split.value)


def _reasons(model: Path, facts: Store, query: tuple[int, int], answers: list[int], top: int) -> list[list[Reason]]:
    from distkg.foundation import load_model
    from distkg.inference.zero_shot import reasons_for

    if not _is_foundation(model):
        raise typer.BadParameter(f"{model} is a run: --explain is for foundation models, which reason along facts")
    return reasons_for(load_model(model), facts, *query, answers, top)


def _refuse_other_graph(run: Path, graph: str | None) -> None:
    if graph is not None:
        raise typer.BadParameter(
            f"{run} is a run: its vectors belong to the entities of its own store. --store and --graph are for "
            "foundation models"
        )


@contextmanager
def _answering(model: Path, store: str | None, graph: str | None) -> Iterator[tuple[Best, Store]]:
    """What finds the best answers of a run or of a foundation model, and the store that has the labels."""
    from distkg.data.store import Store
    from distkg.inference import predict as inference

    if not _is_foundation(model):
        from distkg.sharding.ranks import Ranks
        from distkg.training.run import load_run

        _refuse_other_graph(model, store or graph)
        loaded, own, _ = load_run(model, Ranks.single())
        yield inference.best_of_model(loaded), own
        return
    from distkg.foundation import load_model
    from distkg.inference.zero_shot import best_zero_shot, graph_of_file

    if (store is None) == (graph is None):
        raise typer.BadParameter(f"{model} is a foundation model: give the graph to reason from, --store or --graph")
    reads = nullcontext(Store.open(store)) if store is not None else graph_of_file(str(graph))
    with reads as facts:
        yield best_zero_shot(load_model(model), facts), facts


def _print_store(report: PrepareReport) -> None:
    from distkg.reporting.quantities import duration
    from distkg.reporting.tables import counts_table

    if report.beside is not None:
        _print_store(report.beside)
    rows = [("entities", report.entities), ("relations", report.relations), *report.triples.items()]
    _print(counts_table(rows, f"{report.store} ({duration(report.seconds)})"))
    for warning, count in report.warnings.items():
        where = report.examples.get(warning)
        typer.echo(f"warning: {warning}: {count:,}" + (f", first at {where}" if where else ""), err=True)
    if report.rejects:
        typer.echo(f"rejected lines: {report.rejects}", err=True)


def _debugging(ctx: Any) -> bool:
    return bool(ctx.params.get("debug")) or os.environ.get("DISTKG_DEBUG", "") not in ("", "0")


def _is_message(error: Exception) -> bool:
    """Whether an error's message is meant for the user: those that distkg defines, and those of the file system."""
    return isinstance(error, OSError) or type(error).__module__.split(".")[0] == "distkg"


def _exit_code(error: Exception) -> int:
    if type(error).__name__ == "PlanError":
        return REFUSED
    return MISTAKE if isinstance(error, ValueError | OSError) else 1
