"""Soft backups of a whole tree: its memory, and its subtrees over the processor's cores.

Everything here is numpy; the arithmetic is in `theory.lanes`, which is imported with the first
backup: numba takes about half a second, and once on a machine some seconds to compile. Results do
not depend on the number of cores: every state is computed by itself, in an order that its own
tokens fix.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float

SMALL = 2**15  # leaves of a tree that one core finishes before another has started
TASKS = 16  # subtrees at least, of a larger one
LINE = 8  # float64 numbers of a cache line, at which JAX takes memory as it is


@dataclass(frozen=True)
class Backup:
    """V and the conditionals of all inner levels, root first, as views of two pieces of memory."""

    values: list[np.ndarray]  # (P, V**h) for h = 0..H-1, reward units; -inf where no state is
    policy: list[np.ndarray]  # (P, V**h, V), nats
    log_z: np.ndarray  # (P,), nats
    memory: np.ndarray  # of the policy
    in_range: bool  # every reward finite; rewards / beta, their differences and all V in range


@dataclass(eq=False)
class PolicyMemory:
    """The memory under one solution's policy, and one that a later solution may overwrite."""

    policy: np.ndarray | None
    spare: np.ndarray | None

    def free_spare(self) -> np.ndarray | None:
        """The spare if nothing else holds it: no array, no view, no computation that still runs."""
        if self.spare is None or sys.getrefcount(self.spare) > 2:  # this field, and the argument
            return None
        return self.spare

    def hand_over(self) -> np.ndarray | None:
        """The policy's memory; the solution that this belonged to has none any more."""
        policy, self.policy, self.spare = self.policy, None, None
        return policy


def soft_backup(
    reward: Float[np.ndarray, "P L"],
    shape: tuple[int, int],
    beta: float,
    *,
    leaf: Float[np.ndarray, "P L"] | None = None,
    kept: Bool[np.ndarray, " L"] | None = None,
    spare: np.ndarray | None = None,
) -> Backup:
    """V(s) = beta log sum_a exp(V(s.a) / beta) and log pi(a|s), shape = (tokens, horizon).

    reward: contiguous, reward units. leaf: memory to copy it to. kept: which slots are completions
    (leaf is needed, and becomes -inf at the others). spare: `Backup.memory` that is overwritten.
    """
    if kept is not None and leaf is None:
        raise ValueError("a reward with masked slots needs memory for its copy")
    run = _Run(reward, shape, beta, leaf, kept, spare)
    split, roots = 0, len(reward)
    while reward.size >= SMALL and split < run.horizon - 1 and roots < TASKS:
        split, roots = split + 1, roots * run.vocab
    run.high, run.low = np.empty(roots), np.empty(roots)
    step = roots if reward.size < SMALL else -(-roots // (2 * TASKS))
    tasks = [(i, min(i + step, roots), split) for i in range(0, roots, step)]
    if len(tasks) == 1:
        bad = run.subtrees(*tasks[0])
    else:
        bad = sum(_pool(os.getpid()).map(run.subtrees, *zip(*tasks, strict=True)))
    high, low, above = run.climb(run.high, run.low, 0, split, 0)
    return Backup(run.values, run.policy, high + low, run.memory, bad + above == 0)


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """One thread a core; threads do not survive a fork, so each process has its own."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(process)))


_of_thread = threading.local()


def _room(h: int, states: int) -> tuple[np.ndarray, np.ndarray]:
    """Memory of this thread for V of some states of a level, h levels from the last.

    It is kept from one task to the next (new pages cost more than the arithmetic), and that of even
    levels is apart from that of odd ones.
    """
    rooms = _of_thread.__dict__.setdefault("rooms", [np.empty((2, 0)), np.empty((2, 0))])
    if rooms[h % 2].shape[1] < states:
        rooms[h % 2] = np.empty((2, states))
    high, low = rooms[h % 2]
    return high[:states], low[:states]


class _Run:
    """The arrays of one backup, and its work on any of its subtrees."""

    def __init__(
        self,
        reward: np.ndarray,
        shape: tuple[int, int],
        beta: float,
        leaf: np.ndarray | None,
        kept: np.ndarray | None,
        spare: np.ndarray | None,
    ) -> None:
        self.vocab, self.horizon = shape
        self.reward, self.leaf = reward.reshape(-1), None if leaf is None else leaf.reshape(-1)
        self.kept = np.zeros(0, dtype=bool) if kept is None else kept
        states = [(len(reward), self.vocab**h) for h in range(self.horizon)]
        _, self.values = _memory(states, None)
        self.memory, self.policy = _memory([(*s, self.vocab) for s in states], spare)
        self.flat_values = [level.reshape(-1) for level in self.values]
        self.flat_policy = [level.reshape(-1) for level in self.policy]
        inverse = 1.0 / beta
        rest = float(1 / Fraction(beta) - Fraction(inverse))
        hole = np.nan if kept is None else -np.inf
        self.leaf_scale = float(beta), inverse, rest, hole
        self.scale = float(beta), 1.0, 0.0, hole
        self.high = self.low = np.empty(0)

    def subtrees(self, start: int, stop: int, split: int) -> int:
        """All levels of the trees under states start..stop of level `split`, up to these.

        Returns how many numbers are out of range.
        """
        from theory.lanes import level, masked

        width = self.vocab ** (self.horizon - 1 - split)
        first, last = start * width, stop * width
        leaves = slice(first * self.vocab, last * self.vocab)
        source, bad = self.reward[leaves], 0
        if self.leaf is not None:
            target = self.leaf[leaves]
            bad += masked(source, self.kept, leaves.start, target)
            source = target
        high, low = _room(0, last - first)
        policy, value = self.flat_policy[-1][leaves], self.flat_values[-1][first:last]
        bad += level(source, None, policy, self.vocab, self.leaf_scale, value, high, low)
        high, low, above = self.climb(high, low, first, self.horizon - 1, split)
        self.high[start:stop], self.low[start:stop] = high, low
        return bad + above

    def climb(
        self, high: np.ndarray, low: np.ndarray, first: int, level: int, to: int
    ) -> tuple[np.ndarray, np.ndarray, int]:
        """From V (nats) of the states of `level` from number `first` on to their ancestors'."""
        from theory.lanes import level as one_level

        bad = 0
        for h in range(level - 1, to - 1, -1):
            first, states = first // self.vocab, len(high) // self.vocab
            policy = self.flat_policy[h][first * self.vocab : (first + states) * self.vocab]
            value = self.flat_values[h][first : first + states]
            up, rest = _room(h + 1 - self.horizon, states)
            bad += one_level(high, low, policy, self.vocab, self.scale, value, up, rest)
            high, low = up, rest
        return high, low, bad


def aligned(shape: tuple[int, ...]) -> np.ndarray:
    """New float64 memory that JAX takes as it is, without a copy."""
    return _memory([shape], None)[1][0]


def _memory(
    shapes: list[tuple[int, ...]], spare: np.ndarray | None
) -> tuple[np.ndarray, list[np.ndarray]]:
    """One piece of memory, `spare` if it has the size, and arrays of these shapes in it."""
    sizes = [math.prod(shape) for shape in shapes]
    room = [-(-size // LINE) * LINE for size in sizes]
    total = sum(room) + LINE
    memory = spare if spare is not None and spare.size == total else np.empty(total)
    at, arrays = -memory.ctypes.data % (8 * LINE) // 8, []
    for shape, size, step in zip(shapes, sizes, room, strict=True):
        arrays.append(memory[at : at + size].reshape(shape))
        at += step
    return memory, arrays
