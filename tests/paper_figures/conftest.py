"""Small, schema-true record folders with made-up numbers, for the tests of the report."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paper_figures.report import write_report
from theory.predictions import Measurement, Prediction, judge, save

SEEDS = (0, 1, 2)
HOSTILE = "<script>alert('x')</script> & <img src=http://example.invalid/p.png onerror=alert(1)>"
WIN = {"sft": 0.5, "dpo": 0.61, "dpo_2x": 0.66, "online_dpo_sft": 0.72, "online_dpo_dpo": 0.64}
LOSS = {"global_rm": 0.45, "local_rm": 0.55, "dpo_rm": 0.58}
TRAINED = ("sft", "global_rm", "local_rm", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")
ONLINE_PAIRS = ("online_pairs_sft", "online_pairs_dpo")
CURVES = ("dpo", "global_rm")
SAMPLE_TYPES = {
    "prompt_id": pa.string(), "prompt": pa.string(), "sample": pa.string(),
    "ids": pa.list_(pa.int32()), "tokens": pa.int32(), "ended": pa.bool_(), "score": pa.float64(),
    "reference": pa.string(), "reference_score": pa.float64(),
}  # fmt: skip


def write_json(path: Path, body: Any) -> Path:
    """Write a JSON file and its parents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(body, indent=1, allow_nan=False), encoding="utf-8")
    return path


def make_checks(path: Path) -> Path:
    """A check.json with two claims."""
    statements = {
        "lemma-2.1": "Soft RL is reverse-KL projection onto the reward's Boltzmann distribution.",
        "theorem-2.2": "With isomorphic classes RLHF and MLE end at one set of policies.",
    }
    rows = [
        {
            "claim": name, "statement": text, "holds": True, "lhs": 1.25, "rhs": 1.25,
            "slack": 1e-10, "trials": 40, "nonvacuous": 38, "worst_residual": 3.1e-14,
            "twins": [{"assumption": "R differs from R(Pi)", "violation": 0.31, "holds": False}],
        }
        for name, text in statements.items()
    ]  # fmt: skip
    return write_json(path, rows)


WALSH = {"bits": 8, "degree": 2, "horizon": 8, "sharpness": 2.0}
COVERAGE = {"words": 7, "salient": 3, "prompts": 4, "horizon": 3, "sharpness": 2.0}
PLACE = {
    "family": "walsh", "settings": WALSH, "n_pairs": 256, "coverage": "uniform", "noise": 0.0,
    "reference_share": 0.0, "beta": 1.0, "reward_class": "true", "width": 32, "block": "pairs",
}  # fmt: skip
COMPLEXITY = {"walsh": "degree", "automaton": "states", "coverage": "salient", "lookup": "bits"}
ARMS = {"two_stage": 0.2, "offline_all": 0.8, "offline_matched": 0.2}  # KL, nats, at N = 256


def cell_rows(
    arms: dict[str, float], seeds: tuple[int, ...] = (0, 1, 2, 3), **changes: Any
) -> list[dict[str, Any]]:
    """The rows of one cell: KL of seed i is the arm's + 0.01 (i - mean), and at ridge 0.3, which
    is the best in hindsight, 0.05 less. `changes` are of PLACE.
    """
    place = PLACE | changes
    settings, family = place["settings"], place["family"]
    name = COMPLEXITY[family]
    bits, horizon = settings.get("bits"), settings["horizon"]
    fixed = {
        "cell": f"{family}-{sorted(settings.items())}-{place['n_pairs']}",
        **place, "settings": json.dumps(settings), "sharpness": settings["sharpness"],
        "horizon": horizon, "vocab": 2 ** (bits // horizon) if bits else 8,
        "n_prompts": settings.get("prompts", 1), "n_completions": 2**bits if bits else 8**horizon,
        "complexity": settings[name], "complexity_name": name,
        "verifier_walsh": 36.0 if family == "walsh" else None, "verifier_entries": 20.0,
        "generator_walsh": 144.0 if family == "walsh" else None, "generator_entries": 80.0,
        "reward_dim": 255 if place["reward_class"] == "full" else 36, "n_held": 51,
    }  # fmt: skip
    middle = sum(seeds) / len(seeds)
    return [
        {
            **fixed, "arm": arm, "seed": seed, "candidate": i, "ridge": ridge, "stop": None,
            "held_out_loss": 0.5, "chosen": ridge == 1.0, "hindsight": ridge == 0.3,
            "kl": kl + 0.01 * (seed - middle) - (0.05 if ridge == 0.3 else 0.0),
            "regret": kl / 2, "win_rate": 0.9 - kl / 10, "val_loss": 0.5 + kl / 10,
            "val_accuracy": 0.8 - kl / 10, "best_of_n": [0.0, 1.0 - kl, 1.5 - kl],
            "best_of_n_counts": [1, 4, 16], "n_parameters": 502, "jacobian_rank": 255,
            "gradient": 1e-9, "steps": 12.0, "converged": True,
        }
        for arm, kl in arms.items() for seed in seeds for i, ridge in enumerate((0.3, 1.0, 3.0))
    ]  # fmt: skip


def make_sweep(path: Path, cells: list[list[dict[str, Any]]], ratios: Any = None) -> Path:
    """A sweep folder of version 2; cells: the rows of each."""
    files = [f"cell-{i}.parquet" for i in range(len(cells))]
    write_json(
        path / "grid.json",
        {"schema": 1, "version": 2, "name": "made-up", "cells": [{"file": f} for f in files]},
    )
    (path / "cells").mkdir()
    for file, rows in zip(files, cells, strict=True):
        pq.write_table(pa.Table.from_pylist(rows), path / "cells" / file)
    if ratios is not None:
        pq.write_table(pa.Table.from_pylist(ratios), path / "efficiency.parquet")
    return path


def ratio_row(ratio: float | None, bound: str = "none", **changes: Any) -> dict[str, Any]:
    """One row of an efficiency.parquet; the interval is a factor 1.5 to either side."""
    settings = changes.pop("settings", WALSH)
    held = {k: PLACE[k] for k in ("coverage", "noise", "reference_share", "beta", "reward_class")}
    known = ratio is not None and bound == "none"
    return {
        "family": "walsh", "setting": json.dumps(settings | held | {"width": 32}),
        "complexity_name": "degree", "complexity": settings.get("degree", 3),
        "sharpness": settings["sharpness"], "horizon": settings["horizon"], "choice": "chosen",
        "offline_arm": "offline_all", "online_arm": "two_stage", "target_kl": 0.25,
        "n_online": 100.0, "n_offline": None if ratio is None else 100.0 * ratio, "ratio": ratio,
        "low": ratio / 1.5 if known and ratio else None,
        "high": ratio * 1.5 if known and ratio else None, "bound": bound, "replicates": 4,
    } | changes  # fmt: skip


def demo_cells() -> list[list[dict[str, Any]]]:
    """Two degrees, a shorter horizon and a second family, each at two N."""

    def scaled(n: int, by: float = 1.0) -> dict[str, float]:
        return {arm: by * kl * math.sqrt(256 / n) for arm, kl in ARMS.items()}

    return [
        rows
        for n in (64, 1024)
        for rows in (
            cell_rows(scaled(n), n_pairs=n),
            cell_rows(scaled(n, 1.5), n_pairs=n, settings=WALSH | {"degree": 4}),
            cell_rows(scaled(n, 0.5), n_pairs=n, settings=WALSH | {"bits": 4, "horizon": 4}),
            cell_rows(scaled(n), n_pairs=n, family="coverage", settings=COVERAGE),
        )
    ]


def demo_ratios() -> list[dict[str, Any]]:
    """A ratio that is known and one that is a bound."""
    covered = {"family": "coverage", "settings": COVERAGE}
    return [ratio_row(5.0), ratio_row(16.0, "ratio is at least", **covered)]


def make_predictions() -> list[Prediction]:
    """Predictions for both figures."""
    rows = [
        ("fig3", "win_rate[online_dpo_sft] - win_rate[dpo]", 0.09, "win-rate points (0-1)"),
        ("fig3", "win_rate[online_dpo_dpo] - win_rate[dpo_2x]", 0.05, "win-rate points (0-1)"),
        ("fig3", "win_rate[online_dpo_dpo] - win_rate[dpo]", 0.07, "win-rate points (0-1)"),
        ("fig9", "val_loss[local_rm] - val_loss[global_rm]", 0.12, "nats per pair"),
        ("fig9", "val_loss[dpo_rm] - val_loss[local_rm]", 0.02, "nats per pair"),
        ("fig9", "val_accuracy[global_rm] - val_accuracy[local_rm]", 0.04, "accuracy (0-1)"),
        ("fig9", "val_accuracy[local_rm] - val_accuracy[dpo_rm]", -0.01, "accuracy (0-1)"),
    ]
    claims = {
        "fig3": "Online DPO beats offline DPO.",
        "fig9": "Local reward models generalise worse.",
    }
    return [
        Prediction(
            figure=figure, quantity=quantity, relation="greater", value=value, error=0.012,
            unit=unit, rung="toy", family="walsh", assumptions=("The reward lies in the class.",),
            paper_claim=claims[figure], replicates=20,
            note="the toy rung has the other sign here" if value < 0 else None,
        )
        for figure, quantity, value, unit in rows
    ]  # fmt: skip


def make_measurements() -> list[Measurement]:
    """Measurements of all predictions but the last, with intervals of every kind of verdict."""
    values = {0: (0.11, 0.03), 1: (-0.02, 0.04), 2: (-0.09, 0.03), 3: (0.1, 0.02), 4: (0.03, 0.2)}
    out = []
    for i, prediction in enumerate(make_predictions()[:6]):
        value, half = values.get(i, (0.05, 0.01))
        out.append(
            Measurement(
                figure=prediction.figure, quantity=prediction.quantity, unit=prediction.unit,
                value=value, low=value - half, high=value + half, rung="tiny", seeds=SEEDS,
                interval="95% t interval over seeds", seeds_to_decide=11,
                per_seed=tuple(value + d * half / 2 for d in (-1, 0, 1)),
                within=((value - half, value), None, (value, value + half)),
            )
        )  # fmt: skip
    return out


def make_study(path: Path, *, too_small: str | None = None, verdicts: bool = True) -> Path:
    """A study directory; too_small: a study on real text that may judge nothing."""
    stages = {}
    for name in (*TRAINED, *ONLINE_PAIRS, *(f"eval_{name}" for name in (*WIN, *LOSS))):
        for seed in (None,) if name in ("sft", "eval_sft") else SEEDS:
            key = name if seed is None else f"{name}[{seed}]"
            stages[key] = make_stage(path, name, seed).relative_to(path).as_posix()
    kind = "text" if too_small else "task"
    write_json(
        path / "study.json",
        {
            "schema": 1, "figures": ["fig3", "fig9"], "preset": "tiny", "stages": stages,
            "config": {"model": {"layers": 2, "width": 64}, "beta": 0.05, "learning_rate": 1e-3},
            "data": {"kind": kind, "path": "somewhere/tldr", "sha256": "ab" * 32},
            "seeds": list(SEEDS), "total_seconds": 481.2,
            "command": "python -m llm study fig3 fig9 --preset tiny --out out/demo/study",
        },
    )  # fmt: skip
    write_json(
        path / "data_card.json",
        {
            "counts": {"sft": 1500, "pairs": 6000, "validation_pairs": 400, "test": 200},
            "truncated": 12, "overlap": {"sft / pairs": 0},
            "sources": [{"file": "a.jsonl", "rows": 5}],
            "length_quantiles": {"prompt": {"0.5": 301.0, "0.9": 480.0}},
        },
    )  # fmt: skip
    measured = make_measurements()
    save(path / "measurements.json", "measurements", measured)
    if verdicts:
        by_name = {row.quantity: row for row in measured}
        judged = [
            judge(row, by_name.get(row.quantity), too_small=too_small) for row in make_predictions()
        ]
        save(path / "verdicts.json", "verdicts", judged, scale_note=too_small)
    return path


def make_stage(path: Path, name: str, seed: int | None) -> Path:
    """One stage directory: a training, samples for online pairs, or an evaluation."""
    digest = hashlib.sha256(f"{name} {seed}".encode()).hexdigest()
    place = name if seed is None else f"{name}-{seed}"
    folder = path / "stages" / f"{place}-{digest[:12]}"
    nudge = 0.01 * ((seed or 0) - 1)
    trained = name in TRAINED
    method = name.removeprefix("eval_")
    metrics: dict[str, float | None] = {"missing": None}
    if trained:
        metrics["parameters"] = 123456
    elif method in WIN:
        metrics["win_rate"] = WIN[method] + nudge
    elif method in LOSS:
        loss = LOSS[method] + nudge
        metrics |= {"val_loss": loss, "val_accuracy": 1.2 - loss + 2 * nudge}
    history = [
        {"step": step, "loss": 0.7 * math.exp(-step / 60) + 0.2 + nudge, "learning_rate": 1e-3}
        for step in range(0, 120, 6)
    ]
    write_json(
        folder / "record.json",
        {
            "schema": 1, "stage": name, "seed": seed, "hash": digest, "config": {}, "inputs": {},
            "versions": {"python": "3.11", "torch": "2.13.0"}, "device": "cpu", "metrics": metrics,
            "history": history if name in CURVES else [], "wall_seconds": 21.5,
            "weights_sha256": "cd" * 32 if trained else None,
        },
    )  # fmt: skip
    if name in ONLINE_PAIRS:
        write_samples(folder, ("only for pairs",), tokens=50)
    if name.startswith("eval_") and method in WIN:
        write_samples(folder, (HOSTILE, "0 1 1 0", "a long summary " * 12), tokens=7)
    return folder


def write_samples(folder: Path, texts: tuple[str, ...], *, tokens: int) -> None:
    """A samples.parquet with one row a text; the second one did not end."""
    rows = [
        {
            "prompt_id": f"p{i}", "prompt": f"POST {i}: " + ("words " * 60) + HOSTILE,
            "sample": text, "ids": [1, 2], "tokens": tokens + i, "ended": i != 1,
            "score": 0.5 * i, "reference": "ref <b>", "reference_score": None,
        }
        for i, text in enumerate(texts)
    ]  # fmt: skip
    schema = pa.schema([*SAMPLE_TYPES.items()])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "samples.parquet")


def make_demo(path: Path) -> Path:
    """A whole demo folder."""
    make_checks(path / "check.json")
    make_sweep(path / "sweep", demo_cells(), demo_ratios())
    write_json(
        path / "task.json",
        {
            "schema": 1, "family": "walsh", "parameters": {"seed": 0}, "tokens": ["0", "1"],
            "horizon": 6, "eos": None, "beta": 1.0, "prompts": {"a": 0.5, "b": 0.5},
            "prompt_tokens": {"a": ["p"], "b": ["q"]}, "reward": {}, "reference": {},
        },
    )  # fmt: skip
    save(path / "predictions.json", "predictions", make_predictions(), task="ef" * 32)
    make_study(path / "study")
    return path


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    """A demo folder with everything in it."""
    return make_demo(tmp_path / "demo")


@pytest.fixture(scope="session")
def shared_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo folder that no test changes."""
    return make_demo(tmp_path_factory.mktemp("shared") / "demo")


@pytest.fixture
def real_study(tmp_path: Path) -> Path:
    """A study folder alone, trained on real text with a model too small to judge."""
    note = "model too small to judge: 123,456 parameters trained on 1,500 posts"
    return make_study(tmp_path / "real", too_small=note)


@pytest.fixture(scope="session")
def whole_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of Figs. 3 to 10 at three sizes that no test changes."""
    script = Path(__file__).with_name("whole_study.py")
    spec = importlib.util.spec_from_file_location("whole_study", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def whole_page(whole_study: Path) -> Path:
    """The report of that study."""
    out = whole_study.parent / f"{whole_study.name}.html"
    write_report(whole_study, out)
    return out


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[Any], None]], None]:
    """Change a JSON file in place."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        body = json.loads(path.read_text(encoding="utf-8"))
        change(body)
        write_json(path, body)

    return edit


@pytest.fixture
def sweep_tools() -> SimpleNamespace:
    """The makers of sweep folders: `cell`, `ratio`, `folder`, and the settings of two families."""
    return SimpleNamespace(
        cell=cell_rows, ratio=ratio_row, folder=make_sweep, walsh=WALSH, coverage=COVERAGE
    )
