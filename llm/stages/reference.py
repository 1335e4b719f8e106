"""A reference's cached log-probabilities, and the checks that they are the trained model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llm import tables
from llm.errors import InputError
from llm.models.build import device, weights_digest
from llm.models.forward import completion_logps
from llm.records import file_digest, read_json, write_json
from llm.training.objectives import Row
from llm.training.train import score

MARK = "reference.json"
CHECKED = 4  # rows computed again
TOLERANCE = {"fp32": 1e-4, "bf16": 2.0**-4}  # relative to the log-prob; see check_reference_sample


def read_reference(folder: Path, part: str) -> list[tuple[float, ...]]:
    """[(log-prob of chosen, of rejected)] of a reference stage. InputError for a changed file."""
    file = folder / f"{part}.parquet"
    if file_digest(file) != read_json(folder / MARK)["files"][file.name]:
        raise InputError(f"{file}: not what was computed: its sha256 is not the one in {MARK}")
    rows = tables.read_rows(file)
    return [(row["chosen"], row["rejected"]) for row in rows]


def write_reference_mark(folder: Path, model: Any, precision: str) -> None:
    """Note whose log-probs stand in a folder, their precision, and the sha256 of its files."""
    files = {file.name: file_digest(file) for file in sorted(folder.glob("*.parquet"))}
    write_json(folder / MARK, {**_mark(model, precision), "files": files})


def _mark(model: Any, precision: str) -> dict[str, str]:
    return {"weights_sha256": weights_digest(model), "precision": precision}


def check_reference_mark(folder: Path, model: Any, precision: str) -> None:
    """Raise InputError where the log-probs in a folder are another model's or precision's."""
    before, now = read_json(folder / MARK), _mark(model, precision)
    for name, value in now.items():
        if before.get(name) != value:
            raise InputError(
                f"{folder}: the reference was computed with {name} {before.get(name)}, "
                f"training starts with {value}"
            )


def check_reference_sample(
    model: Any, rows: Sequence[Row], *, precision: str, pad: int, temperature: float = 1.0
) -> None:
    """Compute a few rows' reference again; InputError where the cached numbers are not the model's.

    A batch of another shape sums in another order, which moves a log-prob by a few roundings of its
    logits, hence the tolerance: TOLERANCE x (1 + |log-prob|) nats, over the temperature.
    """
    step = max(1, len(rows) // CHECKED)
    asked = list(rows)[::step][:CHECKED]
    home = next(model.parameters()).device
    values = score(
        partial(completion_logps, model.to(device()).eval(), temperature=temperature),
        [(row.prompt, row.completions) for row in asked],
        pad=pad,
        tokens=1,  # each row by itself
        device=device(),
        precision=precision,
    )
    model.to(home)
    for row, again in zip(asked, values, strict=True):
        for cached, value in zip(row.reference or (), again, strict=True):
            slack = TOLERANCE[precision] * (1 + abs(value)) / min(1.0, temperature)
            if not math.isfinite(cached) or not abs(cached - value) <= slack:
                raise InputError(
                    f"a cached reference log-prob is {cached:.6g}, the model gives {value:.6g}: "
                    "the reference belongs to another model or another temperature"
                )
