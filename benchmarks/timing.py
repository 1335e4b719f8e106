"""Timing in turn, the machine's description, and the records that all benchmarks write."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

INSTALL = "not installed: pip install -c constraints.txt -e '.[bench]'"

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "XLA_FLAGS")
IMITATION = (  # its own dependencies do not go with this project's versions
    "not installed: pip install --no-deps imitation==1.0.1 seals==0.2.1 gymnasium==0.29.1 "
    "stable-baselines3==2.2.1 farama-notifications==0.0.4 huggingface-sb3==3.0 sacred==0.8.7 "
    "wasabi==1.1.3 colorama==0.4.6"
)


def measure(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of every run, {"min", "median"}; the runs take turns, after one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - start))
    return {n: {"min": min(t), "median": statistics.median(t)} for n, t in times.items()}


def row(
    case: str,
    name: str,
    cost: dict[str, float] | None,
    to: str,
    note: str = "",
    *,
    target: float | None = None,
    value: float | None = None,
) -> dict:
    """One line of a table; cost None means that it was not timed, and `note` says why.

    target: the most that the ratio of the minima may be, or `value`, what was measured in place of
    a time.
    """
    line = {"case": case, "name": name, "ms": cost, "ratio_to": to, "note": note}
    return line | {"target": target, "value": value}


def verdict(line: dict) -> str:
    """ "target 2.0: met", "target 2.0: missed", or "" for a row without target."""
    if line["target"] is None:
        return ""
    reached = line["value"] if line["value"] is not None else line["ratio"]["min"]
    return f"target {line['target']}: {'met' if reached <= line['target'] else 'missed'}"


def add_ratios(rows: list[dict]) -> None:
    """ratio = time / time of the row `ratio_to` of the same case, of minima and of medians."""
    known = {(r["case"], r["name"]): r["ms"] for r in rows}
    for line in rows:
        base = known.get((line["case"], line["ratio_to"]))
        line["ratio"] = (
            {k: line["ms"][k] / base[k] for k in ("min", "median")} if line["ms"] and base else None
        )


def memory_bytes() -> int:
    """Physical memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict:
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    load = os.getloadavg()[0]  # of the last minute, this program's own included
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "load_at_end": load,
        "threads": {name: os.environ.get(name, "not set") for name in THREADS},
    }


def finish(
    name: str,
    rows: list[dict],
    packages: tuple[str, ...],
    out: Path | None,
    figures: dict | None = None,
) -> None:
    """Print the table, and write the record, with further figures, whole or not at all."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    add_ratios(rows)
    columns = ("case", "what", "ms (min)", "ms (median)", "ratio (min)", "(median)", "of / note")
    columns += ("target",)
    table = Table(*columns, title=name)
    for line in rows:
        ms, ratio = line["ms"], line["ratio"]
        cells = [f"{ms[k]:.2f}" if ms else "-" for k in ("min", "median")]
        cells += [f"{ratio[k]:.2f}" if ratio else "-" for k in ("min", "median")]
        table.add_row(
            line["case"],
            line["name"],
            *cells,
            escape(line["note"] or line["ratio_to"]),
            verdict(line),
        )
    Console(width=150).print(table)
    if out is not None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        body = {"benchmark": name, "date": now, "machine": machine(), "rows": rows}
        body["figures"] = figures
        body["command"] = " ".join(["python", *sys.argv])
        body["versions"] = {package: version(package) for package in packages}
        partial = out.with_name(out.name + ".partial")
        partial.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n")
        partial.replace(out)
