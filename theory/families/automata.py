"""Rewards that see a completion through a finite automaton: complexity is its number of states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from theory.automaton import Automaton, Verifier, regex_automaton
from theory.errors import InputError
from theory.families.base import (
    LETTERS,
    GroundTruth,
    check_size,
    ground_truth,
    orthonormal,
    require_scale,
    require_whole,
    sharpen,
)
from theory.tree import TokenTree

KINDS = ("modulo", "pattern", "brackets")


@dataclass(frozen=True)
class Automata:
    """Every completion of H tokens, and a reward for the state it ends in.

    modulo: tokens are digits 0..V-1, the state is their sum modulo `states`; each rest has its own
    normal reward, which the seed draws. pattern: 1 if a word of states - 1 tokens, which the seed
    draws, occurs in a row anywhere. brackets: 1 if the brackets match and are never more than
    states - 2 deep; tokens besides the two brackets are neutral; the seed changes nothing.
    R_sim: all functions of the final state.
    """

    family: ClassVar[str] = "automaton"
    fixed_features: ClassVar[bool] = False  # of a pattern
    kind: str = "modulo"
    """modulo, pattern or brackets."""
    states: int = 4
    """S, of the smallest automaton."""
    vocab: int = 2
    """V, tokens."""
    horizon: int = 8
    """H."""
    sharpness: float = 2.0
    """Standard deviation of the reward over completions, reward units."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind {self.kind!r} is none of {', '.join(KINDS)}")
        require_whole(self, "vocab", 2, len(LETTERS))
        require_whole(self, "horizon", 1)
        most = {
            "modulo": self.horizon * (self.vocab - 1) + 1,  # else a rest is never met
            "pattern": self.horizon + 1,  # else the word never fits
            "brackets": self.horizon // 2 + 2,  # else this depth is never matched
        }[self.kind]
        require_whole(self, "states", {"modulo": 2, "pattern": 2, "brackets": 3}[self.kind], most)
        require_scale(self)
        check_size(self.vocab, self.horizon, 1, self.states)

    def draw(self) -> GroundTruth:
        """The reward of this seed. Raises InputError where no completion matches the brackets."""
        verifier = self.verifier()
        tree = TokenTree(verifier.machine.tokens, self.horizon, ("x",), (1.0,))
        state = np.array([verifier.machine.start])
        for _ in range(self.horizon):
            state = verifier.machine.next[state].reshape(-1)
        reward = sharpen(tree, verifier.final[state][None], self)
        indicators = np.eye(verifier.machine.n_states)[state]
        return ground_truth(self, tree, reward, orthonormal(tree, indicators[None]))

    def verifier(self) -> Verifier:
        """The automaton of `states` states and its reward before it is scaled."""
        stream = [self.seed, KINDS.index(self.kind), self.states, self.vocab, self.horizon, 4]
        generator = np.random.default_rng(stream)
        if self.kind == "modulo":
            tokens = tuple(str(v) for v in range(self.vocab))
            rests = np.arange(self.states)[:, None] + np.arange(self.vocab)[None, :]
            machine = Automaton(tokens, rests % self.states)
            return Verifier(machine, generator.standard_normal(self.states))
        if self.kind == "pattern":
            tokens = tuple(LETTERS[: self.vocab])
            word = [tokens[v] for v in generator.integers(self.vocab, size=self.states - 1)]
            machine, matched = regex_automaton(f".* {' '.join(word)} .*", tokens)
            return Verifier(machine, matched.astype(np.float64))
        return _brackets(self.states - 2, self.vocab)


def _brackets(depth: int, vocab: int) -> Verifier:
    """States 0..depth are the open brackets, state depth + 1 is lost."""
    tokens = ("(", ")", *LETTERS[: vocab - 2])
    opened = np.arange(depth + 2)
    table = np.repeat(opened[:, None], vocab, axis=1)
    table[:-1, 0] = opened[:-1] + 1
    table[:-1, 1] = np.where(opened[:-1] > 0, opened[:-1] - 1, depth + 1)
    return Verifier(Automaton(tokens, table), (opened == 0).astype(np.float64))
