"""Commands about graphs: read, generate or split a graph, and show the negatives drawn from it."""

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
    folder_address,
    print_remarks,
    say,
    say_json,
    show_table,
)
from distkg.redaction import redact_address

if TYPE_CHECKING:
    from distkg.data.prepare import PrepareReport


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


FormatOption = Annotated[
    str,
    typer.Option(
        metavar="[auto|tsv|parquet|nt|nq|ttl|trig|rdf|n3|jsonld]",
        help="Format of the files, or that of an installed plug-in; auto decides by the file extension. tsv is any "
        "delimited text, rdf is RDF/XML.",
    ),
]
ValidOption = Annotated[str | None, typer.Option(help="File of the validation triples.")]
TestOption = Annotated[str | None, typer.Option(help="File of the test triples.")]
OnErrorOption = Annotated[OnError, typer.Option(help="Stop at a bad line, or skip it and write it to rejects.tsv.")]
ColumnsOption = Annotated[
    str | None,
    typer.Option(
        metavar="HEAD,RELATION,TAIL",
        help="Columns of head, relation and tail in tables, by name or by number (from 1), such as "
        "subject,predicate,object or 2,3,4. Default: the columns that the header names, else the only three.",
    ),
]
HeaderOption = Annotated[
    bool | None,
    typer.Option(
        "--header/--no-header",
        show_default=False,
        help="Whether the first line of delimited text names the columns. Default: yes if it has known names.",
    ),
]
DelimiterOption = Annotated[
    str | None,
    typer.Option(
        help="Delimiter of text files: one character, or tab, comma, semicolon, pipe, space. Default: the one "
        "with which most lines have the same number of columns."
    ),
]
EncodingOption = Annotated[
    str | None,
    typer.Option(
        help="Encoding of text files, such as latin-1 or cp1252. Default: UTF-8, or that of a byte order mark."
    ),
]
LiteralsOption = Annotated[
    Literals, typer.Option(help="RDF facts whose object is a literal: keep them, or drop and count them.")
]


@app.command(epilog="Example: distkg prepare data/wn18rr --store stores/wn18rr")
def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A file of triples, or a folder with files train, valid and test: .tsv, .csv, .txt, .parquet, .nt, "
            ".nq, .ttl, .trig, .rdf, .owl, .xml, .n3, .jsonld; text also with .gz, .bz2, .xz, .zst, .lz4. A folder "
            "with inference.* as well gives two graphs and two stores.",
        ),
    ],
    store: StoreOption,
    format: FormatOption = "auto",
    valid: ValidOption = None,
    test: TestOption = None,
    split: Annotated[
        str, typer.Option(help="Shares of train, valid and test triples if SOURCE is one file.")
    ] = "0.9,0.05,0.05",
    partitions: Annotated[
        int, typer.Option(min=1, help="Number of partitions, which are contiguous ranges of entity ids.")
    ] = 1,
    partitioner: Annotated[
        Partitioner, typer.Option(help="Assignment of entities to partitions: random, or metis for fewer cut edges.")
    ] = Partitioner.random,
    on_error: OnErrorOption = OnError.fail,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the entity order and the split.")
    ] = 0,
    columns: ColumnsOption = None,
    header: HeaderOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    literals: LiteralsOption = Literals.keep,
) -> None:
    """Read a graph (delimited text, Parquet or RDF) into a store; docs/data.md has formats and warnings."""
    from distkg.data import prepare as ingest
    from distkg.data.readers.sources import read_options
    from distkg.reporting.stages import show_stages

    with show_stages() as progress:
        report = ingest.prepare(
            source,
            store,
            read_options(
                format=format,
                on_error=on_error.value,
                columns=columns,
                header=header,
                delimiter=delimiter,
                encoding=encoding,
                literals=literals.value,
            ),
            valid=valid,
            test=test,
            split=_shares(split),
            partitions=partitions,
            partitioner=partitioner.value,
            seed=seed,
            progress=progress,
        )
    print_store(report)


@app.command(
    epilog="Example: distkg generate --store stores/toy --entities 10000 --relations 12 --triples 60000 --seed 1"
)
def generate(
    store: StoreOption,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed; equal seeds give equal graphs.")],
    entities: Annotated[
        int | None, typer.Option(min=1, help="Number of entities; with --rules the default is drawn.")
    ] = None,
    relations: Annotated[
        int | None, typer.Option(min=1, help="Number of relations; with --rules the default is drawn.")
    ] = None,
    triples: Annotated[
        int | None,
        typer.Option(min=1, help="Number of triples; with --rules about as many, and the default is drawn."),
    ] = None,
    rules: Annotated[
        bool,
        typer.Option(
            "--rules",
            help="Let the seed draw everything: sizes, shapes and degrees of relations, a taxonomy, the logical rules, "
            "exceptions to them, and noise. Held-out facts follow from training facts by one rule.",
        ),
    ] = False,
    partitions: Annotated[
        int, typer.Option(min=1, help="Number of partitions, which are contiguous ranges of entity ids.")
    ] = 1,
) -> None:
    """Generate a graph with known logical rules and skewed degrees."""
    if rules:
        from distkg.data.rules.rule_store import generate_rules

        sizes = {"entities": entities, "relations": relations, "triples": triples}
        made, in_words = generate_rules(store, seed=seed, partitions=partitions, **sizes)
        print_store(made)
        for rule in in_words:
            say(rule)
        return
    from distkg.data import generate as synthetic

    if entities is None or relations is None or triples is None:
        missing = {"--entities": entities, "--relations": relations, "--triples": triples}
        raise typer.BadParameter(
            "give a number, or --rules, with which the seed draws the sizes",
            param_hint=", ".join(name for name, number in missing.items() if number is None),
        )
    print_store(
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
    to: Annotated[str, typer.Option(help="New folder or address for the two stores, named training and inference.")],
    kind: Annotated[Kind, typer.Option(help="What the two stores must not share.")],
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed; equal seeds give equal stores.")],
    share: Annotated[float, typer.Option(help="Share of the entities for training.")] = 0.5,
    split: Annotated[str, typer.Option(help="Shares of train, valid and test triples in each store.")] = "0.8,0.1,0.1",
) -> None:
    """Split a graph into two: one for training and one for inference, with other entities and optionally other
    relations."""
    from distkg.data.splits.inductive_split import inductive_split as split_in_two

    stores = split_in_two(store, to, kind=kind.value, seed=seed, share=share, split=_shares(split))
    for report, connected in zip((stores.training, stores.inference), stores.connected, strict=True):
        print_store(report)
        say(f"entities in the largest connected part: {connected:.1%}")
    say(f"in both: {stores.shared_entities:,} entities, {stores.shared_relations:,} relations")
    say(f"in neither: {stores.left_out:,} facts")
    if stores.carried:
        say(f"copied to both stores: {', '.join(stores.carried)}")


@app.command(epilog="Example: distkg negatives stores/fb15k237 --source relational --show 5")
def negatives(
    store: Annotated[
        str | None,
        typer.Argument(metavar="STORE", help="Store made by `distkg prepare`; without it, list the sources."),
    ] = None,
    source: Annotated[str, typer.Option(help="Name of the negative source, as in negatives.source.")] = "uniform",
    options: Annotated[str, typer.Option(help="Options of the source as YAML, such as '{integrate: true}'.")] = "{}",
    run: Annotated[
        str | None,
        typer.Option(
            parser=folder_address,
            help="Run of a model trained on the same store, for sources that use its vectors: its folder, or its "
            "address (s3://…).",
        ),
    ] = None,
    show: Annotated[int, typer.Option(min=0, help="Number of example queries to show with their negatives.")] = 5,
    count: Annotated[int, typer.Option(min=1, help="Number of negatives per query.")] = 10,
    sample: Annotated[int, typer.Option(min=1, help="Number of training queries in the sample.")] = 5000,
    seed: Annotated[
        int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the sample and of the negatives.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show the negatives of a source: examples, pool sizes, false negatives, and cost."""
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
        from distkg.data.storage.working_copy import folder_at
        from distkg.embedding.load_run import view_of_run

        with folder_at(run) as folder:
            model = view_of_run(folder, graph)
    statistics = examine(graph, source, chosen, sample=sample, count=count, show=show, seed=seed, model=model)
    if as_json:
        say_json(asdict(statistics))
        return
    show_table(examples_table(statistics))
    show_table(examination_table(statistics))


@app.command(name="relation-text", epilog="Example: distkg relation-text stores/umls")
def relation_text(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store made by `distkg prepare`.")],
    descriptions: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            help="TSV file without a header: label of a relation, its description, and the description of its inverse.",
        ),
    ] = None,
) -> None:
    """Make text vectors of relations from their labels or descriptions, for SEMMA."""
    from distkg.data.store.graph_store import Store
    from distkg.data.store.relation_text import make_relation_text, read_descriptions, wordllama_encoder

    texts = None if descriptions is None else read_descriptions(descriptions)
    say(make_relation_text(Store.open(store), wordllama_encoder(), texts))


def _shares(text: str) -> tuple[float, float, float]:
    parts = text.split(",")
    try:
        train, valid, test = map(float, parts)
    except ValueError:
        raise typer.BadParameter(f"{text!r} must be three shares such as 0.9,0.05,0.05", param_hint="--split") from None
    return train, valid, test


def print_store(report: PrepareReport) -> None:
    from distkg.reporting.quantities import duration
    from distkg.reporting.tables import counts_table

    if report.training_graph is not None:
        print_store(report.training_graph)
    rows = [("entities", report.entities), ("relations", report.relations), *report.triples.items()]
    show_table(counts_table(rows, f"{redact_address(report.store)} ({duration(report.seconds)})"))
    print_remarks(report)
    if report.rejects:
        say(f"rejected lines: {redact_address(report.rejects)}", err=True)
