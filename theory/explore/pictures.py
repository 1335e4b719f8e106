"""Trees and probabilities as SVG text: drawn in a millisecond, read on a phone, no library.

Text and axes take the colour of the page they stand on.
"""

from __future__ import annotations

from html import escape

import numpy as np
from jaxtyping import Float

from theory.tree import TokenTree

COLOURS = {"optimum": "#7a7a7a", "two_stage": "#009e73", "offline_all": "#d55e00"}
NAMES = {
    "optimum": "the optimum",
    "two_stage": "online: reward, then soft RL",
    "offline_all": "offline: all policies",
}
SHORT = {"optimum": "optimum", "two_stage": "online", "offline_all": "offline"}
MOST_NODES = 64  # in the last level that is drawn
SHOWN = 32  # completions in the picture of probabilities
WIDTH, HEIGHT = 320, 210


def depth_shown(tree: TokenTree) -> int:
    """How many levels of the tree fit into a picture."""
    depth = 1
    while depth < tree.horizon and tree.vocab ** (depth + 1) <= MOST_NODES:
        depth += 1
    return depth


def tree_svg(tree: TokenTree, passing: list[Float[np.ndarray, "P S V"]], road: str) -> str:
    """The first levels under the first prompt; line widths are P(a completion passes here).

    passing: one (P, V**h, V) array a level, as `node_probabilities` gives.
    """
    depth = depth_shown(tree)
    top, step = 26.0, (HEIGHT - 56.0) / depth
    parts = []
    for h in range(depth):
        across = _places(tree.vocab, h), _places(tree.vocab, h + 1)
        for node, p in enumerate(passing[h][0].reshape(-1)):
            if not tree.allowed(h).reshape(-1)[node]:
                continue
            x0, x1 = across[0][node // tree.vocab], across[1][node]
            y0, y1 = top + h * step, top + (h + 1) * step
            words = " ".join(_words(tree, node, h + 1))
            parts.append(
                f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" '
                f'stroke-width="{0.3 + 11.0 * p:.2f}" stroke="{COLOURS[road]}" '
                f'stroke-linecap="round"><title>{escape(words)}: {p:.4f}</title></line>'
            )
            if tree.vocab ** (h + 1) <= 8:
                token = escape(tree.tokens[node % tree.vocab])
                side, anchor = (-1, "end") if x1 < x0 else (1, "start")
                parts.append(_text(x1 + 6 * side, y1 + 1, token, size=9, anchor=anchor))
    more = f"{depth} of {tree.horizon} tokens; width: probability of passing"
    parts.append(_text(WIDTH / 2, HEIGHT - 6, more, size=10, faint=True))
    return _svg(parts, NAMES[road], f"tree of {NAMES[road]}")


def ranks_svg(tree: TokenTree, log_p: dict[str, Float[np.ndarray, "P L"]]) -> str:
    """Probabilities of the likeliest completions, in the optimum's order, first prompt.

    log_p: road -> log P, "optimum" among them.
    """
    p = {road: np.exp(value[0, tree.leaves]) for road, value in log_p.items()}
    order = np.argsort(-p["optimum"], kind="stable")[:SHOWN]
    most = max(float(value[order].max()) for value in p.values())
    left, right, bottom, top = 42.0, WIDTH - 8.0, HEIGHT - 34.0, 26.0
    wide = (right - left) / len(order)

    def height(value: float) -> float:
        return bottom - (bottom - top) * value / most

    parts = []
    for mark in (0.0, most / 2, most):
        y = height(mark)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke='
                     '"currentColor" stroke-opacity="0.2"/>')  # fmt: skip
        parts.append(_text(left - 4, y + 3, f"{mark:.3f}", size=9, anchor="end"))
    for i, leaf in enumerate(order):
        x, words = left + (i + 0.5) * wide, " ".join(tree.leaf_tokens(int(tree.leaves[leaf])))
        values = ", ".join(f"{SHORT[road]} {value[leaf]:.4f}" for road, value in p.items())
        y = height(p["optimum"][leaf])
        parts.append(
            f'<rect x="{x - 0.42 * wide:.1f}" y="{y:.1f}" width="{0.84 * wide:.1f}" '
            f'height="{bottom - y:.1f}" fill="{COLOURS["optimum"]}" fill-opacity="0.45">'
            f"<title>{escape(words)}: {values}</title></rect>"
        )
        for road in p:
            if road != "optimum":
                parts.append(f'<circle cx="{x:.1f}" cy="{height(p[road][leaf]):.1f}" r="2.6" '
                             f'fill="{COLOURS[road]}"/>')  # fmt: skip
    label = f"the {len(order)} likeliest of {len(tree.leaves)} completions"
    parts.append(_text((left + right) / 2, HEIGHT - 16, label, size=10))
    held = ", ".join(f"{SHORT[road]} {value[order].sum():.2f}" for road, value in p.items())
    parts.append(_text((left + right) / 2, HEIGHT - 4, f"mass shown: {held}", size=9, faint=True))
    return _svg(parts, "probability of a completion", "probabilities of completions")


def bars_svg(kl: dict[str, float]) -> str:
    """KL to the optimum of each road as horizontal bars from 0, nats."""
    most, left, parts = max(*kl.values(), 1e-9), 8.0, []
    for i, (road, value) in enumerate(kl.items()):
        y = 44.0 + 62.0 * i
        length = (WIDTH - 84.0) * value / most
        parts.append(_text(left, y - 6, NAMES[road], size=11, anchor="start"))
        parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="22" '
                     f'fill="{COLOURS[road]}"/>')  # fmt: skip
        parts.append(_text(left + length + 6, y + 16, f"{value:.3f} nats", size=12, anchor="start"))
    return _svg(parts, "KL to the optimum", "KL to the optimum of each road")


# --- helpers --------------------------------------------------------------------------------------


def _places(vocab: int, level: int) -> Float[np.ndarray, " S"]:
    count = vocab**level
    return 10.0 + (WIDTH - 20.0) * (np.arange(count) + 0.5) / count


def _words(tree: TokenTree, node: int, length: int) -> list[str]:
    words = []
    for _ in range(length):
        node, last = divmod(node, tree.vocab)
        words.append(tree.tokens[last])
    return words[::-1]


def _text(
    x: float, y: float, words: str, *, size: int, anchor: str = "middle", faint: bool = False
) -> str:
    shade = ' fill-opacity="0.65"' if faint else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" '
        f'fill="currentColor"{shade}>{words}</text>'
    )


def _svg(parts: list[str], title: str, label: str) -> str:
    head = _text(WIDTH / 2, 14, escape(title), size=12)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg" style="flex:1 1 300px;min-width:280px;max-width:460px" '
        f'font-family="sans-serif">{head}{"".join(parts)}</svg>'
    )
