"""`python -m llm compare`: the measurements of a study, or of tables, against predictions."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from llm.errors import InputError

if TYPE_CHECKING:
    from llm.results.compare import Report


@dataclass(frozen=True)
class Compare:
    """Figure by figure: prediction, measurement, verdict, hypothesis, and what would decide.

    Of a study's folder it rewrites measurements.json, verdicts.json and hypotheses.json; it trains
    and asks nothing. --table takes measurements made elsewhere, as csv or parquet, one of:
      samples: figure, arm, seed, prompt_id, sample, reference [, size, tokens, reference_tokens]
      verdicts: figure, arm, seed, prompt_id, order (ab or ba), preferred (A, B or invalid) [, size]
      scores: figure, arm, seed, prompt_id, measure, value [, size]

    Example: python -m llm compare out/study; or --table samples.csv verdicts.parquet --out out/old
    """

    study: Annotated[Path | None, tyro.conf.Positional] = None
    """A folder made by `python -m llm study`."""
    table: tuple[Path, ...] = ()
    """csv or parquet files of measurements made elsewhere, in place of a study."""
    predictions: Path | None = None
    """predictions.json from `python -m theory forecast`. Default: the shipped ones."""
    out: Path | None = None
    """With --table: a folder for the three files."""
    json: bool = False
    """Print one JSON object instead of words."""

    def run(self) -> int:
        """Exit code: 0, or 2 for bad input; a verdict against theory is a result, no failure."""
        from llm.results.compare_text import lines

        if (self.study is None) == (not self.table):
            raise InputError("compare needs either a study's folder or --table FILE [FILE ...]")
        if self.study is not None and self.out is not None:
            raise InputError("--out goes with --table; a study's files stand in its own folder")
        report = self._of_study(self.study) if self.study is not None else self._of_tables()
        if self.json:
            json.dump(report.to_json(), sys.stdout, indent=1, allow_nan=False)
            print()
        else:
            print("\n".join(lines(report)))
        return 0

    def _of_study(self, study: Path) -> Report:
        from llm.records import read_json
        from llm.results.compare import SHIPPED, check_predictions, compare_study

        predictions = self.predictions or SHIPPED
        try:
            data = read_json(study / "study.json")["data"]
            sha256 = data["task_sha256"] if data["kind"] == "task" else None
        except (KeyError, TypeError) as error:
            raise InputError(f"{study / 'study.json'}: no study: {error!r}") from error
        check_predictions(predictions, task_sha256=sha256)
        return compare_study(study, predictions)

    def _of_tables(self) -> Report:
        from llm.results.compare import SHIPPED, read_predictions, report, write
        from llm.results.external import of_tables

        predictions = read_predictions(self.predictions or SHIPPED)
        found = report(of_tables(self.table), predictions)
        if self.out is not None:
            if self.out.exists() and not self.out.is_dir():
                raise InputError(f"--out {self.out} is a file, not a folder")
            write(self.out, found)
        return found
