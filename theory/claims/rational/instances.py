"""Small random trees, tables, lists and comparisons in exact fractions, with planted ties."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from theory.rational import (
    Comparison,
    ExactPolicy,
    ExactTree,
    Table,
    Words,
    argmax,
    comparisons,
    likelihood,
    normalised,
    path_probabilities,
    soft_policy,
    times,
)
from theory.tree import TokenTree

# (prompts, tokens, horizon); trial i takes shape i modulo their number
SHAPES = (
    (2, 2, 2),
    (1, 3, 3),
    (3, 2, 3),
    (1, 2, 6),
    (5, 2, 2),
    (2, 3, 2),
    (1, 6, 2),
    (4, 4, 1),
    (1, 2, 5),
    (2, 5, 1),
    (1, 4, 2),
    (3, 3, 1),
    (1, 6, 1),
    (1, 2, 4),
    (1, 6, 6),
    (2, 4, 5),
    (1, 6, 3),
    (1, 5, 4),
    (2, 3, 6),
    (1, 4, 3),
)
MOST = 64  # completions of a prompt; larger trees keep two tokens at each prefix, at most
KINDS = ("connected", "disconnected", "separable", "any")
LINKS = 8  # compared pairs of one prompt, at most


@dataclass(frozen=True)
class Planted:
    """A list of distributions, and pairs of places in it that tie exactly on the data."""

    tables: tuple[Table, ...]
    ties: tuple[tuple[int, int], ...]


def random_tree(rng: np.random.Generator, index: int) -> ExactTree:
    """A tree of a shape of SHAPES with 3 completions or more.

    Half have EOS, half or more have forbidden tokens; a draw with too few completions is drawn
    again.
    """
    n_prompts, vocab, horizon = SHAPES[index % len(SHAPES)]
    tokens = tuple("abcdef"[:vocab])
    weights = rng.integers(1, 9, size=n_prompts)
    rho0 = tuple((weights / weights.sum()).tolist())
    while True:
        eos = tokens[-1] if rng.random() < 0.5 else None
        forbidden: tuple[tuple[str, ...], ...] = ()
        if vocab**horizon > MOST:
            forbidden = _thinned(rng, tokens, horizon, eos)
        elif rng.random() < 0.5:
            prefix = rng.choice(tokens[: vocab - 1], size=rng.integers(0, horizon)).tolist()
            forbidden = ((*prefix, str(rng.choice(tokens))),)
        names = tuple(f"x{i}" for i in range(n_prompts))
        tree = TokenTree(tokens, horizon, names, rho0, eos, forbidden)
        if len(tree.leaves) >= 3:
            return ExactTree(tree)


def _thinned(
    rng: np.random.Generator, tokens: tuple[str, ...], horizon: int, eos: str | None
) -> tuple[Words, ...]:
    """Prefixes to forbid so that each prefix keeps one or two random tokens."""
    live: list[Words] = [()]
    forbidden: list[Words] = []
    for _ in range(horizon):
        following: list[Words] = []
        for words in live:
            kept = set(rng.permutation(tokens)[: rng.integers(1, 3)].tolist())
            forbidden += [(*words, token) for token in tokens if token not in kept]
            following += [(*words, token) for token in tokens if token in kept and token != eos]
        live = following
    return tuple(forbidden)


def random_beta(rng: np.random.Generator) -> int:
    """1 to 4, in exact arithmetic."""
    return int(rng.integers(1, 5))


def random_table(rng: np.random.Generator, tree: ExactTree, largest: int = 9) -> Table:
    """Fractions with numerators and denominators of 1 to `largest`."""
    shape = (tree.tree.n_prompts, len(tree.completions), 2)
    numbers = rng.integers(1, largest + 1, size=shape).tolist()
    return tree.table([[Fraction(a, b) for a, b in row] for row in numbers])


def whole_table(rng: np.random.Generator, tree: ExactTree) -> Table:
    """1 or 2 a completion: its odds at any beta are the ratio of a few comparisons."""
    return tree.table(
        rng.integers(1, 3, size=(tree.tree.n_prompts, len(tree.completions))).tolist()
    )


def random_policy(rng: np.random.Generator, tree: ExactTree) -> ExactPolicy:
    """At each prefix, whole weights of 1 to 5 for the allowed tokens, divided by their sum."""
    shape = soft_policy(tree, random_table(rng, tree, 1))
    found = []
    for prefixes in shape:
        policy = {}
        for words, tokens in prefixes.items():
            weights = rng.integers(1, 6, size=len(tokens)).tolist()
            total = sum(weights)
            policy[words] = {t: Fraction(w, total) for t, w in zip(tokens, weights, strict=True)}
        found.append(policy)
    return tuple(found)


def random_distribution(rng: np.random.Generator, tree: ExactTree) -> Table:
    """The completion distribution of a random policy."""
    return path_probabilities(tree, random_policy(rng, tree))


def prompt_shift(rng: np.random.Generator, tree: ExactTree, y: Table) -> Table:
    """The same reward up to one random shift a prompt: y times a fraction a prompt."""
    factors = [Fraction(int(a), int(b)) for a, b in rng.integers(1, 9, size=(len(y), 2))]
    return tree.table([[f * v for v in row] for f, row in zip(factors, y, strict=True)])


# --- comparisons ---------------------------------------------------------------------------------


def random_comparisons(
    rng: np.random.Generator, tree: ExactTree, kind: str
) -> tuple[Comparison, ...]:
    """Comparisons of every prompt, of one of KINDS; at least one.

    connected: one chain through (at most LINKS + 1 of) the completions, won both ways;
    disconnected: some links of it left out, the last completions of the first prompt never compared
    and every fourth link won one way only; separable: every pair won one way, along one order; any:
    pairs at random. In all but the first the comparisons may have no finite maximiser over ALL
    rewards; a finite list has one all the same.
    """
    rows = []
    for prompt in range(tree.tree.n_prompts):
        order = rng.permutation(tree.tree.leaves).tolist()
        if kind == "disconnected" and prompt == 0:
            order = order[:-1]
        links = list(itertools.pairwise(order))[:LINKS]
        if kind == "any":
            links = [rng.choice(order, size=2, replace=False).tolist() for _ in range(LINKS)]
        for number, (a, b) in enumerate(links):
            if kind == "disconnected" and number and rng.random() < 0.4:
                continue
            wins = rng.integers(1, 6, size=2).tolist()
            rows.append((prompt, a, b, wins[0]))
            one_way = kind == "disconnected" and rng.random() < 0.25
            if kind == "connected" or (kind == "disconnected" and not one_way):
                rows.append((prompt, b, a, wins[1]))
    return comparisons(tree, rows)


def realised_comparisons(
    rng: np.random.Generator, tree: ExactTree, y: Table, beta: int
) -> tuple[Comparison, ...]:
    """Comparisons whose wins are in the ratio of the odds of y: y maximises over ALL rewards.

    Random pairs, cycles among them, one completion a prompt left out. y: see `whole_table`.
    """
    rows = []
    for prompt, row in enumerate(y):
        leaves = tree.tree.leaves.tolist()
        places = rng.permutation(len(leaves)).tolist()[:-1]
        for _ in range(LINKS // 2):
            a, b = rng.choice(places, size=2, replace=False).tolist()
            odds = (row[a] / row[b]) ** beta
            rows.append((prompt, leaves[a], leaves[b], odds.numerator))
            rows.append((prompt, leaves[b], leaves[a], odds.denominator))
    return comparisons(tree, rows)


# --- planted ties --------------------------------------------------------------------------------


def components(tree: ExactTree, pairs: tuple[Comparison, ...]) -> list[tuple[int, frozenset[int]]]:
    """(prompt, completions) of every set of completions that comparisons join; alone if never."""
    found = []
    for prompt in range(tree.tree.n_prompts):
        label = list(range(len(tree.completions)))
        for pair in (pair for pair in pairs if pair.prompt == prompt):
            old, new = label[pair.loser], label[pair.winner]
            label = [new if name == old else name for name in label]
        for name in sorted(set(label)):
            found.append((prompt, frozenset(i for i, other in enumerate(label) if other == name)))
    return found


def component_shift(
    rng: np.random.Generator, tree: ExactTree, pairs: tuple[Comparison, ...], y: Table
) -> Table | None:
    """y with one component of a prompt multiplied by 2 to 5: equal likelihood, another policy.

    None if the comparisons of every prompt are connected: then there is no such tie.
    """
    whole = len(tree.completions)
    free = [part for part in components(tree, pairs) if len(part[1]) < whole]
    if not free:
        return None
    prompt, members = free[int(rng.integers(len(free)))]
    factor = Fraction(int(rng.integers(2, 6)))
    rows = [list(row) for row in y]
    rows[prompt] = [factor * v if i in members else v for i, v in enumerate(rows[prompt])]
    return tree.table(rows)


def planted_list(
    rng: np.random.Generator,
    tree: ExactTree,
    pairs: tuple[Comparison, ...],
    tables: list[Table],
    *,
    beta: int,
    distributions: bool,
) -> Planted:
    """The tables, an exact tie of each on the data where there is one, in random order.

    With `distributions` everything is normalised. A near tie of the likeliest is added: one
    compared completion differs in the 20th digit, which float64 cannot see.
    """
    listed, ties = list(tables), []
    for i, table in enumerate(tables):
        other = component_shift(rng, tree, pairs, table)
        ties.append((i, len(listed)))
        listed.append(prompt_shift(rng, tree, table) if other is None else other)
    best = argmax([likelihood(table, pairs, beta=beta) for table in tables])[0]
    listed.append(near_tie(tree, pairs[0], tables[best]))
    if distributions:
        listed = [normalised(table) for table in listed]
    order = rng.permutation(len(listed)).tolist()
    place = {old: new for new, old in enumerate(order)}
    return Planted(
        tuple(listed[old] for old in order), tuple((place[a], place[b]) for a, b in ties)
    )


def near_tie(tree: ExactTree, pair: Comparison, table: Table) -> Table:
    """The table with the pair's winner raised by one part in 10^20."""
    one = Fraction(1)
    step = [[one] * len(tree.completions) for _ in tree.tree.prompts]
    step[pair.prompt][pair.winner] += Fraction(1, 10**20)
    return times(table, tree.table(step))
