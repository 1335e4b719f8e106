"""Read data sets of the Hugging Face hub by name, with their official splits."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
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
COMMIT = re.compile(r"[0-9a-f]{40}")
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
    corpus = Corpus(drops_empty=True)
    for name in names:
        _read_one(corpus, name)
    return corpus


def _read_one(corpus: Corpus, name: str) -> None:
    import datasets  # slow to import, and needed for the hub alone

    place: Any = location(name)
    if place == name:
        require_hub(name, "dataset")
    revision = data_revision(name)
    asked = {**EXPORTS.get(name, {}), **({} if revision is None else {"revision": revision})}
    try:
        loaded = datasets.load_dataset(place, **asked)
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
                "revision": revision,  # the commit read; None: could not be learned
                "licence": rows.info.license or None,
            }
        )


def data_revision(name: str) -> str | None:
    """The commit of a data set that `read_hub` reads; None where nothing tells it."""
    if location(name) != name:
        return None
    return revision_of(name, "dataset", EXPORTS.get(name, {}).get("revision"))


@cache
def revision_of(
    name: str, kind: Literal["dataset", "model"], revision: str | None = None
) -> str | None:
    """The commit that a hub name stands for now: asked of the hub, else read from its caches.

    revision: a branch, tag or commit; None = main. None for a name that is no hub name, or where
    neither the hub nor a cache knows it. One answer a process: what is hashed is what is read.
    """
    import huggingface_hub

    if not NAME.fullmatch(name):
        return None
    if COMMIT.fullmatch(revision or ""):
        return revision
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        try:
            api = huggingface_hub.HfApi()
            found = api.repo_info(name, repo_type=kind, revision=revision, timeout=TIMEOUT)
        except Exception:  # unreachable: the caches may still know
            pass
        else:
            return found.sha
    return _cached_revision(name, kind, revision or "main")


def _cached_revision(name: str, kind: str, revision: str) -> str | None:
    """From the hub's own cache (refs), else the folder name of a prepared data set."""
    import huggingface_hub
    from datasets import config

    root = Path(huggingface_hub.constants.HF_HUB_CACHE)
    ref = root / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()
    if kind != "dataset":
        return None
    owner, data_set = name.split("/")
    prepared = Path(config.HF_DATASETS_CACHE) / f"{owner}___{_snake(data_set)}"
    commits = [f for f in prepared.glob("*/*/*") if f.is_dir() and COMMIT.fullmatch(f.name)]
    return max(commits, key=lambda f: f.stat().st_mtime).name if commits else None


def _snake(name: str) -> str:
    """As `datasets` spells a name in its cache."""
    from datasets.naming import camelcase_to_snakecase

    return camelcase_to_snakecase(name)


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
