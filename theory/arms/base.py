"""What every arm of a sweep is given and gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float

from theory.batch import Batch


@dataclass(frozen=True)
class Candidate:
    """One regularisation of an arm; held-out pairs choose among an arm's candidates."""

    ridge: float  # 0.5 ridge |theta|^2 on the summed loss
    stop: int | None = None  # optimiser steps after which training ended early; None: to the end


@dataclass(frozen=True, eq=False)
class Outcome:
    """K candidates times R replicates of one arm. Slots that are no completion: -inf and 0."""

    candidates: tuple[Candidate, ...]
    log_p: Float[np.ndarray, "K R P L"]  # log P_pi(xi | x), nats
    score: Float[np.ndarray, "K R P L"]  # the implied reward, reward units
    gradient: Float[np.ndarray, "K R"]  # largest entry of the objective's gradient at the end
    steps: Float[np.ndarray, "K R"]  # of the optimiser
    n_parameters: int
    jacobian_rank: int | None  # of d log P / d theta at a random theta; None where it is not known
    converged: bool = True  # False for arms that stop after a stated number of steps by design


class FitArm(Protocol):
    """An arm. weights (R, N) >= 0: how often each pair counts; 0 leaves it out."""

    def __call__(self, batch: Batch, weights: Float[np.ndarray, "R N"]) -> Outcome: ...
