"""R replicates of one cell of a sweep: true rewards, simple reward classes, preference pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from theory.tree import TokenTree


@dataclass(frozen=True, eq=False)
class Batch:
    """Data sets that share a tree; every replicate has its own reward and its own pairs.

    Slots that are no completion: reward 0, features 0, log_reference -inf. Leaves are numbered
    x * L + leaf over all prompts.
    """

    tree: TokenTree
    beta: float  # reward units a nat
    seeds: tuple[int, ...]  # (R,)
    reward: Float[np.ndarray, "R P L"]  # reward units
    features: Float[np.ndarray, "F P L D"]  # of R_sim, F = 1 (shared) or R; padded with 0 columns
    degree: int | None  # Walsh degree of R_sim, where it has one
    log_reference: Float[np.ndarray, "R P L"]  # log P_ref(xi | x), nats: what SFT means here
    pairs: Int[np.ndarray, "R N 2"]  # winner and loser
    n_held: int  # the last n_held pairs of every replicate choose among the candidates
    ridges: tuple[float, ...]
    width: int = 32  # hidden units of the networks
    samples: int = 8  # K of (best, worst) of K
    temperature: float = 0.1  # at which online pairs are sampled, token by token

    @property
    def n_replicates(self) -> int:
        """R."""
        return len(self.seeds)

    @property
    def n_pairs(self) -> int:
        """N, the held-out ones among them."""
        return self.pairs.shape[1]

    @property
    def train_weights(self) -> Float[np.ndarray, "R N"]:
        """1 on the pairs that train, 0 on those that are held out."""
        weights = np.ones(self.pairs.shape[:2])
        weights[:, self.n_pairs - self.n_held :] = 0.0
        return weights
