"""Random Walsh polynomials: complexity is the degree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from theory.families.base import GroundTruth, ground_truth, require_scale, require_whole
from theory.families.bits import bit_tree, check_bits, polynomials
from theory.walsh import random_coefficients


@dataclass(frozen=True)
class Walsh:
    """r = sum over sets S of at most `degree` bits of c_S chi_S, c uniform on a sphere.

    R_sim: all polynomials of this degree. The seed draws the coefficients.
    """

    family: ClassVar[str] = "walsh"
    fixed_features: ClassVar[bool] = True
    bits: int = 8
    """Of a completion."""
    degree: int = 2
    """k, 1..bits."""
    horizon: int = 8
    """H, divides bits: a completion is H tokens of bits / H bits."""
    sharpness: float = 2.0
    """Standard deviation of the reward over completions, reward units."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_whole(self, "bits", 1, 27)
        require_whole(self, "degree", 1, self.bits)
        require_whole(self, "horizon", 1, self.bits)
        require_scale(self)
        check_bits(self.bits, self.horizon, self.degree)

    def draw(self) -> GroundTruth:
        """The reward of this seed, of exactly this norm."""
        tree = bit_tree(self.bits, self.horizon)
        table = polynomials(self.bits, self.degree)
        reward = walsh_reward(self.bits, self.degree, self.sharpness, self.seed)
        return ground_truth(self, tree, reward[None], table[None], self.degree)


def walsh_reward(bits: int, degree: int, sharpness: float, seed: int) -> Float[np.ndarray, " L"]:
    """The polynomial of `Walsh.draw` on every setting of the bits; the same for every horizon."""
    table = polynomials(bits, degree)
    generator = np.random.default_rng([seed, bits, degree, 0])
    return table @ random_coefficients(generator, table.shape[1], sharpness)
