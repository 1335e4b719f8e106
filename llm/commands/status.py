"""`python -m llm status`: what of a study is done, running, failed and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Status:
    """List the stages of a study folder: done, running, failed and why, died, waiting for what.

    A stage that died was begun by a process that is gone: run the study again, and it goes on.

    Example: python -m llm status out/study
    """

    study: Annotated[Path, tyro.conf.Positional]
    """A folder made by `python -m llm study`."""
    json: bool = False
    """Print it as JSON."""

    def run(self) -> int:
        """Exit code: 0 if nothing failed or died, 1 if something did, 2 for no study."""
        from llm.records import read_object
        from llm.running.state import states

        found = states(self.study)
        if self.json:
            print(json.dumps([asdict(stage) for stage in found], indent=1))
        else:
            from llm.study.plan_text import judge_words, print_states

            print_states(self.study, found)
            written = self.study / "study.json"
            bill = read_object(written).get("judge") if written.is_file() else None
            if bill is not None:
                print(f"judge: {judge_words(bill)}")
        return 1 if any(stage.state in ("failed", "died") for stage in found) else 0
