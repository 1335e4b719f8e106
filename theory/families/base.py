"""What every family of ground-truth rewards makes, and the checks and scales they share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.sizes import digits_of_power, power_in_words
from theory.tree import TokenTree

MAX_FEATURES = 1_024  # of a reward class
MAX_BYTES = 2**28  # for the features of all completions of all prompts
RANK_ERROR = 1e-10  # what is left of a column below this share of the largest is rounding
MAX_COUNT = 10**9  # of anything that a setting counts
LARGEST = 1e100  # number, so that squares stay finite
FLAT = 1e-12  # a spread below this share of the largest reward is rounding
LETTERS = "abcdefghijklmnopqrstuvwxy"
EOS = "."


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """A true reward, the tree it lives on, and a simple reward class R_sim that contains it.

    features are orthonormal over completions and prompts, with mean 0 in each prompt, so that
    |theta| is the standard deviation of Phi theta and one ridge means the same in every family.
    `reward` lies in their span up to a shift a prompt, which Bradley-Terry does not see (Eq. 4).
    """

    family: str
    parameters: dict[str, Any]  # all that made it, seed included; can be written as JSON
    tree: TokenTree
    reward: Float[np.ndarray, "P L"]  # reward units; 0 at slots that are no completion
    features: Float[np.ndarray, "P L D"]  # 0 at slots that are no completion
    degree: int | None  # Walsh degree of R_sim, where it has one


class Family(Protocol):
    """The settings of one ground truth: a frozen dataclass, checked where it is made."""

    family: ClassVar[str]
    fixed_features: ClassVar[bool]  # whether every seed has the same features

    @property
    def sharpness(self) -> float: ...
    @property
    def seed(self) -> int: ...
    def draw(self) -> GroundTruth: ...


def ground_truth(
    spec: Any,
    tree: TokenTree,
    reward: Float[np.ndarray, "P L"],
    features: Float[np.ndarray, "P L D"],
    degree: int | None = None,
) -> GroundTruth:
    """The record of a drawn reward that has its final scale already; arrays become read-only."""
    for array in (reward, features):
        array.setflags(write=False)
    return GroundTruth(spec.family, asdict(spec), tree, reward, features, degree)


def sharpen(
    tree: TokenTree, reward: Float[np.ndarray, "P L"], spec: Any
) -> Float[np.ndarray, "P L"]:
    """The reward times the factor that gives it `spec.sharpness`; 0 where no completion is.

    Sharpness: the standard deviation over completions (each counted once), mean over prompts,
    reward units. Raises InputError for a reward that is the same on every completion.
    """
    live = reward[:, tree.leaf_mask]
    spread = float(live.std(axis=1).mean())
    if spread <= FLAT * float(np.abs(live).max()):
        raise InputError(f"{spec} gives every completion the same reward")
    return np.where(tree.leaf_mask, reward * (spec.sharpness / spread), 0.0)


def orthonormal(tree: TokenTree, raw: Float[np.ndarray, "P L C"]) -> Float[np.ndarray, "P L D"]:
    """Features with the span of `raw` up to a shift a prompt: D = rank <= C columns.

    Columns have mean 0 over the completions of each prompt, mean square 1 and mean product 0 over
    completions and prompts; 0 at slots that are no completion. Gram-Schmidt in the order of the
    columns, each twice, in sums that do not depend on the number of threads.
    """
    live = raw[:, tree.leaf_mask]
    centred = live - live.mean(axis=1, keepdims=True)
    columns = np.ascontiguousarray(centred.reshape(-1, raw.shape[2]).T)
    least = RANK_ERROR * np.sqrt(np.sum(columns * columns, axis=1).max())
    basis, rank = np.empty_like(columns), 0
    for column in columns:
        for _ in range(2):
            shares = np.einsum("dn,n->d", basis[:rank], column)
            column = column - np.einsum("d,dn->n", shares, basis[:rank])
        size = np.sqrt(np.sum(column * column))
        if size > least:
            basis[rank] = column / size
            rank += 1
    out = np.zeros((*raw.shape[:2], rank))
    scaled = basis[:rank].T * math.sqrt(columns.shape[1])
    out[:, tree.leaf_mask] = scaled.reshape(*live.shape[:2], rank)
    return out


def slot_tokens(tree: TokenTree) -> np.ndarray:
    """(L, H) token ids of every leaf slot; a completion that ended early is filled with EOS."""
    powers = tree.vocab ** np.arange(tree.horizon - 1, -1, -1)
    return np.arange(tree.n_leaves)[:, None] // powers[None, :] % tree.vocab


# --- checks ---------------------------------------------------------------------------------------


def require_whole(spec: object, name: str, low: int, high: int = MAX_COUNT) -> None:
    """Raise InputError unless the setting is an int in low..high."""
    value = getattr(spec, name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name} must be a whole number, got {value!r}")
    if not low <= value <= high:
        raise InputError(f"{name} must lie in {low}..{high}, got {value}")


def require_number(spec: object, name: str, low: float, high: float = LARGEST) -> None:
    """Raise InputError unless the setting is a number in low..high."""
    value = getattr(spec, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise InputError(f"{name} must be a number in {low:g}..{high:g}, got {value!r}")


def require_scale(spec: object) -> None:
    """Check what every family has: sharpness > 0 and a seed >= 0."""
    require_number(spec, "sharpness", 1 / LARGEST)
    require_whole(spec, "seed", 0, 2**63 - 1)


def check_size(vocab: int, horizon: int, prompts: int, columns: int) -> None:
    """Raise InputError if the features would not fit, before anything is made."""
    if columns > MAX_FEATURES:
        raise InputError(f"the reward class has {columns:,} features, at most {MAX_FEATURES:,}")
    row = 8 * prompts * columns
    too_many_digits = digits_of_power(vocab, horizon, row) > 18
    if too_many_digits or row * vocab**horizon > MAX_BYTES:
        raise InputError(
            f"{vocab} tokens at horizon {horizon} make {power_in_words(vocab, horizon)} "
            f"completions a prompt; {columns} features of {prompts} prompt(s) would take "
            f"{power_in_words(vocab, horizon, row)} bytes, the limit is {MAX_BYTES:,}"
        )
