"""Read a task.json strictly: whatever is missing, doubled or not finite is an InputError."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from llm.data.task import Task
from llm.errors import InputError

END, PAD = "<|endoftext|>", "<|padding|>"  # what the task's tokenizer calls EOS and padding
NO_NAMES = ("file", "allow_pickle")  # of prompts, whose rows leaf_logprobs.npz holds by name
MAX_BITS = 20
MAX_LEAVES = 2**MAX_BITS  # a prompt; every one is named in the file
MAX_HORIZON = 1000
KEYS = (
    "schema",
    "family",
    "parameters",
    "tokens",
    "horizon",
    "eos",
    "beta",
    "prompts",
    "prompt_tokens",
    "reward",
    "reference",
)


def read_task(path: Path) -> Task:
    """The task of a task.json (schema 1). Raises InputError naming file and key."""
    try:
        content = path.read_bytes()
        body = json.loads(content, object_pairs_hook=lambda pairs: _object(pairs, path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    return parse_task(body, path, hashlib.sha256(content).hexdigest())


def parse_task(body: Any, path: Path, sha256: str) -> Task:
    """Check a task's JSON object and lay it out as arrays."""
    if not isinstance(body, dict):
        raise InputError(f"{path}: a task is a JSON object, not {type(body).__name__}")
    missing = [key for key in KEYS if key not in body]
    if missing:
        raise InputError(f"{path}: lacks {', '.join(missing)}")
    if body["schema"] != 1:
        raise InputError(f"{path}: schema {body['schema']!r} is not 1")
    tokens, horizon, eos = _tokens(body, path)
    beta = body["beta"]
    if not _is_number(beta) or not math.isfinite(beta) or beta <= 0:
        raise InputError(f"{path}: beta = {beta!r} must be a finite number > 0")
    prompts, weights = _weights(body["prompts"], path)
    prompt_tokens = _prompt_tokens(body["prompt_tokens"], prompts, path)
    codes = leaf_codes(len(tokens), horizon, None if eos is None else tokens.index(eos), path)
    leaves = tuple(_leaf(row, tokens, eos) for row in codes)
    reward = _table(body["reward"], "reward", prompts, leaves, eos, path)
    reference = _table(body["reference"], "reference", prompts, leaves, eos, path)
    _check_probabilities(reference, prompts, path)
    parameters = body["parameters"]
    if not isinstance(parameters, dict):
        raise InputError(f"{path}: parameters is not an object")
    return Task(
        path=path,
        sha256=sha256,
        family=str(body["family"]),
        parameters=parameters,
        tokens=tokens,
        horizon=horizon,
        eos=eos,
        beta=float(beta),
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        weights=weights,
        leaves=leaves,
        leaf_codes=codes,
        reward=reward,
        reference=reference,
    )


def leaf_codes(n_tokens: int, horizon: int, eos: int | None, path: Path) -> np.ndarray:
    """(L, H) token ids of all completions in lexicographic order; an early end repeats `eos`."""
    alive = n_tokens if eos is None else n_tokens - 1
    if horizon > MAX_HORIZON or horizon * math.log2(max(1, alive)) > MAX_BITS:
        raise InputError(
            f"{path}: {n_tokens} tokens and horizon {horizon} make about "
            f"10^{horizon * math.log10(max(2, alive)):.0f} completions a prompt, at 16 bytes each; "
            f"the limit is {MAX_LEAVES} completions, {16 * MAX_LEAVES} bytes"
        )
    count = alive**horizon + (0 if eos is None else sum(alive**h for h in range(horizon)))
    if count > MAX_LEAVES:
        raise InputError(
            f"{path}: {n_tokens} tokens and horizon {horizon} make {count} completions a prompt, "
            f"{16 * count} bytes of rewards and probabilities; the limit is {MAX_LEAVES}"
        )
    rows: list[tuple[int, ...]] = [()]
    for _ in range(horizon):
        rows = [
            (*row, token)
            for row in rows
            for token in ((eos,) if eos is not None and eos in row else range(n_tokens))
        ]
    return np.array(rows, dtype=np.int64)


def _leaf(row: np.ndarray, tokens: tuple[str, ...], eos: str | None) -> tuple[str, ...]:
    named = tuple(tokens[code] for code in row)
    return named if eos is None or eos not in named else named[: named.index(eos) + 1]


def _object(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """A JSON object in which no key stands twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise InputError(f"{path}: key {twice!r} stands twice in one object")
    return made


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_names(names: Any, what: str, path: Path) -> tuple[str, ...]:
    """A non-empty list of words without white space."""
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: {what} is not a non-empty list")
    for name in names:
        if not isinstance(name, str) or not name or name.split() != [name]:
            raise InputError(f"{path}: {what}: {name!r} is not a word without white space")
        if name in (END, PAD):
            raise InputError(f"{path}: {what}: {name!r} is reserved for the tokenizer")
    return tuple(names)


def _tokens(body: dict[str, Any], path: Path) -> tuple[tuple[str, ...], int, str | None]:
    tokens = _check_names(body["tokens"], "tokens", path)
    if len(set(tokens)) != len(tokens):
        raise InputError(f"{path}: tokens repeat: {list(tokens)!r}")
    horizon, eos = body["horizon"], body["eos"]
    if isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1:
        raise InputError(f"{path}: horizon = {horizon!r} is not a positive integer")
    if eos is not None and eos not in tokens:
        raise InputError(f"{path}: eos = {eos!r} is none of the tokens {list(tokens)!r}")
    if len(tokens) < 2:
        raise InputError(f"{path}: one token alone leaves nothing to choose")
    return tokens, horizon, eos


def _weights(prompts: Any, path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    if not isinstance(prompts, dict) or not prompts:
        raise InputError(f"{path}: prompts is not a non-empty object of weights")
    for name, weight in prompts.items():
        if not _is_number(weight) or not (math.isfinite(weight) and weight > 0):
            raise InputError(f"{path}: prompts[{name!r}] = {weight!r} must be a number > 0")
        if name in NO_NAMES:
            raise InputError(f"{path}: {name!r} cannot name a prompt: numpy's savez keeps the word")
    weights = np.array(list(prompts.values()), dtype=np.float64)
    if abs(weights.sum() - 1) > 1e-9:
        raise InputError(f"{path}: the prompts' weights sum to {weights.sum()!r}, not to 1")
    return tuple(prompts), weights


def _prompt_tokens(table: Any, prompts: tuple[str, ...], path: Path) -> tuple[tuple[str, ...], ...]:
    if not isinstance(table, dict) or set(table) != set(prompts):
        raise InputError(f"{path}: prompt_tokens does not name the same prompts as prompts")
    rows = [_check_names(table[name], f"prompt_tokens[{name!r}]", path) for name in prompts]
    if len(set(rows)) != len(rows):
        raise InputError(f"{path}: two prompts have the same prompt_tokens")
    return tuple(rows)


def _table(
    table: Any,
    key: str,
    prompts: tuple[str, ...],
    leaves: tuple[tuple[str, ...], ...],
    eos: str | None,
    path: Path,
) -> np.ndarray:
    """The (P, L) array of {prompt: {leaf: number}}; every leaf once, every number finite."""
    if not isinstance(table, dict) or set(table) != set(prompts):
        raise InputError(f"{path}: {key} does not name the same prompts as prompts")
    values = np.empty((len(prompts), len(leaves)))
    for p, name in enumerate(prompts):
        if not isinstance(table[name], dict):
            raise InputError(f"{path}: {key}[{name!r}] is not an object")
        row = {_shortest(leaf, eos): value for leaf, value in table[name].items()}
        unknown = set(row) - set(leaves)
        if unknown or len(row) != len(table[name]):
            wrong = " ".join(min(unknown)) if unknown else "one leaf under two names"
            raise InputError(f"{path}: {key}[{name!r}]: {wrong!r} is no completion of this task")
        for i, leaf in enumerate(leaves):
            if leaf not in row:
                raise InputError(f"{path}: {key}[{name!r}] lacks the completion {' '.join(leaf)!r}")
            value = row[leaf]
            if not _is_number(value) or not math.isfinite(value):
                raise InputError(
                    f"{path}: {key}[{name!r}][{' '.join(leaf)!r}] = {value!r} is not finite"
                )
            values[p, i] = value
    return values


def _shortest(leaf: str, eos: str | None) -> tuple[str, ...]:
    """A leaf's tokens, with one EOS at most at the end."""
    tokens = leaf.split()
    while eos is not None and tokens[-2:] == [eos, eos]:
        tokens.pop()
    return tuple(tokens)


def _check_probabilities(reference: np.ndarray, prompts: tuple[str, ...], path: Path) -> None:
    for name, row in zip(prompts, reference, strict=True):
        if (row < 0).any():
            raise InputError(f"{path}: reference[{name!r}] holds the probability {row.min()!r} < 0")
        if abs(row.sum() - 1) > 1e-6:
            raise InputError(f"{path}: reference[{name!r}] sums to {row.sum()!r}, not to 1")
    reference /= reference.sum(axis=1, keepdims=True)
