"""Preference pairs, the Bradley-Terry likelihood, and when it has a finite maximiser."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit, log_expit

from theory._x64 import AnyArray
from theory.errors import InputError
from theory.soft import check_reward
from theory.tree import TokenTree


@dataclass(frozen=True)
class PairData:
    """Comparisons of two completions of one prompt; counts may be fractional (population data)."""

    prompt: Int[np.ndarray, " N"]
    winner: Int[np.ndarray, " N"]  # leaf slot
    loser: Int[np.ndarray, " N"]  # leaf slot
    count: Float[np.ndarray, " N"]  # > 0

    @property
    def size(self) -> int:
        """Number of distinct rows."""
        return len(self.prompt)

    @property
    def total(self) -> float:
        """Number of comparisons, fractional counts included."""
        return float(self.count.sum())

    @classmethod
    def of(cls, tree: TokenTree, rows: Iterable[tuple[int, int, int, float]]) -> PairData:
        """From rows (prompt index, winner leaf, loser leaf, count); equal rows are merged.

        Raises InputError naming the row for an unknown prompt or leaf, a completion compared with
        itself, or a count that is not finite and > 0.
        """
        merged: dict[tuple[int, int, int], float] = {}
        for i, (prompt, winner, loser, count) in enumerate(rows):
            if not 0 <= prompt < tree.n_prompts:
                raise InputError(f"pair {i}: no prompt {prompt}")
            for leaf in (winner, loser):
                if not (0 <= leaf < tree.n_leaves and tree.leaf_mask[leaf]):
                    raise InputError(f"pair {i}: leaf {leaf} is no completion of the tree")
            if winner == loser:
                raise InputError(f"pair {i}: completion {winner} is compared with itself")
            if not (np.isfinite(count) and count > 0):
                raise InputError(f"pair {i}: count must be > 0, got {count!r}")
            key = (int(prompt), int(winner), int(loser))
            merged[key] = merged.get(key, 0.0) + float(count)
        table = np.asarray(sorted(merged), dtype=np.int64).reshape(-1, 3)
        counts = np.asarray([merged[key] for key in sorted(merged)], dtype=np.float64)
        return cls(table[:, 0], table[:, 1], table[:, 2], counts)


def margins(r: AnyArray, data: PairData) -> Float[np.ndarray, " N"]:
    """r(winner) - r(loser), one a row, reward units."""
    table = np.asarray(r, dtype=np.float64)
    return table[data.prompt, data.winner] - table[data.prompt, data.loser]


def bt_probability(r: AnyArray, data: PairData) -> Float[np.ndarray, " N"]:
    """P(winner > loser) = sigmoid(r(winner) - r(loser)) (Eq. 4), one a row."""
    return expit(margins(r, data))


def bt_log_likelihood(r: AnyArray, data: PairData) -> float:
    """sum_i count_i log sigmoid(r(xi+) - r(xi-)) (Eq. 6), nats."""
    return float(np.dot(data.count, log_expit(margins(r, data))))


def bt_gradient(r: AnyArray, data: PairData) -> Float[np.ndarray, "P L"]:
    """Gradient of `bt_log_likelihood` in the reward of every completion."""
    slope = data.count * expit(-margins(r, data))
    gradient = np.zeros(np.shape(r))
    np.add.at(gradient, (data.prompt, data.winner), slope)
    np.add.at(gradient, (data.prompt, data.loser), -slope)
    return gradient


def sample_pairs(tree: TokenTree, r: AnyArray, n: int, *, seed: int | list[int]) -> PairData:
    """n comparisons: prompt from rho0, two distinct completions uniformly, BT labels (Eq. 4)."""
    rng = np.random.default_rng(seed)
    reward = check_reward(tree, r)
    if n < 1:
        raise InputError(f"the number of pairs must be at least 1, got {n}")
    if len(tree.leaves) < 2:
        raise InputError("the tree has a single completion: there is nothing to compare")
    prompt = rng.choice(tree.n_prompts, size=n, p=tree.rho0 / tree.rho0.sum())
    first = rng.integers(len(tree.leaves), size=n)
    second = (first + rng.integers(1, len(tree.leaves), size=n)) % len(tree.leaves)
    a, b = tree.leaves[first], tree.leaves[second]
    wins = rng.random(n) < expit(reward[prompt, a] - reward[prompt, b])
    winner, loser = np.where(wins, a, b), np.where(wins, b, a)
    rows = zip(prompt.tolist(), winner.tolist(), loser.tolist(), [1.0] * n, strict=True)
    return PairData.of(tree, rows)


# --- existence of the maximiser ------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """Why there is no finite maximiser: as a group, `leaves` beat others and never lose to them.

    Adding t to the reward of `leaves` raises the likelihood the more, the larger t: it rises for
    ever towards a value that no reward attains. (The likelihood itself stays below 0.)
    """

    prompt: int
    leaves: tuple[int, ...]


@dataclass(frozen=True)
class ComparisonGraph:
    """The comparison digraphs of all prompts: node = completion, edge winner -> loser."""

    component: Int[np.ndarray, "P L"]  # weakly connected component, -1 where no completion is
    n_components: int  # a completion never compared is a component of its own
    witnesses: tuple[Witness, ...]  # one of each prompt without a finite maximiser

    @property
    def witness(self) -> Witness | None:
        """The first of `witnesses`, or None: then a finite maximiser exists."""
        return self.witnesses[0] if self.witnesses else None

    @property
    def exists(self) -> bool:
        """A finite BT maximiser exists: every weak component is strongly connected."""
        return self.witness is None

    @cached_property
    def dimension(self) -> int:
        """Dimension of the set of policies that the maximisers induce: #components - #prompts."""
        return self.n_components - self.component.shape[0]

    @cached_property
    def members(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """(prompt, leaves) of every component, in the order of its label."""
        labels = self.component.reshape(-1)
        nodes = np.flatnonzero(labels >= 0)
        order = nodes[np.argsort(labels[nodes], kind="stable")]
        ends = np.cumsum(np.bincount(labels[nodes], minlength=self.n_components))[:-1]
        leaves = self.component.shape[1]
        return tuple(
            (int(group[0] // leaves), tuple((group % leaves).tolist()))
            for group in np.split(order, ends)
        )

    def shift(self, steps: Float[np.ndarray, " C"]) -> Float[np.ndarray, "P L"]:
        """The reward that is steps[c] on component c; 0 where no completion is."""
        return np.where(self.component >= 0, steps[self.component], 0.0)


def comparison_graph(tree: TokenTree, data: PairData) -> ComparisonGraph:
    """Components of the comparison digraphs and existence (Zermelo 1929, Ford 1957)."""
    leaves = tree.n_leaves
    nodes = np.flatnonzero(np.tile(tree.leaf_mask, tree.n_prompts))
    place = np.full(tree.n_prompts * leaves, -1)
    place[nodes] = np.arange(len(nodes))
    winner = place[data.prompt * leaves + data.winner]
    loser = place[data.prompt * leaves + data.loser]
    edges = coo_array((data.count, (winner, loser)), shape=(len(nodes), len(nodes))).tocsr()
    n_weak, weak = connected_components(edges, directed=True, connection="weak")
    _, strong = connected_components(edges, directed=True, connection="strong")
    component = np.full(tree.n_prompts * leaves, -1)
    component[nodes] = weak
    crossing = strong[winner] != strong[loser]
    beaten = set(strong[loser[crossing]].tolist())
    source: dict[int, int] = {}  # prompt: a strong component that wins outside and never loses
    winners = zip(data.prompt[crossing].tolist(), strong[winner[crossing]].tolist(), strict=True)
    for x, c in winners:
        if c not in beaten:
            source.setdefault(x, c)
    order = np.argsort(strong, kind="stable")
    found = list(source.values())
    starts = np.searchsorted(strong[order], found, side="left")
    ends = np.searchsorted(strong[order], found, side="right")
    witnesses = tuple(
        Witness(x, tuple((nodes[order[start:end]] % leaves).tolist()))
        for x, start, end in zip(source, starts, ends, strict=True)
    )
    return ComparisonGraph(component.reshape(tree.n_prompts, leaves), int(n_weak), witnesses)
