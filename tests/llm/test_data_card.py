"""The printed card holds every number of the stored one; the command writes nothing."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm.commands.data import Data
from llm.data.card_text import print_card
from llm.data.config import DataConfig
from llm.data.source import load
from llm.errors import InputError

LIMITS = DataConfig(n_sft=10, n_pairs=20, n_validation_pairs=7, n_test=5)


def printed(card: Mapping[str, Any]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    print_card(card, console)
    return console.export_text()


def leaves(card: object) -> Iterator[object]:
    if isinstance(card, Mapping):
        for value in card.values():
            yield from leaves(value)
    elif isinstance(card, list):
        for value in card:
            yield from leaves(value)
    else:
        yield card


def test_every_number_is_printed(small_tldr: Path, small_tokenizer: Any) -> None:
    card = load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=1).card
    text = " ".join(printed(card).split())
    for value in leaves(card):
        if isinstance(value, int | float):
            assert f"{value:,}" in text or f"{value:g}" in text, value
    for note in card["notes"]:
        assert note in text
    for source in card["sources"]:
        assert source["path"] in text
        assert source["sha256"][:12] in text
    assert "comparisons/batch1.json & posts.jsonl" in text


def test_a_card_of_made_pairs_is_printed() -> None:
    part = {"rows": 12, "pairs": 9, "dropped": {"split verdicts": 3}, "ended_rate": None}
    part["length_quantiles"] = {"chosen_tokens": {"0.5": 7.25}, "reference_tokens": None}
    card = {"how": "narrow", "parts": {"pairs": part}, "judge": None, "notes": ["By a judge."]}
    text = " ".join(printed(card).split())
    for word in ("Made: pairs", "split verdicts", "7.25", "unknown", "- By a judge."):
        assert word in text
    assert "Asked of the judge" not in text


def test_the_command_prints_what_a_study_stores(
    small_tldr: Path,
    small_tokenizer_file: Path,
    small_tokenizer: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(small_tldr.rglob("*"))
    assert Data(str(small_tldr), str(small_tokenizer_file), 1, LIMITS, json=True).run() == 0
    card = json.loads(capsys.readouterr().out)
    assert card == load(small_tldr, tokenizer=small_tokenizer, limits=LIMITS, seed=1).card
    assert sorted(small_tldr.rglob("*")) == before
    (tmp_path / "card.json").write_text(json.dumps({"how": "ranked"}), encoding="utf-8")
    assert Data(str(tmp_path), json=True).run() == 0
    assert json.loads(capsys.readouterr().out) == {"how": "ranked"}
    assert Data(str(small_tldr), str(small_tokenizer_file), 1, LIMITS).run() == 0
    assert "Left out of every part" in capsys.readouterr().out


def test_the_command_refuses_what_it_cannot_read(
    tmp_path: Path, small_tokenizer_file: Path
) -> None:
    with pytest.raises(InputError, match="no such path"):
        Data(str(tmp_path / "none")).run()
    with pytest.raises(InputError, match="holds no comparisons"):
        Data(str(tmp_path), str(small_tokenizer_file)).run()
    (tmp_path / "card.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"card\.json: not JSON"):
        Data(str(tmp_path)).run()
