"""The readers: what is there is read, what is wrong is named with file and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paper_figures.errors import InputError
from paper_figures.fields import Fields
from paper_figures.records import load_checks, load_folder, load_study
from paper_figures.tables import load_samples

Edit = Callable[[Path, Callable[[Any], None]], None]


def test_a_demo_folder_is_read_whole(demo: Path) -> None:
    folder = load_folder(demo)
    assert folder.checks is not None
    assert [check.claim for check in folder.checks] == ["lemma-2.1", "theorem-2.2"]
    assert folder.checks[0].twins[0].violation == 0.31
    assert folder.sweep is not None
    assert len(folder.sweep.cells) == 8
    assert len(folder.sweep) == 8 * 3 * 3 * 4
    assert folder.predictions is not None
    assert len(folder.predictions) == 7
    assert folder.study is not None
    assert len(folder.study.stages) == 2 + 3 * (6 + 2 + 4 + 3)
    assert folder.verdicts is not None
    assert folder.verdicts[2].outcome == "contradicted"
    assert folder.study.commands[0].startswith("python -m llm study")


def test_a_study_folder_alone_is_read(real_study: Path) -> None:
    folder = load_folder(real_study)
    assert folder.checks is None
    assert folder.sweep is None
    assert folder.study is not None
    assert folder.study.scale_note is not None
    assert {v.outcome for v in folder.verdicts or ()} == {"model too small to judge"}


def test_null_stays_none_and_never_becomes_zero(demo: Path) -> None:
    study = load_study(demo / "study")
    assert all(stage.metrics["missing"] is None for stage in study.stages)


def test_an_empty_folder_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"check\.json.*sweep.*predictions\.json.*study\.json"):
        load_folder(tmp_path)


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name", ["check.json", "predictions.json", "sweep/grid.json", "study/study.json"]
)
def test_malformed_json_names_the_file(demo: Path, name: str) -> None:
    (demo / name).write_text("{broken", encoding="utf-8")
    with pytest.raises(InputError, match=name.split("/")[-1]):
        load_folder(demo)


def test_nan_in_json_is_refused(demo: Path) -> None:
    (demo / "check.json").write_text('[{"lhs": NaN}]', encoding="utf-8")
    with pytest.raises(InputError, match=r"check\.json.*NaN"):
        load_folder(demo)


@pytest.mark.parametrize("key", ["claim", "holds", "worst_residual", "twins", "nonvacuous"])
def test_a_missing_key_of_a_check_is_named(demo: Path, edit_json: Edit, key: str) -> None:
    edit_json(demo / "check.json", lambda body: body[1].pop(key))
    with pytest.raises(InputError, match=rf"check\.json.*check 1.*'{key}'"):
        load_checks(demo / "check.json")


def test_a_wrong_type_is_named(demo: Path, edit_json: Edit) -> None:
    edit_json(demo / "check.json", lambda body: body[0].update(holds="yes"))
    with pytest.raises(InputError, match="'holds' must be true or false, got 'yes'"):
        load_checks(demo / "check.json")


def test_a_listed_stage_that_is_absent_is_named(demo: Path, edit_json: Edit) -> None:
    edit_json(
        demo / "study" / "study.json", lambda body: body["stages"].update(ghost="stages/ghost-0")
    )
    with pytest.raises(InputError, match=r"ghost-0.*record\.json"):
        load_study(demo / "study")


def test_a_metric_that_is_text_is_named(demo: Path, edit_json: Edit) -> None:
    record = next((demo / "study" / "stages").glob("eval_dpo-0-*")) / "record.json"
    edit_json(record, lambda body: body["metrics"].update(win_rate="high"))
    with pytest.raises(InputError, match=r"record\.json: metrics: key 'win_rate'"):
        load_study(demo / "study")


def test_an_unknown_key_of_a_verdict_is_named(demo: Path, edit_json: Edit) -> None:
    path = demo / "study" / "verdicts.json"
    edit_json(path, lambda body: body["verdicts"][0].update(mood="good"))
    with pytest.raises(InputError, match=r"verdicts\.json.*mood"):
        load_folder(demo)


def test_samples_keep_scores_and_references(tmp_path: Path) -> None:
    path = tmp_path / "samples.parquet"
    row = {"prompt_id": 3, "prompt": "p", "sample": "s", "tokens": 2, "ended": True, "gold": 0.5}
    pq.write_table(pa.Table.from_pylist([row, {**row, "gold": None}]), path)
    first, second = load_samples(path)
    assert first.prompt_id == "3"
    assert first.scores == {"gold": 0.5}
    assert first.reference is None
    assert second.scores == {}


def test_fields_refuse_what_is_no_object_and_true_as_a_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not an object"):
        Fields([1], tmp_path)
    with pytest.raises(InputError, match="finite number or null"):
        Fields({"a": True}, tmp_path).number("a")
    with pytest.raises(InputError, match="an integer"):
        Fields({"a": True}, tmp_path).integer("a")
