"""`python -m theory`: check | solve | diagnose | sweep | task | forecast | exact | bridge."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import tyro

# Many small solves: OpenBLAS threads only spin against XLA's, at up to 60 times the cost. Read when
# numpy loads, hence before the next imports; an explicit value stands.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from theory.commands.bridge import Bridge
from theory.commands.check import Check
from theory.commands.diagnose import Diagnose
from theory.commands.exact import Exact
from theory.commands.forecast import Forecast
from theory.commands.solve import Solve
from theory.commands.sweep import Sweep
from theory.commands.task import Task
from theory.errors import InputError

Command = (
    Annotated[Check, tyro.conf.subcommand("check")]
    | Annotated[Solve, tyro.conf.subcommand("solve")]
    | Annotated[Diagnose, tyro.conf.subcommand("diagnose")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Task, tyro.conf.subcommand("task")]
    | Annotated[Forecast, tyro.conf.subcommand("forecast")]
    | Annotated[Exact, tyro.conf.subcommand("exact")]
    | Annotated[Bridge, tyro.conf.subcommand("bridge")]
)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; its exit code is the verdict, 2 means that the input was wrong.

    130: interrupted from the keyboard. 1 also where an output could not be written after all.
    """
    try:
        # Options check themselves as they are built, hence inside.
        command = tyro.cli(Command, prog="python -m theory", args=arguments)  # pyright: ignore
        return command.run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of the output has gone: nobody to tell
        sys.stdout = None
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'an output'}: {error.strerror}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
