"""Draw the recorded ratios as one picture and print them as markdown.

python benchmarks/draw.py RESULT.json ... --out docs/benchmarks.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from timing import verdict

FLOOR, PEER = "#4c78a8", "#b0b0b0"


def bars(record: dict) -> list[tuple[str, float, str]]:
    """(label, ratio of the minima, colour) of every row that has a ratio."""
    drawn = []
    for line in record["rows"]:
        if line["ratio"] is not None:
            colour = FLOOR if line["name"].startswith("ours") else PEER
            drawn.append((f"{line['name']}   {line['case']}", line["ratio"]["min"], colour))
    return drawn


def draw(records: list[dict], out: Path) -> None:
    """Blue: ours as a multiple of the floor. Grey: a peer as a multiple of ours."""
    groups = [(record["benchmark"], bars(record)) for record in records]
    heights = [len(group) + 1.5 for _, group in groups]
    figure, axes = plt.subplots(
        len(groups), 1, figsize=(9, 0.3 * sum(heights) + 1), height_ratios=heights, squeeze=False
    )
    for axis, (name, group) in zip(axes[:, 0], groups, strict=True):
        labels, values, colours = zip(*group, strict=True)
        axis.barh(range(len(group)), values, color=colours)
        axis.set_yticks(range(len(group)), labels, fontsize=8)
        axis.invert_yaxis()
        axis.set_xscale("log")
        axis.set_xlim(0.7 * min(0.7, *values), max(values) * 3)
        axis.axvline(1.0, color="black", linewidth=0.8)
        for place, value in enumerate(values):
            text = f" {value:.2f}x" if value < 100 else f" {value:,.0f}x"
            axis.text(max(value, 1.0), place, text, va="center", fontsize=8)
        axis.set_title(name, fontsize=10, loc="left")
    axes[-1, 0].set_xlabel(
        "time ratio, log scale (blue: ours / floor; grey: peer / ours)", fontsize=9
    )
    figure.tight_layout()
    figure.savefig(out, dpi=150)


def markdown(record: dict) -> str:
    """One table, with command, date, machine, threads and versions above it."""
    machine = record["machine"]
    versions = ", ".join(f"{k} {v or 'not installed'}" for k, v in record["versions"].items())
    threads = ", ".join(f"{k} {v}" for k, v in machine["threads"].items())
    head = (
        f"## {record['benchmark']}\n\n`{record['command']}`\n\n{record['date']}; "
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB, "
        f"load at the end {machine['load_at_end']:.1f}; {threads}; {versions}\n\n"
        "| case | what | ms, min | ms, median | ratio, min | ratio, median | of / note | target |\n"
        "|---|---|---|---|---|---|---|---|"
    )
    lines = [head]
    for line in record["rows"]:
        ms, ratio = line["ms"], line["ratio"]
        cells = [f"{ms[k]:.2f}" if ms else "" for k in ("min", "median")]
        cells += [f"{ratio[k]:.2f}" if ratio else "" for k in ("min", "median")]
        note = line["note"] or line["ratio_to"]
        cells += [note, verdict(line)]
        lines.append(f"| {line['case']} | {line['name']} | {' | '.join(cells)} |")
    points = (record.get("figures") or {}).get("curve") or []
    if points:
        lines.append("\n| prompt, tokens | completions | ours, s | peer, 8 rows a pass, s |")
        lines.append("|---|---|---|---|")
    for p in points:
        lines.append(f"| {p['prompt']} | {p['completions']} | {p['ours']:.2f} | {p['peer']:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    records = [json.loads(path.read_text()) for path in asked.results]
    draw(records, asked.out)
    for record in records:
        print(markdown(record))


if __name__ == "__main__":
    main()
