"""What several commands of the command line have in common: types of options, and the options themselves."""

from __future__ import annotations

import math
from pathlib import Path

import click

SEED = click.IntRange(0, 2**64 - 1)  # of a world; draws tell no more of them apart


class FilesCommand(click.Command):
    """A command over files, whose options that may be given several times take all the files that follow them.

    So `--history a.csv b.csv` reads as a shell's wildcard leaves it. That holds after the first argument alone: before it
    nobody could tell which of the files are the command's own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        several = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        single = {name for option in self.params for name in option.opts} - several
        parsed: list[str] = []
        option, values, own = "", 0, 0
        for arg in args:
            if arg.startswith("-"):
                option, values = arg, 0
            elif option in several and (values == 0 or own):
                parsed += [option] * (values > 0)
                values += 1
            elif option in single and values == 0:
                values += 1
            else:
                own += 1
            parsed.append(arg)
        return super().parse_args(ctx, parsed)


def finite(_context: click.Context, _option: click.Parameter, number: float) -> float:
    if not math.isfinite(number):
        raise click.BadParameter(f"{number} is no number to count with")
    return number


def finite_or_none(context: click.Context, option: click.Parameter, number: float | None) -> float | None:
    return None if number is None else finite(context, option, number)


REPORT = click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Write the results to this file as JSON."
)
WORKERS = click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=2,
    show_default=True,
    help="Processes that share the work; they change nothing of the results.",
)
