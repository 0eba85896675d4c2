"""Commands that train: a run, a search, the demo; and the report of runs and searches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distkg.cli.app import (
    ConfigArgument,
    SetOption,
    WorkersOption,
    app,
    file_path,
    folder_path,
    resolved,
    say,
    show_table,
)
from distkg.cli.settings import planned, show_plan

if TYPE_CHECKING:
    from distkg.search.search_folder import Trial


@app.command(
    epilog="Example: distkg train preset:complex_wn18rr --run runs/wn18rr --workers 2 --set data.store=stores/wn18rr"
)
def train(
    config: ConfigArgument,
    run: Annotated[
        Path, typer.Option(parser=folder_path, help="Run folder, for configuration, metrics, checkpoints and report.")
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
    settings = resolved(config, changes, workers)
    show_plan(replace(planned(settings), notes=()))  # workers report the precisions that they lack
    from distkg.cluster.launch import launch_training
    from distkg.reporting.report import write_report
    from distkg.reporting.tables import metrics_table

    result = launch_training(settings, run, resume=resume, accept_changes=accept_changes)
    show_table(metrics_table(result["metrics"], "Filtered ranks among all entities"))
    say(f"report: {write_report(run)}")


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
    run: Annotated[
        Path, typer.Option(parser=folder_path, help="Search folder, for trials, log, best.yaml and report.")
    ],
    trials: Annotated[
        int, typer.Option(min=1, help="Total number of trials, including those of an earlier launch.")
    ] = 20,
    max_concurrent: Annotated[
        int, typer.Option(min=1, help="Number of concurrent trials, each on train.workers workers.")
    ] = 1,
    changes: SetOption = None,
    workers: WorkersOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search in the search folder.")] = False,
) -> None:
    """Search for the configuration with the best validation MRR and write it to best.yaml."""
    settings = resolved(config, changes, workers)
    from distkg.search.space import read_space

    searched_space = read_space(space)
    show_plan(planned(settings))
    from distkg.cluster.tune import launch_search
    from distkg.reporting.search import changes_table, read_search, trial_line, write_search_report

    def ended(trial: Trial) -> None:
        say(trial_line(trial, trials, read_search(run).trials))
        write_search_report(run)

    launch_search(
        settings, searched_space, run, trials=trials, max_concurrent=max_concurrent, resume=resume, ended=ended
    )
    record = read_search(run)
    say(f"report: {write_search_report(run)}")
    if record.best is None:
        say("error: no trial has finished, so there is no best configuration; the report says why", err=True)
        raise typer.Exit(1)
    show_table(changes_table(record))
    say(f"best configuration: {run / 'best.yaml'}")


@app.command(epilog="Example: distkg report runs/wn18rr runs/wn18rr-rotate --to comparison.html")
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(
            parser=folder_path,
            metavar="RUN",
            help="Run folders that `distkg train` wrote; several are compared.",
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
    from distkg.training.provenance import check_run_store

    for run in runs:
        check_run_store(run, store)
    if len(runs) > 1:
        from distkg.reporting.comparison import write_comparison

        say(write_comparison(runs, to))
        return
    from distkg.reporting.report import write_report
    from distkg.reporting.search import is_search, write_search_report

    say((write_search_report if is_search(runs[0]) else write_report)(runs[0], to))


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
