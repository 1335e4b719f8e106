"""Coverage of a prompt's salient words: the small relative of summarising."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from theory.errors import InputError
from theory.families.base import (
    EOS,
    LETTERS,
    GroundTruth,
    check_size,
    ground_truth,
    orthonormal,
    require_number,
    require_scale,
    require_whole,
    sharpen,
    slot_tokens,
)
from theory.tree import TokenTree


@dataclass(frozen=True)
class Coverage:
    """r = different salient words - duplicate_penalty repeats - length_penalty words, then scaled.

    A completion is up to H words; EOS may end it earlier. A prompt is its set of salient words. A
    repeat is a word that stood before in the completion, salient or not.
    R_sim: f(different salient words) + g(repeats) + h(words), any f, g, h, shared by the prompts.
    The seed draws the prompts, all different.
    """

    family: ClassVar[str] = "coverage"
    fixed_features: ClassVar[bool] = False
    words: int = 7
    """Tokens besides EOS."""
    salient: int = 3
    """Salient words of a prompt."""
    prompts: int = 4
    """P, equally likely."""
    horizon: int = 3
    """H."""
    duplicate_penalty: float = 0.5
    """For each repeat, in units of one salient word."""
    length_penalty: float = 0.25
    """For each word, in units of one salient word."""
    sharpness: float = 2.0
    """Standard deviation of the reward over completions, mean over prompts, reward units."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "words", 1, 15)
        require_whole(self, "salient", 1, self.words)
        require_whole(self, "prompts", 1)
        different = math.comb(self.words, self.salient)
        if self.prompts > different:
            raise InputError(
                f"prompts must be at most {different} (sets of {self.salient} of {self.words} "
                f"words), got {self.prompts}"
            )
        require_whole(self, "horizon", 1)
        require_number(self, "duplicate_penalty", 0.0)
        require_number(self, "length_penalty", 0.0)
        require_scale(self)
        columns = min(self.salient, self.horizon) + 2 * self.horizon - 1
        check_size(self.words + 1, self.horizon, self.prompts, columns)

    def draw(self) -> GroundTruth:
        """The reward of this seed."""
        generator = np.random.default_rng([self.seed, self.words, self.salient, self.prompts, 5])
        every = list(combinations(range(self.words), self.salient))
        picks = generator.choice(len(every), size=self.prompts, replace=False)
        chosen = [every[i] for i in picks]
        names = tuple(" ".join(LETTERS[w] for w in words) for words in chosen)
        weights = (1.0 / self.prompts,) * self.prompts
        tree = TokenTree((*LETTERS[: self.words], EOS), self.horizon, names, weights, eos=EOS)
        table = slot_tokens(tree)
        said = np.stack([(table == w).any(axis=1) for w in range(self.words)], axis=1)
        length = (table < self.words).sum(axis=1)
        repeats = length - said.sum(axis=1)
        covered = np.stack([said[:, list(words)].sum(axis=1) for words in chosen])
        penalty = self.duplicate_penalty * repeats + self.length_penalty * length
        reward = sharpen(tree, covered - penalty[None, :], self)
        raw = np.concatenate(
            [
                _indicators(covered, min(self.salient, self.horizon)),
                _indicators(np.tile(repeats, (self.prompts, 1)), self.horizon - 1),
                _indicators(np.tile(length, (self.prompts, 1)), self.horizon),
            ],
            axis=2,
        )
        return ground_truth(self, tree, reward, orthonormal(tree, raw))


def _indicators(count: np.ndarray, most: int) -> np.ndarray:
    """(P, L) counts to (P, L, most): whether the count is 1, 2, .., most."""
    return (count[:, :, None] == np.arange(1, most + 1)).astype(np.float64)
