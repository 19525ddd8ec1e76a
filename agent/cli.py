"""The command line. Each command imports what it needs when it runs, so that the small ones answer at once."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from agent.evaluation.commands import evaluate
from agent.options import REPORT, SEED, FilesCommand, finite, finite_or_none
from models.domain import AnswerKind, AnswerRefused, GridmedicError, Rating

_CONFIG = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The configuration; without it ./config.yaml.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="gridmedic")
def commands() -> None:
    """Watch the data transfers of a grid, say what is wrong and who is to blame, and help."""


def main() -> None:
    """Run the command line. What is wrong is one clear message: exit status 1 if an answer is refused, else 2."""
    # Modules are here to stay. Searching them for garbage while they load, and again at the end, takes a small command
    # a third of its time.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    try:
        commands.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except AnswerRefused as error:
        click.echo(f"Refused: {error}", err=True)
        sys.exit(1)
    except BrokenPipeError:  # whoever reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (GridmedicError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _operator(_context: click.Context, _option: click.Parameter, name: str | None) -> str | None:
    from agent.config import operator_name

    try:
        return None if name is None else operator_name(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


_AS = click.option("--as", "by", callback=_operator, help="Your name; without it desk.console.operator.")
_PROPOSAL = click.argument("decision", metavar="PROPOSAL")
commands.add_command(evaluate)


@commands.command()
@_CONFIG
@click.option("--once", is_flag=True, help="Make passes until nothing more is to be read, then end.")
def run(config_path: Path | None, *, once: bool) -> None:
    """Watch, decide and act: the daemon.

    It ends on SIGTERM and on Ctrl-C, after the pass that is under way.
    """
    if not once:
        _stop_when_asked()
    loaded = _load(config_path)
    from agent import service

    sys.exit(service.run(loaded, config_path, once=once))


@commands.command()
@_CONFIG
def demo(config_path: Path | None) -> None:
    """Simulated grid and daemon together, as `make run` does."""
    loaded = _load(config_path)
    from agent import service

    sys.exit(service.demo(loaded, config_path))


@commands.command()
@_CONFIG
@click.option("--speed", type=click.FloatRange(0.1, 3600), default=60.0, show_default=True, help="Times real time.")
@click.option("--seed", type=SEED, help="The same seed, the same troubles; without it the scenario's.")
def grid(config_path: Path | None, *, speed: float, seed: int | None) -> None:
    """Serve the simulated grid at the address grid.url.

    That must be a loopback address. The grid's state and a journal of every call it received are kept on disk.
    """
    loaded = _load(config_path)
    from agent import service

    service.grid(loaded, speed=speed, seed=seed)


@commands.command()
@_CONFIG
@click.argument("incident", metavar="[INCIDENT]", required=False)
@click.option("--all", "everything", is_flag=True, help="Closed ones, too.")
def incidents(config_path: Path | None, incident: str | None, *, everything: bool) -> None:
    """What is wrong now.

    With an INCIDENT everything about that one.
    """
    from agent.desk.terminal import incident_table, incident_text
    from models.domain import IncidentStatus
    from storage.ledger import Ledger

    ledger = Ledger.open(_load(config_path).ledger_url)
    with ledger.begin(write=False) as tx:
        if incident is not None:
            text = incident_text(tx.incident(incident))
        else:
            found = tx.incidents(status=None if everything else IncidentStatus.OPEN, limit=200)
            text = incident_table(found) or ("no incident is known" if everything else "no incident is open")
    click.echo(text)


@commands.command()
@_CONFIG
@click.argument("decision", metavar="[PROPOSAL]", required=False)
def proposals(config_path: Path | None, decision: str | None) -> None:
    """What is proposed, and what became of it.

    With a PROPOSAL everything about that one.
    """
    from agent.desk.terminal import proposal_table, proposal_text
    from storage.ledger import Ledger

    ledger = Ledger.open(_load(config_path).ledger_url)
    with ledger.begin(write=False) as tx:
        text = proposal_text(tx.proposal(decision)) if decision else proposal_table(tx.proposals(50))
    click.echo(text)


@commands.command()
@_CONFIG
@click.argument("event")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def explain(config_path: Path | None, event: str, *, as_json: bool) -> None:
    """Why a transfer was flagged or not, in numbers.

    EVENT is the request id of a transfer that the ledger keeps, or one event as JSON: a file, or - for standard input. An event is judged
    as if it came next, and nothing is learned from it.
    """
    from agent import explain as judging
    from agent.desk.explained import explanation_text

    loaded = _load(config_path)
    path = None if event == "-" else Path(event)
    if path is not None and not path.is_file():
        told = judging.of_request(loaded, event)
    else:
        text = judging.read(path)
        told = judging.of_document(loaded, text, name=event, now=_now(loaded))
    click.echo(told.as_json() if as_json else explanation_text(told))


@commands.command()
@_CONFIG
@_AS
@_PROPOSAL
@click.argument("remedy", required=False)
def approve(config_path: Path | None, by: str | None, decision: str, remedy: str | None) -> None:
    """Have a remedy of a PROPOSAL carried out.

    The recommended one, or the REMEDY that you name.
    """
    click.echo(_answer(config_path, by, AnswerKind.APPROVE, decision, remedy=remedy))


@commands.command()
@_CONFIG
@_AS
@_PROPOSAL
def reject(config_path: Path | None, by: str | None, decision: str) -> None:
    """Have nothing of a PROPOSAL carried out."""
    click.echo(_answer(config_path, by, AnswerKind.REJECT, decision))


@commands.command()
@_CONFIG
@_AS
@_PROPOSAL
@click.argument("rating", type=click.Choice([str(rating) for rating in Rating]))
@click.argument("remedy", required=False)
def rate(config_path: Path | None, by: str | None, decision: str, rating: str, remedy: str | None) -> None:
    """Say what you think of a remedy of a PROPOSAL.

    Of the recommended one, or of the REMEDY that you name. gridmedic learns from it.
    """
    click.echo(_answer(config_path, by, AnswerKind.RATE, decision, remedy=remedy, rating=Rating(rating)))


@commands.command()
@_CONFIG
@_AS
def pause(config_path: Path | None, by: str | None) -> None:
    """Let nothing be carried out for a while.

    Detection and proposals go on; `gridmedic resume` ends it.
    """
    click.echo(_pause(config_path, by, paused=True))


@commands.command()
@_CONFIG
@_AS
def resume(config_path: Path | None, by: str | None) -> None:
    """End a pause."""
    click.echo(_pause(config_path, by, paused=False))


@commands.command(cls=FilesCommand)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False), help="Write each forecast to this CSV.")
@REPORT
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, not as a table.")
@click.option(
    "--measurements", multiple=True, type=click.Path(path_type=Path), help="perfSONAR readings that go with them."
)
@click.option(
    "--site-map", type=click.Path(path_type=Path, dir_okay=False), help="perfSONAR's sites and those of RSEs."
)
@click.option(
    "--model", type=click.Path(path_type=Path, file_okay=False), help="A trained forecaster; else the shipped one."
)
def replay(
    files: tuple[Path, ...],
    predictions: Path | None,
    report: Path | None,
    as_json: bool,  # noqa: FBT001 - click passes options by name
    measurements: tuple[Path, ...],
    site_map: Path | None,
    model: Path | None,
) -> None:
    """The same path over recorded events, acting on nothing.

    FILES hold transfer events: .csv or .jsonl, also gzipped (.csv.gz, .jsonl.gz), or .parquet; a directory stands for all such
    files in it. They are read as fast as the
    machine allows, into a ledger that is thrown away; no configuration is needed.
    """
    import json

    from agent import replay as recorded
    from agent import telemetry
    from agent.sources.files import files_of

    telemetry.configure("error", "text")  # a file that cannot be read is said once, as the error that it is
    events, readings = files_of(files), files_of(measurements)
    for out in (predictions, report):
        if out is not None:
            recorded.check_output(out, (*events, *readings))
    result = recorded.replay(events, measurements=readings, site_map=site_map, model=model, predictions=predictions)
    if report is not None:
        report.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    click.echo(json.dumps(result, allow_nan=False) if as_json else recorded.table(result))


@commands.command(cls=FilesCommand)
@click.argument("data", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--simulated-hours",
    type=click.FloatRange(min=0),
    default=0.0,
    callback=finite,
    help="Hours of the simulated grid to add.",
)
@click.option(
    "--measurements", multiple=True, type=click.Path(path_type=Path), help="perfSONAR readings that go with them."
)
@click.option(
    "--site-map", type=click.Path(path_type=Path, dir_okay=False), help="perfSONAR's sites and those of RSEs."
)
@click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path, file_okay=False),
    help="A model to go on from, or `default` for the shipped one; without it from nothing.",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="The same seed, the same model."
)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The model's directory.")
def train(
    data: tuple[Path, ...],
    simulated_hours: float,
    measurements: tuple[Path, ...],
    site_map: Path | None,
    start: Path | None,
    seed: int,
    out: Path,
) -> None:
    """Train a forecaster of your own.

    On DATA, files or directories of transfer events as `gridmedic replay` takes them, on the simulated grid, or on both. If it
    is broken off, the same command goes on from where it was.
    """
    from agent import school, telemetry
    from models.registry import default_model

    telemetry.configure("warning", "text")
    told = school.train(
        data,
        measurements=measurements,
        site_map=site_map,
        simulated_hours=simulated_hours,
        seed=seed,
        start=default_model() if start == Path("default") else start,
        out=out,
    )
    click.echo(told)


@commands.command()
@_CONFIG
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S.%f%z", "%Y-%m-%dT%H:%M:%S%z"]),
    hidden=True,
    help="The daemon's time.",
)
@click.option("--attached", is_flag=True, hidden=True, help="End with the process at the other end of standard input.")
def retrain(config_path: Path | None, at: datetime | None, *, attached: bool) -> None:
    """Train a challenger, and promote it if it is better.

    On the newest finished transfers that the daemon has seen, the way the daemon does it by itself every night. What is in service
    stays unless the challenger is better on transfers that it has not seen.
    """
    from agent import challenge, telemetry

    if attached:
        challenge.attach()
    loaded = _load(config_path)
    telemetry.configure("warning", "text")
    verdict = challenge.retrain(loaded, at=at or _now(loaded))
    click.echo(f"{f'promoted {verdict.version}' if verdict.version else verdict.what}: {verdict.why}")


@commands.group("models")
def versions() -> None:
    """Versions of the forecaster."""


@versions.command("list")
@_CONFIG
def list_versions(config_path: Path | None) -> None:
    """Which there are, which is in service and why.

    With what each has learned from and how good it was on transfers held out, and what the last retraining came to.
    """
    from agent.desk.terminal import version_table

    loaded = _load(config_path)
    click.echo(version_table(_versions(loaded), pinned=loaded.forecast.model if loaded.forecast.pinned else None))


@versions.command()
@_CONFIG
@_AS
@click.argument("version")
def promote(config_path: Path | None, by: str | None, version: str) -> None:
    """Put a VERSION into service.

    One that `gridmedic models list` shows; `shipped` is the one that came with gridmedic. A daemon takes it over with its next pass.
    """
    loaded = _load(config_path)
    _promote(loaded, version, by or loaded.desk.console.operator)


@versions.command()
@_CONFIG
@_AS
def rollback(config_path: Path | None, by: str | None) -> None:
    """Put the version before the one in service back.

    Again goes further back, to the shipped one at last.
    """
    from models.versions import called

    loaded = _load(config_path)
    name = by or loaded.desk.console.operator
    version = _versions(loaded).rollback(why=f"rolled back by {name}", at=_now(loaded))
    click.echo(f"In service: {called(version)}{_unless_pinned(loaded)}")


@versions.command()
@_CONFIG
@_AS
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--promote", "promoted", is_flag=True, help="Put it into service, too.")
def add(config_path: Path | None, by: str | None, directory: Path, *, promoted: bool) -> None:
    """Take a trained model in as a version.

    DIRECTORY is what `gridmedic train --out` has written; it is copied.
    """
    loaded = _load(config_path)
    version = _versions(loaded).add(directory, at=_now(loaded))
    click.echo(f"Added: {version}")
    if promoted:
        _promote(loaded, version, by or loaded.desk.console.operator)


@commands.command()
@click.argument("scenario", required=False)
@click.option(
    "--days",
    type=click.FloatRange(min=0, min_open=True, max=3660),
    callback=finite_or_none,
    help="Simulated days; without it as many as the scenario says.",
)
@click.option("--seed", type=SEED, help="The same seed, the same bytes; without it the scenario's.")
@click.option("--out", type=click.Path(path_type=Path), help="The directory to fill; it is made, or is empty.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=3,
    show_default=True,
    help="Processes that share the work; they change nothing of what is written.",
)
@click.option(
    "--realism",
    type=click.Path(path_type=Path, file_okay=False),
    help="Compare the simulated grid with the reference data of this directory instead.",
)
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write that comparison to this file as JSON."
)
def simulate(
    scenario: str | None,
    days: float | None,
    seed: int | None,
    out: Path | None,
    workers: int,
    realism: Path | None,
    report: Path | None,
) -> None:
    """Live through a scenario, and write all of it to files.

    SCENARIO is one of the library, or a YAML file of your own. Written are its events and measurements, its faults, and which
    transfers were hurt by which of them. Or see how real the simulated grid is, by --realism.
    """
    from agent import telemetry

    telemetry.configure("warning", "text")
    if realism is not None:
        if (scenario, days, out) != (None, None, None):
            raise click.UsageError("--realism goes with --seed and --report alone.")
        click.echo(_realism(realism, seed=1 if seed is None else seed, report=report))
        return
    if scenario is None or out is None:
        raise click.UsageError("Name a SCENARIO and a directory by --out, or the reference data by --realism.")
    if report is not None:
        raise click.UsageError("--report goes with --realism.")
    from agent import simulation
    from simulator.scenario import load

    chosen = load(scenario)
    with simulation.progress(chosen.name) as told:
        manifest = simulation.simulate(
            chosen,
            seed=chosen.seed if seed is None else seed,
            days=chosen.days if days is None else days,
            out=out,
            workers=workers,
            told=told,
        )
    click.echo(simulation.summary(manifest, out))


@commands.group()
def config() -> None:
    """The configuration."""


@config.command()
@_CONFIG
def check(config_path: Path | None) -> None:
    """Report all problems at once, by key path."""
    from agent.config import DEFAULT_PATH, checked, complaint, read

    where = config_path or DEFAULT_PATH
    content, unread = read(where)
    loaded, found = checked(content, base=where.parent, unread=unread)
    from agent import telemetry
    from agent.assembly import problems

    telemetry.configure("critical", "text")  # everything is in the report
    found += problems(loaded)
    if found:
        raise complaint(found, where=str(where))
    click.echo(f"{where} is good")


def _realism(directory: Path, *, seed: int, report: Path | None) -> str:
    from agent import realism
    from agent.replay import check_output

    if report is not None:
        check_output(report, ())
    found: Any = realism.run(directory, seed=seed, report=report, told=lambda step: click.echo(step, err=True))
    return realism.table(found)


def _stop_when_asked() -> None:
    """End with status 0 when told to stop while starting; the daemon takes over from there."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))


def _load(path: Path | None) -> Any:  # noqa: ANN401 - agent.config is imported late
    from agent.config import load

    return load(path)


def _answer(
    config_path: Path | None,
    by: str | None,
    kind: AnswerKind,
    decision_id: str,
    *,
    remedy: str | None = None,
    rating: Rating | None = None,
) -> str:
    import uuid

    from agent.desk.answers import Operators, give, option_of
    from models.domain import Answer
    from storage.ledger import Ledger

    loaded = _load(config_path)
    name = by or loaded.desk.console.operator
    ledger = Ledger.open(loaded.ledger_url)
    option = None if kind is AnswerKind.REJECT else option_of(ledger, decision_id, remedy)
    answer = Answer(
        key=f"cli:{uuid.uuid4()}", by=name, via="cli", kind=kind, decision_id=decision_id, option=option, rating=rating
    )
    return give(ledger, answer, operators=Operators.local(name))


def _versions(loaded: Any) -> Any:  # noqa: ANN401 - both are imported late
    from agent.assembly import versions as known

    return known(loaded)


def _now(loaded: Any) -> datetime:  # noqa: ANN401 - agent.config is imported late
    """The daemon's time; the wall's if the simulated grid that would tell it does not run."""
    from agent.daemon import wall_clock
    from agent.service import clock_of
    from models.domain import SourceError

    try:
        return clock_of(loaded)()
    except SourceError:
        return wall_clock()


def _promote(loaded: Any, version: str, by: str) -> None:  # noqa: ANN401 - agent.config is imported late
    from models.versions import SHIPPED

    known = _versions(loaded)
    known.promote(None if version == SHIPPED else version, why=f"promoted by {by}", at=_now(loaded))
    click.echo(f"In service: {version}{_unless_pinned(loaded)}")


def _unless_pinned(loaded: Any) -> str:  # noqa: ANN401 - as above
    """What to add where a configuration overrules the versions."""
    if not loaded.forecast.pinned:
        return ""
    return f", but the daemon uses forecast.model ({loaded.forecast.model}); write `default` there to have versions"


def _pause(config_path: Path | None, by: str | None, *, paused: bool) -> str:
    from agent.desk.answers import set_paused
    from storage.ledger import Ledger

    loaded = _load(config_path)
    return set_paused(Ledger.open(loaded.ledger_url), paused=paused, by=by or loaded.desk.console.operator)
