"""What stands at the end of a sweep: the data efficiency as a file, both results as tables."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table

from theory.efficiency import COLUMNS, KEYS, efficiency_rows
from theory.sweep.files import write_whole

_TEXT = ("family", "setting", "complexity_name", "choice", "offline_arm", "online_arm", "bound")
_WHOLE = ("complexity", "horizon", "replicates")
_USED = ("seed", "arm", "kl", "n_pairs", "chosen", "hindsight")
_HELD = ("coverage", "noise", "reference_share", "beta", "reward_class", "width")


def efficiency_table(rows: pa.Table) -> pa.Table:
    """The records of `theory.efficiency` over the rows of a sweep."""
    columns = {name: rows.column(name).to_numpy() for name in (*KEYS, *_HELD, *_USED)}
    records = efficiency_rows(columns)
    fields = []
    for name in COLUMNS:
        kind = pa.string() if name in _TEXT else pa.int64() if name in _WHOLE else pa.float64()
        fields.append(pa.field(name, kind))
    return pa.Table.from_pylist(records, schema=pa.schema(fields))


def write_efficiency(out: Path, rows: pa.Table) -> pa.Table:
    """Write `out`/efficiency.parquet, whole or not at all, and give its table back."""
    table = efficiency_table(rows)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    write_whole(out / "efficiency.parquet", sink.getvalue())
    return table


def kl_table(rows: pa.Table) -> Table:
    """Mean KL (standard error) of each arm, one line a cell and arm, by both choices."""
    table = Table(title="KL(P_pi || P*_r), nats (standard error over replicates)")
    for column in ("cell", "arm", "KL, chosen on held-out pairs", "KL, best in hindsight"):
        table.add_column(column, overflow="fold")
    last = None
    for name, arm, part in _parts(rows):
        shown = "" if name == last else name
        last = name
        kl = part["kl"]
        cells = [mean_and_error(kl[part[choice]]) for choice in ("chosen", "hindsight")]
        table.add_row(shown, arm, *cells)
    return table


def ratio_table(efficiency: pa.Table) -> Table:
    """N_offline / N_online of the first two roads, chosen on held-out pairs.

    Targets that neither reaches are left out; efficiency.parquet has them, and the other arms.
    """
    table = Table(title="data efficiency: pairs that offline_all needs for each pair of two_stage")
    for column in ("family", "setting", "target, nats", "N two-stage", "N offline", "ratio (95 %)"):
        table.add_column(column, overflow="fold")
    for row in efficiency.to_pylist():
        roads = (row["offline_arm"], row["online_arm"])
        if roads != ("offline_all", "two_stage") or row["choice"] != "chosen":
            continue
        if row["ratio"] is None:
            continue
        numbers = [_number(row[key]) for key in ("n_online", "n_offline")]
        setting = _setting(row)
        table.add_row(row["family"], setting, f"{row['target_kl']:.3g}", *numbers, _ratio(row))
    return table


def mean_and_error(values: np.ndarray) -> str:
    """Mean and its standard error in words."""
    if len(values) < 2:
        return f"{values.mean():.3f}"
    return f"{values.mean():.3f} ({values.std(ddof=1) / len(values) ** 0.5:.3f})"


# --- helpers --------------------------------------------------------------------------------------


def _parts(rows: pa.Table) -> Iterator[tuple[str, str, dict[str, np.ndarray]]]:
    """(cell, arm, columns) in the order of the rows."""
    names = ("cell", "arm", "kl", "chosen", "hindsight")
    columns = {name: rows.column(name).to_numpy(zero_copy_only=False) for name in names}
    cell, arm = columns["cell"], columns["arm"]
    starts = np.flatnonzero((cell[1:] != cell[:-1]) | (arm[1:] != arm[:-1])) + 1
    for start, end in zip([0, *starts], [*starts, len(cell)], strict=True):
        yield cell[start], arm[start], {k: columns[k][start:end] for k in names[2:]}


def _setting(row: dict[str, Any]) -> str:
    """What is not at its default, in words."""
    from theory.sweep.cells import CELL_DEFAULTS, family_defaults

    settings = json.loads(row["setting"])
    defaults = family_defaults(row["family"]) | CELL_DEFAULTS
    parts = [f"{row['complexity_name']} {row['complexity']}"]
    for key, value in settings.items():
        if key != row["complexity_name"] and value != defaults[key]:
            parts.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return ", ".join(parts)


def _number(value: float | None) -> str:
    return "not known" if value is None else f"{value:.0f}"


def _ratio(row: dict[str, Any]) -> str:
    if row["bound"] != "none":
        return f"{row['bound'].removeprefix('ratio is ')} {row['ratio']:.2f}"
    ends = ["?" if row[key] is None else f"{row[key]:.2f}" for key in ("low", "high")]
    return f"{row['ratio']:.2f} ({ends[0]} to {ends[1]})"
