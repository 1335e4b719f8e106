"""Ground-truth tasks: made from a Walsh polynomial, written to and read from task.json.

A task names its prompts, completions, gold reward and the distribution that SFT data are drawn
from, so that a language model can be trained on it and judged exactly.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from theory.errors import InputError, require_positive
from theory.sizes import power_in_words
from theory.tree import TokenTree
from theory.walsh import Subset, all_bits, features, random_coefficients, subsets

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
MASS_ERROR = 1e-9  # how far reference probabilities may sum from 1
MAX_BYTES = 2**31  # for the features of all completions of all prompts
LETTERS = "abcdefghijklmnop"


@dataclass(frozen=True)
class WalshTask:
    """Parameters of a Walsh task; the defaults make the shipped task.

    The gold reward r* is a random polynomial of `degree` jointly in prompt and completion bits,
    terms of prompt bits alone left out; the reference is proportional to
    exp((reference_share r* + another such polynomial) / beta).
    """

    prompt_bits: int = 4
    """Prompts are all settings of these bits, equally likely."""
    completion_bits: int = 6
    """H: tokens of a completion, each a bit."""
    degree: int = 2
    """Degree of the gold reward and of the reference's own polynomial."""
    sharpness: float = 2.0
    """Standard deviation of the gold reward over prompts and completions, reward units."""
    reference_share: float = 0.5
    """How much of the gold reward the reference already follows."""
    reference_sharpness: float = 1.0
    """Standard deviation of the reference's own polynomial, reward units."""
    beta: float = 1.0
    """Reward units a nat."""
    seed: int = 0
    """Of both polynomials."""

    def __post_init__(self) -> None:
        require_positive(self, "prompt_bits", "completion_bits", "sharpness", "beta")
        for name in ("reference_share", "reference_sharpness"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be >= 0, got {value!r}")
        if self.seed < 0:
            raise InputError(f"seed must be >= 0, got {self.seed}")
        if self.prompt_bits > len(LETTERS):
            raise InputError(f"prompt_bits must be at most {len(LETTERS)}, got {self.prompt_bits}")
        bits = self.prompt_bits + self.completion_bits
        if not 1 <= self.degree <= bits:
            raise InputError(f"degree must lie in 1..{bits} (all bits), got {self.degree}")
        if bits > 20:  # the file names every completion of every prompt twice
            raise InputError(
                f"{self.prompt_bits} prompt bits and {self.completion_bits} completion bits make "
                f"{power_in_words(2, bits)} leaves over all prompts, {power_in_words(2, bits, 8)} "
                f"bytes; a task file holds at most {2**20:,} leaves"
            )
        terms = sum(math.comb(bits, size) for size in range(1, self.degree + 1))
        if 8 * terms * 2**bits > MAX_BYTES:
            raise InputError(
                f"{terms:,} terms of degree {self.degree} on {2**bits:,} leaves take "
                f"{8 * terms * 2**bits:,} bytes, at most {MAX_BYTES:,}"
            )


@dataclass(frozen=True)
class Task:
    """A validated task.json. Arrays are (P, L), leaves in lexicographic order."""

    tree: TokenTree
    family: str
    parameters: dict[str, Any]
    beta: float
    prompt_tokens: tuple[tuple[str, ...], ...]
    reward: Float[np.ndarray, "P L"]  # gold r*, reward units; 0 at slots that are no completion
    log_reference: Float[np.ndarray, "P L"]  # nats, normalised; -inf at probability 0
    sha256: str  # of the file's bytes


def joint_terms(prompt_bits: int, completion_bits: int, degree: int) -> tuple[Subset, ...]:
    """Sets of at most `degree` bits with at least one completion bit (prompt bits come first)."""
    every = subsets(prompt_bits + completion_bits, degree)
    return tuple(term for term in every if term[-1] >= prompt_bits)


def joint_features(
    prompt_bits: int, completion_bits: int, degree: int
) -> Float[np.ndarray, "P L d"]:
    """chi_S of every prompt and completion for every term of `joint_terms`."""
    table = features(
        all_bits(prompt_bits + completion_bits),
        joint_terms(prompt_bits, completion_bits, degree),
    )
    return table.reshape(2**prompt_bits, 2**completion_bits, -1)


def make_task(spec: WalshTask) -> dict[str, Any]:
    """The JSON object of a task; of degree prompt_bits + completion_bits it is a lookup table."""
    table = joint_features(spec.prompt_bits, spec.completion_bits, spec.degree)
    n_terms = table.shape[2]
    gold = table @ random_coefficients(
        np.random.default_rng([spec.seed, 0]), n_terms, spec.sharpness
    )
    own = table @ random_coefficients(np.random.default_rng([spec.seed, 1]), n_terms, 1.0)
    score = (spec.reference_share * gold + spec.reference_sharpness * own) / spec.beta
    unscaled = np.exp(score - score.max(axis=1, keepdims=True))
    reference = unscaled / unscaled.sum(axis=1, keepdims=True)
    rows = all_bits(spec.prompt_bits)
    names = tuple("".join(map(str, row)) for row in rows)
    full = spec.degree == spec.prompt_bits + spec.completion_bits
    return task_body(
        family="lookup" if full else "walsh",  # all degrees: any table of rewards
        parameters=asdict(spec),
        tree=TokenTree(
            ("0", "1"), spec.completion_bits, names, tuple(1.0 / len(names) for _ in names)
        ),
        beta=spec.beta,
        prompt_tokens=[[f"{LETTERS[i]}{bit}" for i, bit in enumerate(row)] for row in rows],
        completions=[" ".join(map(str, row)) for row in all_bits(spec.completion_bits)],
        reward=gold,
        reference=reference,
    )


def task_body(
    *,
    family: str,
    parameters: dict[str, Any],
    tree: TokenTree,
    beta: float,
    prompt_tokens: list[list[str]],
    completions: list[str],
    reward: Float[np.ndarray, "P L"],
    reference: Float[np.ndarray, "P L"],
) -> dict[str, Any]:
    """A task.json: every completion (its tokens, in the tree's order) with its two numbers.

    They are rounded, so that every platform writes one file.
    """
    names = list(tree.prompts)
    return {
        "schema": 1,
        "family": family,
        "parameters": parameters,
        "tokens": list(tree.tokens),
        "horizon": tree.horizon,
        "eos": tree.eos,
        "beta": beta,
        "prompts": dict(zip(names, tree.weights, strict=True)),
        "prompt_tokens": dict(zip(names, prompt_tokens, strict=True)),
        "reward": _named(names, completions, reward, lambda value: round(value, 10)),
        "reference": _named(names, completions, reference, lambda value: float(f"{value:.11e}")),
    }


def _named(
    names: list[str], completions: list[str], table: np.ndarray, tidy: Callable[[float], float]
) -> dict[str, Any]:
    return {
        name: {c: tidy(float(v)) for c, v in zip(completions, row, strict=True)}
        for name, row in zip(names, table, strict=True)
    }


def save_task(path: Path, body: dict[str, Any]) -> None:
    """Write a task whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)


def load_task(path: Path) -> Task:
    """Read and validate a task.json. Raises InputError naming file, key and value."""
    try:
        raw = path.read_bytes()
        body = json.loads(raw)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error
    try:
        return _parse(body, hashlib.sha256(raw).hexdigest())
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _parse(body: Any, digest: str) -> Task:
    if not isinstance(body, dict):
        raise InputError("a task is one JSON object")
    unknown = sorted(set(body) - set(KEYS))
    if unknown:
        raise InputError(f"unknown key {unknown[0]!r}; known: {', '.join(KEYS)}")
    absent = [key for key in KEYS if key not in body]
    if absent:
        raise InputError(f"key {absent[0]!r} is missing")
    if body["schema"] != 1:
        raise InputError(f"schema must be 1, got {body['schema']!r}")
    beta = _number(body["beta"], "beta")
    if beta <= 0:
        raise InputError(f"beta must be > 0, got {beta!r}")
    if not isinstance(body["horizon"], int) or isinstance(body["horizon"], bool):
        raise InputError(f"horizon must be a whole number, got {body['horizon']!r}")
    for key in ("parameters", "prompts", "prompt_tokens", "reward", "reference"):
        if not isinstance(body[key], dict):
            raise InputError(f"{key} must be an object, got {body[key]!r}")
    tree = TokenTree(
        tokens=_words(body["tokens"], "tokens"),
        horizon=body["horizon"],
        prompts=tuple(body["prompts"]),
        weights=tuple(_number(w, f"prompts[{n!r}]") for n, w in body["prompts"].items()),
        eos=body["eos"],
    )
    for key in ("prompt_tokens", "reward", "reference"):
        _same_names(body[key], tree.prompts, key)
    reward = _table(tree, body["reward"], "reward")
    reference = _table(tree, body["reference"], "reference")
    for prompt, row in zip(tree.prompts, reference, strict=True):
        if row.min() < 0 or abs(math.fsum(row) - 1.0) > MASS_ERROR:
            raise InputError(
                f"reference[{prompt!r}] is no distribution: least {float(row.min())!r}, "
                f"sum {math.fsum(row)!r}"
            )
    with np.errstate(divide="ignore"):
        log_reference = np.log(reference / reference.sum(axis=1, keepdims=True))
    words = tuple(_words(body["prompt_tokens"][p], f"prompt_tokens[{p!r}]") for p in tree.prompts)
    return Task(
        tree, str(body["family"]), body["parameters"], beta, words, reward, log_reference, digest
    )


def _table(tree: TokenTree, rows: dict[str, Any], key: str) -> Float[np.ndarray, "P L"]:
    """{prompt: {completion: number}} as (P, L), 0 at slots that are no completion."""
    names = {" ".join(tree.leaf_tokens(int(leaf))): int(leaf) for leaf in tree.leaves}
    out = np.zeros((tree.n_prompts, tree.n_leaves))
    for x, prompt in enumerate(tree.prompts):
        if not isinstance(rows[prompt], dict):
            raise InputError(f"{key}[{prompt!r}] must be an object, got {rows[prompt]!r}")
        _same_names(rows[prompt], tuple(names), f"{key}[{prompt!r}]")
        for name, value in rows[prompt].items():
            out[x, names[name]] = _number(value, f"{key}[{prompt!r}][{name!r}]")
    return out


def _same_names(table: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    absent = [name for name in names if name not in table]
    if absent:
        raise InputError(f"{where} lacks {absent[0]!r} ({len(absent)} missing)")
    unknown = sorted(set(table) - set(names))
    if unknown:
        raise InputError(f"{where} has unknown {unknown[0]!r}")


def _number(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise InputError(f"{where} must be a finite number, got {value!r}")
    return float(value)


def _words(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise InputError(f"{where} must be a list of strings, got {value!r}")
    return tuple(value)
