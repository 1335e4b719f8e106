"""Notebook 03 runs on the study beside it; an assertion that fails would stop it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from paper_figures.records import load_study

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "03_reading_a_study.py"
STUDY = ROOT / "notebooks" / "study"

spec = importlib.util.spec_from_file_location("records_of", ROOT / "notebooks" / "records_of.py")
assert spec is not None
assert spec.loader is not None
records_of = importlib.util.module_from_spec(spec)
spec.loader.exec_module(records_of)


def test_the_notebook_runs_as_a_script(run: Callable[..., Any]) -> None:
    done = run(NOTEBOOK)
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_number_that_does_not_follow_from_the_records_stops_it(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    changed = tmp_path / "study"
    records_of.copy(STUDY, changed)
    record = next((changed / "stages").glob("eval_online_dpo_sft-0-*")) / "record.json"
    body = json.loads(record.read_text(encoding="utf-8"))
    body["metrics"]["win_rate"] += 0.01
    record.write_text(json.dumps(body), encoding="utf-8")
    done = run(NOTEBOOK, "--study", str(changed))
    assert done.returncode != 0
    assert "AssertionError" in done.stderr


def test_a_verdict_that_does_not_follow_from_its_interval_stops_it(
    tmp_path: Path, run: Callable[..., Any]
) -> None:
    changed = tmp_path / "study"
    records_of.copy(STUDY, changed)
    path = changed / "verdicts.json"
    text = path.read_text(encoding="utf-8")
    assert text.count('"outcome":"inconclusive"') > 0
    broken = text.replace('"outcome":"inconclusive"', '"outcome":"supported"', 1)
    path.write_text(broken, encoding="utf-8")
    assert "AssertionError" in run(NOTEBOOK, "--study", str(changed)).stderr


def test_a_copy_holds_what_was_measured_and_no_weights(tmp_path: Path) -> None:
    source = tmp_path / "source"
    records_of.copy(STUDY, source)
    for stage in ("dpo-0-*", "online_pairs_sft-0-*"):
        folder = next((source / "stages").glob(stage))
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "samples.parquet").write_bytes(b"not of an evaluation")
    copied = tmp_path / "copy"
    records_of.copy(source, copied)
    assert {path.suffix for path in copied.rglob("*") if path.is_file()} == {".json", ".parquet"}
    assert len(list(copied.rglob("samples.parquet"))) == len(list(STUDY.rglob("samples.parquet")))
    found, original = load_study(copied), load_study(STUDY)
    assert found.measurements == original.measurements
    assert [stage.metrics for stage in found.stages] == [s.metrics for s in original.stages]
    with pytest.raises(FileExistsError):
        records_of.copy(source, copied)
