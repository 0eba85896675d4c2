"""Commands about configurations: list presets, print a configuration, and plan a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from distkg.cli.app import (
    ConfigArgument,
    JsonOption,
    OptionalConfigArgument,
    SetOption,
    WorkersOption,
    app,
    resolved,
    say,
    say_json,
    show_table,
)
from distkg.cli.streams import ascii_only

if TYPE_CHECKING:
    from distkg.config import RunConfig
    from distkg.planning.cluster import Cluster, StatedGraph
    from distkg.planning.plan import Plan


@app.command(epilog="Example: distkg plan preset:complex_wn18rr --set data.store=stores/wn18rr --workers 2")
def plan(
    config: ConfigArgument,
    changes: SetOption = None,
    workers: WorkersOption = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Plan for these machines instead of this one: a YAML file with nodes, workers_per_node, memory_gb and "
            "network_gbit, or preset:NAME. Sets train.workers.",
        ),
    ] = None,
    graph: Annotated[
        str | None,
        typer.Option(
            metavar="ENTITIES,RELATIONS,TRIPLES",
            help="Plan for a graph of these sizes (86054151,14824,304727650) instead of a store; TRIPLES are those of "
            "training.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the memory of a worker and the time of an epoch; refuse a run that cannot fit."""
    from distkg.planning.cluster import read_cluster, read_counts

    machines = None if cluster is None else read_cluster(cluster)
    if machines is not None:
        if workers is not None:
            raise typer.BadParameter("--workers and --cluster both set the number of workers: use one")
        workers = machines.workers
    counts = None if graph is None else read_counts(graph)
    estimate = planned(resolved(config, changes, workers), machines, counts)
    if as_json:
        say_json(estimate.to_dict())
    else:
        show_plan(estimate)


@app.command(epilog="Example: distkg presets --scorers")
def presets(
    scorers: Annotated[bool, typer.Option("--scorers", help="List the scorers and their options instead.")] = False,
) -> None:
    """List the configurations and search spaces that come with distkg, for use as preset:NAME."""
    from distkg.reporting.catalogue import describe_clusters, describe_presets, describe_scorers, describe_spaces
    from distkg.reporting.tables import text_table

    if scorers:
        show_table(text_table(["scorer", "", "options"], [(e.name, e.summary, e.options) for e in describe_scorers()]))
    else:
        show_table(text_table(["preset", ""], [(e.name, e.summary) for e in describe_presets()]))
        show_table(text_table(["search space", ""], [(e.name, e.summary) for e in describe_spaces()]))
        show_table(text_table(["cluster", ""], [(e.name, e.summary) for e in describe_clusters()]))


@app.command(epilog="Example: distkg config preset:complex_wn18rr --set model.dim=128 > my.yaml")
def config(
    config: OptionalConfigArgument = None,
    changes: SetOption = None,
    workers: WorkersOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of configurations instead, for editors.")
    ] = False,
) -> None:
    """Print the resolved configuration as YAML, with the help of every key as a comment."""
    if schema:
        from distkg.config import json_schema

        if config is not None or changes or workers is not None:
            raise typer.BadParameter(
                "--schema is the same for all configurations: use it without CONFIG, --set and --workers"
            )
        say_json(json_schema())
        return
    if config is None:
        raise typer.BadParameter("CONFIG is missing: name a YAML file or preset:NAME; only --schema needs none")
    configuration = resolved(config, changes, workers)
    text = (
        configuration.to_yaml(help_text=True, ascii_only=True)
        if ascii_only()
        else configuration.to_yaml(help_text=True)
    )
    say(text.removesuffix("\n"))
    if configuration != configuration.redacted():
        say(
            "warning: credentials in addresses are left out. Set credentials in the environment, or with --set where "
            "the configuration is used",
            err=True,
        )


@app.command(epilog="Example: distkg warm preset:complex_wn18rr my.yaml")
def warm(
    configs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[CONFIG]...", help="YAML files or preset:NAME. Default: all presets."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Compile the kernels of configurations ahead of time, for this processor: the first run then starts as fast as
    later ones. For images of containers, and new machines."""
    from distkg.warm import warm as compile_all

    done = []
    for warmed in compile_all(configs or ()):
        done.append(warmed)
        if not as_json:
            say(f"{warmed.name}: {warmed.error or f'{warmed.seconds:.1f} s'}")
    if as_json:
        say_json([vars(warmed) for warmed in done])
    if any(warmed.error for warmed in done):
        raise typer.Exit(1)


def planned(config: RunConfig, cluster: Cluster | None = None, graph: StatedGraph | None = None) -> Plan:
    from distkg.planning.preflight import plan_run

    return plan_run(config, cluster, graph)


def show_plan(plan: Plan) -> None:
    from distkg.reporting.tables import graphs_table, plan_summary, plan_table

    if plan.graphs:
        show_table(graphs_table(plan.graphs, plan.reads))
    show_table(plan_table(plan))
    say(plan_summary(plan))
