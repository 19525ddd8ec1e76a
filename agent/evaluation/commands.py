"""`gridmedic evaluate`. As all of the command line, each command imports what it needs when it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from agent.options import REPORT, WORKERS, FilesCommand, finite_or_none


@click.group()
def evaluate() -> None:
    """How good it is: the forecasts, the detection, the network detector, and the whole loop."""


@evaluate.command("loop")
@click.argument("scenario", default="default")
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=3660),
    callback=finite_or_none,
    help="Simulated days; without it as many as the scenario says.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=10, show_default=True, help="So many different worlds.")
@click.option(
    "--policies",
    default="none,seed,static,agent,oracle",
    show_default=True,
    help="Who looks after the grid, with commas between.",
)
@REPORT
@WORKERS
def evaluate_loop(
    scenario: str, days: float | None, seeds: int, policies: str, report: Path | None, workers: int
) -> None:
    """Let the agent and others look after simulated grids.

    SCENARIO is one of the library, or a YAML file of your own. Every policy lives through the same worlds: nobody acts (none), the
    first rule of all with one remedy (seed), the agent's detection with a fixed remedy for each kind of incident
    (static), the agent with simulated operators (agent), and one who knows the truth (oracle).
    """
    from agent import telemetry
    from agent.evaluation import report as results
    from agent.evaluation.loop import evaluate, policies_of, progress
    from agent.replay import check_output
    from simulator.scenario import load

    telemetry.configure("warning", "text")
    chosen, wanted = load(scenario), policies_of(policies)
    if report is not None:
        check_output(report, ())
    numbers = range(chosen.seed, chosen.seed + seeds)
    with progress(chosen.name, wanted, seeds) as done:
        trials = evaluate(chosen, days=days or chosen.days, seeds=numbers, policies=wanted, workers=workers, done=done)
    found = results.report(chosen.name, trials, wanted)
    _write(found, report)
    click.echo(results.table(found))


@evaluate.command("detection")
@click.argument("scenarios", nargs=-1, metavar="[SCENARIO]...")
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=3660),
    callback=finite_or_none,
    help="Simulated days; without it as many as each scenario says.",
)
@click.option("--seeds", type=click.IntRange(1, 1000), default=4, show_default=True, help="So many different worlds.")
@click.option(
    "--rules", default="agent,fixed_600s,opint,sigma3", show_default=True, help="Who looks, with commas between."
)
@REPORT
@WORKERS
def evaluate_detection(
    scenarios: tuple[str, ...], days: float | None, seeds: int, rules: str, report: Path | None, workers: int
) -> None:
    """Hold incidents against what truly was wrong.

    SCENARIO is one of the library, or a YAML file of your own; without one it is gauntlet. Several are judged together, and each. Every
    rule reads the same stream of each world: the agent, the first rule of all (fixed_600s), Operational Intelligence's (opint), and
    three standard deviations per link (sigma3).
    """
    from agent import telemetry
    from agent.evaluation import detection
    from agent.evaluation import detection_report as results
    from agent.evaluation.workers import bar
    from agent.replay import check_output
    from simulator.scenario import load

    telemetry.configure("warning", "text")
    chosen, wanted = [load(scenario) for scenario in scenarios or (detection.DEFAULT,)], detection.rules_of(rules)
    tasks = detection.tasks_of(chosen, days=days, seeds=seeds, rules=wanted)
    if report is not None:
        check_output(report, ())
    with bar(", ".join(scenario.name for scenario in chosen), sum(task.days for task in tasks)) as done:
        verdicts = detection.evaluate(tasks, workers=workers, done=done)
    found = results.report(verdicts)
    _write(found, report)
    click.echo(results.table(found))


@evaluate.command("forecast", cls=FilesCommand)
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--history", multiple=True, type=click.Path(path_type=Path), help="Earlier events, played first and not counted."
)
@click.option(
    "--train", "taught", multiple=True, type=click.Path(path_type=Path), help="Events that the rivals learn from."
)
@click.option(
    "--model", type=click.Path(path_type=Path, file_okay=False), help="A trained forecaster; else the shipped one."
)
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False), help="Write each forecast to this CSV.")
@click.option(
    "--measurements", multiple=True, type=click.Path(path_type=Path), help="perfSONAR readings that go with them."
)
@click.option(
    "--site-map", type=click.Path(path_type=Path, dir_okay=False), help="perfSONAR's sites and those of RSEs."
)
@REPORT
@click.option("--plots", type=click.Path(path_type=Path), help="Draw the results into this directory.")
def evaluate_forecast(
    data: tuple[Path, ...],
    history: tuple[Path, ...],
    taught: tuple[Path, ...],
    model: Path | None,
    predictions: Path | None,
    measurements: tuple[Path, ...],
    site_map: Path | None,
    report: Path | None,
    plots: Path | None,
) -> None:
    """Judge a forecaster on recorded transfers.

    DATA are files or directories of transfer events as `gridmedic replay` takes them. The model is compared with two baselines, and with two rivals
    that learn from --train: gradient boosting on the same features, and the first design's LSTM.
    """
    from agent import telemetry
    from agent.replay import check_output
    from agent.sources.files import files_of

    telemetry.configure("error", "text")  # a file that cannot be read is said once, as the error that it is
    counted, earlier, lessons, readings = map(files_of, (data, history, taught, measurements))
    for out in (predictions, report):
        if out is not None:
            check_output(out, (*counted, *earlier, *lessons, *readings))
    from agent.evaluation.forecast import evaluate, table

    found = evaluate(
        counted,
        history=earlier,
        train=lessons,
        measurements=readings,
        site_map=site_map,
        model=model,
        predictions=predictions,
        plots=plots,
    )
    _write(found, report)
    click.echo(table(found))


@evaluate.command("network")
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--seeds",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="So many faults of a kind for each pair.",
)
@REPORT
@click.option("--plots", type=click.Path(path_type=Path), help="Draw some of the alarms into this directory.")
def evaluate_network(data: tuple[Path, ...], seeds: int, report: Path | None, plots: Path | None) -> None:
    """Judge the network detector on recorded perfSONAR readings.

    DATA are files or directories of readings. They are played as they stand, and with faults put into them one at a time, which
    the detector and the rules that operators use today should find.
    """
    from agent import telemetry
    from agent.replay import check_output
    from agent.sources.files import files_of

    telemetry.configure("error", "text")  # a file that cannot be read is said once, as the error that it is
    files = files_of(data)
    if report is not None:
        check_output(report, files)
    from agent.evaluation.network import evaluate, table

    found = evaluate(files, seeds=seeds, plots=plots)
    _write(found, report)
    click.echo(table(found))


def _write(found: Mapping[str, Any], report: Path | None) -> None:
    if report is not None:
        report.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
