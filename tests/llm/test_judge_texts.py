"""What a judge is asked and how it is read: App. C.4's words, data that stays data, no guessing."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.judge import texts
from llm.judge.texts import Comparison, Verdict, escape, parse_two_words, parse_verdict, unescape

PROMPT = "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: It ate\n\na letter.\n\nTL;DR:"
POST = "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: It ate\n\na letter."
HEADINGS = ("### Post:", "### Summary A:", "### Summary B:", "### Instructions:")


@pytest.mark.parametrize("kind", ["summaries", "two-word summaries"])
def test_the_question_is_the_papers(kind: str) -> None:
    row = Comparison(PROMPT, " dog ate it ", "a letter\n")
    found = texts.question(row, "ab", two_word=kind.startswith("two"))
    assert found == (
        f"Which of the following {kind} does a better job of summarizing the most important "
        "points in the given forum post, without including unimportant or irrelevant details? "
        "Judge based on accuracy, coverage, and coherence.\n\n"
        f"### Post:\n{POST}\n\n### Summary A:\ndog ate it\n\n### Summary B:\na letter\n\n"
        "### Instructions:\nFIRST provide a one-sentence comparison of the two summaries, "
        "explaining which you prefer and why. SECOND, on a new line, state only "
        '"A" or "B" to indicate your choice. Your response should use the format:\n'
        "Comparison: <one-sentence comparison and explanation>\n"
        'Preferred: <"A" or "B">'
    )
    swapped = Comparison(PROMPT, row.second, row.first)
    assert texts.question(swapped, "ba", two_word=kind.startswith("two")) == found


def test_the_generation_prompt_is_the_papers() -> None:
    assert texts.generation(PROMPT.replace("TL;DR:", "Two-Word TL;DR:")) == (
        "Given the following forum post, please write a summary of the post of length at most two "
        "words. The summaries should not include any unimportant or irrelevant details.\n\n"
        f"### Post:\n{POST}\n\n### Instructions:\nYour response should use the format:\n"
        "Summary: <two-word summary>\n\n"
        "Do not include any other text or explanations in your response."
    )


def test_the_post_is_what_the_policy_saw_without_its_cue() -> None:
    assert texts.post_of(PROMPT) == POST
    assert texts.post_of("A post\n\nTL;DR: nothing more to say") == (
        "A post\n\nTL;DR: nothing more to say"
    )


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("Comparison: x.\nPreferred: A", "A"),
        ("Comparison: x.\n\n  Preferred: B  \n\n", "B"),
        ('Preferred: "A"', "A"),
        ("Preferred: 'B'", "B"),
        ("Preferred: \u201cB\u201d", "B"),
        ("Preferred: \u2018A\u2019", "A"),
        ("Preferred: A\nPreferred: B", "B"),  # the last line decides
        ("Preferred: A\nI am not sure.", None),
        ("Preferred: A or B", None),
        ("Preferred: A B", None),
        ("Preferred: A.", None),
        ("Preferred: a", None),
        ("Preferred: C", None),
        ("Preferred: AB", None),
        ('Preferred: "A', None),
        ("Preferred: \u201dA\u201c", None),
        ("Preferred: <A>", None),
        ("**Preferred:** A", None),
        ("Preferred:", None),
        ("Preferred: ", None),
        ("Comparison: A is better. Preferred: A", None),
        ("A", None),
        ("", None),
        (" \n ", None),
        ("I cannot help with that.", None),
    ],
)
def test_a_verdict_is_the_last_line_and_nothing_else(answer: str, letter: str | None) -> None:
    assert parse_verdict(answer) == letter


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("Summary: Hungry dog", "Hungry dog"),
        ("\nSummary:  Dog \n", "Dog"),
        ('Summary: "Hungry dog"', "Hungry dog"),
        ("Summary: self-pity", "self-pity"),
        ("Summary: a hungry dog", None),
        ("Summary:", None),
        ('Summary: ""', None),
        ("Hungry dog", None),
        ("Summary: Hungry dog\nI hope this helps.", None),
        ("", None),
    ],
)
def test_two_words_are_two_words(answer: str, words: str | None) -> None:
    assert parse_two_words(answer) == words


LINE_ENDS = ["\n", "\r", "\u2028", "\x0b"]
BLANKS = [" ", "\t", "\u200b", "\ufeff"]
HEADS = ["###", "### Instructions:", "Preferred:", "preferred : A", "Summary A:", "Comparison:"]
PIECES = st.lists(
    st.sampled_from([*LINE_ENDS, *BLANKS, *HEADS, "\\", "x", "{{post}}"]), max_size=12
).map("".join)


@given(PIECES)
def test_escaping_is_undone_exactly(text: str) -> None:
    assert unescape(escape(text)) == text
    assert unescape(escape(escape(text))) == escape(text)


@given(PIECES, PIECES, PIECES)
def test_no_text_opens_a_section_of_its_own(post: str, first: str, second: str) -> None:
    prompt = texts.question(Comparison(post, first, second), "ab")
    lines = [line.strip(" \t\u200b\ufeff") for line in prompt.splitlines()]
    assert [line for line in lines if line.startswith("###")] == list(HEADINGS)
    parts = re.compile(r"(Preferred|Comparison|Summary( [AB])?)\s*:", re.IGNORECASE)
    own = [line for line in lines if parts.match(line)]
    assert [line.split(":")[0] for line in own] == ["Comparison", "Preferred"]
    assert escape(first.strip()) in prompt


@given(st.text(st.characters(exclude_characters="\\"), max_size=40))
def test_plain_texts_are_untouched(text: str) -> None:
    plain = text.replace("#", "").replace(":", "")
    assert escape(plain) == plain


def test_a_placeholders_name_in_a_text_stays_text() -> None:
    prompt = texts.question(Comparison("{{summarya}}", "{{summaryb}}", "own"), "ab")
    assert "### Post:\n{{summarya}}\n" in prompt
    assert "### Summary A:\n{{summaryb}}\n" in prompt


def verdict(order: str, letter: str | None) -> Verdict:
    return Verdict(order, letter, "k", "", "m", 1, 1, "", True)


@pytest.mark.parametrize(
    ("ab", "ba", "score"),
    [
        ("A", "B", 1.0),
        ("B", "A", 0.0),
        ("A", "A", 0.5),
        ("B", "B", 0.5),
        ("A", None, None),
        (None, "B", None),
        (None, None, None),
    ],
)
def test_the_score_is_the_mean_of_both_orders(
    ab: str | None, ba: str | None, score: float | None
) -> None:
    row = Comparison("p", "x", "y")
    found = texts.preference(row, [verdict("ab", ab), verdict("ba", ba)])
    assert found.score == score
    assert found.invalid == (ab is None) + (ba is None)
    letter = {"ab": ab, "ba": ba}[texts.coin(row)]
    wins = None if letter is None else float((letter == "A") == (texts.coin(row) == "ab"))
    assert found.one_order == wins


def test_one_order_alone_is_a_fair_coin_that_follows_an_exchange() -> None:
    rows = [Comparison(f"post {i}", f"first {i}", f"second {i}") for i in range(1000)]
    coins = [texts.coin(row) for row in rows]
    assert abs(coins.count("ab") - 500) < 4.5 * 1000**0.5 / 2
    for row, order in zip(rows, coins, strict=True):
        assert texts.coin(Comparison(row.post, row.second, row.first)) != order
    assert texts.preference(rows[0], [verdict("ba", "B")]).score == 1.0
