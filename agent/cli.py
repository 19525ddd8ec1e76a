"""The command line. Each command imports what it needs when it runs, so that the small ones answer at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

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
    """Run the command line; an error of ours is one clear message and exit status 2."""
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
    except GridmedicError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


_AS = click.option("--as", "by", default=None, help="Your name; without it desk.console.operator.")


@commands.command()
@_CONFIG
@click.option("--once", is_flag=True, help="Make passes until nothing more is to be read, then end.")
def run(config_path: Path | None, *, once: bool) -> None:
    """Watch, decide and act: the daemon."""
    from agent import service

    sys.exit(service.run(_load(config_path), once=once))


@commands.command()
@_CONFIG
def demo(config_path: Path | None) -> None:
    """The simulated grid in a process of its own, and the daemon that watches it."""
    from agent import service

    sys.exit(service.demo(_load(config_path), config_path))


@commands.command()
@_CONFIG
@click.option("--speed", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Times real time.")
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed, the same troubles.")
def grid(config_path: Path | None, *, speed: float, seed: int) -> None:
    """Serve the simulated grid on the loopback address, with its state and a journal of every call on disk."""
    from agent import service

    service.grid(_load(config_path), speed=speed, seed=seed)


@commands.command()
@_CONFIG
@click.option("--all", "everything", is_flag=True, help="Closed ones, too.")
def incidents(config_path: Path | None, *, everything: bool) -> None:
    """What is wrong now."""
    from agent.desk.terminal import incident_table
    from models.domain import IncidentStatus
    from storage.ledger import Ledger

    ledger = Ledger.open(_load(config_path).ledger_url)
    with ledger.begin(write=False) as tx:
        found = tx.incidents(status=None if everything else IncidentStatus.OPEN, limit=200)
    click.echo(incident_table(found))


@commands.command()
@_CONFIG
@click.argument("decision", required=False)
def proposals(config_path: Path | None, decision: str | None) -> None:
    """Proposed remedies; with a DECISION everything about that one."""
    from agent.desk.terminal import proposal_table, proposal_text
    from storage.ledger import Ledger

    ledger = Ledger.open(_load(config_path).ledger_url)
    with ledger.begin(write=False) as tx:
        text = proposal_text(tx.proposal(decision)) if decision else proposal_table(tx.proposals(50))
    click.echo(text)


@commands.command()
@_CONFIG
@_AS
@click.argument("decision")
@click.argument("remedy", required=False)
def approve(config_path: Path | None, by: str | None, decision: str, remedy: str | None) -> None:
    """Approve the recommended REMEDY of a DECISION, or the one that you name."""
    click.echo(_answer(config_path, by, AnswerKind.APPROVE, decision, remedy=remedy))


@commands.command()
@_CONFIG
@_AS
@click.argument("decision")
def reject(config_path: Path | None, by: str | None, decision: str) -> None:
    """Do nothing of what a DECISION proposes."""
    click.echo(_answer(config_path, by, AnswerKind.REJECT, decision))


@commands.command()
@_CONFIG
@_AS
@click.argument("decision")
@click.argument("rating", type=click.Choice([str(rating) for rating in Rating]))
@click.argument("remedy", required=False)
def rate(config_path: Path | None, by: str | None, decision: str, rating: str, remedy: str | None) -> None:
    """Say what you think of a REMEDY (without one: of the recommended): gridmedic learns from it."""
    click.echo(_answer(config_path, by, AnswerKind.RATE, decision, remedy=remedy, rating=Rating(rating)))


@commands.command()
@_CONFIG
@_AS
def pause(config_path: Path | None, by: str | None) -> None:
    """Let nothing be carried out until `resume`; detection and proposals go on."""
    click.echo(_pause(config_path, by, paused=True))


@commands.command()
@_CONFIG
@_AS
def resume(config_path: Path | None, by: str | None) -> None:
    """End a pause."""
    click.echo(_pause(config_path, by, paused=False))


@commands.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--predictions", type=click.Path(path_type=Path, dir_okay=False), help="Write a CSV of every forecast.")
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the results as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON alone.")
@click.option(
    "--measurements", multiple=True, type=click.Path(path_type=Path), help="perfSONAR readings to go with it."
)
@click.option("--site-map", type=click.Path(path_type=Path, dir_okay=False), help="perfSONAR sites to sites of RSEs.")
@click.option(
    "--model", type=click.Path(path_type=Path, file_okay=False), help="A trained model; else the shipped one."
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
    """The same path over recorded events, as fast as the machine allows, acting on nothing."""
    import json

    from agent import replay as recorded
    from agent import telemetry

    telemetry.configure("warning", "text")
    result = recorded.replay(files, measurements=measurements, site_map=site_map, model=model, predictions=predictions)
    if report is not None:
        report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps(result) if as_json else recorded.table(result))


@commands.command()
@click.argument("data", nargs=-1, type=click.Path(path_type=Path))
@click.option(
    "--simulated-hours", type=click.FloatRange(min=0), default=0.0, help="Hours of the simulated grid to add."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="The model's directory.")
def train(data: tuple[Path, ...], simulated_hours: float, seed: int, out: Path) -> None:
    """Train a forecaster on recorded DATA and on the simulated grid."""
    from agent import school, telemetry

    telemetry.configure("warning", "text")
    click.echo(school.train(data, simulated_hours=simulated_hours, seed=seed, out=out))


@commands.group()
def config() -> None:
    """The configuration."""


@config.command()
@_CONFIG
def check(config_path: Path | None) -> None:
    """Report every problem of the configuration at once, by key path."""
    from agent.assembly import catalog_of

    catalog_of(_load(config_path))
    click.echo(f"{config_path or 'config.yaml'} is good")


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


def _pause(config_path: Path | None, by: str | None, *, paused: bool) -> str:
    from agent.desk.answers import set_paused
    from storage.ledger import Ledger

    loaded = _load(config_path)
    return set_paused(Ledger.open(loaded.ledger_url), paused=paused, by=by or loaded.desk.console.operator)
