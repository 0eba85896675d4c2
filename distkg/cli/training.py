"""Commands that train: a run, a search, the demo; and the report of runs and searches."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distkg.cli.app import (
    ConfigArgument,
    SetOption,
    WorkersOption,
    app,
    file_path,
    folder_address,
    folder_path,
    resolved,
    say,
    show_table,
)
from distkg.cli.settings import planned, show_plan

if TYPE_CHECKING:
    from distkg.search.trials import Trial


class SearchCost(StrEnum):
    seconds = "seconds"
    memory = "memory"


@app.command(
    epilog="Example: distkg train preset:complex_wn18rr --run runs/wn18rr --workers 2 --set data.store=stores/wn18rr"
)
def train(
    config: ConfigArgument,
    run: Annotated[
        str,
        typer.Option(
            parser=folder_address,
            help="Run folder, or its address (s3://…), for configuration, metrics, checkpoints and report.",
        ),
    ],
    changes: SetOption = None,
    workers: WorkersOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the newest checkpoint in the run folder.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option(
            "--accept-changes",
            help="With --resume: continue although settings of the course of training (seed, batch size, objective, "
            "negatives, learning rates, …) differ from those before. The result and the report list these changes.",
        ),
    ] = False,
) -> None:
    """Train a model, evaluate it on the test split and write a report."""
    if accept_changes and not resume:
        raise typer.BadParameter("--accept-changes belongs to --resume: a new run has nothing to change")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before torch is imported: the run may be in this process
    settings = resolved(config, changes, workers)
    show_plan(replace(planned(settings), notes=()))  # workers report the precisions that they lack
    from distkg.cluster.launch import launch_training
    from distkg.data.storage.working_copy import folder_at, shown
    from distkg.reporting.report import write_report
    from distkg.reporting.run_record import metrics_by_split
    from distkg.reporting.tables import metrics_table

    result = launch_training(settings, run, resume=resume, accept_changes=accept_changes)
    show_table(metrics_table(metrics_by_split(result), "Filtered ranks among all entities"))
    with folder_at(run) as folder:
        say(f"report: {shown(write_report(folder))}")


@app.command(
    epilog="Example: distkg tune preset:complex_wn18rr --space space.yaml --run searches/wn18rr --trials 64 --rungs 3"
)
def tune(
    config: ConfigArgument,
    run: Annotated[
        str,
        typer.Option(
            parser=folder_address, help="Search folder, or its address (s3://…), for trials, log, best.yaml and report."
        ),
    ],
    space: Annotated[
        str | None,
        typer.Option(
            metavar="SPACE",
            help="YAML file of keys to vary (optimizer.learning_rate: {log_uniform: [1e-4, 1]}), or preset:NAME; "
            "default: the space that comes with distkg for model.name.",
        ),
    ] = None,
    trials: Annotated[
        int,
        typer.Option(
            min=1, help="Total number of trials, including those of an earlier launch; with --rungs, of the first rung."
        ),
    ] = 20,
    rungs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=20,
            help="Successive halving (GraSH): train on small k-cores of the graph for few epochs, and promote the best "
            "trials to larger cores, this many times. Default: whole graph, ASHA stops poor trials.",
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="RUNS",
            help="With --rungs: cost of all rungs together, in full runs of CONFIG. Default: one full run for each "
            "rung.",
        ),
    ] = None,
    against: Annotated[
        SearchCost | None,
        typer.Option(
            help="Second objective: find the trials with the best MRR for their training time, or for the peak memory "
            "of a worker. Their configurations are written to front/."
        ),
    ] = None,
    max_concurrent: Annotated[
        int, typer.Option(min=1, help="Number of concurrent trials, each on train.workers workers.")
    ] = 1,
    changes: SetOption = None,
    workers: WorkersOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in the search folder.")] = False,
) -> None:
    """Search for the configuration with the best validation MRR and write it to best.yaml."""
    settings = resolved(config, changes, workers)
    from distkg.search.method import Options
    from distkg.search.space import read_space, space_of_model

    options = Options(rungs or 0, budget, None if against is None else against.value)
    options.check(trials)
    searched_space = read_space(space or f"preset:{space_of_model(settings.model.name)}")
    show_plan(planned(settings))
    from distkg.cluster.tune import launch_search
    from distkg.data.storage.working_copy import folder_at, shown
    from distkg.reporting.search import changes_table, read_search, trial_line, write_search_report
    from distkg.reporting.search_methods import front_table

    def ended(trial: Trial) -> None:
        with folder_at(run) as folder:
            record = read_search(folder)
            say(trial_line(trial, record.method.total(trials), record.trials))
            write_search_report(folder)

    launch_search(
        settings,
        searched_space,
        run,
        trials=trials,
        max_concurrent=max_concurrent,
        options=options,
        resume=resume,
        ended=ended,
    )
    with folder_at(run) as folder:
        record = read_search(folder)
        say(f"report: {shown(write_search_report(folder))}")
        best = shown(folder / "best.yaml")
    if record.best is None:
        say("error: no trial has finished, so there is no best configuration; the report says why", err=True)
        raise typer.Exit(1)
    if record.method.against is not None:
        show_table(front_table(record.trials, record.method.against))
    show_table(changes_table(record))
    say(f"best configuration: {best}")


@app.command(epilog="Example: distkg report runs/wn18rr runs/wn18rr-rotate --to comparison.html")
def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            parser=folder_address,
            metavar="RUN",
            help="Run folders that `distkg train` wrote, or their addresses (s3://…); several are compared.",
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option(
            parser=file_path,
            metavar="FILE.html",
            help="Page to write; default: report.html in the folder of one RUN, comparison.html here for several.",
        ),
    ] = None,
    store: Annotated[
        str,
        typer.Option(
            help="Address of the store of one RUN, or of one of its stores, if its old address has another store now."
        ),
    ] = "",
) -> None:
    """Write one self-contained page about the results so far of a run or search, or a comparison of several runs."""
    if store and len(runs) > 1:
        raise typer.BadParameter("--store belongs to one RUN, but several RUNs are named; leave it out")
    from distkg.data.storage.working_copy import folder_at, shown
    from distkg.reporting.comparison import write_comparison
    from distkg.reporting.report import write_report
    from distkg.reporting.search import is_search, write_search_report
    from distkg.training.provenance import check_run_store

    with ExitStack() as opened:
        folders = [opened.enter_context(folder_at(run)) for run in runs]
        for folder in folders:
            check_run_store(folder, store)
        if len(folders) > 1:
            say(write_comparison(folders, to))
            return
        say(shown((write_search_report if is_search(folders[0]) else write_report)(folders[0], to)))


@app.command(epilog="Example: distkg demo --folder runs/demo")
def demo(
    folder: Annotated[
        Path | None,
        typer.Option(parser=folder_path, help="Folder for the graph and the run; default: a new folder in runs/."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Number of Ray Train workers on this machine.")] = 2,
) -> None:
    """Generate a small graph with known rules, train on it, and show metrics and predictions."""
    from distkg.demo import run_demo

    run_demo(folder, workers)
