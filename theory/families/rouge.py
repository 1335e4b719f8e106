"""ROUGE-L against a hidden reference for each prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.families.base import (
    EOS,
    LETTERS,
    MAX_FEATURES,
    GroundTruth,
    check_size,
    ground_truth,
    orthonormal,
    require_scale,
    require_whole,
    sharpen,
    slot_tokens,
)
from theory.sizes import digits_of_power, power_in_words
from theory.tree import TokenTree


@dataclass(frozen=True)
class Rouge:
    """r = ROUGE-L F1 (Lin 2004) of a completion with its prompt's reference, then scaled.

    F1 = 2 LCS / (n + m) for n words, EOS not counted, and a reference of m words. A completion is
    up to H words; EOS may end it earlier. Nothing in the prompt tells the reference.
    R_sim: for each prompt on its own, all weighted sums of the ROUGE-L F1 with every possible
    reference of m words. The seed draws the references, words uniform and independent.
    """

    family: ClassVar[str] = "rouge"
    fixed_features: ClassVar[bool] = True
    words: int = 3
    """Tokens besides EOS."""
    reference: int = 3
    """m, words of each reference, at most the horizon."""
    prompts: int = 4
    """P, equally likely."""
    horizon: int = 4
    """H."""
    sharpness: float = 2.0
    """Standard deviation of the reward over completions, mean over prompts, reward units."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "words", 1, len(LETTERS))
        require_whole(self, "horizon", 1)
        require_whole(self, "reference", 1, self.horizon)
        require_whole(self, "prompts", 1, MAX_FEATURES)
        require_scale(self)
        if digits_of_power(self.words, self.reference) > 6:
            raise InputError(
                f"reference is {self.reference} words of {self.words}: "
                f"{power_in_words(self.words, self.reference)} possible references, "
                f"at most {MAX_FEATURES:,}"
            )
        columns = self.prompts * self.words**self.reference
        check_size(self.words + 1, self.horizon, self.prompts, columns)

    def draw(self) -> GroundTruth:
        """The reward of this seed."""
        tree, scores, features = _rouge_class(
            self.words, self.reference, self.prompts, self.horizon
        )
        stream = [self.seed, self.words, self.reference, self.prompts, 6]
        hidden = np.random.default_rng(stream).integers(len(scores), size=self.prompts)
        return ground_truth(self, tree, sharpen(tree, scores[hidden], self), features)


@lru_cache(maxsize=8)
def _rouge_class(
    words: int, m: int, prompts: int, horizon: int
) -> tuple[TokenTree, np.ndarray, np.ndarray]:
    """The tree, the F1 (R, L) with every reference of m words, and the features (P, L, D)."""
    names = tuple(f"x{i}" for i in range(prompts))
    tokens = (*LETTERS[:words], EOS)
    tree = TokenTree(tokens, horizon, names, (1.0 / prompts,) * prompts, eos=EOS)
    possible = np.array(list(product(range(words), repeat=m)))
    scores = rouge_l(slot_tokens(tree), possible, words)
    one = orthonormal(replace(tree, prompts=("x0",), weights=(1.0,)), scores.T[None])[0]
    blocks = np.zeros((prompts, *one.shape[:1], prompts, one.shape[1]))
    for x in range(prompts):  # a block is 0 on the other prompts, so its mean square is divided
        blocks[x, :, x] = one * math.sqrt(prompts)
    return tree, scores, blocks.reshape(prompts, tree.n_leaves, -1)


def rouge_l(table: np.ndarray, references: np.ndarray, eos: int) -> Float[np.ndarray, "R L"]:
    """ROUGE-L F1 of completions (L, H), filled with `eos`, with references (R, m); both token ids.

    The longest common subsequence by its dynamic program over both words, all pairs at once.
    """
    shape, m = (len(references), len(table)), references.shape[1]
    row = np.zeros((m + 1, *shape), dtype=np.int64)
    for column in table.T:
        above = row.copy()
        for j in range(m):
            match = references[:, j, None] == column[None, :]
            row[j + 1] = np.where(match, above[j] + 1, np.maximum(above[j + 1], row[j]))
    length = (table != eos).sum(axis=1)
    return 2.0 * row[m] / (length[None, :] + m)
