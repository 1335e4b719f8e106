"""`python -m llm data`: the data card of a source, before anything is trained on it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from llm.data.config import DataConfig
from llm.errors import InputError


@dataclass(frozen=True)
class Data:
    """Read, split and tokenise a source as a study does, and print its data card; write nothing.

    The card counts what each part holds, what was cut, dropped and left out, how long the texts
    are, which posts sources and parts share, and how often labels of the same texts disagree. A
    study keeps the same card as data_card.json.

    Examples:
      python -m llm data tldr/ --tokenizer 20B_tokenizer.json
      python -m llm data task.json --n-sft 4096 --n-pairs 1024 --n-validation-pairs 1024
    """

    source: Annotated[str, tyro.conf.Positional]
    """A task.json, a folder or file of TL;DR data, or hub names owner/name[,owner/name]; or the
    folder of a finished stage that holds a card, which is printed as it is."""
    tokenizer: str | None = None
    """tokenizer.json, folder or hub name; needed for text, refused for a task."""
    seed: int = 0
    """Of the split and order; 0 in every study."""
    limits: Annotated[DataConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=DataConfig)
    json: bool = False
    """Print the card as JSON."""

    def run(self) -> int:
        """Exit code: 0, or 2 for bad input."""
        card = self._card()
        if self.json:
            print(json.dumps(card, indent=1, ensure_ascii=False))
            return 0
        from llm.data.card_text import print_card

        print_card(card)
        return 0

    def _card(self) -> dict:
        for name in ("data_card.json", "card.json"):
            file = Path(self.source) / name
            if file.is_file():
                try:
                    return json.loads(file.read_text(encoding="utf-8"))
                except ValueError as error:
                    raise InputError(f"{file}: not JSON: {error}") from error
        from llm.data.source import load, open_tokenizer

        tokenizer = open_tokenizer(self.source, self.tokenizer)
        return load(self.source, tokenizer=tokenizer, limits=self.limits, seed=self.seed).card
