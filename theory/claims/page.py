"""The page theory/claims/README.md, made from the claims: `python -m theory.claims.page`."""

from __future__ import annotations

import sys
from pathlib import Path

from theory.certificate import MIN_VIOLATION, SLACK, Twin
from theory.claims import CLAIMS
from theory.claims.base import Claim, run_twins
from theory.claims.rational import CLAIMS as RATIONAL

PAGE = Path(__file__).with_name("README.md")

HEAD = f"""\
# The paper's claims, checked

This page is made by `python -m theory.claims.page` from the claims themselves; do not edit it.

Each claim is checked on random token trees: two sides computed on separate code paths must agree
within {SLACK:.0e} nats (in exact fractions: be equal). Each of its assumptions is then broken in
turn, on the smallest instance that shows it (a *broken twin*), and the claim must miss by at least
{MIN_VIOLATION} nats. A twin is a file: change a number in a copy of it and run it again.

```
python -m theory check                                # all claims
python -m theory check --arithmetic rational          # those decided in exact fractions
python -m theory check --claim theorem-2.2 --trials 200 --seed 1
python -m theory check --replay theory/claims/twins/theorem-2.2/unscaled.json
```
"""

RATIONAL_HEAD = """\
# In exact fractions

The same statements on finite lists, decided with residual exactly 0: `--arithmetic rational`.
"""


def page() -> str:
    """The whole text. Runs every twin from its file."""
    parts = [HEAD, _contents(CLAIMS), *(_section(claim) for claim in CLAIMS), RATIONAL_HEAD]
    parts += [_section(claim, " (exact)") for claim in RATIONAL]
    return "\n".join(parts)


def _contents(claims: tuple[Claim, ...]) -> str:
    rows = [
        f"| [{claim.name}](#{_anchor(claim.name)}) | {_plain(claim.source)} | {len(claim.broken)} |"
        for claim in claims
    ]
    return "\n".join(["| claim | in the paper | twins |", "| --- | --- | --- |", *rows, ""])


def _anchor(name: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return name.lower().replace(".", "").replace(" ", "-")


def _plain(text: str) -> str:
    """Text that Markdown shows as it stands."""
    for mark in "\\*_|<>":
        text = text.replace(mark, f"\\{mark}")
    return text


def _section(claim: Claim, suffix: str = "") -> str:
    twins = run_twins(claim)
    rows = [
        _row(claim, twin, broken.smallest) for broken, twin in zip(claim.broken, twins, strict=True)
    ]
    return "\n".join(
        [
            f"## {claim.name}{suffix}",
            "",
            f"*{_plain(claim.source)}.* {_plain(claim.statement)}",
            "",
            f"What the paper leaves out: {_plain(claim.left_out) or 'nothing.'}",
            "",
            "| what is broken | misses by (nats) | why nothing smaller | file |",
            "| --- | --- | --- | --- |",
            *rows,
            "",
        ]
    )


def _row(claim: Claim, twin: Twin, smallest: str) -> str:
    cells = (
        _plain(twin.assumption),
        f"{twin.violation:.3f}",
        _plain(smallest),
        f"[{twin.name}](twins/{claim.name}/{twin.name}.json)",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Write the page next to this file."""
    PAGE.write_text(page())
    print(PAGE)
    return 0


if __name__ == "__main__":
    sys.exit(main())
