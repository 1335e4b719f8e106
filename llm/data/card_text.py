"""A data card as a person reads it: what was counted, cut, dropped, shared; and made pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

TITLES = {
    "counts": "Examples",
    "split": "Parts",
    "left_out": "Left out of every part (rows)",
    "shared_posts": "Posts that two parts share",
    "cut": "Cut",
    "dropped": "Dropped (rows)",
    "overlap": "Posts that two sources share",
    "label_noise": "The same two texts compared again",
    "judge": "Asked of the judge",
}
LENGTHS = "length_quantiles"


def print_card(card: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a card: that of a data stage, or that of made pairs (card.json of its folder)."""
    console = console or Console()
    for table in tables_of(card):
        console.print(table)
    for note in card.get("notes", ()):
        console.print(f"- {escape(note)}")


def tables_of(card: Mapping[str, Any]) -> Iterator[Table]:
    """One table a section; a section that holds nothing is left out."""
    if card.get("sources"):
        yield _sources(card["sources"])
    for name, section in card.items():
        if name == "parts":
            for part, content in section.items():
                yield from _section(f"Made: {part}", content)
        elif isinstance(section, Mapping):
            yield from _section(TITLES.get(name, name), section, name)


def _section(title: str, section: Mapping[str, Any], name: str = "") -> Iterator[Table]:
    """Numbers and words as one table; what is nested as further ones."""
    if name == LENGTHS:
        yield from _lengths(title, section)
        return
    plain = {key: value for key, value in section.items() if not isinstance(value, Mapping)}
    if plain:
        table = Table(title=escape(title), title_justify="left", show_header=False)
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        for key, value in plain.items():
            table.add_row(escape(_worded(key)), escape(_shown(value)))
        yield table
    for key, value in section.items():
        if isinstance(value, Mapping):
            inner = TITLES.get(key, key.replace("_", " "))
            yield from _section(inner if name else f"{title}: {inner}", value, key)


def _worded(key: str) -> str:
    """A name of this program in words; a file's or data set's name as it is."""
    return key if "." in key or "/" in key else key.replace("_", " ")


def _shown(value: object) -> str:
    if value is None:
        return "unknown"
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _lengths(title: str, section: Mapping[str, Any]) -> Iterator[Table]:
    """Quantiles of lengths in tokens, one row a kind of text."""
    known = {name: found for name, found in section.items() if found is not None}
    if not known:
        return
    title = title.replace("length quantiles", "").replace(LENGTHS, "")
    table = Table(title=escape(f"{title} Lengths in tokens, quantiles".strip()))
    table.title_justify = "left"
    table.add_column("")
    for quantile in next(iter(known.values())):
        table.add_column(quantile, justify="right")
    for name, found in known.items():
        label = name.removesuffix("_tokens").replace("_", " ")
        table.add_row(label, *(f"{value:g}" for value in found.values()))
    yield table


def _sources(sources: Sequence[Mapping[str, Any]]) -> Table:
    """One row a file or a split of a hub data set."""
    columns = [
        name
        for name in ("kind", "path", "split", "records", "family", "revision", "sha256", "licence")
        if any(source.get(name) is not None for source in sources)
    ]
    table = Table(title="Sources", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name == "records" else "left", overflow="fold")
    for source in sources:
        shown = {**source, "sha256": (source.get("sha256") or "")[:12]}
        table.add_row(*(escape(_shown(shown.get(name) or "-")) for name in columns))
    return table
