"""A task whose every completion is known: gold reward, reference policy and exact measures.

Arrays are (P, L): prompts by completions ("leaves"), leaves in lexicographic order of token ids,
float64. A completion has exactly `horizon` tokens or, where the task has an EOS, ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.special import logsumexp

Array = np.ndarray
MASS_TOLERANCE = 1e-4  # nats by which a row may exceed probability 1: log-probs summed in float32


@dataclass(frozen=True, eq=False)
class Task:
    """A ground-truth task, as exported by `theory task`; made by `llm.data.task_file.read_task`.

    reward: (P, L) gold reward r*, reward units. reference: (P, L) probabilities, rows sum to 1.
    beta: reward units a nat. weights: (P,) prompt distribution rho0, > 0, sums to 1.
    leaves: (L,) token tuples, a final EOS included; leaf_codes: (L, H) token ids 0..V-1, an early
    end filled up with EOS.
    """

    path: Path
    sha256: str
    family: str
    parameters: Mapping[str, object]
    tokens: tuple[str, ...]
    horizon: int
    eos: str | None
    beta: float
    prompts: tuple[str, ...]
    prompt_tokens: tuple[tuple[str, ...], ...]
    weights: Array
    leaves: tuple[tuple[str, ...], ...]
    leaf_codes: Array
    reward: Array
    reference: Array

    def prompt_text(self, prompt: int) -> str:
        """The prompt as the model reads it."""
        return " ".join(self.prompt_tokens[prompt])

    def completion_text(self, leaf: int) -> str:
        """The completion as the model writes it, without EOS."""
        return " ".join(token for token in self.leaves[leaf] if token != self.eos)

    @cached_property
    def _leaf_of_text(self) -> dict[str, int]:
        return {self.completion_text(leaf): leaf for leaf in range(len(self.leaves))}

    @cached_property
    def _prompt_of_text(self) -> dict[str, int]:
        return {self.prompt_text(prompt): prompt for prompt in range(len(self.prompts))}

    def leaf_of(self, completion: str) -> int | None:
        """The leaf that a text names (white space aside); None if it names none."""
        return self._leaf_of_text.get(" ".join(completion.split()))

    def prompt_of(self, prompt: str) -> int | None:
        """The prompt that a prompt text names; None if it names none."""
        return self._prompt_of_text.get(" ".join(prompt.split()))

    # --- exact measures of a policy, given log_p (P, L): its log-probability of every leaf --------

    def mass(self, log_p: Array) -> Array:
        """The probability that the policy writes a completion of the task at all, (P,)."""
        return np.exp(_log_sum(self._checked(log_p)))

    def conditional(self, log_p: Array) -> Array:
        """log-probabilities given that it writes one of the task's completions, (P, L)."""
        log_p = self._checked(log_p)
        return log_p - _log_sum(log_p)[:, None]

    @cached_property
    def win_probability(self) -> Array:
        """(P, L): how often a leaf beats one draw of the reference on r*, ties half."""
        wins = np.empty_like(self.reward)
        tie = 1e-9 * max(1.0, float(np.abs(self.reward).max()))  # rounding of the exporter's sums
        for prompt, (r, p) in enumerate(zip(self.reward, self.reference, strict=True)):
            order = np.argsort(r)
            below = np.concatenate([[0.0], np.cumsum(p[order])])
            less = below[np.searchsorted(r[order], r - tie, side="left")]
            at_most = below[np.searchsorted(r[order], r + tie, side="right")]
            wins[prompt] = 0.5 * (less + at_most)
        return wins

    def win_rate(self, log_p: Array) -> float:
        """Win rate (0-1) against one draw of the reference; what is no completion loses."""
        return self._mean(np.exp(self._checked(log_p)), self.win_probability)

    def expected_reward(self, log_p: Array) -> float:
        """E[r*] of `conditional(log_p)`, reward units."""
        return self._mean(np.exp(self.conditional(log_p)), self.reward)

    @cached_property
    def log_optimum(self) -> Array:
        """log P*(leaf | prompt), P* proportional to exp(r*/beta) (the paper's Eq. 11), (P, L)."""
        scaled = self.reward / self.beta
        return scaled - _log_sum(scaled)[:, None]

    def kl_to_optimum(self, log_p: Array) -> float:
        """E_x KL(conditional(log_p) || P*), nats: the soft regret divided by beta (Lemma 2.1)."""
        log_p = self.conditional(log_p)
        p = np.exp(log_p)
        gap = np.where(p > 0, log_p - self.log_optimum, 0.0)
        return self._mean(p, gap)

    def kl_to_reference(self, log_p: Array) -> float:
        """E_x KL(conditional(log_p) || reference), nats; inf off the reference's support."""
        log_p = self.conditional(log_p)
        p = np.exp(log_p)
        with np.errstate(divide="ignore"):
            log_reference = np.log(self.reference)
        gap = np.where(p > 0, log_p - log_reference, 0.0)
        return self._mean(p, gap)

    def temper(self, log_p: Array, tau: float) -> Array:
        """Decode `conditional(log_p)` at temperature tau, token by token: log-probs (P, L).

        pi_tau(a|s) is proportional to pi(a|s)^(1/tau) at each state; this is not P^(1/tau).
        A state that the policy never reaches keeps probability 0.
        """
        if not tau > 0:
            raise ValueError(f"temperature must be > 0, got {tau!r}")
        below = self.conditional(log_p)  # log-mass of each prefix of the level below
        codes = self.leaf_codes
        starts = np.arange(len(codes))  # first leaf of each prefix of that level
        total = np.zeros_like(below)
        for level in range(self.horizon - 1, -1, -1):
            parent_starts = _first_of_prefix(codes[:, :level])
            first_child = np.searchsorted(starts, parent_starts)
            above = np.logaddexp.reduceat(below, first_child, axis=1)
            parent = np.searchsorted(parent_starts, starts, side="right") - 1
            mass = above[:, parent]
            with np.errstate(invalid="ignore"):
                scaled = np.where(np.isneginf(mass), -np.inf, (below - mass) / tau)
                norm = np.logaddexp.reduceat(scaled, first_child, axis=1)[:, parent]
                step = np.where(np.isneginf(norm), -np.inf, scaled - norm)
            leaf_node = np.searchsorted(starts, np.arange(len(codes)), side="right") - 1
            total = total + step[:, leaf_node]
            below, starts = above, parent_starts
        return total

    def _mean(self, p: Array, value: Array) -> float:
        """E_x sum_leaf p * value, prompts weighted by rho0."""
        return float(self.weights @ np.where(p > 0, p * value, 0.0).sum(axis=1))

    def _checked(self, log_p: Array) -> Array:
        log_p = np.asarray(log_p, dtype=np.float64)
        if log_p.shape != self.reward.shape:
            raise ValueError(f"log_p has shape {log_p.shape}, the task {self.reward.shape}")
        if np.isnan(log_p).any():
            raise ValueError("log_p holds NaN")
        total = _log_sum(log_p)
        if (total > MASS_TOLERANCE).any():
            worst = int(total.argmax())
            raise ValueError(f"probabilities of prompt {worst} sum to exp({total[worst]}) > 1")
        if np.isneginf(total).any():
            raise ValueError(f"prompt {int(total.argmin())}: no completion has any probability")
        return log_p


def _log_sum(log_p: Array) -> Array:
    """log sum exp over completions, (P, L) -> (P,)."""
    return np.asarray(logsumexp(log_p, axis=1))


def _first_of_prefix(codes: Array) -> Array:
    """The first row of each run of equal rows; rows are sorted lexicographically."""
    changed = (codes[1:] != codes[:-1]).any(axis=1) if codes.shape[1] else np.zeros(len(codes) - 1)
    return np.concatenate([[0], np.flatnonzero(changed) + 1]).astype(np.int64)
