"""Your own instance: a token tree with a reward, a reference and preferences, from one JSON file.

{"tokens": ["a", "b"], "horizon": 2, "eos": null, "prompts": {"x": 1.0},
 "forbidden": [["a", "a"]],
 "reward": {"x": {"a b": 1.5, ...}}, "reference": {"x": {"a b": 0.25, ...}},
 "preferences": [["x", "a b", "b a", 3]]}

Tokens of a completion are separated by one space. tokens, horizon and prompts are required.
A reward and a reference name every completion of every prompt. Counts may be fractional.
"""

from __future__ import annotations

import json
import math
import reprlib
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.preferences import PairData
from theory.sizes import power_in_words
from theory.tree import TokenTree

REQUIRED = ("tokens", "horizon", "prompts")
OPTIONAL = ("eos", "forbidden", "reward", "reference", "preferences")
MAX_FILE = 64 * 2**20  # bytes
MAX_DIGITS = 4_300  # of a whole number in a file; Python converts no longer ones
MAX_LEAVES = 2**20  # leaf slots over all prompts
MAX_HORIZON = 64  # binds for a single token only: two tokens reach MAX_LEAVES at 20
MAX_NAMES = 10_000  # tokens, and prompts
MASS_ERROR = 1e-6  # how far the reference of a prompt may sum from 1 before it is normalised
LEAST_COUNT, MOST_COUNT = 1e-12, 1e12  # of one row of the preferences

_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxlong, _short.maxother = 2, 80, 40, 80


@dataclass(frozen=True)
class Instance:
    """A tree and what is known on it; each part but the tree may be absent (None)."""

    tree: TokenTree
    reward: Float[np.ndarray, "P L"] | None = None  # reward units; 0 where no completion is
    log_ref: Float[np.ndarray, "P L"] | None = None  # nats, normalised; -inf at probability 0
    data: PairData | None = None


def load_instance(path: Path | str) -> Instance:
    """Read and check an instance file. Raises InputError naming file, place and value."""
    return parse_instance(read_json(path), str(path))


def read_json(path: Path | str) -> object:
    """The value of a JSON file of at most MAX_FILE bytes, UTF-8, without duplicate keys.

    Raises InputError naming the file. NaN and infinities pass: numbers are judged where they stand.
    """
    raw = _bytes(path)
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8: byte {error.start}") from error
    except RecursionError as error:
        raise InputError(f"{path}: lists and objects are nested too deep") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def _bytes(path: Path | str) -> bytes:
    """The bytes of a regular file; a pipe or a device is not opened, its end may never come."""
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(str(path))}: cannot be read: {reason}") from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path}: is no regular file")
    if status.st_size > MAX_FILE:
        raise InputError(f"{path}: {status.st_size:,} bytes; the limit is {MAX_FILE:,}")
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) > MAX_FILE:
        raise InputError(f"{path}: more than {MAX_FILE:,} bytes, which is the limit")
    return raw


def _integer(text: str) -> int:
    digits = len(text.lstrip("-"))
    if digits > MAX_DIGITS:
        raise InputError(f"a whole number has {digits:,} digits; the limit is {MAX_DIGITS:,}")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise InputError(f"key {shown(name)} stands twice in one object")
        found[name] = value
    return found


def parse_instance(body: object, place: str) -> Instance:
    """Check the JSON value of an instance; `place` (a file, or file and key) opens every error.

    Raises InputError naming place and value.
    """
    try:
        return _parse(body)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def instance_json(instance: Instance) -> dict[str, Any]:
    """The JSON object of an instance, the inverse of `parse_instance` (references to rounding)."""
    tree, names = instance.tree, leaf_names(instance.tree)
    body: dict[str, Any] = {
        "tokens": list(tree.tokens),
        "horizon": tree.horizon,
        "eos": tree.eos,
        "prompts": dict(zip(tree.prompts, tree.weights, strict=True)),
    }
    if tree.forbidden:
        body["forbidden"] = [list(prefix) for prefix in tree.forbidden]
    if instance.reward is not None:
        body["reward"] = named(tree, instance.reward)
    if instance.log_ref is not None:
        body["reference"] = named(tree, np.exp(instance.log_ref))
    if instance.data is not None:
        data = instance.data
        rows = zip(data.prompt, data.winner, data.loser, data.count, strict=True)
        body["preferences"] = [
            [tree.prompts[x], names[winner], names[loser], float(count)]
            for x, winner, loser, count in rows
        ]
    return body


def leaf_names(tree: TokenTree) -> list[str]:
    """The tokens of every leaf slot, joined by spaces and cut after EOS, (L,); masked slots too."""
    return _level_names(tree)[-1]


def state_names(tree: TokenTree) -> list[tuple[str, int, int]]:
    """(prefix, level, state) wherever a token is chosen: not after EOS; "" is the root."""
    found = []
    for h, names in enumerate(_level_names(tree)[:-1]):
        for state in np.flatnonzero(tree.allowed(h).any(axis=1)).tolist():
            if not (h and names[state].rpartition(" ")[2] == tree.eos):
                found.append((names[state], h, state))
    return found


def _level_names(tree: TokenTree) -> list[list[str]]:
    levels = [[""]]
    for h in range(tree.horizon):
        names: list[str] = []
        for name in levels[-1]:
            ended = bool(h) and name.rpartition(" ")[2] == tree.eos
            prefix = f"{name} " if h else ""
            names += [name if ended else prefix + token for token in tree.tokens]
        levels.append(names)
    return levels


def named(tree: TokenTree, table: np.ndarray) -> dict[str, dict[str, float]]:
    """{prompt: {completion: number}} of a (P, L) table."""
    names = leaf_names(tree)
    return {
        prompt: {names[leaf]: float(row[leaf]) for leaf in tree.leaves}
        for prompt, row in zip(tree.prompts, table, strict=True)
    }


def shown(value: object) -> str:
    """A value as it stands in an error: its repr, cut where it is long or deep."""
    return _short.repr(value)


# --- the parts -----------------------------------------------------------------------------------


def _parse(body: object) -> Instance:
    if not isinstance(body, dict):
        raise InputError(f"an instance is one JSON object, got {shown(body)}")
    for key in REQUIRED:
        if key not in body:
            raise InputError(f"key {key!r} is missing")
    for key in body:
        if key not in REQUIRED + OPTIONAL:
            known = ", ".join(REQUIRED + OPTIONAL)
            raise InputError(f"unknown key {shown(key)}; known: {known}")
    tree = _tree(body)
    leaf = {name: slot for slot, name in enumerate(leaf_names(tree)) if tree.leaf_mask[slot]}
    reward = log_ref = data = None
    if "reward" in body:
        reward = _table(tree, leaf, body["reward"], "reward")
    if "reference" in body:
        log_ref = _reference(tree, _table(tree, leaf, body["reference"], "reference"))
    if "preferences" in body:
        data = _preferences(tree, leaf, body["preferences"])
    if log_ref is not None and data is not None:
        _check_compared(tree, log_ref, data)
    return Instance(tree, reward, log_ref, data)


def _tree(body: dict[str, Any]) -> TokenTree:
    tokens = _strings(body["tokens"], "tokens")
    horizon, eos, prompts = body["horizon"], body.get("eos"), body["prompts"]
    if not isinstance(horizon, int) or isinstance(horizon, bool):
        raise InputError(f"horizon must be a whole number, got {shown(horizon)}")
    if not 1 <= horizon <= MAX_HORIZON:
        raise InputError(f"horizon must lie in 1..{MAX_HORIZON}, got {shown(horizon)}")
    if not isinstance(prompts, dict):
        raise InputError(f"prompts must be an object {{name: weight}}, got {shown(prompts)}")
    if eos is not None and not isinstance(eos, str):
        raise InputError(f"eos must be a token or null, got {shown(eos)}")
    for kind, names in (("tokens", tokens), ("prompts", _strings(list(prompts), "prompts"))):
        if len(names) > MAX_NAMES:
            raise InputError(f"{len(names):,} {kind}; the limit is {MAX_NAMES:,}")
    weights = {name: _number(w, f"prompts[{shown(name)}]") for name, w in prompts.items()}
    for name, weight in weights.items():
        if not 0 < weight <= 1:
            raise InputError(f"prompts[{shown(name)}] must lie in (0, 1], got {weight!r}")
    if len(prompts) * len(tokens) ** horizon > MAX_LEAVES:
        leaves = power_in_words(len(tokens), horizon, len(prompts))
        raise InputError(
            f"the tree is too large: {len(tokens)} tokens at horizon {horizon} and {len(prompts)} "
            f"prompt(s) make {leaves} leaf slots; the limit is {MAX_LEAVES:,}"
        )
    forbidden = body.get("forbidden", [])
    if not isinstance(forbidden, list):
        raise InputError(f"forbidden must be a list of lists of tokens, got {shown(forbidden)}")
    prefixes = tuple(_strings(row, f"forbidden[{i}]") for i, row in enumerate(forbidden))
    return TokenTree(tokens, horizon, tuple(weights), tuple(weights.values()), eos, prefixes)


def _table(
    tree: TokenTree, leaf: dict[str, int], table: object, key: str
) -> Float[np.ndarray, "P L"]:
    """{prompt: {completion: number}} as (P, L), 0 where no completion is."""
    if not isinstance(table, dict):
        raise InputError(f"{key} must be an object {{prompt: ...}}, got {shown(table)}")
    _check_names(table, tree.prompts, key, "prompt")
    out = np.zeros((tree.n_prompts, tree.n_leaves))
    for x, prompt in enumerate(tree.prompts):
        row, place = table[prompt], f"{key}[{shown(prompt)}]"
        if not isinstance(row, dict):
            raise InputError(f"{place} must be an object {{completion: number}}, got {shown(row)}")
        for name, value in row.items():
            out[x, _leaf(tree, leaf, name, place)] = _number(value, f"{place}[{shown(name)}]")
        _check_names(row, tuple(leaf), place, "completion")
    return out


def _check_names(table: dict[str, Any], names: tuple[str, ...], place: str, kind: str) -> None:
    absent = [name for name in names if name not in table]
    if absent:
        raise InputError(f"{place} lacks {kind} {shown(absent[0])} ({len(absent):,} missing)")
    if len(table) > len(names):
        unknown = min(set(table) - set(names))
        raise InputError(f"{place} has unknown {kind} {shown(unknown)}")


def _reference(tree: TokenTree, table: np.ndarray) -> Float[np.ndarray, "P L"]:
    """Log-probabilities, nats, normalised for each prompt."""
    for prompt, row in zip(tree.prompts, table, strict=True):
        place, worst = f"reference[{shown(prompt)}]", int(np.argmax(np.abs(row - 0.5)))
        if not 0 <= row[worst] <= 1:
            name = " ".join(tree.leaf_tokens(worst))
            raise InputError(
                f"{place}[{shown(name)}] is no probability: {float(row[worst])!r} is outside 0..1"
            )
        total = math.fsum(row)
        if abs(total - 1.0) > MASS_ERROR:
            raise InputError(f"{place} sums to {total!r}, not to 1 within {MASS_ERROR:g}")
        row /= total
    with np.errstate(divide="ignore"):
        return np.log(table)


def _preferences(tree: TokenTree, leaf: dict[str, int], rows: object) -> PairData:
    if not isinstance(rows, list):
        raise InputError(f"preferences must be a list of rows, got {shown(rows)}")
    prompts = {prompt: x for x, prompt in enumerate(tree.prompts)}
    found = []
    for i, row in enumerate(rows):
        place = f"preferences[{i}]"
        if not isinstance(row, list) or len(row) != 4:
            raise InputError(f"{place} must be [prompt, winner, loser, count], got {shown(row)}")
        prompt, winner, loser, count = row
        if not isinstance(prompt, str) or prompt not in prompts:
            raise InputError(f"{place} has unknown prompt {shown(prompt)} (two of one prompt only)")
        first, second = (_leaf(tree, leaf, name, place) for name in (winner, loser))
        if first == second:
            raise InputError(f"{place} compares {shown(winner)} with itself")
        number = _number(count, f"{place}: the count")
        if not LEAST_COUNT <= number <= MOST_COUNT:
            raise InputError(
                f"{place}: the count must be > 0 and lie in {LEAST_COUNT:g}..{MOST_COUNT:g}, "
                f"got {shown(count)}"
            )
        found.append((prompts[prompt], first, second, number))
    return PairData.of(tree, found)


def _check_compared(tree: TokenTree, log_ref: np.ndarray, data: PairData) -> None:
    """A completion of reference probability 0 has no DPO margin."""
    for leaves in (data.winner, data.loser):
        bad = np.isneginf(log_ref[data.prompt, leaves])
        if bad.any():
            row = int(np.argmax(bad))
            prompt, name = tree.prompts[data.prompt[row]], tree.leaf_tokens(int(leaves[row]))
            raise InputError(
                f"reference[{shown(prompt)}][{shown(' '.join(name))}] is 0, but the completion is "
                "compared in preferences"
            )


# --- values --------------------------------------------------------------------------------------


def _leaf(tree: TokenTree, leaf: dict[str, int], name: object, place: str) -> int:
    """The slot of a completion by name; raises InputError that says what is wrong with it."""
    if not isinstance(name, str):
        raise InputError(f"{place}: a completion is a string of tokens, got {shown(name)}")
    if name in leaf:
        return leaf[name]
    for word in name.split(" "):
        if word not in tree.tokens:
            known = shown(list(tree.tokens))
            raise InputError(f"{place}: unknown token {shown(word)} in {shown(name)}; {known=!s}")
    raise InputError(f"{place}: {shown(name)} is no completion of the tree")


def _number(value: object, place: str) -> float:
    """A finite JSON number as float64; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place} must be a number, got {shown(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise InputError(f"{place} must be finite, got {shown(value)}") from None
    if not math.isfinite(number):
        raise InputError(f"{place} must be finite, got {value!r}")
    return number


def _strings(value: object, place: str) -> tuple[str, ...]:
    """A list of strings that can be written (no lone surrogates)."""
    if not isinstance(value, list):
        raise InputError(f"{place} must be a list of strings, got {shown(value)}")
    for item in value:
        if not isinstance(item, str):
            raise InputError(f"{place} must hold strings only, got {shown(item)}")
        if any("\ud800" <= letter <= "\udfff" for letter in item):
            raise InputError(f"{place}: {shown(item)} is no valid Unicode")
    return tuple(value)
