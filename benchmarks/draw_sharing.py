"""Draw what sharing prompts gains: cost against length and number, and every ratio.

python benchmarks/draw_sharing.py sharing.json --out docs/sharing.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

OURS, PEER = "#4c78a8", "#888888"
NAMES = {"ours": "prompt once", "peer": "one row a completion, all logits, 8 a pass"}


def ratios(record: dict) -> list[tuple[str, float]]:
    """(case and peer, time of the peer / ours), medians."""
    return [
        (f"{line['case']}\n{line['name']}", line["ratio"]["median"])
        for line in record["rows"]
        if line["ratio_to"] == "ours" and line["ratio"] is not None
    ]


def cost(axis: plt.Axes, points: Sequence[dict], over: str, fixed: str) -> None:
    """Seconds against one of the two, both ways."""
    for name, colour in (("ours", OURS), ("peer", PEER)):
        x, y = [p[over] for p in points], [p[name] for p in points]
        axis.plot(x, y, marker="o", color=colour, label=NAMES[name])
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.set_title(fixed, fontsize=10, loc="left")
    axis.set_ylabel("seconds, median")
    axis.legend(fontsize=8, frameon=False)


def draw(record: dict, out: Path) -> None:
    """Left and middle: scoring by log-prob. Right: every peer's time as a multiple of ours."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.2))
    points, length = record["figures"]["curve"], record["figures"]["completion"]
    count = min(p["completions"] for p in points if p["prompt"] == max(q["prompt"] for q in points))
    prompt = next(p["prompt"] for p in points if p["completions"] != count)
    by_length = [p for p in points if p["completions"] == count and p["prompt"] != prompt]
    by_number = sorted((p for p in points if p["prompt"] == prompt), key=lambda p: p["completions"])
    cost(left, by_length, "prompt", f"scoring {count} completions of {length} tokens")
    left.set_xlabel("prompt, tokens")
    cost(middle, by_number, "completions", f"scoring completions of a prompt of {prompt} tokens")
    middle.set_xlabel("completions")
    names, values = zip(*ratios(record), strict=True)
    right.barh(range(len(names)), values, color=PEER)
    right.set_yticks(range(len(names)), names, fontsize=7)
    right.invert_yaxis()
    right.axvline(1.0, color="black", linewidth=0.8)
    for place, value in enumerate(values):
        right.text(value, place, f" {value:.1f}x", va="center", fontsize=8)
    right.set_xlim(0, 1.15 * max(values))
    right.set_xlabel("time of the peer / ours, medians")
    figure.tight_layout()
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    draw(json.loads(asked.record.read_text()), asked.out)


if __name__ == "__main__":
    main()
