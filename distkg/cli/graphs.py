"""Commands about graphs: read one, make one, and show what negatives are drawn from it."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distkg.cli.app import (
    LARGEST_SEED,
    JsonOption,
    StoreOption,
    app,
    file_path,
    folder_path,
    print_remarks,
    say,
    say_json,
    show_table,
)
from distkg.redaction import redact_address

if TYPE_CHECKING:
    from distkg.data.prepare import PrepareReport


class Format(StrEnum):
    auto = "auto"
    tsv = "tsv"
    parquet = "parquet"
    nt = "nt"
    nq = "nq"
    ttl = "ttl"
    trig = "trig"
    rdf = "rdf"
    n3 = "n3"
    jsonld = "jsonld"


class Partitioner(StrEnum):
    random = "random"
    metis = "metis"


class OnError(StrEnum):
    fail = "fail"
    skip = "skip"


class Literals(StrEnum):
    keep = "keep"
    drop = "drop"


class Kind(StrEnum):
    entities = "entities"
    entities_and_relations = "entities-and-relations"


@app.command(epilog="Example: distkg prepare data/wn18rr --store stores/wn18rr")
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file of triples, or a folder with files train, valid and test: .tsv, .csv, .txt, .parquet, .nt, "
            ".nq, .ttl, .trig, .rdf, .owl, .xml, .n3, .jsonld; text also with .gz, .bz2, .xz, .zst, .lz4. With "
            "inference.* beside them, two graphs and two stores.",
        ),
    ],
    store: StoreOption,
    format: Annotated[
        Format,
        typer.Option(
            help="Format of the files; auto goes by their endings. tsv is any delimited text, rdf is RDF/XML."
        ),
    ] = Format.auto,
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
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Decides the order of entities and the split.")
    ] = 0,
    columns: Annotated[
        str | None,
        typer.Option(
            metavar="HEAD,RELATION,TAIL",
            help="Columns of tables to read, by name or by number (from 1), such as subject,predicate,object or 2,3,4; "
            "others are left out. Default: those that the header names, else the three there are.",
        ),
    ] = None,
    header: Annotated[
        bool | None,
        typer.Option(
            "--header/--no-header",
            show_default=False,
            help="Whether the first line of delimited text names the columns. Default: where its names are known ones.",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="Of delimited text: one character, or tab, comma, semicolon, pipe, space. Default: the one that gives "
            "most lines the same number of columns."
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="Of text files, such as latin-1 or cp1252. Default: UTF-8, or what a byte order mark says."),
    ] = None,
    literals: Annotated[
        Literals, typer.Option(help="RDF facts whose object is a literal: keep, or drop and count.")
    ] = Literals.keep,
) -> None:
    """Read a graph (delimited text, Parquet or RDF) into a store; docs/data.md has formats and warnings."""
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
            columns=columns,
            header=header,
            delimiter=delimiter,
            encoding=encoding,
            literals=literals.value,
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
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Equal seeds make equal graphs.")],
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
    name="inductive-split",
    epilog="Example: distkg inductive-split stores/fb15k237 --to stores/fb_new --kind entities --seed 1",
)
def inductive_split(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store made by `distkg prepare`.")],
    to: Annotated[str, typer.Option(help="New folder, or an address, for the stores training and inference.")],
    kind: Annotated[Kind, typer.Option(help="What the two must not share.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Equal seeds make equal stores.")],
    share: Annotated[float, typer.Option(help="Share of the entities for training.")] = 0.5,
    split: Annotated[str, typer.Option(help="Shares of train, valid and test in each.")] = "0.8,0.1,0.1",
) -> None:
    """Make two graphs of one: to learn from, and to ask about, with other entities and if wanted other relations."""
    from distkg.data.splits.inductive_split import inductive_split as split_in_two

    made = split_in_two(store, to, kind=kind.value, seed=seed, share=share, split=_shares(split))
    for report, connected in zip((made.training, made.inference), made.connected, strict=True):
        _print_store(report)
        say(f"entities in the largest connected part: {connected:.1%}")
    say(f"in both: {made.shared_entities:,} entities, {made.shared_relations:,} relations")
    say(f"in neither: {made.left_out:,} facts")
    if made.carried:
        say(f"taken along: {', '.join(made.carried)}")


@app.command(epilog="Example: distkg negatives stores/fb15k237 --source relational --show 5")
def negatives(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="Store made by `distkg prepare`; without it, list the sources."),
    ] = None,
    source: Annotated[str, typer.Option(help="Name of the source, as negatives.source.")] = "uniform",
    options: Annotated[str, typer.Option(help="Its options as YAML, such as '{integrate: true}'.")] = "{}",
    run: Annotated[
        Path | None,
        typer.Option(
            parser=folder_path, help="Trained run of the same store, for sources that look at a model's vectors."
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Queries to show with their negatives.")] = 5,
    count: Annotated[int, typer.Option(min=1, help="Negatives per query.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="Training queries to look at.")] = 5000,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Decides the sample and the draws.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show what a negative source draws: examples, sizes of its pools, wrong negatives, and its cost."""
    from distkg.reporting.catalogue import describe_sources
    from distkg.reporting.tables import examination_table, examples_table, text_table

    if store is None:
        rows = [(entry.name, entry.summary, entry.needs, entry.options) for entry in describe_sources()]
        show_table(text_table(["source", "", "needs", "options"], rows))
        return
    from distkg.config import parse_mapping
    from distkg.data.store.graph_store import Store
    from distkg.negatives.source_report import examine

    chosen, graph, model = parse_mapping(options, "--options"), Store.open(store), None
    if run is not None:
        from distkg.embedding.load_run import view_of_run

        model = view_of_run(run, graph)
    found = examine(graph, source, chosen, sample=sample, count=count, show=show, seed=seed, model=model)
    if as_json:
        say_json(asdict(found))
        return
    show_table(examples_table(found))
    show_table(examination_table(found))


@app.command(name="relation-text", epilog="Example: distkg relation-text stores/umls")
def relation_text(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store made by `distkg prepare`.")],
    descriptions: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            help="TSV file without a header: label of a relation, what it says, and what its inverse says.",
        ),
    ] = None,
) -> None:
    """Make vectors of what relations are called, which SEMMA reads."""
    from distkg.data.store.graph_store import Store
    from distkg.data.store.relation_text import make_relation_text, read_descriptions, wordllama_encoder

    told = None if descriptions is None else read_descriptions(descriptions)
    say(make_relation_text(Store.open(store), wordllama_encoder(), told))


def _shares(text: str) -> tuple[float, float, float]:
    parts = text.split(",")
    try:
        train, valid, test = map(float, parts)
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be three shares such as 0.9,0.05,0.05", param_hint="--split") from None
    return train, valid, test


def _print_store(report: PrepareReport) -> None:
    from distkg.reporting.quantities import duration
    from distkg.reporting.tables import counts_table

    if report.beside is not None:
        _print_store(report.beside)
    rows = [("entities", report.entities), ("relations", report.relations), *report.triples.items()]
    show_table(counts_table(rows, f"{redact_address(report.store)} ({duration(report.seconds)})"))
    print_remarks(report)
    if report.rejects:
        say(f"rejected lines: {redact_address(report.rejects)}", err=True)
