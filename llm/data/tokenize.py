"""Tokenizers, the TL;DR prompt with its rule of truncation, and completions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.config import PROMPT_END
from llm.data.example import Post
from llm.data.hub import require_hub
from llm.errors import InputError

EOS, PAD = "<|endoftext|>", "<|padding|>"  # GPT-NeoX's names
WORD_END = re.compile(r"(?<=\S)(?=\s)")
PATH_LIKE = re.compile(r"^[./~]|\.json$|/.*/")
CHUNK = 64  # candidate cuts encoded at once
BATCH = 2048  # texts encoded at once: an encoding takes about 100 bytes a token, its ids few
Ids = tuple[int, ...]


def load_tokenizer(source: str | Path) -> Any:
    """A tokenizer from a tokenizer.json, a folder or a hub name; its padding is not its EOS.

    A tokenizer without a padding token gets GPT-NeoX's own, if its vocabulary has it. Padding that
    is EOS is refused: EOS would be masked out of the loss and never learned.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # slow to import

    path = Path(source)
    if not path.exists() and PATH_LIKE.search(str(source)):
        raise InputError(f"tokenizer {source}: does not exist")
    if not path.exists():
        require_hub(str(source), "model")
    try:
        if path.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path))
        else:
            tokenizer = AutoTokenizer.from_pretrained(str(source), local_files_only=path.is_dir())
    except Exception as error:  # the libraries raise whatever their parts raise
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"tokenizer {source}: cannot be loaded: {''.join(reason)}") from error
    if not tokenizer.is_fast:
        raise InputError(f"tokenizer {source}: has no fast implementation (tokenizer.json)")
    vocabulary = tokenizer.get_vocab()
    if tokenizer.eos_token is None and path.is_file() and EOS in vocabulary:
        tokenizer.eos_token = EOS
    if tokenizer.pad_token is None and PAD in vocabulary:
        tokenizer.pad_token = PAD
    return check_tokenizer(tokenizer, source)


def check_tokenizer(tokenizer: Any, source: str | Path) -> Any:
    """The tokenizer, if it has an EOS and a padding token that differ; else InputError."""
    if tokenizer.eos_token_id is None:
        raise InputError(f"tokenizer {source}: has no EOS token")
    if tokenizer.pad_token_id is None:
        raise InputError(f"tokenizer {source}: has no padding token, nor {PAD!r} to be one")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise InputError(
            f"tokenizer {source}: the padding token is the EOS token ({tokenizer.eos_token!r}), "
            "so that EOS would never be learned"
        )
    return tokenizer


def check_vocabulary(tokenizer: Any, model: str | Path, revision: str | None = None) -> bool:
    """Whether the pretrained model brings a tokenizer: then its ids are checked to be the same.

    model: a folder or hub name. A tokenizer of the right size and other words would pass every
    check of sizes and train on noise. Raises InputError naming an id that means two things.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # slow to import

    file = Path(model) / "tokenizer.json"
    try:
        if file.is_file():
            own = PreTrainedTokenizerFast(tokenizer_file=str(file))
        elif Path(model).exists():
            return False
        else:
            own = AutoTokenizer.from_pretrained(str(model), revision=revision)
    except Exception as error:  # the libraries raise whatever their parts raise
        reason = str(error).strip().splitlines()[:1]
        raise InputError(f"{model}: its tokenizer cannot be loaded: {''.join(reason)}") from error
    words = {i: word for word, i in own.get_vocab().items()}
    for word, i in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        if words.get(i, word) != word:
            raise InputError(
                f"the tokenizer is not the model's: id {i} is {word!r}, in {model} {words[i]!r}"
            )
    return True


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """The ids of each text, special tokens' names read as plain text."""
    made: list[Ids] = []
    for start in range(0, len(texts), BATCH):
        part = texts[start : start + BATCH]
        made += [tuple(encoding.ids) for encoding in _encodings(tokenizer, part)]
    return made


def _encodings(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """A special token's name inside a text ("<|endoftext|>") is plain text, never the token."""
    core = tokenizer.backend_tokenizer
    before = core.encode_special_tokens
    core.encode_special_tokens = True
    try:
        return core.encode_batch(list(texts), add_special_tokens=False)
    finally:
        core.encode_special_tokens = before


def prompt_text(subreddit: str, title: str, post: str, end: str = PROMPT_END) -> str:
    """The TL;DR prompt (Stiennon et al. 2020). A subreddit's own "r/" is not doubled.

    end: what the completion answers; "Two-Word TL;DR:" for Fig. 5 (App. C.1).
    """
    subreddit = subreddit.removeprefix("r/")
    return f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\n{end}"


@dataclass(frozen=True)
class Prompt:
    """A prompt that fits: text, ids, and whether the post was cut."""

    text: str
    ids: Ids
    cut: bool


def prompts(
    tokenizer: Any, posts: Iterable[Post], limit: int, end: str = PROMPT_END
) -> dict[str, Prompt]:
    """The prompt of every post, by its whole text; posts longer than the limit are cut."""
    whole = {prompt_text(p.subreddit, p.title, p.post, end): p for p in posts}
    made = {}
    for (text, post), ids in zip(whole.items(), encode(tokenizer, list(whole)), strict=True):
        fits = len(ids) <= limit
        made[text] = Prompt(text, ids, False) if fits else _cut(tokenizer, post, limit, end)
    return made


def _cut(tokenizer: Any, post: Post, limit: int, end: str) -> Prompt:
    """Cut the post at its last newline, else by a character, until the prompt fits; always so.

    Cuts that cannot fit are skipped (`_may_fit`); the others are tried from the longest down.
    """
    text = post.post
    cuts = [i for i in range(len(text) - 1, -1, -1) if text[i] == "\n"]
    cuts += range((cuts[-1] if cuts else len(text)) - 1, -1, -1)
    longest = _may_fit(tokenizer, post, limit, end)
    cuts = [cut for cut in cuts if cut <= longest]
    for start in range(0, len(cuts), CHUNK):
        part = cuts[start : start + CHUNK]
        texts = [prompt_text(post.subreddit, post.title, text[:cut], end) for cut in part]
        for candidate, ids in zip(texts, encode(tokenizer, texts), strict=True):
            if len(ids) <= limit:
                return Prompt(candidate, ids, True)
    raise InputError(
        f"{post.place}: the prompt exceeds max_prompt_tokens = {limit} even without its post"
    )


def _may_fit(tokenizer: Any, post: Post, limit: int, end: str) -> int:
    """No cut of the post longer than this many characters can fit.

    Where no token of the whole prompt joins a word to the white space behind it, the tokens up to
    the end of a word stay the same wherever the text is cut later. They alone must then be fewer
    than the limit (at least one more follows). Otherwise every cut may fit.
    """
    whole = prompt_text(post.subreddit, post.title, post.post, end)
    head = len(prompt_text(post.subreddit, post.title, "", end)) - len(f"\n\n{end}")
    ends = np.array([match.start() for match in WORD_END.finditer(whole)], dtype=np.int64)
    spans = np.array(_encodings(tokenizer, [whole])[0].offsets, dtype=np.int64)
    crossing = np.searchsorted(ends, spans[:, 0], side="right") < np.searchsorted(ends, spans[:, 1])
    if crossing.any() or not len(ends):
        return len(post.post)
    tokens = np.searchsorted(np.sort(spans[:, 1]), ends, side="left")  # certainly inside, per end
    too_many = ends[tokens >= limit]
    return len(post.post) if not len(too_many) else int(too_many[0]) - head


@dataclass(frozen=True)
class Completion:
    """A completion that fits: text without EOS, ids with EOS, and whether it was too long."""

    text: str
    ids: Ids
    too_long: bool


def completions(tokenizer: Any, texts: Iterable[str], limit: int | None) -> dict[str, Completion]:
    """ " " + text + EOS, tokenised apart from any prompt; too long: limit - 1 ids and EOS.

    limit: in tokens, EOS included; None = never cut. An empty text (a sample may be one) is EOS.
    """
    unique = list(dict.fromkeys(texts))
    end = (tokenizer.eos_token_id,)
    made = {}
    spaced = [" " + text if text else "" for text in unique]
    for text, ids in zip(unique, encode(tokenizer, spaced), strict=True):
        if limit is not None and len(ids) + 1 > limit:
            kept = ids[: limit - 1]
            made[text] = Completion(tokenizer.decode(kept).strip(), kept + end, True)
        else:
            made[text] = Completion(text, ids + end, False)
    return made
