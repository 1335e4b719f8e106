"""The report: one self-contained page out of one folder of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from paper_figures import evidence, prose
from paper_figures.bridge import (
    bridge_picture,
    bridge_sentences,
    bridge_tables,
    bridge_verdicts,
)
from paper_figures.curves import curves_pictures, logp_sentences
from paper_figures.errors import InputError
from paper_figures.records import Check, Folder, load_folder
from paper_figures.sections import figure_pictures, figure_sections, hypothesis_sections
from paper_figures.style import Picture, panel_svg, picture_files
from paper_figures.sweep import sweep_groups, sweep_pictures, sweep_rows
from theory.predictions import Verdict, judge

TITLE = "All Roads: does the measurement agree with the theory?"
QUESTION = (
    "With classes of the same size and no data noise, the theory says that fitting a reward model "
    "and then doing RL must end at the very policy that offline maximum likelihood finds; yet "
    "online preference fine-tuning wins in practice. Is that because a verifier is simpler to "
    "learn than a generator: what does the theory predict, and what does the measurement say?"
)
OPEN = ("inconclusive", "not measured")
CARRY_OVER = (
    "What carries over from the toy rung to a larger model is the order and the sign of a "
    "difference, never its size."
)


@dataclass(frozen=True)
class Drawn:
    """A picture as the template shows it: inline SVG panels and a caption."""

    name: str
    title: str
    panels: tuple[Markup, ...]
    caption: str


def all_verdicts(folder: Folder) -> tuple[Verdict, ...]:
    """The study's verdicts; without any, every prediction stands as not measured."""
    if folder.verdicts:
        return folder.verdicts
    return tuple(judge(prediction, None) for prediction in folder.predictions or ())


def pictures(folder: Folder) -> tuple[Picture, ...]:
    """Every picture that the folder's records can fill."""
    verdicts, study = all_verdicts(folder), folder.study
    return (
        *(() if folder.sweep is None else sweep_pictures(folder.sweep)),
        *figure_pictures(study, verdicts),
        *(() if study is None else curves_pictures(study)),
        *_bridge_pictures(folder),
    )


def _bridge_pictures(folder: Folder) -> tuple[Picture, ...]:
    found = None if folder.bridge is None else bridge_picture(folder.bridge)
    return () if found is None else (found,)


def render(folder: Folder) -> str:
    """The whole page as text; the same records give the same bytes."""
    environment = Environment(
        loader=PackageLoader("paper_figures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = prose.number
    environment.filters["duration"] = prose.duration
    return environment.get_template("report.html.j2").render(**_context(folder))


def _context(folder: Folder) -> dict[str, Any]:
    verdicts, study = all_verdicts(folder), folder.study
    predictions = [row.prediction for row in verdicts]
    measurements = None if study is None else study.measurements
    drawn = {picture.name: _drawn(picture) for picture in pictures(folder)}
    return {
        "title": TITLE,
        "question": QUESTION,
        "place": folder.path.resolve().name,
        "verdicts": [prose.verdict_row(row) for row in verdicts],
        "summary": verdict_summary(verdicts),
        "scale_note": None if study is None else study.scale_note,
        "checks": folder.checks,
        "check_summary": check_summary(folder.checks or ()),
        "sweep": folder.sweep,
        "sweep_groups": () if folder.sweep is None else sweep_groups(folder.sweep),
        "sweep_rows": [] if folder.sweep is None else sweep_rows(folder.sweep),
        "task": folder.task,
        "drawn": drawn,
        "figures": figure_sections(study, verdicts, drawn),
        "bridge": folder.bridge,
        "bridge_sentences": [] if folder.bridge is None else bridge_sentences(folder.bridge),
        "bridge_tables": () if folder.bridge is None else bridge_tables(folder.bridge),
        "bridge_verdicts": () if folder.bridge is None else bridge_verdicts(folder.bridge),
        "hypotheses": hypothesis_sections(study),
        "carry_over": CARRY_OVER if study is None else study.carry_over or CARRY_OVER,
        "assumptions": _assumptions(verdicts),
        "disagreements": prose.disagreements(tuple(v for v in verdicts if v.outcome not in OPEN)),
        "open": prose.disagreements(tuple(v for v in verdicts if v.outcome in OPEN)),
        "doubts": prose.doubts(predictions),
        "notes": prose.prediction_notes(predictions),
        "measured": [prose.measured_row(row) for row in measurements or ()],
        "study": study,
        "training": [] if study is None else evidence.training_sentences(study),
        "logp_sentences": [] if study is None else logp_sentences(study),
        "card": [] if study is None or not study.data_card else evidence.flatten(study.data_card),
        "lengths": [] if study is None else evidence.length_rows(study),
        "samples": [] if study is None else evidence.sample_cards(study),
        "provenance": [] if study is None else evidence.provenance(study),
        "stages": [] if study is None else evidence.stage_rows(study),
        "config": [] if study is None else evidence.flatten(study.config),
        "absent": evidence.absences(folder),
    }


def _drawn(picture: Picture) -> Drawn:
    panels = tuple(Markup(panel_svg(panel)) for panel in picture.panels)
    return Drawn(picture.name, picture.title, panels, picture.caption)


def _assumptions(verdicts: Sequence[Verdict]) -> list[str]:
    """What the predictions rest on, each assumption once."""
    return list(dict.fromkeys(a for v in verdicts for a in v.prediction.assumptions))


def verdict_summary(verdicts: Sequence[Verdict]) -> str:
    """'7 predictions: 3 supported, 4 inconclusive.'"""
    words = prose.tally(verdict.outcome for verdict in verdicts)
    return f"{prose.plural(len(verdicts), 'prediction')}: {words}." if words else ""


def check_summary(checks: Sequence[Check]) -> str:
    """'5 of 5 claims hold; 7 of 7 broken twins fail, as they must.'"""
    twins = [twin for check in checks for twin in check.twins]
    held, broken = sum(c.holds for c in checks), sum(not t.holds for t in twins)
    verdict = "as they must" if broken == len(twins) else "so a check is not to be trusted"
    return (
        f"{held} of {prose.plural(len(checks), 'claim')} hold; "
        f"{broken} of {prose.plural(len(twins), 'broken twin')} fail, {verdict}."
    )


def write_report(path: Path, out: Path) -> Folder:
    """Read a folder, write its report whole or not at all, and return what was read."""
    folder = load_folder(path)
    page = render(folder)
    write_bytes(out, page.encode("utf-8"))
    return folder


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises InputError where the place cannot be written."""
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error


def write_pictures(found: Sequence[Picture], out: Path) -> Iterator[Path]:
    """Write each picture as <name>.svg and <name>.png, and give their paths as they are done."""
    for picture in found:
        for kind, content in picture_files(picture).items():
            path = out / f"{picture.name}.{kind}"
            write_bytes(path, content)
            yield path
