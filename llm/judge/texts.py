"""What a judge is asked (the prompts of App. C.4 and C.1), and how its answers are read.

Inserted texts are data: lines that look like parts of a prompt or an answer are escaped with a
backslash (`escape`, undone by `unescape`), so that no summary can open a section of its own. Only
the answer is ever parsed, never the prompt. What no template prevents: a judge that obeys plain
prose inside a summary ("prefer this one"). `escaped` counts the texts that were touched.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

# App. C.4. The paper's print has "which \ you": a continued line of the source, read as a blank.
_QUESTION = """\
Which of the following {kind} does a better job of summarizing the most important points in the \
given forum post, without including unimportant or irrelevant details? Judge based on accuracy, \
coverage, and coherence.

### Post:
{{{{post}}}}

### Summary A:
{{{{summarya}}}}

### Summary B:
{{{{summaryb}}}}

### Instructions:
FIRST provide a one-sentence comparison of the two summaries, explaining which you prefer and why. \
SECOND, on a new line, state only "A" or "B" to indicate your choice. Your response should use the \
format:
Comparison: <one-sentence comparison and explanation>
Preferred: <"A" or "B">"""
SUMMARIES = _QUESTION.format(kind="summaries")
TWO_WORD_SUMMARIES = _QUESTION.format(kind="two-word summaries")
# App. C.1
GENERATE_TWO_WORDS = """\
Given the following forum post, please write a summary of the post of length at most two words. \
The summaries should not include any unimportant or irrelevant details.

### Post:
{{post}}

### Instructions:
Your response should use the format:
Summary: <two-word summary>

Do not include any other text or explanations in your response."""

PLACE = re.compile(r"\{\{(post|summarya|summaryb)\}\}")
CUE = re.compile(r"\n\n[^\n]*TL;DR:\s*\Z")  # how a prompt asks the policy for a summary
ENDS = r"\n\r\v\f\x1c-\x1e\x85\u2028\u2029"  # of lines, as str.splitlines has them
START = rf"(?:\A|(?<=[{ENDS}]))"
HEADING = r"(?:\#\#\#|(?:Comparison|Preferred|Summary(?: [AB])?)\s*:)"
BLANK = rf"((?:[^\S{ENDS}]|[\u200b-\u200f\u2060\ufeff])*)"  # that no eye sees, of width 0 as well
TO_ESCAPE = re.compile(rf"{START}{BLANK}(\\*)(?={HEADING})", re.IGNORECASE)
TO_UNESCAPE = re.compile(rf"{START}{BLANK}\\(\\*)(?={HEADING})", re.IGNORECASE)
QUOTES = ('""', "''", "\u201c\u201d", "\u2018\u2019")  # straight and curly, as pairs


@dataclass(frozen=True)
class Comparison:
    """Two summaries of a post; `first` is the policy's. post: text, or a policy's whole prompt."""

    post: str
    first: str
    second: str


@dataclass(frozen=True)
class Verdict:
    """One answer: order "ab" showed `first` as A, "ba" as B. letter None: unreadable.

    asked: whether this stage asked for it (a later run of the same stage included), or another did.
    """

    order: str
    letter: str | None
    key: str
    answer: str
    model: str
    tokens_in: int | None
    tokens_out: int | None
    date: str
    asked: bool

    @property
    def first_wins(self) -> bool | None:
        """Whether `first` is preferred; None for an unreadable answer."""
        return None if self.letter is None else (self.letter == "A") == (self.order == "ab")


@dataclass(frozen=True)
class Preference:
    """How far `first` is preferred: 1 (in every order asked), 0.5 (split), 0, None (unreadable).

    one_order: what one order alone says, which one is a fair coin of the texts; for both or one
    order asked. verdicts: none for identical texts, which tie without being asked.
    """

    score: float | None
    one_order: float | None = None
    verdicts: tuple[Verdict, ...] = ()

    @property
    def invalid(self) -> int:
        """Answers that could not be read."""
        return sum(verdict.letter is None for verdict in self.verdicts)


class TextJudge(Protocol):
    """Compares summaries of posts, and writes two-word ones (App. C.1)."""

    def prefer(
        self, rows: Sequence[Comparison], report: Callable[[float], None] = ...
    ) -> list[Preference]:
        """One preference a row, in order."""
        ...

    def two_words(
        self, posts: Sequence[str], n: int, report: Callable[[float], None] = ...
    ) -> list[list[str | None]]:
        """n summaries a post; None where the answer is not of one or two words."""
        ...


def escape(text: str) -> str:
    r"""The text with a backslash before what begins a line like a heading ("###", "Preferred:").

    Lines that begin so after backslashes get one more, so that `unescape` is exact.
    """
    return TO_ESCAPE.sub(r"\1\\\2", text)


def unescape(text: str) -> str:
    """The text that `escape` was given."""
    return TO_UNESCAPE.sub(r"\1\2", text)


def post_of(prompt: str) -> str:
    """The post that a judge reads: subreddit, title and post as the policy saw them (cut, if so).

    The last line, which asks the policy for a summary ("TL;DR:"), is left out.
    """
    return CUE.sub("", prompt).strip()


def question(row: Comparison, order: str, *, two_word: bool = False) -> str:
    """The judge's prompt with `first` as Summary A (order "ab") or as Summary B ("ba")."""
    a, b = (row.first, row.second) if order == "ab" else (row.second, row.first)
    template = TWO_WORD_SUMMARIES if two_word else SUMMARIES
    return _fill(template, post=post_of(row.post), summarya=a.strip(), summaryb=b.strip())


def generation(post: str) -> str:
    """The prompt that asks for a two-word summary."""
    return _fill(GENERATE_TWO_WORDS, post=post_of(post))


def escaped(row: Comparison) -> bool:
    """Whether a text of the row had to be escaped."""
    texts = (post_of(row.post), row.first.strip(), row.second.strip())
    return any(escape(text) != text for text in texts)


def _fill(template: str, **texts: str) -> str:
    """One pass: a placeholder's name inside an inserted text stays text."""
    return PLACE.sub(lambda match: escape(texts[match[1]]), template)


def parse_verdict(answer: str) -> str | None:
    """ "A" or "B" if the last line that is not blank is exactly "Preferred: A", else None.

    The letter may stand in a pair of quotes, straight or curly; nothing else may.
    """
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if not lines or not lines[-1].startswith("Preferred: "):
        return None
    letter = _unquoted(lines[-1].removeprefix("Preferred: "))
    return letter if letter in ("A", "B") else None


def parse_two_words(answer: str) -> str | None:
    """The one or two words of an answer that is one line "Summary: ...", else None."""
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if len(lines) != 1 or not lines[0].startswith("Summary: "):
        return None
    text = _unquoted(lines[0].removeprefix("Summary: ").strip()).strip()
    return text if 1 <= len(text.split()) <= 2 else None


def _unquoted(text: str) -> str:
    """The text without one pair of quotes around it."""
    paired = len(text) > 1 and text[0] + text[-1] in QUOTES
    return text[1:-1] if paired else text


def coin(row: Comparison) -> str:
    """ "ab" or "ba", evenly: by the texts alone, and such that exchanging them exchanges it."""
    low, high = sorted((row.first.strip(), row.second.strip()))
    parts = (post_of(row.post), low, high)
    even = hashlib.sha256("\0".join(parts).encode()).digest()[0] % 2 == 0
    return "ab" if (row.first.strip() == low) == even else "ba"


def preference(row: Comparison, verdicts: Sequence[Verdict]) -> Preference:
    """The score of the orders asked; unreadable if one of them is."""
    wins = {verdict.order: verdict.first_wins for verdict in verdicts}
    one = wins.get(coin(row))
    known = [float(win) for win in wins.values() if win is not None]
    score = sum(known) / len(known) if known and len(known) == len(wins) else None
    return Preference(score, None if one is None else float(one), tuple(verdicts))


def same(row: Comparison) -> bool:
    """Whether both summaries are the same text: they tie, and nobody is asked."""
    return row.first.strip() == row.second.strip()
