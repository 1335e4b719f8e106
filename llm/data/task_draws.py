"""A task's tokenizer, and its data: draws from the reference, labelled by the gold reward."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from llm.data.card import lengths
from llm.data.config import DataConfig
from llm.data.example import Dataset, Example
from llm.data.task import Task
from llm.data.task_file import END, PAD
from llm.errors import InputError

Ids = Callable[[str], tuple[int, ...]]
STREAMS = {"sft": 0, "pairs": 1, "validation_pairs": 2, "test": 3, "paired": 4}


def task_tokenizer(task: Task) -> PreTrainedTokenizerFast:
    """One id a word: EOS 0, padding 1, the prompts' tokens, the task's tokens (EOS aside).

    A word outside the task is an error of the tokenizer, never an unknown token.
    """
    words = [token for prompt in task.prompt_tokens for token in prompt]
    words += [token for token in task.tokens if token != task.eos]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys([END, PAD, *words]))}
    core = Tokenizer(WordLevel(vocab=vocabulary, unk_token="<|none|>"))  # not in the vocabulary
    core.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD)


def task_dataset(task: Task, limits: DataConfig, seed: int) -> Dataset:
    """SFT draws from the reference, and pairs of two different draws labelled by Bradley-Terry.

    P(first wins) = sigmoid(r*(first) - r*(second)) (Eq. 4). Prompts are drawn from rho0. The n-th
    example of each part depends on the seed and n alone, not on how many are asked for.
    """
    for name in ("n_sft", "n_pairs", "n_validation_pairs"):
        if getattr(limits, name) is None:
            raise InputError(f"{task.path}: a task has no size of its own: give {name}")
    _check_lengths(task, limits)
    tokenizer = task_tokenizer(task)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    sft = _references(task, "sft", limits.n_sft or 0, seed, ids)
    test = _references(task, "test", limits.n_test, seed, ids)
    paired = paired_prompts(task, limits.paired_prompts, seed)
    pairs = _pairs(task, "pairs", limits.n_pairs or 0, seed, ids, paired)
    validation = _pairs(task, "validation_pairs", limits.n_validation_pairs or 0, seed, ids)
    card = {
        "counts": {
            "sft": len(sft),
            "pairs": len(pairs),
            "validation_pairs": len(validation),
            "test": len(test),
            "posts": len(task.prompts),
            "paired_prompts": int(paired.sum()),
            "truncated": 0,
        },
        "length_quantiles": lengths((*sft, *test), (*pairs, *validation)),
        "overlap": {},
        "notes": [
            "Every part draws from the same prompts; validation pairs and test are new draws.",
            *_paired_note(paired),
        ],
        "sources": [
            {
                "kind": "task",
                "path": task.path.name,
                "sha256": task.sha256,
                "family": task.family,
                "licence": None,
            }
        ],
    }
    return Dataset(sft, pairs, validation, test, card, task)


def _check_lengths(task: Task, limits: DataConfig) -> None:
    if task.horizon + 1 > limits.max_completion_tokens:
        raise InputError(
            f"{task.path}: horizon {task.horizon} with EOS exceeds max_completion_tokens = "
            f"{limits.max_completion_tokens}"
        )
    for name, tokens in zip(task.prompts, task.prompt_tokens, strict=True):
        if len(tokens) > limits.max_prompt_tokens:
            raise InputError(
                f"{task.path}: prompt {name!r} has {len(tokens)} tokens, more than "
                f"max_prompt_tokens = {limits.max_prompt_tokens}"
            )


def _uniforms(part: str, seed: int, n: int, columns: int) -> np.ndarray:
    """(n, columns) uniform numbers on [0, 1); row i does not depend on n."""
    return np.random.default_rng([seed, STREAMS[part]]).random((n, columns))


def _draw(cumulative: np.ndarray, u: float) -> int:
    """The index that u in [0, 1) falls on; an index of probability 0 is never drawn."""
    return int(np.searchsorted(cumulative, u * cumulative[-1], side="right"))


def _references(task: Task, part: str, n: int | None, seed: int, ids: Ids) -> tuple[Example, ...]:
    """n prompts with one reference completion each; n = None: every prompt once."""
    u = _uniforms(part, seed, len(task.prompts) if n is None else n, 2)
    rho = np.cumsum(task.weights)
    rows = np.cumsum(task.reference, axis=1)
    made = []
    for i, (u_prompt, u_leaf) in enumerate(u):
        prompt = i if n is None else _draw(rho, u_prompt)
        made.append(_example(task, f"{part}/{i}", prompt, [_draw(rows[prompt], u_leaf)], ids))
    return tuple(made)


def paired_prompts(task: Task, share: float, seed: int) -> np.ndarray:
    """(P,) whether training pairs stand on a prompt: a seeded share of them, at least one."""
    n = max(1, round(share * len(task.prompts)))
    taken = np.zeros(len(task.prompts), dtype=bool)
    taken[np.random.default_rng([seed, STREAMS["paired"]]).permutation(len(taken))[:n]] = True
    return taken


def _paired_note(paired: np.ndarray) -> list[str]:
    if paired.all():
        return []
    return [
        f"Training pairs stand on {paired.sum()} of {len(paired)} prompts, drawn by seed; SFT, "
        "validation pairs and test on all."
    ]


def _pairs(
    task: Task, part: str, n: int, seed: int, ids: Ids, paired: np.ndarray | None = None
) -> tuple[Example, ...]:
    """n pairs (chosen, rejected): two draws of the reference that differ, Bradley-Terry label.

    paired: (P,) the prompts that they stand on, rho0 restricted to them; None = all.
    """
    if (np.count_nonzero(task.reference, axis=1) < 2).any():
        raise InputError(f"{task.path}: a prompt's reference has one completion: no pair differs")
    rho = np.cumsum(task.weights if paired is None else np.where(paired, task.weights, 0.0))
    made = []
    for i, (u_prompt, u_first, u_second, u_label) in enumerate(_uniforms(part, seed, n, 4)):
        prompt = _draw(rho, u_prompt)
        p = task.reference[prompt]
        first = _draw(np.cumsum(p), u_first)
        others = np.where(np.arange(len(p)) == first, 0.0, p)
        second = _draw(np.cumsum(others), u_second)
        margin = task.reward[prompt, first] - task.reward[prompt, second]
        leaves = [first, second] if u_label < expit(margin) else [second, first]
        made.append(_example(task, f"{part}/{i}", prompt, leaves, ids))
    return tuple(made)


def _example(task: Task, name: str, prompt: int, leaves: list[int], ids: Ids) -> Example:
    texts = tuple(task.completion_text(leaf) for leaf in leaves)
    end = ids(END)
    text = task.prompt_text(prompt)
    return Example(
        name, task.prompts[prompt], text, ids(text), texts, tuple(ids(t) + end for t in texts)
    )


def leaf_examples(task: Task) -> tuple[Example, ...]:
    """One example a prompt that holds all its completions, in the order of `task.leaves`."""
    tokenizer = task_tokenizer(task)

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]

    leaves = list(range(len(task.leaves)))
    return tuple(
        _example(task, f"leaves/{name}", prompt, leaves, ids)
        for prompt, name in enumerate(task.prompts)
    )
