"""A lookup table: a reward without structure, the upper end of every scale of complexity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from theory.families.base import GroundTruth, ground_truth, require_scale, require_whole, sharpen
from theory.families.bits import bit_tree, check_bits, polynomials


@dataclass(frozen=True)
class Lookup:
    """One independent normal number a completion.

    R_sim: all rewards, as Walsh polynomials of full degree. The seed draws the numbers.
    """

    family: ClassVar[str] = "lookup"
    fixed_features: ClassVar[bool] = True
    bits: int = 8
    """Of a completion."""
    horizon: int = 8
    """H, divides bits: a completion is H tokens of bits / H bits."""
    sharpness: float = 2.0
    """Standard deviation of the reward over completions, reward units."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "bits", 1, 27)
        require_whole(self, "horizon", 1, self.bits)
        require_scale(self)
        check_bits(self.bits, self.horizon, self.bits)

    def draw(self) -> GroundTruth:
        """The reward of this seed."""
        tree = bit_tree(self.bits, self.horizon)
        generator = np.random.default_rng([self.seed, self.bits, 2])
        reward = sharpen(tree, generator.standard_normal((1, tree.n_leaves)), self)
        return ground_truth(self, tree, reward, polynomials(self.bits, self.bits)[None], self.bits)
