"""Copy what a study measured, without weights and tokenised data: small enough to pass on.

    python notebooks/records_of.py out/study notebooks/study

Takes every record, the samples of the evaluations and the files of the comparison. The report and
notebook 03 read the copy as they read the study itself.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

FILES = (
    "study.json", "data_card.json", "measurements.json", "verdicts.json", "hypotheses.json",
)  # fmt: skip


def copy(study: Path, to: Path) -> None:
    """Write the copy whole or not at all. Raises FileExistsError where `to` is there already."""
    if to.exists():
        raise FileExistsError(f"{to} is there already")
    partial = to.with_name(to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name in FILES:
        if (study / name).exists():
            _compact(study / name, partial / name)
    for place in json.loads((study / "study.json").read_text(encoding="utf-8"))["stages"].values():
        (partial / place).mkdir(parents=True)
        _compact(study / place / "record.json", partial / place / "record.json")
        samples = study / place / "samples.parquet"
        if samples.exists() and Path(place).name.startswith("eval_"):
            shutil.copyfile(samples, partial / place / samples.name)
    partial.rename(to)


def _compact(path: Path, to: Path) -> None:
    body = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(body, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    to.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
