"""`python -m llm compare`: the measurements of a study against predictions, again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Compare:
    """Recompute measurements.json and verdicts.json of a study from its records; trains nothing.

    Example: python -m llm compare out/study --predictions predictions.json
    """

    study: Annotated[Path, tyro.conf.Positional]
    """A folder made by `python -m llm study`."""
    predictions: Path | None = None
    """predictions.json from `python -m theory forecast`. Default: the shipped ones."""

    def run(self) -> int:
        """Exit code: 0, or 2 for bad input; a verdict against theory is a result, no failure."""
        from llm.compare import check_predictions, compare
        from llm.records import read_json
        from llm.study import SHIPPED, print_verdicts

        predictions = self.predictions or SHIPPED / "predictions.json"
        data = read_json(self.study / "study.json")["data"]
        sha256 = data["task_sha256"] if data["kind"] == "task" else None
        check_predictions(predictions, task_sha256=sha256)
        print_verdicts(compare(self.study, predictions))
        return 0
