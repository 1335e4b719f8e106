"""Read preference data: OpenAI's raw comparisons, or a table of (prompt, chosen, rejected).

What counts as the same. A prompt is its exact text: two posts with one text are one prompt,
whatever their ids, because a reward model sees the text alone, and because raw files give some
posts an id and others none. Where a post is given in parts (subreddit, title, post), its text is
"SUBREDDIT: r/<subreddit>", "TITLE: <title>" and "POST: <post>" joined by blank lines; a subreddit's
own leading "r/" is dropped first, and a part that is not there is left out. A completion is its
exact text under its prompt: nothing is stripped, folded or normalised, and the empty text is a
completion. A list of chat messages counts as its JSON with sorted keys. Ids are used for one thing:
`Clashes` counts where they and the texts disagree.

Texts are hashed as they are read (BLAKE2b, 128 bits) and not kept: memory is about 60 bytes a row.
"""

from __future__ import annotations

import json
import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from jaxtyping import Int

from theory.comparison_files import SUFFIXES, listed, records, short
from theory.errors import InputError

MAX_COUNT = 10**9  # of a row
MAX_TOTAL = 3 * 10**9  # of all rows; couples of comparisons then fit into 64 bits
RAW = {"info", "summaries", "choice"}
COLUMNS = {  # all that is ever read
    *("info", "summaries", "choice", "worker", "annotator", "count"),
    *("prompt", "subreddit", "title", "post", "chosen", "rejected"),
}


class Row(NamedTuple):
    """`count` comparisons of two completions of one prompt, all won by `chosen`."""

    prompt: str
    chosen: str
    rejected: str
    annotator: str | None = None
    count: int = 1
    prompt_id: str | None = None


@dataclass(frozen=True)
class Clashes:
    """Where ids of prompts and texts of prompts disagree; counted, and resolved by the text."""

    ids_with_several_texts: int
    texts_with_several_ids: int
    texts_with_and_without_id: int
    rows_without_id: int


@dataclass(frozen=True)
class Comparisons:
    """Comparisons with their texts replaced by numbers; one entry of N a row that was kept."""

    prompt: Int[np.ndarray, " N"]  # 0 .. n_prompts - 1
    winner: Int[np.ndarray, " N"]  # 0 .. n_completions - 1; a completion belongs to one prompt
    loser: Int[np.ndarray, " N"]
    count: Int[np.ndarray, " N"]  # comparisons in the row, >= 1
    annotator: Int[np.ndarray, " N"]  # 0 .. n_annotators - 1, -1 where unknown
    n_prompts: int
    n_completions: int
    n_annotators: int
    rows: int  # rows read, dropped ones included
    dropped: Mapping[str, int]  # reason -> rows
    clashes: Clashes | None  # None where no row has an id
    files: tuple[str, ...] = ()
    files_skipped: tuple[str, ...] = ()  # files of the folder that are of no known kind

    @classmethod
    def of(cls, rows: Iterable[Row | str]) -> Comparisons:
        """From rows; a string stands for a row that is dropped, and is the reason.

        Raises InputError if no row is left, or for more than 3e9 comparisons.
        """
        builder = _Builder()
        for row in rows:
            builder.add(row)
        return builder.finish()


def read_comparisons(
    path: Path, *, on_progress: Callable[[float], None] | None = None
) -> Comparisons:
    """All comparisons of a file, or of the files of a folder (not of folders in it).

    on_progress is told the part that is done, 0 to 1. Rows with equal texts, a missing text or
    choice, or a count of 0 are dropped and counted by reason. Raises InputError naming the file and
    the line (the record, from 1, in a JSON list or a parquet file) for anything else.
    """
    try:
        files, skipped = _files(path)
        sizes = [file.stat().st_size for file in files]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    builder = _Builder()
    for i, file in enumerate(files):

        def tell(part: float, i: int = i) -> None:
            if on_progress is not None:
                on_progress((sum(sizes[:i]) + part * sizes[i]) / max(sum(sizes), 1))

        before = builder.rows
        for row in _rows(file, tell):
            builder.add(row)
        if builder.rows == before:
            raise InputError(f"{file}: holds no comparison, it is empty")
        tell(1.0)
    return builder.finish(tuple(map(str, files)), tuple(map(str, skipped)), f"{path}: ")


def _files(path: Path) -> tuple[list[Path], list[Path]]:
    """The files to read, and the folder's other files."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if not path.is_dir():
        if not path.name.lower().endswith(SUFFIXES):
            raise InputError(f"{path}: not one of {', '.join(SUFFIXES)}")
        _require_regular(path)
        return [path], []
    inside = sorted(file for file in path.iterdir() if not file.is_dir())
    files = [file for file in inside if file.name.lower().endswith(SUFFIXES)]
    if not files:
        raise InputError(f"{path}: holds no file of the kinds {', '.join(SUFFIXES)}")
    for file in files:
        _require_regular(file)
    return files, [file for file in inside if file not in files]


def _require_regular(file: Path) -> None:
    if not file.is_file():  # a pipe or a device may never end
        raise InputError(f"{file}: is no regular file")


# --- from records to rows ------------------------------------------------------------------------


def _rows(file: Path, tell: Callable[[float], None]) -> Iterator[Row | str]:
    parse, place = None, 1

    def select(columns: Sequence[str]) -> list[str]:
        _format(set(columns))
        return [name for name in columns if name in COLUMNS]

    try:
        for number, record in records(file, select, tell):
            place = number
            parse = parse or _format(set(record))
            yield parse(record)
    except _BadRowError as error:
        raise InputError(f"{file}:{place}: {error}") from None


class _BadRowError(Exception):
    """What is wrong with a row."""


def _format(columns: set[str]) -> Callable[[dict[str, Any]], Row | str]:
    """The reader of rows with these columns. Raises _BadRowError if they are of no known format."""
    if columns >= RAW:
        return _raw_row
    if columns >= {"chosen", "rejected"} and columns & {"prompt", "post"}:
        return _table_row
    raise _BadRowError(
        "no known format: neither OpenAI's raw comparisons (info, summaries, choice) nor a table "
        f"(prompt or post, chosen, rejected); the columns found are {listed(columns)}"
    )


def _raw_row(record: dict[str, Any]) -> Row | str:
    """OpenAI's raw comparison: info{id, subreddit, title, post | article}, summaries[2], choice."""
    info, summaries, choice = (_get(record, name) for name in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise _BadRowError(f"info must be an object, got {short(info)}")
    whole = isinstance(summaries, list) and len(summaries) == 2
    if not (whole and all(isinstance(s, dict) and "text" in s for s in summaries)):
        raise _BadRowError(f"summaries must be two objects with a text, got {short(summaries)}")
    if "post" not in info and "article" not in info:
        raise _BadRowError(f"info has neither post nor article, only {listed(info)}")
    if choice is None:
        return "no choice"
    if isinstance(choice, bool) or choice not in (0, 1):
        raise _BadRowError(f"choice must be 0 or 1, got {short(choice)}")
    post = info.get("post")
    prompt = info.get("article") if post is None else _joined(info)
    a, b = (summary["text"] for summary in summaries)
    chosen, rejected = (b, a) if choice else (a, b)
    return _row(prompt, chosen, rejected, record.get("worker"), 1, info.get("id"))


def _table_row(record: dict[str, Any]) -> Row | str:
    """A row of a table; `prompt` stands above subreddit, title and post."""
    prompt = _get(record, "prompt") if "prompt" in record else _joined(record)
    annotator = record.get("annotator", record.get("worker"))
    count = _count(record["count"]) if "count" in record else 1
    if count == 0:
        return "count 0"
    return _row(prompt, _get(record, "chosen"), _get(record, "rejected"), annotator, count, None)


def _row(
    prompt: object, chosen: object, rejected: object, annotator: object, count: int, of: object
) -> Row | str:
    texts = [
        _text(value, name)
        for value, name in ((prompt, "prompt"), (chosen, "chosen"), (rejected, "rejected"))
    ]
    if texts[0] is None:
        return "missing prompt"
    if texts[1] is None or texts[2] is None:
        return "missing text"
    if texts[1] == texts[2]:
        return "same text"
    return Row(texts[0], texts[1], texts[2], _name(annotator), count, _name(of))


def _get(record: dict[str, Any], name: str) -> Any:
    if name not in record:
        raise _BadRowError(f"no {name}; the columns found are {listed(record)}")
    return record[name]


def _joined(record: dict[str, Any]) -> str | None:
    """The text of a post given in parts; None without the post itself."""
    if _get(record, "post") is None:
        return None
    parts = []
    for name in ("subreddit", "title", "post"):
        text = _text(record.get(name), name)
        if text is not None:
            shown = f"r/{text.removeprefix('r/')}" if name == "subreddit" else text
            parts.append(f"{name.upper()}: {shown}")
    return "\n\n".join(parts)


def _text(value: object, name: str) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list):
        try:
            return json.dumps(value, sort_keys=True, default=str)
        except RecursionError:
            raise _BadRowError(f"{name} is nested too deep") from None
    raise _BadRowError(f"{name} must be text, got {short(value)}")


def _name(value: object) -> str | None:
    """An annotator or an id as text; None where it is missing, empty or NaN."""
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, str | int | float):
        return str(value)
    raise _BadRowError(f"an annotator or id must be text or a number, got {short(value)}")


def _count(value: object) -> int:
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not (0 <= number <= MAX_COUNT and number == int(number)):
        raise _BadRowError(f"count must be a whole number, 0 to {MAX_COUNT:,}, got {short(value)}")
    return int(number)


# --- from rows to numbers ------------------------------------------------------------------------


class _Builder:
    """Collects rows as hashes, 16 bytes a text, and numbers them at the end."""

    def __init__(self) -> None:
        self.rows = 0
        self.dropped: Counter[str] = Counter()
        self.prompts, self.winners, self.losers = bytearray(), bytearray(), bytearray()
        self.ids, self.with_id = bytearray(), array("q")
        self.counts, self.annotators = array("q"), array("q")
        self.known: dict[str, int] = {}  # annotator -> number

    def add(self, row: Row | str) -> None:
        self.rows += 1
        if isinstance(row, str):
            self.dropped[row] += 1
            return
        prompt = _hash(row.prompt)
        if row.prompt_id is not None:
            self.with_id.append(len(self.counts))
            self.ids += _hash(row.prompt_id)
        self.prompts += prompt
        self.winners += _hash(row.chosen, prompt)
        self.losers += _hash(row.rejected, prompt)
        self.counts.append(row.count)
        name = row.annotator
        self.annotators.append(-1 if name is None else self.known.setdefault(name, len(self.known)))

    def finish(
        self, files: tuple[str, ...] = (), files_skipped: tuple[str, ...] = (), where: str = ""
    ) -> Comparisons:
        """The comparisons; `where` opens the message of an InputError."""
        n = len(self.counts)
        if n == 0:
            reasons = ", ".join(f"{reason}: {k:,}" for reason, k in self.dropped.items())
            left = f"no comparison is left of {self.rows:,} rows ({reasons or 'empty'})"
            raise InputError(where + left)
        if (total := sum(self.counts)) > MAX_TOTAL:
            raise InputError(f"{where}{total:,} comparisons, which is more than {MAX_TOTAL:,}")
        prompt, n_prompts = _numbers(self.prompts)
        completion, n_completions = _numbers(self.winners + self.losers)
        return Comparisons(
            prompt=prompt,
            winner=completion[:n],
            loser=completion[n:],
            count=np.asarray(self.counts, dtype=np.int64),
            annotator=np.asarray(self.annotators, dtype=np.int64),
            n_prompts=n_prompts,
            n_completions=n_completions,
            n_annotators=len(self.known),
            rows=self.rows,
            dropped=dict(self.dropped),
            clashes=self._clashes(prompt) if self.with_id else None,
            files=files,
            files_skipped=files_skipped,
        )

    def _clashes(self, prompt: Int[np.ndarray, " N"]) -> Clashes:
        rows = np.asarray(self.with_id, dtype=np.int64)
        numbers, _ = _numbers(self.ids)
        both = np.unique(np.stack([numbers, prompt[rows]], axis=1), axis=0)
        without = np.delete(prompt, rows)
        return Clashes(
            ids_with_several_texts=int((np.bincount(both[:, 0]) > 1).sum()),
            texts_with_several_ids=int((np.bincount(both[:, 1]) > 1).sum()),
            texts_with_and_without_id=len(np.intersect1d(without, prompt[rows])),
            rows_without_id=len(without),
        )


def _hash(text: str, under: bytes = b"") -> bytes:
    """16 bytes. `under` (a prompt's hash) makes a completion another one under another prompt."""
    # A lone surrogate is legal in JSON's escapes, hence "surrogatepass".
    return blake2b(under + text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _numbers(hashes: bytearray) -> tuple[Int[np.ndarray, " N"], int]:
    """Equal hashes get equal numbers 0 .. n-1; (numbers, n)."""
    table = np.frombuffer(bytes(hashes), dtype=np.uint64).reshape(-1, 2)
    order = np.lexsort((table[:, 1], table[:, 0]))
    ordered = table[order]
    new = np.any(ordered[1:] != ordered[:-1], axis=1)
    numbers = np.zeros(len(table), dtype=np.int64)
    numbers[order[1:]] = np.cumsum(new)
    return numbers, int(new.sum()) + 1
