"""Measurements made elsewhere: tables of samples, verdicts or scores, as the same evidence.

csv or parquet; every table has figure, arm, seed, prompt_id and may have size, and one of
  samples: sample, reference, and both or neither of tokens, reference_tokens
  verdicts: order ("ab": the policy's summary was A; "ba": the reference was), preferred ("A", "B",
    or "invalid" for an answer that could not be read)
  scores: measure (`RANGES`), value
Arms are named as in the figures' quantities: dpo, online_dpo_sft, best_of_25_sft_global_rm, ...
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm.config import FIGURES, MARGINS
from llm.data.example import Example
from llm.errors import InputError
from llm.judge import RougeLJudge
from llm.protocol.figures import arms
from llm.protocol.presets import preset
from llm.results.arms import Arm, Column, Evidence, control

COMMON = ("figure", "arm", "seed", "prompt_id")
LENGTHS = ("tokens", "reference_tokens")
KINDS = {
    "samples": ("sample", "reference"),
    "verdicts": ("order", "preferred"),
    "scores": ("measure", "value"),
}
RANGES = {  # what a table of scores may hold, and between what
    "win_rate": (0.0, 1.0),
    "rouge_l": (0.0, 1.0),
    "mean_tokens": (0.0, math.inf),
    "val_loss": (0.0, math.inf),
    "val_accuracy": (0.0, 1.0),
    "val_accuracy_on_dpo_pairs": (0.0, 1.0),
}
BEST_OF = {
    "fig4": re.compile(r"best_of_(\d+)_by_(.+)"),
    "fig10": re.compile(r"best_of_(\d+)_(?:sft|dpo)_(?:global|local|dpo)_rm"),
}
ARMS = {f: tuple(arms(f, preset("tiny", "text"))) for f in FIGURES if f not in BEST_OF}
SIZE = re.compile(r"(\d+(?:\.\d+)?)([kmb])", re.IGNORECASE)
UNIT = {"k": 1e3, "m": 1e6, "b": 1e9}
Key = tuple[str, str, str]  # figure, arm, size


@dataclass(frozen=True)
class Row:
    """One checked row. place: "file, row 3"; the first row after a header is row 1."""

    kind: str
    key: Key
    seed: int
    prompt: str
    values: Mapping[str, Any]
    place: str

    @property
    def identity(self) -> tuple[object, ...]:
        """What no two rows of one kind may share."""
        extra = {"samples": None, "verdicts": "order", "scores": "measure"}[self.kind]
        return self.kind, self.key, self.seed, self.prompt, self.values.get(extra or "")


def of_tables(paths: Sequence[Path]) -> Evidence:
    """The evidence in some tables. Raises InputError naming file and row."""
    rows: list[Row] = []
    seen: dict[tuple[object, ...], str] = {}
    for path in paths:
        for row in read(path):
            before = seen.setdefault(row.identity, row.place)
            if before != row.place:
                raise InputError(f"{row.place}: says again what {before} says")
            rows.append(row)
    if not rows:
        raise InputError(f"{', '.join(map(str, paths))}: no rows")
    groups: dict[Key, dict[int, list[Row]]] = {}
    for row in rows:
        groups.setdefault(row.key, {}).setdefault(row.seed, []).append(row)
    fig4 = [(arm, size) for figure, arm, size in groups if figure == "fig4"]
    named = [found[2] for arm, _ in fig4 if (found := _best_of("fig4", arm))]
    sizes = {*named, *(size for _, size in fig4)}  # of reward models and of policies
    counts = [int(found[1]) for f, arm, _ in groups if (found := _best_of(f, arm))]
    return Evidence(
        figures=tuple(figure for figure in FIGURES if any(f == figure for f, _, _ in groups)),
        seeds=tuple(sorted({row.seed for row in rows})),
        arms={key: _arm(by_seed) for key, by_seed in groups.items()},
        margins=MARGINS,
        rung="elsewhere",
        order=tuple(sorted(sizes, key=_parameters)),
        largest_n=max(counts, default=25),
        notes=_notes(rows),
    )


# --- reading -------------------------------------------------------------------------------------


def read(path: Path) -> Iterator[Row]:
    """The rows of one table, checked one by one."""
    columns, rows = _open(path)
    kind = _kind(path, columns)
    for number, row in enumerate(rows, 1):
        yield _row(kind, row, f"{path}, row {number}")


def _open(path: Path) -> tuple[list[str], Iterator[Mapping[str, Any]]]:
    if path.suffix not in (".csv", ".parquet"):
        raise InputError(f"{path}: neither .csv nor .parquet")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.suffix == ".parquet":
        try:
            table = pq.read_table(path)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path}: no parquet: {str(error).splitlines()[0]}") from error
        return table.column_names, iter(table.to_pylist())
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream, strict=True) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: no csv in UTF-8: {error}") from error
    header = lines[0] if lines else []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise InputError(f"{path}, row {number}: {len(line)} fields, the header {len(header)}")
    return header, (dict(zip(header, line, strict=True)) for line in lines[1:])


def _kind(path: Path, columns: Sequence[str]) -> str:
    """What a table holds, by its columns; all that it needs and nothing that is not known."""
    kind = max(KINDS, key=lambda name: sum(column in columns for column in KINDS[name]))
    needed = (*COMMON, *KINDS[kind])
    known = {*needed, "size", *(LENGTHS if kind == "samples" else ())}
    if len(set(columns)) < len(columns):
        raise InputError(f"{path}: a column stands twice: {', '.join(columns)}")
    for column in needed:
        if column not in columns:
            raise InputError(
                f"{path}: lacks column {column!r}; a table of {kind} has {', '.join(needed)}"
            )
    for column in columns:
        if column not in known:
            raise InputError(
                f"{path}: unknown column {column!r}; a table of {kind} may have "
                f"{', '.join(sorted(known))}"
            )
    if len(set(LENGTHS) & set(columns)) == 1:
        raise InputError(f"{path}: tokens and reference_tokens go together")
    return kind


def _row(kind: str, row: Mapping[str, Any], place: str) -> Row:
    figure, arm = _text(row, "figure", place), _text(row, "arm", place)
    if figure not in FIGURES:
        raise InputError(f"{place}: unknown figure {figure!r}; known: {', '.join(FIGURES)}")
    if not _known(figure, arm):
        raise InputError(f"{place}: unknown arm {arm!r} of {figure}; known: {_arms_words(figure)}")
    size = row.get("size") or ""
    if not isinstance(size, str):
        raise InputError(f"{place}: size is no text: {size!r}")
    by = _best_of("fig4", arm) if figure == "fig4" else None
    for name in () if by is None else (size, by[2]):
        if not SIZE.fullmatch(name):
            raise InputError(f"{place}: fig4 needs sizes like 1.4b, got {name!r}")
    seed = _whole(row, "seed", place)
    prompt = _text(row, "prompt_id", place)
    values = {"samples": _sample, "verdicts": _verdict, "scores": _score}[kind](row, place)
    return Row(kind, (figure, arm, size), seed, prompt, values, place)


def _known(figure: str, arm: str) -> bool:
    return _best_of(figure, arm) is not None or arm in ARMS.get(figure, ())


def _best_of(figure: str, arm: str) -> re.Match[str] | None:
    return BEST_OF[figure].fullmatch(arm) if figure in BEST_OF else None


def _arms_words(figure: str) -> str:
    names = {"fig4": "best_of_25_by_1.4b", "fig10": "best_of_25_sft_global_rm"}
    return names.get(figure) or ", ".join(ARMS[figure])


def _sample(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    sample = row["sample"]
    if not isinstance(sample, str):
        raise InputError(f"{place}: sample is no text: {sample!r}")
    found: dict[str, Any] = {"sample": sample, "reference": _text(row, "reference", place)}
    for name in LENGTHS:
        if name in row:
            found[name] = _whole(row, name, place)
    return found


def _verdict(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    found = {name: _text(row, name, place) for name in KINDS["verdicts"]}
    for name, allowed in (("order", ("ab", "ba")), ("preferred", ("A", "B", "invalid"))):
        if found[name] not in allowed:
            raise InputError(f"{place}: {name} is {found[name]!r}, none of {', '.join(allowed)}")
    return found


def _score(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    measure = _text(row, "measure", place)
    if measure not in RANGES:
        raise InputError(f"{place}: unknown measure {measure!r}; known: {', '.join(RANGES)}")
    value = _number(row["value"])
    low, high = RANGES[measure]
    if value is None or not low <= value <= high:
        raise InputError(f"{place}: {measure} must lie in {low:g}..{high:g}, got {row['value']!r}")
    return {"measure": measure, "value": value}


def _text(row: Mapping[str, Any], name: str, place: str) -> str:
    value = row[name]
    if isinstance(value, int) and not isinstance(value, bool) and name == "prompt_id":
        return str(value)
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{place}: {name} is missing or no text: {value!r}")
    return value


def _whole(row: Mapping[str, Any], name: str, place: str) -> int:
    value = _number(row[name])
    if value is None or value < 0 or value != int(value):
        raise InputError(f"{place}: {name} must be a whole number >= 0, got {row[name]!r}")
    return int(value)


def _number(value: Any) -> float | None:
    """A finite number, also from its text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _parameters(size: str) -> float:
    found = SIZE.fullmatch(size)
    return float(found[1]) * UNIT[found[2].lower()] if found else 0.0


# --- arms ----------------------------------------------------------------------------------------


def _arm(by_seed: Mapping[int, Sequence[Row]]) -> Arm:
    metrics, columns, controlled = {}, {}, {}
    for seed, rows in by_seed.items():
        columns[seed], metrics[seed] = _columns(rows)
        means = {name: sum(c.values()) / len(c) for name, c in columns[seed].items() if c}
        metrics[seed] |= means
        lengths = _lengths(rows)
        if columns[seed].get("win_rate") and lengths:
            controlled[seed] = control(columns[seed]["win_rate"], lengths, seed=seed)
    return Arm(metrics, columns, controlled)


def _columns(rows: Sequence[Row]) -> tuple[dict[str, Column], dict[str, float]]:
    """{measure: {prompt: value}}, and counts."""
    found: dict[str, Column] = {}
    for row in rows:
        if row.kind == "scores":
            found.setdefault(row.values["measure"], {})[row.prompt] = row.values["value"]
    made, counts = _wins([row for row in rows if row.kind == "verdicts"])
    made |= _of_samples([row for row in rows if row.kind == "samples"])
    for measure, column in made.items():
        if measure in found:
            raise InputError(f"{rows[0].place}: {measure} stands in the scores and follows again")
        found[measure] = column
    return found, counts


def _wins(rows: Sequence[Row]) -> tuple[dict[str, Column], dict[str, float]]:
    """The mean over both orders; a comparison with an unreadable answer is left out, counted."""
    if not rows:
        return {}, {}
    by_prompt: dict[str, dict[str, float | None]] = {}
    for row in rows:
        order, letter = row.values["order"], row.values["preferred"]
        won = None if letter == "invalid" else float((letter == "A") == (order == "ab"))
        by_prompt.setdefault(row.prompt, {})[order] = won
    wins, first = Column(), Column()
    for prompt, orders in by_prompt.items():
        known = [won for won in orders.values() if won is not None]
        if len(known) == len(orders):
            wins[prompt] = sum(known) / len(known)
        if (won := orders.get("ab")) is not None:
            first[prompt] = won
    invalid = float(len(by_prompt) - len(wins))
    return {"win_rate": wins, "win_rate_one_order": first}, {"invalid": invalid}


def _of_samples(rows: Sequence[Row]) -> dict[str, Column]:
    """ROUGE-L F1 against the references, and lengths in tokens or, where none are given, words."""
    if not rows:
        return {}
    examples = [Example(r.prompt, r.prompt, "", (), (r.values["reference"],), ()) for r in rows]
    scores = RougeLJudge().scores(examples, [row.values["sample"] for row in rows])
    prompts = [row.prompt for row in rows]
    lengths = "mean_tokens" if "tokens" in rows[0].values else "mean_words"
    return {
        "rouge_l": {p: float(s or 0.0) for p, s in zip(prompts, scores, strict=True)},
        lengths: {row.prompt: float(_length(row, "sample", "tokens")) for row in rows},
    }


def _lengths(rows: Sequence[Row]) -> Column:
    return {
        row.prompt: float(
            _length(row, "sample", "tokens") - _length(row, "reference", "reference_tokens")
        )
        for row in rows
        if row.kind == "samples"
    }


def _length(row: Row, text: str, tokens: str) -> int:
    return row.values[tokens] if tokens in row.values else len(row.values[text].split())


def _notes(rows: Sequence[Row]) -> dict[str, str]:
    """For each figure, how many comparisons were asked in one order alone."""
    orders: dict[str, dict[tuple[object, ...], set[str]]] = {}
    for row in rows:
        if row.kind == "verdicts":
            of_figure = orders.setdefault(row.key[0], {})
            asked = of_figure.setdefault((row.key, row.seed, row.prompt), set())
            asked.add(row.values["order"])
    alone = {figure: sum(len(o) == 1 for o in of.values()) for figure, of in orders.items()}
    return {
        figure: f"{n:,} of {len(orders[figure]):,} comparisons were asked in one order alone"
        for figure, n in alone.items()
        if n
    }
