"""`python -m paper_figures`: report | draw | sweep."""

from __future__ import annotations

import sys
from typing import Annotated

import tyro

from paper_figures.commands.draw import Draw
from paper_figures.commands.report import Report
from paper_figures.commands.sweep import Sweep
from paper_figures.errors import InputError

Command = (
    Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Draw, tyro.conf.subcommand("draw")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; its exit code is the verdict, 2 means that the input was wrong."""
    command = tyro.cli(Command, prog="python -m paper_figures", args=arguments)  # pyright: ignore
    try:
        return command.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
