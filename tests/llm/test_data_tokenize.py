"""The TL;DR prompt, its truncation against the rule taken literally, completions, tokenizers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm.data import tokenize
from llm.data.example import Post
from llm.data.tokenize import (
    check_tokenizer,
    check_vocabulary,
    completions,
    encode,
    load_tokenizer,
    prompt_text,
    prompts,
)
from llm.errors import InputError

PIECES = st.sampled_from(
    [
        "dog",
        " the",
        "\n",
        "\n\n",
        " ",
        "  ",
        "\t",
        " letter",
        "é",
        "e\u0301",
        "🙂",
        "3x",
        "we can't",
        "___",
    ]
)
ENDS = st.sampled_from(["TL;DR:", "Two-Word TL;DR:"])


def post_of(text: str, title: str = "A title") -> Post:
    return Post("key", "pets", title, text, None, None, "posts.jsonl", "posts.jsonl, line 7")


def by_the_rule(tokenizer: Any, post: Post, limit: int, end: str = "TL;DR:") -> str | None:
    """Cut at the last newline, else one character at a time, until it fits: literally."""
    text = post.post
    while True:
        prompt = prompt_text(post.subreddit, post.title, text, end)
        if len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) <= limit:
            return prompt
        if not text:
            return None
        text = text[: text.rindex("\n")] if "\n" in text else text[:-1]


def check_cut(tokenizer: Any, post: Post, limit: int, end: str = "TL;DR:") -> None:
    wanted = by_the_rule(tokenizer, post, limit, end)
    if wanted is None:
        with pytest.raises(InputError, match=r"posts.jsonl, line 7: .* even without its post"):
            prompts(tokenizer, [post], limit, end)
        return
    ((whole, found),) = prompts(tokenizer, [post], limit, end).items()
    assert found.text == wanted
    assert found.cut == (whole != wanted)
    assert list(found.ids) == tokenizer(wanted, add_special_tokens=False)["input_ids"]


def test_prompt_is_the_published_one() -> None:
    expected = "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: It barks.\n\nTL;DR:"
    assert prompt_text("pets", "My dog", "It barks.") == expected
    assert prompt_text("r/pets", "My dog", "It barks.") == expected
    two = "SUBREDDIT: r/pets\n\nTITLE: My dog\n\nPOST: It barks.\n\nTwo-Word TL;DR:"
    assert prompt_text("pets", "My dog", "It barks.", "Two-Word TL;DR:") == two


@settings(max_examples=120, deadline=None)
@given(pieces=st.lists(PIECES, max_size=40), limit=st.integers(15, 70), end=ENDS)
@example(pieces=["dog"] * 40, limit=60, end="TL;DR:")  # one word: a character at a time
@example(pieces=["\n"] * 30, limit=40, end="TL;DR:")
def test_truncation_is_the_rule(
    pieces: list[str], limit: int, end: str, small_tokenizer: Any
) -> None:
    check_cut(small_tokenizer, post_of("".join(pieces)), limit, end)


@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(PIECES, max_size=60), limit=st.integers(18, 60), end=ENDS)
def test_truncation_is_the_rule_for_pythia(
    pieces: list[str], limit: int, end: str, pythia_tokenizer: Any
) -> None:
    check_cut(pythia_tokenizer, post_of("".join(pieces)), limit, end)


def test_long_real_posts_are_cut_by_the_rule(tldr_dir: Path, pythia_tokenizer: Any) -> None:
    with (tldr_dir / "posts.jsonl").open(encoding="utf-8") as stream:
        rows = [json.loads(line) for line in itertools.islice(stream, 12)]
    for row in rows:
        check_cut(pythia_tokenizer, post_of(row["post"], row["title"]), 200)
        one_line = " ".join(row["post"].split())[:600]
        check_cut(pythia_tokenizer, post_of(one_line, row["title"]), 100)


def test_a_long_line_is_cut_without_trying_every_character(pythia_tokenizer: Any) -> None:
    post = post_of("a word and another " * 5_000)
    (found,) = prompts(pythia_tokenizer, [post], 512).values()
    assert found.cut
    assert 505 <= len(found.ids) <= 512


def test_completions_are_apart_with_one_space_and_eos(small_tokenizer: Any) -> None:
    texts = ["ate the letter", "x" * 60]
    made = completions(small_tokenizer, texts, 40)
    short = made["ate the letter"]
    assert short.ids[:-1] == encode(small_tokenizer, [" ate the letter"])[0]
    assert short.ids[-1] == small_tokenizer.eos_token_id
    assert (short.text, short.too_long) == ("ate the letter", False)
    cut = made["x" * 60]
    assert cut.too_long
    assert len(cut.ids) == 40
    assert cut.ids[-1] == small_tokenizer.eos_token_id
    assert cut.ids[:-1] == encode(small_tokenizer, [" " + "x" * 60])[0][:39]
    assert cut.text == small_tokenizer.decode(cut.ids[:-1]).strip()
    assert not completions(small_tokenizer, texts, None)["x" * 60].too_long
    assert completions(small_tokenizer, [""], 5)[""].ids == (small_tokenizer.eos_token_id,)


def test_many_texts_are_encoded_as_one_by_one(
    small_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"the dog {i}" for i in range(11)]
    alone = [encode(small_tokenizer, [text])[0] for text in texts]
    for size in (1, 4, 11, 50):
        monkeypatch.setattr(tokenize, "BATCH", size)
        assert encode(small_tokenizer, texts) == alone
    assert encode(small_tokenizer, []) == []


def test_a_special_tokens_name_in_a_text_is_text(small_tokenizer: Any) -> None:
    (ids,) = encode(small_tokenizer, ["the <|endoftext|> of <|padding|> it"])
    assert not {0, 1} & set(ids)
    assert small_tokenizer.decode(ids) == "the <|endoftext|> of <|padding|> it"
    assert small_tokenizer("<|endoftext|>")["input_ids"] == [0]  # as before, outside of data


def test_a_tokenizer_from_a_file_or_a_folder(
    small_tokenizer: Any, small_tokenizer_file: Path, tmp_path: Path
) -> None:
    small_tokenizer.save_pretrained(tmp_path)
    for source in (small_tokenizer_file, str(tmp_path)):
        again = load_tokenizer(source)
        assert (again.eos_token_id, again.pad_token_id) == (0, 1)
        assert again.get_vocab() == small_tokenizer.get_vocab()


def test_bad_tokenizers_are_refused(tmp_path: Path, small_tokenizer_file: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        load_tokenizer(tmp_path / "none" / "tokenizer.json")
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_tokenizer(broken)
    plain = small_tokenizer_file.read_text(encoding="utf-8")
    broken.write_text(plain.replace("<|endoftext|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(InputError, match="no EOS token"):
        load_tokenizer(broken)
    broken.write_text(plain.replace("<|padding|>", "<|other|>"), encoding="utf-8")
    with pytest.raises(InputError, match="no padding token"):
        load_tokenizer(broken)


def test_padding_that_is_eos_is_refused(small_tokenizer_file: Path) -> None:
    tokenizer = load_tokenizer(small_tokenizer_file)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(InputError, match="the padding token is the EOS token"):
        check_tokenizer(tokenizer, "given")


def test_another_vocabulary_than_the_models_is_refused(
    small_tokenizer: Any, small_tokenizer_file: Path, tmp_path: Path
) -> None:
    """Of the same size: only the words tell."""
    assert not check_vocabulary(small_tokenizer, tmp_path)  # a folder without a tokenizer
    plain = json.loads(small_tokenizer_file.read_text(encoding="utf-8"))
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(plain), encoding="utf-8")
    assert check_vocabulary(small_tokenizer, tmp_path)
    words = plain["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(InputError, match=r"not the model's: id \d+ is 'a', in .* 'b'"):
        check_vocabulary(small_tokenizer, tmp_path)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="its tokenizer cannot be loaded"):
        check_vocabulary(small_tokenizer, tmp_path)
