"""A fabricated study of Figs. 3 to 10: three sizes, three seeds, records and verdicts, no weights.

The numbers are made up so that the paper's claims hold, except where a test wants otherwise.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from theory.predictions import Measurement, Prediction, judge, save

SEEDS = (0, 1, 2)
SIZES = {"1.4b": 1.4e9, "2.8b": 2.8e9, "6.9b": 6.9e9}  # the first is the main one
WIDE = ("fig3", "fig4", "fig9", "fig10")
COUNTS = (1, 2, 5, 10, 25)
POINTS = "win-rate points (0-1)"
ARMS = {"sft": 0.3, "dpo": 0.45, "dpo_2x": 0.47, "online_dpo_sft": 0.55, "online_dpo_dpo": 0.57}
BRANCHES = {"": ARMS, "two_word": {"sft": 0.4, "dpo": 0.5, "online_dpo_dpo": 0.505}}
BRANCHES["narrow"] = {"sft": 0.3, "dpo": 0.4, "online_dpo_sft": 0.405, "online_dpo_dpo": 0.48}
ROUGE = {"sft": 0.22, "dpo": 0.27, "dpo_2x": 0.28, "online_dpo_dpo": 0.268}
MORE = {"online_dpo_sft_more_prompts": 0.553}
LOSS = {"global_rm": 0.60, "local_rm": 0.64, "dpo_rm": 0.66, "global_rm_matched": 0.62}
CLAIM = "The claim of {}, in the paper's words."
Value = dict[str, Any]


def main(root: Path) -> Path:
    """Write the study and return its folder."""
    stages = dict(_records(root))
    body = {
        "schema": 1, "figures": [f"fig{n}" for n in range(3, 11)], "preset": "paper",
        "rung": "full", "seeds": list(SEEDS), "stages": stages, "total_seconds": 86400.0,
        "too_small": None, "command": "python -m llm study --preset paper --out out/paper",
        "data": {"kind": "text", "path": "somewhere/tldr"},
        "config": {
            "models": {name: {"pretrained": f"pythia-{name}"} for name in SIZES},
            "wide": list(WIDE),
        },
    }  # fmt: skip
    (root / "study.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
    predictions = list(_predictions())
    measured = [_measurement(p, size) for p in predictions for size in _sizes(p)]
    measured += [_matched(size) for size in SIZES]
    measured += [_controlled(name, size) for name in ARMS for size in SIZES]
    save(root / "measurements.json", "measurements", measured)
    verdicts = [judge(p, m) for p in predictions for m in measured if _about(p, m)]
    save(root / "verdicts.json", "verdicts", verdicts, scale_note=None)
    return root


def _about(prediction: Prediction, measurement: Measurement) -> bool:
    same = (prediction.figure, prediction.quantity)
    return same == (measurement.figure, measurement.quantity)


# --- records --------------------------------------------------------------------------------------


def _records(root: Path) -> Iterator[tuple[str, str]]:
    for size, parameters in SIZES.items():
        at = {"size": "" if size == "1.4b" else size}
        bonus = _bonus(size)
        yield _write(root, "sft", None, at, {"parameters": int(parameters)}, CURVE)
        for name, level in (ARMS | MORE).items():
            yield from _policy(root, name, at, level + bonus, tokens=30.0)
        for seed in SEEDS:
            for rm, loss in LOSS.items():
                metrics = {"val_loss": loss + 0.004 * seed, "val_accuracy": 1.28 - loss}
                yield _write(root, f"eval_{rm}", seed, at, metrics)
                yield from _best_of_n(root, rm, seed, at, bonus)
            for rm in SIZES:
                metrics = {"win_rate": 0.6 + bonus + 0.004 * seed}
                yield _write(root, f"bon_sft_by_{rm}", seed, at, metrics)
    for branch in ("two_word", "narrow"):
        for name, level in BRANCHES[branch].items():
            yield from _policy(root, name, {"branch": branch}, level, tokens=4.0)
    for name, level in ROUGE.items():
        yield from _policy(root, name, {"branch": "ranked"}, level, tokens=31.0, rouge=True)


def _bonus(size: str) -> float:
    """How much better larger models are."""
    return 0.08 * math.log2(SIZES[size] / 1.4e9)


def _policy(
    root: Path, name: str, at: Value, level: float, *, tokens: float, rouge: bool = False
) -> Iterator[tuple[str, str]]:
    """One evaluation a seed, with the judge's verdict as a stage of its own."""
    for seed in (None,) if name == "sft" else SEEDS:
        value = level + 0.006 * ((1 if seed is None else seed) - 1)
        measured = {"mean_tokens": tokens + (seed or 0), "ended_rate": 0.98}
        yield _write(
            root, f"eval_{name}", seed, at, measured | {"rouge_l": value if rouge else 0.25},
            samples=name in ("sft", "dpo"),
        )  # fmt: skip
        if not rouge:
            yield _write(root, f"judge_{name}", seed, at, {"win_rate": value})


def _best_of_n(
    root: Path, rm: str, seed: int, at: Value, bonus: float
) -> Iterator[tuple[str, str]]:
    if rm == "global_rm_matched":
        return
    for source, start in (("sft", 0.3), ("dpo", 0.45)):
        gain = {"global_rm": 0.08, "local_rm": 0.05, "dpo_rm": 0.03}[rm]
        rates = {n: start + bonus + gain * math.log2(n) + 0.004 * seed for n in COUNTS}
        metrics = {"win_rate": rates[25]} | {f"win_rate@{n}": rate for n, rate in rates.items()}
        yield _write(root, f"bon_{source}_{rm}", seed, at, metrics)


CURVE = [{"step": step, "loss": 3.0 * math.exp(-step / 40) + 2.0} for step in range(0, 90, 6)]


def _write(
    root: Path,
    base: str,
    seed: int | None,
    at: Value,
    metrics: Value,
    history: list[Value] | None = None,
    *,
    samples: bool = False,
) -> tuple[str, str]:
    branch, size = at.get("branch", ""), at.get("size", "")
    stage = base + (f".{branch}" if branch else "") + (f"@{size}" if size else "")
    key = stage if seed is None else f"{stage}[{seed}]"
    hashed = hashlib.sha256(key.encode()).hexdigest()
    folder = root / "stages" / f"{stage}-{hashed[:12]}"
    folder.mkdir(parents=True)
    record = {
        "schema": 1, "stage": stage, "name": base, "branch": branch, "size": size, "seed": seed,
        "hash": hashed, "config": {}, "inputs": {}, "versions": {"torch": "2.13.0"},
        "device": "NVIDIA H100", "metrics": metrics, "history": history or [],
        "wall_seconds": 3600.0, "weights_sha256": "ab" * 32 if history else None,
    }  # fmt: skip
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    if samples:
        row = {"prompt_id": "p", "prompt": "POST", "sample": f"of {stage}", "tokens": 9}
        row |= {"ended": True, "reference": "a reference", "score": None, "reference_score": None}
        pq.write_table(pa.Table.from_pylist([row]), folder / "samples.parquet")
    return key, folder.relative_to(root).as_posix()


# --- predictions and what was measured of them ----------------------------------------------------


def _predictions() -> Iterator[Prediction]:
    n = "best_of_25"
    rows = [
        ("fig3", "win_rate[online_dpo_sft] - win_rate[dpo]", "greater", 0.1),
        ("fig3", "win_rate[online_dpo_dpo] - win_rate[dpo_2x]", "greater", 0.1),
        ("fig3", "win_rate[online_dpo_dpo] - win_rate[dpo]", "greater", 0.12),
        ("fig4", f"win_rate[{n}_largest_rm] - win_rate[{n}_smallest_rm]", "equal", 0.0),
        ("fig4", f"win_rate[{n}_largest_policy] - win_rate[{n}_smallest_policy]", "greater", 0.18),
        ("fig5", "gap[fig3] - gap[fig5]", "greater", 0.115),
        ("fig5", "win_rate[online_dpo_dpo] - win_rate[dpo]", "equal", 0.005),
        ("fig6", "rouge_l[online_dpo_dpo] - rouge_l[dpo]", "equal", -0.002),
        ("fig6", "rouge_l[dpo_2x] - rouge_l[dpo]", "greater", 0.01),
        ("fig7", "win_rate[online_dpo_sft_more_prompts] - win_rate[online_dpo_sft]", "equal", 0.03),
        ("fig8", "win_rate[online_dpo_dpo] - win_rate[dpo]", "greater", 0.08),
        ("fig8", "win_rate[online_dpo_sft] - win_rate[dpo]", "equal", 0.005),
        ("fig9", "val_loss[local_rm] - val_loss[global_rm]", "greater", 0.04),
        ("fig9", "val_loss[dpo_rm] - val_loss[local_rm]", "greater", 0.02),
        ("fig9", "val_accuracy[global_rm] - val_accuracy[local_rm]", "greater", 0.04),
        ("fig10", f"win_rate[{n}_sft_global_rm] - win_rate[{n}_sft_local_rm]", "greater", 0.14),
        ("fig10", f"win_rate[{n}_dpo_local_rm] - win_rate[{n}_dpo_dpo_rm]", "greater", 0.09),
        (
            "fig10",
            "val_accuracy_on_dpo_pairs[global_rm] - val_accuracy_on_dpo_pairs[local_rm]",
            "greater",
            0.03,
        ),
    ]
    units = {"rouge_l": "ROUGE-L F1 (0-1)", "val_loss": "nats per pair"}
    units |= {"val_accuracy": "accuracy (0-1)", "val_accuracy_on_dpo_pairs": "accuracy (0-1)"}
    for figure, quantity, relation, value in rows:
        yield Prediction(
            figure=figure, quantity=quantity, relation=relation, value=value + 0.02,  # type: ignore
            error=0.01, unit=units.get(quantity.split("[")[0], POINTS), rung="toy",
            family="walsh", assumptions=("The reward lies in the class.",),
            paper_claim=CLAIM.format(figure), margin=0.02 if relation == "equal" else None,
            replicates=20,
        )  # fmt: skip


MEASURED = {  # what the records above say, where the prediction's value less 0.02 does not
    "win_rate[online_dpo_sft_more_prompts] - win_rate[online_dpo_sft]": 0.003,
}


def _sizes(prediction: Prediction) -> tuple[str | None, ...]:
    """Fig. 4 compares sizes; the others are measured at one or at all."""
    if prediction.figure == "fig4":
        return (None,)
    return tuple(SIZES) if prediction.figure in WIDE else ("1.4b",)


def _measurement(prediction: Prediction, size: str | None) -> Measurement:
    value = MEASURED.get(prediction.quantity, (prediction.value or 0.0) - 0.02)
    return _of(prediction.figure, prediction.quantity, prediction.unit, value, size)


def _matched(size: str) -> Measurement:
    quantity = "val_loss[local_rm] - val_loss[global_rm_matched]"
    return _of("fig9", quantity, "nats per pair", 0.02, size)


def _controlled(name: str, size: str) -> Measurement:
    quantity = f"length_controlled_win_rate[{name}]"
    return _of("fig3", quantity, POINTS, ARMS[name] + _bonus(size) - 0.02, size)


def _of(figure: str, quantity: str, unit: str, value: float, size: str | None) -> Measurement:
    return Measurement(
        figure=figure, quantity=quantity, unit=unit, value=value, low=value - 0.012,
        high=value + 0.012, interval="95% t interval over 3 seeds", seeds=SEEDS,
        per_seed=(value - 0.005, value, value + 0.005), rung="full", size=size,
        seeds_to_decide=4, within=((value - 0.03, value + 0.03),) * 3,
    )  # fmt: skip
