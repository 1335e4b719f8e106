"""`python -m llm judge`: a judge's verdicts on two files of samples."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from llm.runtime import Runtime


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Ask a judge which of two summaries is better, prompt by prompt, in both orders (App. C.4).

    Reads samples.parquet of a policy, and of another one to compare it with (joined by prompt; a
    study's references if none is named). Writes verdicts.parquet and scores.parquet into
    OUT/stages/judge, and every answer into OUT/verdicts, where a second run finds it.

    Example: python -m llm judge a/samples.parquet b/samples.parquet --model gpt-4o --out out/judge
    """

    samples: Annotated[Path, tyro.conf.Positional]
    """samples.parquet of the policy whose win rate it is."""
    against: Annotated[Path | None, tyro.conf.Positional] = None
    """samples.parquet of what it is compared with. Default: the references in the first file."""
    model: str
    """A model of an OpenAI-compatible endpoint, or local:FOLDER."""
    out: Path
    """Folder of the verdicts."""
    one_order: bool = False
    """Ask in one order only: half the cost, and a judge that prefers a place is not noticed."""
    two_word: bool = False
    """The prompt for two-word summaries (Fig. 5)."""
    runtime: Annotated[Runtime, tyro.conf.OmitArgPrefixes] = field(default_factory=Runtime)

    def run(self) -> int:
        """Exit code: 0 when every comparison is judged, 1 if the judge fails, 2 for bad input."""
        import tempfile

        from llm import tables
        from llm.config import JudgeConfig
        from llm.judge import reach_judge
        from llm.protocol.stage import Stage
        from llm.records import check_writable
        from llm.stages import judged
        from llm.stages.work import Work

        check_writable(self.out)
        rows = _joined(self.samples, self.against)
        config = JudgeConfig(model=self.model, both_orders=not self.one_order)
        reach_judge(config, self.runtime)
        folder = self.out / "stages" / "judge"
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"judge": asdict(config), "two_word": self.two_word}
        stage = Stage("judge", "verdicts", None, (), settings, 1)
        with tempfile.TemporaryDirectory() as name:
            given = Path(name)
            tables.write_rows(given / "samples.parquet", rows)
            work = Work(stage, {"samples": given}, folder, "", None, self.runtime)
            metrics = judged.make(work)
        for key, value in metrics.items():
            print(f"{key}: {'-' if value is None else value}")
        return 0


def _joined(first: Path, second: Path | None) -> list[dict]:
    """Rows of prompt, sample and what it is compared with. Raises InputError."""
    from llm.errors import InputError

    rows = _read(first)
    if second is None:
        return rows
    other = {
        (row["prompt_id"], row.get("sample_index") or 0): row["sample"] for row in _read(second)
    }
    for row in rows:
        key = (row["prompt_id"], row.get("sample_index") or 0)
        if key not in other:
            raise InputError(f"{second}: has no sample {key[1]} of prompt {key[0]!r}")
        row["reference"] = other[key]
    return rows


def _read(path: Path) -> list[dict]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from llm.errors import InputError

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    names = ("prompt_id", "prompt", "sample", "reference")
    missing = [name for name in names if not rows or name not in rows[0]]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}" if rows else f"{path}: no rows")
    rows = [{**{n: row[n] for n in names}, "sample_index": row.get("sample_index")} for row in rows]
    _check(path, rows)
    return rows


def _check(path: Path, rows: list[dict]) -> None:
    """Raise InputError for what is no text, and for a sample that stands there twice."""
    from llm.errors import InputError

    seen = set()
    for row in rows:
        key = (row["prompt_id"], row["sample_index"] or 0)
        wrong = [n for n in ("prompt", "sample", "reference") if not isinstance(row[n], str)]
        if wrong:
            raise InputError(f"{path}: {wrong[0]} of prompt {key[0]!r} is no text")
        if key in seen:
            raise InputError(f"{path}: sample {key[1]} of prompt {key[0]!r} stands there twice")
        seen.add(key)
