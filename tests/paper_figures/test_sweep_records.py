"""What the reader of a sweep folder takes and refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paper_figures.errors import InputError
from paper_figures.sweep_records import CHOSEN, HINDSIGHT, load_ratios, load_sweep

ARMS = {"two_stage": 0.2, "offline_all": 0.8}
Edit = Callable[[Path, Callable[[Any], None]], None]


@pytest.fixture
def folder(tmp_path: Path, sweep_tools: SimpleNamespace) -> Path:
    """A sweep of one cell."""
    return sweep_tools.folder(tmp_path / "sweep", [sweep_tools.cell(ARMS)])


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Change every row of the one cell."""
    path = folder / "cells" / "cell-0.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_a_fit_is_one_row_a_replicate_by_seed(tmp_path: Path, sweep_tools: SimpleNamespace) -> None:
    rows = sweep_tools.cell(ARMS)[::-1]
    sweep = load_sweep(sweep_tools.folder(tmp_path / "sweep", [rows]))
    (cell,) = sweep.cells
    assert len(sweep) == len(rows)
    assert cell.arms == ("offline_all", "two_stage")
    fit = cell.fits["two_stage", CHOSEN]
    assert fit.seeds.tolist() == [0, 1, 2, 3]
    assert fit.measures["kl"] == pytest.approx([0.185, 0.195, 0.205, 0.215])
    assert fit.ridge == 1.0
    assert fit.best_of_n is not None
    assert fit.best_of_n[0] == pytest.approx([0.0, 0.8, 1.3])
    beside = cell.fits["two_stage", HINDSIGHT]
    assert beside.ridge == 0.3
    assert beside.measures["kl"].mean() == pytest.approx(0.15)
    assert cell.scales["verifier_walsh"] == 36.0


def test_a_cell_that_two_blocks_share_counts_once_with_the_arms_of_both(
    tmp_path: Path, sweep_tools: SimpleNamespace
) -> None:
    first = sweep_tools.cell(ARMS)
    second = sweep_tools.cell(ARMS | {"offline_matched": 0.3}, block="other")
    sweep = load_sweep(sweep_tools.folder(tmp_path / "sweep", [first, second]))
    (cell,) = sweep.cells
    assert cell.arms == ("two_stage", "offline_all", "offline_matched")
    assert len(cell.fits["two_stage", CHOSEN].seeds) == 4
    assert (sweep.there, sweep.planned) == (2, 2)


def test_a_sweep_that_has_not_ended_is_read_as_far_as_it_is(
    tmp_path: Path, sweep_tools: SimpleNamespace
) -> None:
    cells = [sweep_tools.cell(ARMS, n_pairs=n) for n in (64, 256)]
    folder = sweep_tools.folder(tmp_path / "sweep", cells)
    (folder / "cells" / "cell-1.parquet").unlink()
    (folder / "cells" / "stray.parquet").write_bytes(b"no cell of this grid")
    sweep = load_sweep(folder)
    assert (len(sweep.cells), sweep.there, sweep.planned) == (1, 1, 2)
    assert sweep.ratios is None


@pytest.mark.parametrize("version", [None, 1, 3])
def test_another_version_is_one_clear_error(folder: Path, edit_json: Edit, version: Any) -> None:
    edit_json(folder / "grid.json", lambda body: body.update(version=version))
    with pytest.raises(InputError, match=r"grid\.json: a sweep of version .*reads version 2"):
        load_sweep(folder)


def test_no_cell_at_all(folder: Path) -> None:
    (folder / "cells" / "cell-0.parquet").unlink()
    with pytest.raises(InputError, match="none of the 1 cells"):
        load_sweep(folder)


@pytest.mark.parametrize("column", ["kl", "arm", "chosen", "settings", "generator_walsh"])
def test_a_missing_column_is_named(folder: Path, column: str) -> None:
    path = folder / "cells" / "cell-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(InputError, match=rf"cell-0\.parquet.*'{column}'"):
        load_sweep(folder)


@pytest.mark.parametrize("kept", [0, 4, 0.5, 0.99])
def test_a_torn_file_is_named(folder: Path, kept: float) -> None:
    path = folder / "cells" / "cell-0.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(InputError, match=r"cell-0\.parquet: not a readable parquet file"):
        load_sweep(folder)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_not_a_number_is_refused(folder: Path, value: float | None) -> None:
    rewrite(folder, lambda row: row.update(kl=value if row["seed"] == 2 else row["kl"]))
    with pytest.raises(InputError, match=r"cell-0\.parquet.*'kl' of arm 'two_stage'"):
        load_sweep(folder)


def test_two_choices_for_one_seed_are_refused(folder: Path) -> None:
    rewrite(folder, lambda row: row.update(chosen=True))
    with pytest.raises(InputError, match="two candidates that are 'chosen'"):
        load_sweep(folder)


def test_a_file_of_two_cells_is_refused(folder: Path) -> None:
    rewrite(folder, lambda row: row.update(noise=0.1 * row["seed"]))
    with pytest.raises(InputError, match="'noise' changes within the cell"):
        load_sweep(folder)


@pytest.mark.parametrize("text", ["{broken", "[1]", None])
def test_settings_that_are_no_object(folder: Path, text: str | None) -> None:
    rewrite(folder, lambda row: row.update(settings=text))
    with pytest.raises(InputError, match="column 'settings' is not"):
        load_sweep(folder)


def test_a_null_where_a_number_must_be(folder: Path) -> None:
    rewrite(folder, lambda row: row.update(reward_dim=None))
    with pytest.raises(InputError, match="'reward_dim' is null"):
        load_sweep(folder)


def test_ratios_keep_what_is_not_reached(tmp_path: Path, sweep_tools: SimpleNamespace) -> None:
    rows = [sweep_tools.ratio(5.0), sweep_tools.ratio(None, "neither arm reaches it")]
    folder = sweep_tools.folder(tmp_path / "sweep", [sweep_tools.cell(ARMS)], rows)
    ratios = load_sweep(folder).ratios
    assert ratios is not None
    assert [(row.ratio, row.low, row.high) for row in ratios] == [
        (5.0, pytest.approx(5 / 1.5), 7.5),
        (None, None, None),
    ]
    assert ratios[0].setting["bits"] == 8


def test_an_unknown_bound_and_a_missing_column_of_the_ratios(
    tmp_path: Path, sweep_tools: SimpleNamespace
) -> None:
    path = tmp_path / "efficiency.parquet"
    pq.write_table(pa.Table.from_pylist([sweep_tools.ratio(5.0, "perhaps")]), path)
    with pytest.raises(InputError, match=r"efficiency\.parquet: bound 'perhaps'"):
        load_ratios(path)
    row = sweep_tools.ratio(5.0)
    del row["target_kl"]
    pq.write_table(pa.Table.from_pylist([row]), path)
    with pytest.raises(InputError, match="'target_kl' is missing"):
        load_ratios(path)


def test_settings_are_kept_without_the_seed(tmp_path: Path, sweep_tools: SimpleNamespace) -> None:
    settings = sweep_tools.walsh | {"seed": 3}
    folder = sweep_tools.folder(tmp_path / "sweep", [sweep_tools.cell(ARMS, settings=settings)])
    assert load_sweep(folder).cells[0].settings == json.loads(json.dumps(sweep_tools.walsh))
