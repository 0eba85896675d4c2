"""Command about graphs that grow: a trained run goes on with new facts, entities and relations."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from distkg.cli.app import LARGEST_SEED, RunArgument, SetOption, StoreOption, app, folder_address, say
from distkg.cli.graphs import (
    ColumnsOption,
    DelimiterOption,
    EncodingOption,
    FormatOption,
    HeaderOption,
    Literals,
    LiteralsOption,
    OnError,
    OnErrorOption,
    TestOption,
    ValidOption,
    print_store,
)


class FirstRows(StrEnum):
    neighbours = "neighbours"
    random = "random"


@app.command(
    epilog="Example: distkg extend runs/wn18rr new.tsv --store stores/grown --to runs/grown --set train.epochs=10 && "
    "distkg train runs/grown/config.yaml --run runs/grown --resume"
)
def extend(
    run: RunArgument,
    new_facts: Annotated[
        str,
        typer.Argument(
            metavar="NEW_FACTS",
            help="A file of new training facts, or a folder with files train, valid or test of new facts, in any "
            "format that `distkg prepare` reads.",
        ),
    ],
    store: StoreOption,
    to: Annotated[
        str,
        typer.Option(
            parser=folder_address,
            metavar="NEW_RUN",
            help="New run folder, or its address (s3://…), which `distkg train` continues.",
        ),
    ],
    first_rows: Annotated[
        FirstRows,
        typer.Option(
            help="First rows of new entities: made from the rows of their neighbours, or random as in a new run."
        ),
    ] = FirstRows.neighbours,
    changes: SetOption = None,
    old_store: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Address of the store of RUN, if it has moved.")
    ] = "",
    format: FormatOption = "auto",
    valid: ValidOption = None,
    test: TestOption = None,
    on_error: OnErrorOption = OnError.fail,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Random seed of the order of new ids.")] = 0,
    columns: ColumnsOption = None,
    header: HeaderOption = None,
    delimiter: DelimiterOption = None,
    encoding: EncodingOption = None,
    literals: LiteralsOption = Literals.keep,
) -> None:
    """Add facts to the graph of a trained run: a new store with the old ids, and a new run that starts with the old
    rows; docs/growing-graphs.md."""
    from distkg.data.extend import extend_store
    from distkg.data.readers.sources import read_options
    from distkg.data.storage.location import address_within
    from distkg.data.storage.working_copy import folder_at
    from distkg.redaction import redact_address
    from distkg.reporting.stages import show_stages
    from distkg.training.extend import extend_run

    with show_stages() as progress, folder_at(run) as old:
        report, grown = extend_run(
            old,
            to,
            lambda base: extend_store(
                base,
                new_facts,
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
                seed=seed,
                progress=progress,
            ),
            store,
            first_rows=first_rows.value,
            changes=changes or [],
            old_store=old_store,
        )
    print_store(report)
    say(
        f"new: {grown.entities:,} entities ({grown.from_neighbours:,} with rows from their neighbours), "
        f"{grown.relations:,} relations"
    )
    place = redact_address(to, options=True)
    config = address_within(place, "config.yaml")
    say(f"run: {grown.run}; train it with: distkg train {config} --run {place} --resume")
