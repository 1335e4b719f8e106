"""Read data sets of the Hugging Face hub by name, with their official splits."""

from __future__ import annotations

import re

from llm.data.rows import SPLITS, Corpus, add_row, kind_of
from llm.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CONFIGS = {"openai/summarize_from_feedback": "comparisons"}


def hub_names(source: str) -> tuple[str, ...] | None:
    """The names in "owner/posts,owner/preferences"; None if a part is no hub name."""
    names = tuple(part.strip() for part in source.split(","))
    return names if all(NAME.fullmatch(name) for name in names) else None


def location(name: str) -> str:
    """What `datasets.load_dataset` is asked for."""
    return name


def read_hub(names: tuple[str, ...]) -> Corpus:
    """All rows of the named data sets. Raises InputError, e.g. if the hub cannot be reached."""
    corpus = Corpus()
    for name in names:
        _read_one(corpus, name)
    return corpus


def _read_one(corpus: Corpus, name: str) -> None:
    import datasets  # slow to import, and needed for the hub alone

    try:
        loaded = datasets.load_dataset(location(name), CONFIGS.get(name))
    except Exception as error:  # the library raises whatever its parts raise
        reason = str(error).strip().splitlines()[:1]
        raise InputError(
            f"data set {name!r} is neither a path here nor loadable from the hub: "
            f"{type(error).__name__}: {reason[0] if reason else ''}"
        ) from error
    if not isinstance(loaded, datasets.DatasetDict) or not loaded:
        raise InputError(f"data set {name!r} has no named splits")
    for split, rows in loaded.items():
        if split not in SPLITS:
            raise InputError(f"data set {name!r}: split {split!r} is none of {', '.join(SPLITS)}")
        kind = kind_of(dict.fromkeys(rows.column_names))
        if kind is None:
            columns = ", ".join(rows.column_names)
            raise InputError(f"data set {name!r}: no known format has the columns {columns}")
        for i, row in enumerate(rows):
            add_row(corpus, row, kind, name, f"{name}, split {split}, row {i}", SPLITS[str(split)])
        corpus.sources.append(
            {
                "kind": kind,
                "path": name,
                "split": str(split),
                "records": len(rows),
                "sha256": None,
                "fingerprint": rows._fingerprint,
                "licence": rows.info.license or None,
            }
        )
