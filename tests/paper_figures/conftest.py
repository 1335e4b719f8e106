"""Small, schema-true record folders with made-up numbers, for the tests of the report."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from theory.predictions import Measurement, Prediction, judge, save

POLICIES = ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")
SEEDS = (0, 1, 2)
HOSTILE = "<script>alert('x')</script> & <img src=http://example.invalid/p.png onerror=alert(1)>"
WIN = {"sft": 0.5, "dpo": 0.61, "dpo_2x": 0.66, "online_dpo_sft": 0.72, "online_dpo_dpo": 0.64}
LOSS = {"global_rm": 0.45, "local_rm": 0.55, "dpo_rm": 0.58}
CURVES = ("dpo", "global_rm")


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


def make_sweep(path: Path) -> Path:
    """A sweep of three settings and two N."""
    write_json(path / "grid.json", {"name": "made-up"})
    (path / "cells").mkdir()
    for degree, horizon in ((2, 4), (2, 8), (4, 8)):
        for n in (64, 1024):
            rows = _cell(degree, horizon, n)
            name = f"walsh-{degree}-{horizon}-{n}"
            pq.write_table(pa.Table.from_pylist(rows), path / "cells" / f"{name}.parquet")
    return path


def _cell(degree: int, horizon: int, n: int) -> list[dict[str, Any]]:
    draw = random.Random(degree * 1000 + horizon * 100 + n)
    scale = {"two_stage": 1.0, "offline_all": 1 + 4 / degree, "offline_matched": 1.05}
    return [
        {
            "family": "walsh", "degree": degree, "sharpness": 2.0, "horizon": horizon, "bits": 8,
            "n_pairs": n, "beta": 1.0, "seed": seed, "arm": arm, "ridge": ridge,
            "kl": factor * degree / math.sqrt(n) * (1 + abs(math.log(ridge)) / 5)
            + draw.gauss(0, 0.004),
        }
        for arm, factor in scale.items() for ridge in (0.3, 1.0, 3.0) for seed in range(6)
    ]  # fmt: skip


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
            )
        )  # fmt: skip
    return out


def make_study(path: Path, *, too_small: str | None = None, verdicts: bool = True) -> Path:
    """A study directory; too_small: a study on real text that may judge nothing."""
    stages = {}
    for name in (*POLICIES, *REWARD_MODELS):
        for seed in (None,) if name == "sft" else SEEDS:
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
    """One stage directory with its record, and samples where it is a policy."""
    digest = "".join(f"{ord(c):02x}" for c in name)[:10].ljust(10, "0") + f"{seed or 0:02d}"
    folder = path / "stages" / (f"{name}-{digest}" if seed is None else f"{name}-{seed}-{digest}")
    nudge = 0.01 * ((seed or 0) - 1)
    metrics: dict[str, float | None] = {"parameters": 123456.0, "missing": None}
    if name in WIN:
        metrics["win_rate"] = WIN[name] + nudge
    else:
        metrics |= {"val_loss": LOSS[name] + nudge, "val_accuracy": 1.2 - LOSS[name] + nudge}
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
            "weights_sha256": None if name == "dpo_rm" else "cd" * 32,
        },
    )  # fmt: skip
    if name in WIN:
        texts = (HOSTILE, "0 1 1 0", "a long summary " * 12)
        rows = [
            {
                "prompt_id": f"p{i}", "prompt": f"POST {i}: " + ("words " * 60) + HOSTILE,
                "sample": text, "tokens": 7 + i, "ended": i != 1, "score": 0.5 * i,
                "reference": "ref <b>",
            }
            for i, text in enumerate(texts)
        ]  # fmt: skip
        pq.write_table(pa.Table.from_pylist(rows), folder / "samples.parquet")
    return folder


def make_demo(path: Path) -> Path:
    """A whole demo folder."""
    make_checks(path / "check.json")
    (path / "sweep").mkdir(parents=True)
    make_sweep(path / "sweep")
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


@pytest.fixture
def edit_json() -> Callable[[Path, Callable[[Any], None]], None]:
    """Change a JSON file in place."""

    def edit(path: Path, change: Callable[[Any], None]) -> None:
        body = json.loads(path.read_text(encoding="utf-8"))
        change(body)
        write_json(path, body)

    return edit
