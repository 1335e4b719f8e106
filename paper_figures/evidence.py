"""Tables beside the figures: lengths and EOS, samples, what was trained, where it ran."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from paper_figures.levels import (
    ARMS,
    EVALUATED,
    controlled_of,
    evaluation_stages,
    per_seed,
    stages_of,
    where_words,
)
from paper_figures.prose import ABSENT, count, duration, listing, number, plural
from paper_figures.records import Folder, Stage, Study
from paper_figures.style import label
from paper_figures.tables import SampleRow

SHOWN_PROMPTS = 4
REFERENCE_SCORE = "reference_score"


@dataclass(frozen=True)
class LengthRow:
    """One policy at one seed: its scores beside the length and the EOS rate of its samples."""

    policy: str
    where: str  # branch of data and model size, where they are not the main ones
    seed: str
    win_rate: str
    controlled: str  # the length-controlled win rate
    rouge_l: str
    samples: str
    tokens: str
    ended: str


@dataclass(frozen=True)
class SampleCard:
    """One prompt, its reference, and what each policy wrote: (policy, text, note)."""

    prompt: str
    reference: str | None
    reference_note: str
    outputs: tuple[tuple[str, str, str], ...]


def length_rows(study: Study) -> list[LengthRow]:
    """Mean tokens and the share that ended with EOS, for every evaluated policy and seed."""
    return [
        _length_row(study, policy, stage, rows)
        for policy in EVALUATED
        for stage in evaluation_stages(study, policy)
        if (rows := stage.samples())
    ]


def _length_row(study: Study, policy: str, stage: Stage, rows: tuple[SampleRow, ...]) -> LengthRow:
    def score(metric: str) -> str:
        return number(per_seed(study, metric, policy, stage.branch, stage.size).get(stage.seed))

    n = len(rows)
    return LengthRow(
        policy=label(policy),
        where=where_words(stage),
        seed=ABSENT if stage.seed is None else str(stage.seed),
        win_rate=score("win_rate"),
        controlled=number(controlled_of(study, policy, stage)),
        rouge_l=score("rouge_l"),
        samples=count(n),
        tokens=number(sum(row.tokens for row in rows) / n, 1),
        ended=number(100 * sum(row.ended for row in rows) / n, 1) + " %",
    )


def sample_cards(study: Study) -> list[SampleCard]:
    """The first prompts with what each policy wrote there, at each policy's first seed.

    On the first branch and size that was evaluated: prompts of others are not the same.
    """
    by_policy: dict[str, dict[str, SampleRow]] = {}
    stages = {policy: evaluation_stages(study, policy) for policy in EVALUATED}
    first = next((some[0] for some in stages.values() if some), None)
    if first is None:
        return []
    for policy, some in stages.items():
        at = [s for s in some if (s.branch, s.size) == (first.branch, first.size)]
        for stage in at[:1]:
            rows: dict[str, SampleRow] = {}
            for row in stage.samples() or ():
                rows.setdefault(row.prompt_id, row)
            by_policy[policy] = rows
    prompts = list(dict.fromkeys(key for rows in by_policy.values() for key in rows))
    return [_sample_card(key, by_policy) for key in prompts[:SHOWN_PROMPTS]]


def _sample_card(key: str, by_policy: dict[str, dict[str, SampleRow]]) -> SampleCard:
    rows = {policy: found[key] for policy, found in by_policy.items() if key in found}
    first = next(iter(rows.values()))
    outputs = tuple((label(policy), row.sample, _sample_note(row)) for policy, row in rows.items())
    score = first.scores.get(REFERENCE_SCORE)
    note = "" if score is None else f"score {number(score)}"
    return SampleCard(first.prompt, first.reference, note, outputs)


def _sample_note(row: SampleRow) -> str:
    ended = "ended with EOS" if row.ended else "cut at the limit"
    own = {name: value for name, value in row.scores.items() if name != REFERENCE_SCORE}
    scores = "".join(f"; {name.replace('_', ' ')} {number(value)}" for name, value in own.items())
    return f"{plural(row.tokens, 'token')}, {ended}{scores}"


def training_sentences(study: Study) -> list[str]:
    """What was trained and on how much, in sentences made from the records."""
    counts = (study.data_card or {}).get("counts", study.data_card) or {}
    sizes = _parameters(study)
    out = []
    preset = f"preset {study.preset}, " if study.preset else ""
    source = study.data.get("path") or study.data.get("name")
    origin = f" from {PurePath(str(source)).name}" if source else ""
    out.append(
        f"Data: {study.data.get('kind', 'kind not recorded')}{origin}; {preset}"
        f"{plural(len(study.seeds), 'seed')}."
    )
    if sizes:
        out.append(f"Model: {listing([count(size) for size in sizes])} parameters.")
    amounts = [
        f"{count(counts[key])} {words}"
        for key, words in (
            ("sft", "examples for SFT"),
            ("pairs", "preference pairs"),
            ("validation_pairs", "validation pairs"),
            ("test", "prompts for evaluation"),
        )
        if isinstance(counts.get(key), int | float)
    ]
    if amounts:
        out.append(f"Amounts: {listing(amounts)}.")
    trained = [stage for stage in study.stages if stage.weights_sha256]
    if trained:
        spent = duration(sum(stage.wall_seconds or 0.0 for stage in trained))
        out.append(f"{plural(len(trained), 'training stage')} took {spent} in all.")
    return out


def _parameters(study: Study) -> list[float]:
    """The sizes of the trained models, as far as the records name them."""
    keys = ("parameters", "n_parameters")
    sizes = {s.metrics[key] for s in study.stages for key in keys if s.metrics.get(key) is not None}
    return sorted(size for size in sizes if size is not None)


def flatten(body: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """A nested record as (name, value) rows: {'a': {'b': 1}} -> [('a / b', '1')]."""
    out: list[tuple[str, str]] = []
    for key, value in body.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            out += flatten(value, f"{name} / ")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            out += flatten({str(i + 1): item for i, item in enumerate(value)}, f"{name} / ")
        else:
            out.append((name, _cell(value)))
    return out


def _cell(value: Any) -> str:
    if value is None or value in ({}, []):
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(_cell(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def provenance(study: Study) -> list[tuple[str, str]]:
    """Versions, devices, seeds and times over all stages of a study."""
    versions: dict[str, set[str]] = {}
    for stage in study.stages:
        for name, version in stage.versions.items():
            versions.setdefault(name, set()).add(str(version))
    devices = sorted({stage.device for stage in study.stages if stage.device})
    return [
        ("figures", ", ".join(study.figures) or ABSENT),
        ("seeds", ", ".join(map(str, study.seeds)) or ABSENT),
        ("device", ", ".join(devices) or ABSENT),
        ("wall time of the study", duration(study.total_seconds)),
        *flatten(study.data, "data / "),
        *(
            (f"version of {name}", ", ".join(sorted(seen)))
            for name, seen in sorted(versions.items())
        ),
    ]


def stage_rows(study: Study) -> list[dict[str, str]]:
    """One row a stage: wall time and hashes."""
    return [
        {
            "stage": stage.name,
            "seed": ABSENT if stage.seed is None else str(stage.seed),
            "seconds": duration(stage.wall_seconds),
            "hash": stage.hash[:12],
            "weights": stage.weights_sha256[:12] if stage.weights_sha256 else ABSENT,
        }
        for stage in study.stages
    ]


def absences(folder: Folder) -> list[tuple[str, str]]:
    """What a whole report holds and this folder does not: (what, the command that makes it)."""
    study, out = folder.study, []
    if folder.checks is None:
        out.append(("no theorem checks in this folder", "python -m theory check --json check.json"))
    if folder.sweep is None:
        out.append(("no sweep in this folder", "python -m theory sweep --out sweep"))
    if folder.predictions is None and folder.verdicts is None:
        out.append(("no predictions in this folder", "python -m theory forecast"))
    if study is None:
        return [*out, ("no language-model study in this folder", "python -m llm study")]
    if study.measurements is None:
        out.append(("no measurements.json in the study: it has not finished", ""))
    if study.verdicts is None:
        out.append(("no verdicts.json in the study", "python -m llm compare"))
    if study.data_card is None:
        out.append(("no data_card.json in the study", ""))
    if not length_rows(study):
        out.append(
            ("no evaluation samples in the study: no lengths, no EOS rates, no examples", "")
        )
    wanted = dict.fromkeys(name for figure in study.figures for name in ARMS.get(figure, ()))
    missing = [label(name) for name in wanted if not stages_of(study, name)]
    if missing:
        out.append((f"no stage in the study for {listing(missing)}", ""))
    return out
