"""`python -m llm`: data | train | sample | judge | study | status | compare."""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated

import tyro

from llm.commands.compare import Compare
from llm.commands.data import Data
from llm.commands.judge import Judge
from llm.commands.sample import Sample
from llm.commands.status import Status
from llm.commands.study import Study
from llm.commands.train import Train
from llm.errors import InputError

Command = (
    Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Status, tyro.conf.subcommand("status")]
    | Annotated[Data, tyro.conf.subcommand("data")]
    | Annotated[Sample, tyro.conf.subcommand("sample")]
    | Annotated[Judge, tyro.conf.subcommand("judge")]
)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
BAD_PATHS = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; its exit code is the verdict, 2 means that the input was wrong.

    1 where what is asked from outside failed: the judge's endpoint, vLLM, a full disk.
    """
    command = tyro.cli(Command, prog="python -m llm", args=arguments)  # pyright: ignore
    try:
        return command.run()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # of `| head`: nothing more is asked for
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not _from_outside(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        if error.errno in BAD_PATHS:
            print(f"error: {error.strerror}{where}", file=sys.stderr)
            return 2
        if error.errno not in FULL:
            raise
        print(f"error: {error.strerror}{where}; run again when there is room", file=sys.stderr)
        return 1


def _from_outside(error: RuntimeError) -> bool:
    """Whether the judge's endpoint or vLLM failed, and not this program."""
    from llm.judge import EndpointError
    from llm.sampling.vllm_process import SamplerError

    return isinstance(error, EndpointError | SamplerError)


if __name__ == "__main__":
    sys.exit(main())
