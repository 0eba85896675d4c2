"""Commands about trained models: evaluate, predict, import and export."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from distkg.cli.app import (
    JsonOption,
    RunArgument,
    Split,
    app,
    file_path,
    folder_address,
    folder_path,
    print_remarks,
    say,
    say_json,
    show_table,
)
from distkg.printable import printable
from distkg.redaction import redact

if TYPE_CHECKING:
    from distkg.sharding.ranks import Ranks
    from distkg.training.family import Predictor

T = TypeVar("T")


class Known(StrEnum):
    exclude = "exclude"
    mark = "mark"
    keep = "keep"


class PublishedFormat(StrEnum):
    ultra = "ultra"
    trix = "trix"
    trix_relations = "trix_relations"
    motif = "motif"
    semma = "semma"


ModelArgument = Annotated[
    str,
    typer.Argument(
        parser=folder_address,
        metavar="MODEL",
        help="Run that `distkg train` wrote, or a foundation model, which also needs a graph: its folder, or its "
        "address (s3://…).",
    ),
]
FanoutsOption = Annotated[
    str,
    typer.Option(
        metavar="K,K,…",
        help="For a foundation model on a large graph: number of facts of an entity to follow at each step away from "
        "the anchor, such as 50,20,10. Default: the model reads the whole graph.",
    ),
]
GraphOption = Annotated[
    str | None,
    typer.Option(
        help="Graph for a foundation model, instead of --store: a file of triples, or a folder with triples.tsv and "
        "optionally descriptions.tsv and numeric.tsv of entities."
    ),
]
ReadersOption = Annotated[
    int,
    typer.Option(
        "--workers",
        min=1,
        help="Number of Ray workers that read the model together, whatever number trained it; 1 reads in this process.",
    ),
]
StoreOfModelOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        help="For a foundation model, the store whose training facts are its graph; for a run of embeddings, the new "
        "address of its own store if that has moved.",
    ),
]


@app.command(epilog="Example: distkg evaluate runs/wn18rr --split valid")
def evaluate(
    model: ModelArgument,
    store: StoreOfModelOption = None,
    split: Annotated[Split, typer.Option(help="Split of the store to rank.")] = Split.test,
    triples: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Number of triples of the split to rank, a fixed random subset (for a run, that of "
            "evaluate.max_final_triples); default: all.",
        ),
    ] = None,
    fanouts: FanoutsOption = "",
    workers: ReadersOption = 1,
    as_json: JsonOption = False,
) -> None:
    """Rank a split exactly among all entities; show metrics by side, relation and category."""
    from distkg.inference.questions import Evaluation
    from distkg.reporting.tables import metrics_table, relations_table

    choice = {"store": store, "fanouts": _numbers(fanouts), "offered": "--store"}
    result = _ask(model, workers, Evaluation(split.value, triples), **choice)
    if as_json:
        say_json(result)
        return
    if "by_side" in result:
        whole = {split.value: result["metrics"], **result["by_side"]}
        show_table(metrics_table(whole, "Filtered ranks among all entities"))
        show_table(metrics_table(result["by_category"], "By category of relation"))
        title = "By training facts of the anchor (query), or of the answer, with the relation"
        show_table(metrics_table(result["by_half_link"], title))
    else:
        show_table(metrics_table({split.value: result["metrics"]}, "Filtered ranks among all relations"))
    show_table(relations_table(result["by_relation"]))


@app.command(epilog="Example: distkg predict runs/wn18rr --anchor 01984902 --relation _hypernym --top 5")
def predict(
    model: ModelArgument,
    anchor: Annotated[str | None, typer.Option(help="Label of the known entity of the query.")] = None,
    relation: Annotated[str | None, typer.Option(help="Label of the relation of the query.")] = None,
    inverse: Annotated[
        bool, typer.Option("--inverse", help="Predict heads X of (X, relation, anchor) instead of tails.")
    ] = False,
    top: Annotated[int, typer.Option(min=1, help="Number of answers per query.")] = 10,
    known: Annotated[
        Known, typer.Option(help="Known facts of the store: exclude, mark, or keep them unmarked.")
    ] = Known.exclude,
    queries: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            help="File of queries, lines ANCHOR<TAB>RELATION[<TAB>forward|inverse], or of earlier predictions.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(parser=file_path, help="File for the answers to --queries, .tsv or .parquet.")
    ] = None,
    store: StoreOfModelOption = None,
    graph: GraphOption = None,
    explain: Annotated[
        int, typer.Option(min=0, help="Number of paths of facts that explain each answer of a foundation model.")
    ] = 0,
    fanouts: FanoutsOption = "",
    workers: ReadersOption = 1,
    as_json: JsonOption = False,
) -> None:
    """List the best answers to a query, or to a file of queries."""
    if queries is None and (anchor is None or relation is None):
        raise typer.BadParameter("use --anchor and --relation for one query, or --queries and --output for a file")
    if (queries is None) != (output is None):
        raise typer.BadParameter("--queries and --output must be used together")
    if queries is not None:
        single = {
            "--anchor": anchor,
            "--relation": relation,
            "--inverse": inverse,
            "--explain": explain,
            "--json": as_json,
        }
        if unused := [option for option, value in single.items() if value]:
            raise typer.BadParameter(
                f"{', '.join(unused)}: for one query; with --queries, write all queries into its file"
            )
    from distkg.inference.predict import check_output
    from distkg.inference.questions import AnswersOfFile, BestAnswers

    choice = {"store": store, "triples": graph, "fanouts": _numbers(fanouts), "tell": print_remarks}
    if queries is not None and output is not None:
        check_output(output)
        written, warnings = _ask(model, workers, AnswersOfFile(queries, output, top, known.value), **choice)
        _warn(warnings)
        say(f"{written:,} answers: {output}")
        return
    question = BestAnswers(str(anchor), str(relation), inverse, top, known.value, explain)
    answers, reasons, warnings = _ask(model, workers, question, **choice)
    _warn(warnings)
    if as_json:
        rows = [asdict(answer) for answer in answers]
        for row, paths in zip(rows, reasons, strict=False):
            row["reasons"] = [asdict(path) for path in paths]
        say_json(rows)
        return
    from distkg.reporting.tables import predictions_table

    show_table(predictions_table(answers))
    for answer, paths in zip(answers, reasons, strict=False):
        say(f"{printable(answer.label)}:" + ("" if paths else " no path of facts leads there"))
        for path in paths:
            say(f"  {path.importance:+.3f}  {printable(path.path)}")


@app.command(
    name="predict-relation",
    epilog="Example: distkg predict-relation models/trix_relations --graph facts.tsv --head A --tail B",
)
def predict_relation(
    model: ModelArgument,
    head: Annotated[str, typer.Option(help="Label of the head entity.")],
    tail: Annotated[str, typer.Option(help="Label of the tail entity.")],
    top: Annotated[int, typer.Option(min=1, help="Number of relations to list.")] = 10,
    known: Annotated[
        Known, typer.Option(help="Known facts of the store: exclude, mark, or keep them unmarked.")
    ] = Known.mark,
    store: StoreOfModelOption = None,
    graph: GraphOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the most likely relations between two entities, by a model that ranks relations."""
    from distkg.inference.untrained import untrained_warnings
    from distkg.reporting.tables import text_table
    from distkg.training.family import cannot_rank

    with _opened(model, store=store, triples=graph, tell=print_remarks) as predictor:
        if predictor.top_relations is None:
            raise cannot_rank(predictor.model, "relations")
        facts = predictor.store
        ends = facts.entity_id(head), facts.entity_id(tail)
        _warn(untrained_warnings(facts, ends, []))
        predictions = predictor.top_relations(*ends, top, known.value)
    if as_json:
        say_json([asdict(each) for each in predictions])
        return
    marked = known is Known.mark
    rows = [
        (str(each.rank), each.relation + ("  (known)" if marked and each.known else ""), f"{each.score:.4f}")
        for each in predictions
    ]
    show_table(text_table(["rank", "relation", "score"], rows))


@app.command(
    name="import-checkpoint",
    epilog="Example: distkg import-checkpoint ultra_3g.pth --format ultra --to models/ultra_3g",
)
def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(parser=file_path, metavar="FILE", help="Published checkpoint, such as ultra_3g.pth.")
    ],
    to: Annotated[Path, typer.Option(parser=folder_path, metavar="MODEL", help="New folder of the model.")],
    format: Annotated[PublishedFormat, typer.Option(help="Model of the published checkpoint.")] = PublishedFormat.ultra,
) -> None:
    """Convert a published checkpoint of a foundation model into a model folder."""
    from distkg.foundation.model_files import import_checkpoint as read_checkpoint
    from distkg.foundation.model_files import save_model

    model = read_checkpoint(file, format.value)
    save_model(model, to)
    say(f"{model.name}, {sum(part.numel() for part in model.parameters()):,} parameters: {to}")


@app.command(epilog="Example: distkg export runs/wn18rr --to exports/wn18rr")
def export(
    run: RunArgument,
    to: Annotated[
        str,
        typer.Option(
            parser=folder_address, help="Folder or address (s3://…) for vectors, labels and model.json of the export."
        ),
    ],
    index: Annotated[bool, typer.Option("--index", help="Also write a FAISS index of the entities.")] = False,
    store: Annotated[str, typer.Option(help="Address of the run's store, if it has moved.")] = "",
    workers: ReadersOption = 1,
) -> None:
    """Write vectors and labels as safetensors and Parquet, so that NumPy alone can recompute a score."""
    from distkg.data.storage.working_copy import folder_at
    from distkg.inference.questions import Export
    from distkg.training.family import family_of_folder

    with folder_at(run) as folder:
        if not family_of_folder(folder).has_vectors:
            raise typer.BadParameter(
                f"{redact(run)} is a foundation model, which has no entity vectors to export: `distkg predict` and "
                "`distkg evaluate` need its folder alone"
            )
    _ask(run, workers, Export(to, index), store=store or None, scope="labels")
    say(f"export: {redact(to)}")


@contextmanager
def _opened(model: str, **choice: Any) -> Iterator[Predictor]:
    """Open the model of a run folder or of a model folder in this process; ``choice`` as of ``GraphChoice``."""
    from distkg.data.storage.working_copy import folder_at
    from distkg.sharding.ranks import Ranks
    from distkg.training.family import GraphChoice, family_of_folder

    with (
        folder_at(model) as folder,
        family_of_folder(folder).open(folder, Ranks.single(), GraphChoice(**choice)) as predictor,
    ):
        yield predictor


def _ask(model: str, workers: int, question: Callable[[Predictor, Ranks], T], **choice: Any) -> T:
    """Open a model in this process or on several workers, and return its answer; ``choice`` as of ``GraphChoice``."""
    from distkg.sharding.ranks import Ranks
    from distkg.training.family import GraphChoice

    if workers > 1:
        from distkg.cluster.collective import ask_workers

        return ask_workers(model, GraphChoice(**choice), workers, question)
    with _opened(model, **choice) as predictor:
        return question(predictor, Ranks.single())


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        say(f"warning: {warning}", err=True)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")] if text else []
    except ValueError:
        numbers = [0]
    if any(number < 1 for number in numbers):
        raise typer.BadParameter(f"{text!r} must be positive integers such as 50,20,10", param_hint="--fanouts")
    return numbers
