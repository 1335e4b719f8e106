"""Read data sets of the Hugging Face hub by name, with their official splits."""

from __future__ import annotations

import re
from typing import Any, Literal

from llm.data.rows import SPLITS, Corpus, add_row, kind_of
from llm.errors import InputError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# `datasets` 4 and later run no loading scripts; this one is read from the hub's parquet export.
EXPORTS: dict[str, dict[str, Any]] = {
    "openai/summarize_from_feedback": {
        "data_dir": "comparisons",
        "revision": "refs/convert/parquet",
    }
}
TIMEOUT = 10  # seconds, for the first question to the hub


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

    place: Any = location(name)
    if place == name:
        require_hub(name, "dataset")
    try:
        loaded = datasets.load_dataset(place, **EXPORTS.get(name, {}))
    except Exception as error:  # the library raises whatever its parts raise
        raise InputError(f"data set {name!r} cannot be loaded: {_reason(error)}") from error
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
                "revision": EXPORTS.get(name, {}).get("revision"),
                "licence": rows.info.license or None,
            }
        )


def require_hub(name: str, kind: Literal["dataset", "model"]) -> None:
    """One question to the hub before its libraries' minutes of retries; InputError if it fails.

    With HF_HUB_OFFLINE=1 nothing is asked, and what is cached is used.
    """
    import huggingface_hub

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return
    try:
        huggingface_hub.HfApi().repo_info(name, repo_type=kind, timeout=TIMEOUT)
    except Exception as error:  # the library raises whatever its parts raise
        raise InputError(
            f"{kind} {name!r} is no path here, and the hub does not give it: {_reason(error)} "
            "(HF_HUB_OFFLINE=1 uses what is cached)"
        ) from error


def _reason(error: Exception) -> str:
    first = str(error).strip().splitlines()[:1]
    return f"{type(error).__name__}: {''.join(first)}"
