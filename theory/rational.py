"""The token tree in exact fractions: soft values, policies, likelihoods and KL without rounding.

A reward enters as y = exp(r / beta), a positive fraction a completion; beta is a whole number, so
the odds of Bradley-Terry, (y+ / y-)**beta, are fractions too. Sums of logarithms (KL, soft returns)
are not fractions, but their order is decided exactly (`theory.logsum`). For small trees: LIMIT.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Protocol, TypeVar, runtime_checkable

import networkx as nx

from theory.errors import InputError
from theory.logsum import LogSum
from theory.tree import TokenTree

LIMIT = 500  # completions of all prompts together
MAX_BITS = 2**18  # of the whole numbers whose quotient is a likelihood

Words = tuple[str, ...]
Table = tuple[tuple[Fraction, ...], ...]  # (P, completions): one number a prompt and completion
ExactPolicy = tuple[dict[Words, dict[str, Fraction]], ...]  # a prompt: pi(token | prefix)


# --- the tree ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExactTree:
    """The completions of a token tree as words, and its prompt weights as fractions.

    Raises InputError if all prompts together have more than LIMIT completions.
    """

    tree: TokenTree

    def __post_init__(self) -> None:
        prompts, each = self.tree.n_prompts, len(self.tree.leaves)
        if prompts * each > LIMIT:
            raise InputError(
                f"the tree has {prompts * each:,} completions ({each:,} for each of {prompts} "
                f"prompt(s)); exact arithmetic takes at most {LIMIT:,}"
            )

    @cached_property
    def completions(self) -> tuple[Words, ...]:
        """The completions of a prompt, in the order of `TokenTree.leaves`; cut after EOS."""
        return tuple(self.tree.leaf_tokens(int(leaf)) for leaf in self.tree.leaves)

    @cached_property
    def weights(self) -> tuple[Fraction, ...]:
        """rho0, divided by its sum so that it sums to 1 exactly."""
        return normalised((tuple(Fraction(weight) for weight in self.tree.weights),))[0]

    def table(self, rows: Sequence[Sequence[Fraction | int]]) -> Table:
        """Checked fractions > 0. Raises InputError naming prompt and completion, or the shape."""
        shape = [len(row) for row in rows]
        if shape != [len(self.completions)] * self.tree.n_prompts:
            raise InputError(
                f"a table with rows of {shape} numbers on a tree of {self.tree.n_prompts} "
                f"prompt(s) with {len(self.completions)} completions each"
            )
        for prompt, row in zip(self.tree.prompts, rows, strict=True):
            for words, value in zip(self.completions, row, strict=True):
                if isinstance(value, bool) or not isinstance(value, int | Fraction) or value <= 0:
                    raise InputError(
                        f"prompt {prompt!r}, completion {' '.join(words)!r}: must be a whole "
                        f"number or fraction > 0, got {value!r}"
                    )
        return tuple(tuple(Fraction(value) for value in row) for row in rows)


# --- soft value iteration ------------------------------------------------------------------------


def partition(tree: ExactTree, y: Table) -> tuple[dict[Words, Fraction], ...]:
    """Z(s) = sum of y over the completions below each prefix s: exp(V(s) / beta), for each prompt.

    The soft backup in exact form, from the longest prefixes to the root (): Z(s) = sum_a Z(s.a).
    """
    found = []
    for row in y:
        z: dict[Words, Fraction] = dict(zip(tree.completions, row, strict=True))
        for level in range(tree.tree.horizon, 0, -1):
            for words in [words for words in z if len(words) == level]:
                z[words[:-1]] = z.get(words[:-1], Fraction(0)) + z[words]
        found.append(z)
    return tuple(found)


def soft_policy(tree: ExactTree, y: Table) -> ExactPolicy:
    """pi(a | s) = Z(s.a) / Z(s), the soft-optimal policy; of a distribution, its conditionals.

    Raises InputError naming prompt and prefix where nothing below has mass.
    """
    found = []
    for prompt, z in zip(tree.tree.prompts, partition(tree, y), strict=True):
        policy: dict[Words, dict[str, Fraction]] = {}
        for words, mass in z.items():
            if not words:
                continue
            if not z[words[:-1]]:
                place = f"prompt {prompt!r}, prefix {' '.join(words[:-1])!r}"
                raise InputError(f"{place}: no completion below it has mass")
            policy.setdefault(words[:-1], {})[words[-1]] = mass / z[words[:-1]]
        found.append(policy)
    return tuple(found)


def path_probabilities(tree: ExactTree, policy: ExactPolicy) -> Table:
    """prod_h pi(a_h | s_h) of every completion; equally exp(r_pi / beta), the local reward."""
    return tuple(
        tuple(
            math.prod((pi[words[:h]][token] for h, token in enumerate(words)), start=Fraction(1))
            for words in tree.completions
        )
        for pi in policy
    )


def normalised(table: Table) -> Table:
    """Each prompt's row divided by its sum: P*_r of Eq. 11 for y = exp(r / beta).

    Raises InputError if a row has no mass.
    """
    totals = [sum(row) for row in table]
    if not all(totals):
        raise InputError(f"prompt number {totals.index(0)}: no completion has mass")
    return tuple(
        tuple(value / total for value in row) for row, total in zip(table, totals, strict=True)
    )


def times(left: Table, right: Table) -> Table:
    """Product, entry by entry: a reward plus a reward; `normalised`, the mixture of Lemma B.1."""
    return _entrywise(left, right, lambda a, b: a * b)


def over(left: Table, right: Table) -> Table:
    """Quotient, entry by entry. Raises InputError if the right side is 0 somewhere."""
    for number, row in enumerate(right):
        if not all(row):
            raise InputError(f"prompt number {number}: division by a table that is 0 in places")
    return _entrywise(left, right, lambda a, b: a / b)


def _entrywise(left: Table, right: Table, rule) -> Table:
    return tuple(
        tuple(rule(a, b) for a, b in zip(*rows, strict=True))
        for rows in zip(left, right, strict=True)
    )


# --- Bradley-Terry -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """`count` times the completion `winner` beat `loser`; both are places in `completions`."""

    prompt: int
    winner: int
    loser: int
    count: int


def comparisons(
    tree: ExactTree, rows: Iterable[tuple[int, int, int, int | float]]
) -> tuple[Comparison, ...]:
    """From rows (prompt, winner slot, loser slot, count), as in `theory.preferences.PairData`.

    Raises InputError naming the row for an unknown prompt or slot, a completion compared with
    itself, or a count that is no whole number > 0.
    """
    place = {int(leaf): i for i, leaf in enumerate(tree.tree.leaves)}
    found = []
    for i, (prompt, winner, loser, count) in enumerate(rows):
        if not 0 <= prompt < tree.tree.n_prompts:
            raise InputError(f"pair {i}: no prompt {prompt}")
        for leaf in (winner, loser):
            if leaf not in place:
                raise InputError(f"pair {i}: leaf {leaf} is no completion of the tree")
        if winner == loser:
            raise InputError(f"pair {i}: completion {winner} is compared with itself")
        if not (0 < count < math.inf and count == int(count)):
            raise InputError(f"pair {i}: count must be a whole number > 0, got {count!r}")
        found.append(Comparison(int(prompt), place[winner], place[loser], int(count)))
    return tuple(found)


def check_whole_beta(beta: int | float) -> int:
    """beta as a whole number >= 1. Raises InputError if it is none."""
    if not (math.isfinite(beta) and beta >= 1 and beta == int(beta)):
        raise InputError(f"exact arithmetic needs a whole number beta >= 1, got {beta!r}")
    return int(beta)


def likelihood(y: Table, pairs: Sequence[Comparison], *, beta: int) -> Fraction:
    """prod (odds / (1 + odds))**count with odds = (y+ / y-)**beta (Eqs. 4 and 6), exactly.

    For Eq. 9 give y = `path_probabilities`, for DPO that over the reference's. Raises InputError
    if the result would be longer than MAX_BITS.
    """
    beta, top, bottom, bits = check_whole_beta(beta), [], [], 0
    for pair in pairs:
        odds = y[pair.prompt][pair.winner] / y[pair.prompt][pair.loser]
        bits += pair.count * beta * max(odds.numerator, odds.denominator).bit_length()
        if bits > MAX_BITS:
            raise InputError(
                f"the exact likelihood of {sum(p.count for p in pairs):,} comparisons at beta "
                f"{beta} takes more than {MAX_BITS:,} bits, the limit"
            )
        wins, losses = odds.numerator**beta, odds.denominator**beta
        top.append(wins**pair.count)
        bottom.append((wins + losses) ** pair.count)
    return Fraction(math.prod(top), math.prod(bottom))


@runtime_checkable
class _Ordered(Protocol):
    def __lt__(self, other, /) -> bool: ...


O = TypeVar("O", bound=_Ordered)  # noqa: E741


def argmax(values: Sequence[O]) -> tuple[int, ...]:
    """Places of the largest of a list of `Fraction` or `LogSum`, exact ties included."""
    best = max(values)
    return tuple(i for i, value in enumerate(values) if not value < best)


@dataclass(frozen=True)
class RationalOptimum:
    """The Bradley-Terry maximisers over all rewards: y times a factor a component; or EMPTY."""

    y: Table | None  # exp(r), 1 at the first completion of each component; None if empty
    component: tuple[tuple[int, ...], ...]  # label of every completion, over all prompts
    witness: tuple[int, tuple[int, ...]] | None  # prompt and places: they win and never lose


def tree_maximiser(tree: ExactTree, pairs: Sequence[Comparison]) -> RationalOptimum:
    """The maximiser at beta = 1 where every comparison graph is a forest: a fraction.

    Along an edge the odds are the ratio of wins; an edge that was only won one way leaves no finite
    maximiser. Raises InputError naming the prompt if its graph has a cycle.
    """
    rows, labels, offset = [], [], 0
    for prompt in range(tree.tree.n_prompts):
        wins: dict[tuple[int, int], int] = {}
        graph = nx.Graph()
        graph.add_nodes_from(range(len(tree.completions)))
        for pair in (pair for pair in pairs if pair.prompt == prompt):
            edge = (pair.winner, pair.loser)
            wins[edge] = wins.get(edge, 0) + pair.count
            graph.add_edge(*edge)
        if not nx.is_forest(graph):
            name = tree.tree.prompts[prompt]
            raise InputError(f"the comparison graph of prompt {name!r} has a cycle")
        row, label = [Fraction(1)] * len(tree.completions), [0] * len(tree.completions)
        for number, members in enumerate(nx.connected_components(graph)):
            for node in members:
                label[node] = offset + number
            for near, far in nx.bfs_edges(graph, min(members)):
                if (near, far) not in wins or (far, near) not in wins:
                    return RationalOptimum(
                        None, (), (prompt, _winning_side(graph, wins, near, far))
                    )
                row[far] = row[near] * Fraction(wins[far, near], wins[near, far])
        offset += nx.number_connected_components(graph)
        rows.append(tuple(row))
        labels.append(tuple(label))
    return RationalOptimum(tuple(rows), tuple(labels), None)


def _winning_side(graph: nx.Graph, wins: dict, near: int, far: int) -> tuple[int, ...]:
    """The part of a tree on the winner's side of an edge that was only won one way."""
    cut = graph.copy()
    cut.remove_edge(near, far)
    winner = near if (near, far) in wins else far
    return tuple(sorted(nx.node_connected_component(cut, winner)))


# --- expectations (over rho0 and completions), nats ----------------------------------------------


def kl(tree: ExactTree, p: Table, q: Table) -> LogSum:
    """E_{x ~ rho0} KL(P || Q). Raises InputError where P has mass and Q has none."""
    return _expected_log(tree, p, p, q)


def soft_return(tree: ExactTree, p: Table, y: Table) -> LogSum:
    """(E_P[r] + beta H(P)) / beta; with y = `times`(y, P_ref), E_P[r] / beta - KL(P || P_ref).

    Raises InputError where P has mass and y is 0.
    """
    return _expected_log(tree, p, y, p)


def expected_log(tree: ExactTree, values: Sequence[Fraction]) -> LogSum:
    """E_{x ~ rho0} log values[x], such as the mean log Z."""
    return LogSum.of(zip(tree.weights, values, strict=True))


def _expected_log(tree: ExactTree, p: Table, top: Table, bottom: Table) -> LogSum:
    """E_{x ~ rho0} E_P log(top / bottom), over the completions where P has mass.

    Each row enters as its largest number and the ratios to it. The ratios know nothing of a common
    factor such as 1 / Z, which is as long as all numbers of the row together.
    """
    terms = []
    for i, weight in enumerate(tree.weights):
        massive = [k for k, mass in enumerate(p[i]) if mass]
        for table, sign in ((top, weight), (bottom, -weight)):
            for k in massive:
                if not table[i][k]:
                    words = " ".join(tree.completions[k])
                    place = f"prompt {tree.tree.prompts[i]!r}, completion {words!r}"
                    raise InputError(f"{place}: P has mass where the other table is 0: infinite")
            largest = max(table[i][k] for k in massive)
            terms.append((sign * sum(p[i]), largest))
            terms += [(sign * p[i][k], table[i][k] / largest) for k in massive]
    return LogSum.of(terms)


def nearest(tree: ExactTree, members: Sequence[Table], target: Table) -> tuple[int, ...]:
    """argmin over a list of KL(member || target), exact ties included.

    KL is 0 exactly where the distributions are equal; only where no member equals the target are
    sums of logarithms compared.
    """
    equal = tuple(i for i, member in enumerate(members) if member == target)
    if equal:
        return equal
    closeness = [LogSum({}) - kl(tree, member, target) for member in members]
    return argmax(closeness)
