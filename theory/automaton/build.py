"""Verifiers from a written table and from counting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from theory.automaton.machine import (
    MAX_STATES,
    Automaton,
    Verifier,
    check_states,
    check_tokens,
)
from theory.errors import InputError

TABLE_KEYS = {"tokens", "start", "eos", "states"}
STATE_KEYS = {"next", "default", "forbidden", "final", "step", "accepting"}


def verifier_from_table(table: Mapping[str, Any]) -> Verifier:
    """A verifier from plain data, such as a JSON object.

    {"tokens": ["a", "b"], "start": "even", "eos": null, "states": {"even": {"next": {"a": "odd"},
    "default": "even", "forbidden": [], "final": 1.0, "step": {"b": -0.1}, "accepting": true}, ..}}

    States are numbered in the order written. Every allowed token needs a successor, by name in
    "next" or by "default"; "forbidden" tokens need none. "eos", "default", "forbidden", "final"
    (0), "step" (0) and "accepting" (true) may be left out. Raises InputError naming the state and
    the token of the first fault; unknown keys are faults.
    """
    _check_keys("the table", table, TABLE_KEYS, {"tokens", "start", "states"})
    tokens, states = table["tokens"], table["states"]
    if not isinstance(tokens, list | tuple) or not all(isinstance(t, str) for t in tokens):
        raise InputError("'tokens' must be a list of strings")
    eos = table.get("eos")
    if eos is not None and not isinstance(eos, str):
        raise InputError(f"'eos' must be a token or null, got {eos!r}")
    check_tokens(tokens, eos)
    if not isinstance(states, Mapping) or not states:
        raise InputError("'states' must be an object with at least one state")
    check_states(len(states), MAX_STATES, "the table")
    names = {name: i for i, name in enumerate(states)}
    columns = {token: v for v, token in enumerate(tokens)}
    shape = (len(names), len(columns))
    succ, step = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    forbidden, accepting = np.zeros(shape, dtype=bool), np.ones(len(names), dtype=bool)
    final = np.zeros(len(names))
    for i, (name, entry) in enumerate(states.items()):
        where = f"state {name!r}"
        _check_keys(where, entry, STATE_KEYS, set())
        for token in _list(entry.get("forbidden", []), f"{where}, 'forbidden'"):
            forbidden[i, _column(columns, token, f"{where}, 'forbidden'")] = True
        succ[i] = _successors(entry, where, columns, names, forbidden[i])
        for token, value in _object(entry.get("step", {}), f"{where}, 'step'").items():
            column = _column(columns, token, f"{where}, 'step'")
            step[i, column] = _number(value, f"{where}, 'step' of {token!r}")
        final[i] = _number(entry.get("final", 0.0), f"{where}, 'final'")
        accepting[i] = _boolean(entry.get("accepting", True), f"{where}, 'accepting'")
    start = _state(names, table["start"], "'start'")
    machine = Automaton(tuple(tokens), succ, start, eos, forbidden, accepting)
    return Verifier(machine, final, step if step.any() else None)


def _successors(
    entry: Mapping[str, Any],
    where: str,
    columns: Mapping[str, int],
    names: Mapping[str, int],
    forbidden: np.ndarray,
) -> np.ndarray:
    default = entry.get("default")
    fallback = None if default is None else _state(names, default, f"{where}, 'default'")
    row = np.full(len(columns), -1 if fallback is None else fallback)
    for token, target in _object(entry.get("next", {}), f"{where}, 'next'").items():
        column = _column(columns, token, f"{where}, 'next'")
        row[column] = _state(names, target, f"{where}, 'next' of {token!r}")
    missing = (row < 0) & ~forbidden
    if missing.any():
        token = list(columns)[int(np.argmax(missing))]
        raise InputError(f"{where} has no successor for token {token!r}, and no 'default'")
    return np.where(row < 0, 0, row)


# --- counting -------------------------------------------------------------------------------------


def coverage_verifier(
    tokens: Sequence[str],
    words: Sequence[str],
    *,
    eos: str | None = None,
    score: Sequence[float] | None = None,
) -> Verifier:
    """How many of k distinct words a completion contains at least once; 2**k states.

    State = the set of words seen, as bits (word i is bit i). score[j]: the reward for j words seen,
    j = 0..k; by default j.
    """
    columns = _words(tokens, words, eos)
    check_states(2 ** min(len(words), 64), MAX_STATES, f"coverage of {len(words)} words")
    states = np.arange(2 ** len(words))
    table = np.repeat(states[:, None], len(tokens), axis=1)
    for bit, column in enumerate(columns):
        table[:, column] = states | (1 << bit)
    seen = np.bitwise_count(states.astype(np.uint64)).astype(np.int64)
    levels = _score(score, len(words) + 1)
    return Verifier(Automaton(tuple(tokens), table, 0, eos), levels[seen])


def count_verifier(
    tokens: Sequence[str],
    words: Sequence[str],
    cap: int,
    *,
    eos: str | None = None,
    score: Sequence[float] | None = None,
) -> Verifier:
    """How many tokens are among the words, counted up to `cap`; cap + 1 states.

    score[j]: the reward for a count of j (of cap or more, for j = cap); by default j.
    """
    if cap < 1:
        raise InputError(f"cap must be at least 1, got {cap}")
    columns = _words(tokens, words, eos)
    check_states(cap + 1, MAX_STATES, f"a count up to {cap:,}")
    states = np.arange(cap + 1)
    table = np.repeat(states[:, None], len(tokens), axis=1)
    table[:, columns] = np.minimum(states + 1, cap)[:, None]
    return Verifier(Automaton(tuple(tokens), table, 0, eos), _score(score, cap + 1))


def length_verifier(
    tokens: Sequence[str],
    cap: int,
    *,
    eos: str | None = None,
    score: Sequence[float] | None = None,
) -> Verifier:
    """The number of tokens, EOS not counted, up to `cap`; cap + 1 states. score: see `count`."""
    words = [token for token in tokens if token != eos]
    return count_verifier(tokens, words, cap, eos=eos, score=score)


def modulo_verifier(
    tokens: Sequence[str],
    words: Sequence[str],
    modulus: int,
    *,
    eos: str | None = None,
    score: Sequence[float] | None = None,
) -> Verifier:
    """How many tokens are among the words, modulo m; m states. score[j]: reward for rest j."""
    if modulus < 1:
        raise InputError(f"modulus must be at least 1, got {modulus}")
    columns = _words(tokens, words, eos)
    check_states(modulus, MAX_STATES, f"a count modulo {modulus:,}")
    states = np.arange(modulus)
    table = np.repeat(states[:, None], len(tokens), axis=1)
    table[:, columns] = ((states + 1) % modulus)[:, None]
    return Verifier(Automaton(tuple(tokens), table, 0, eos), _score(score, modulus))


# --- checks ---------------------------------------------------------------------------------------


def _words(tokens: Sequence[str], words: Sequence[str], eos: str | None) -> list[int]:
    check_tokens(tokens, eos)
    columns = {token: v for v, token in enumerate(tokens)}
    if not words or len(set(words)) != len(words):
        raise InputError(f"the words must be distinct, and at least one: {list(words)}")
    if eos in words:
        raise InputError(f"EOS {eos!r} cannot be a counted word")
    return [_column(columns, word, "the words") for word in words]


def _score(score: Sequence[float] | None, need: int) -> np.ndarray:
    levels = np.arange(need, dtype=np.float64) if score is None else np.asarray(score, dtype=float)
    if levels.shape != (need,):
        raise InputError(f"score has shape {levels.shape}, {need} levels are needed")
    return levels


def _check_keys(where: str, entry: object, known: set[str], needed: set[str]) -> None:
    entry = _object(entry, where)
    for key in entry:
        if key not in known:
            raise InputError(f"{where} has the unknown key {key!r}; known: {sorted(known)}")
    for key in sorted(needed):
        if key not in entry:
            raise InputError(f"{where} has no {key!r}")


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be an object, got {value!r}")
    return value


def _list(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise InputError(f"{where} must be a list, got {value!r}")
    return value


def _column(columns: Mapping[str, int], token: object, where: str) -> int:
    if not isinstance(token, str) or token not in columns:
        raise InputError(f"unknown token {token!r} in {where}")
    return columns[token]


def _state(names: Mapping[str, int], name: object, where: str) -> int:
    if not isinstance(name, str) or name not in names:
        raise InputError(f"unknown state {name!r} in {where}")
    return names[name]


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InputError(f"{where} must be finite, got {number!r}")
    return number


def _boolean(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{where} must be true or false, got {value!r}")
    return value
