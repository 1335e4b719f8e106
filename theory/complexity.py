"""How complex a reward and its soft-optimal policy are, on two scales.

The generation-verification gap (section 3.1, H6), as numbers and not as a word.

Walsh scale: coefficients, over the bits of the tokens, of r and of Q. Leaf rewards fix Q, and Q at
the last step is r: on this scale Q never has fewer than r. A policy is a softmax of Q, blind to
what all tokens of a state share, so only the coefficients that involve the token itself ("logits")
matter to it; they can be fewer than those of r.

Automaton scale: a state is a class of prefixes of one length that no continuation tells apart
(Myhill and Nerode). Two prefixes of one length have the same soft-optimal policy ahead exactly
where their rewards ahead agree up to a shift. So at no step does a policy need more states than its
reward. What it can have more of is rows: an automaton is one table for all steps, and the
soft-optimal policy has a row for every (step, state).

All counts are of one prompt; with several prompts they are means over the prompts, equally counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from theory.errors import InputError
from theory.families import GroundTruth
from theory.soft import check_reward, soft_value_iteration
from theory.tree import TokenTree

PRECISION = 1e-9
RESIDUAL = 1e-4  # of the variance: 1 % of the norm
ROUNDING = 1e-13  # a coefficient below this share of the largest value is rounding


@dataclass(frozen=True)
class WalshCount:
    """How many coefficients a table (or several) has; the constant of each is not counted."""

    nonzero: float  # larger than `precision` times the norm
    bulk: float  # the fewest that hold all but `residual` of the variance


@dataclass(frozen=True)
class VerifierComplexity:
    """Of a reward."""

    walsh: WalshCount | None  # None unless a token is a whole number of bits
    states_by_level: tuple[float, ...]  # classes of prefixes of 0, 1, .., H tokens
    vocab: int

    @property
    def states(self) -> float:
        """The most states of any level: no automaton that gives the rewards has fewer."""
        return max(self.states_by_level)

    @property
    def rows(self) -> float:
        """(step, state) pairs in which a token is read."""
        return sum(self.states_by_level[:-1])

    @property
    def entries(self) -> float:
        """S V successors and S rewards of an automaton of `states` states for all steps."""
        return self.states * (self.vocab + 1)


@dataclass(frozen=True)
class GeneratorComplexity:
    """Of the soft-optimal policy of a reward."""

    walsh_q: WalshCount | None  # Q(s, a) of all levels together
    walsh_logits: WalshCount | None  # those of its coefficients that involve a
    states_by_level: tuple[float, ...]  # classes of prefixes of 0, .., H - 1 tokens
    rows_by_level: tuple[float, ...]  # different conditionals of each level
    distinct_rows: float  # different conditionals of all levels together
    vocab: int

    @property
    def states(self) -> float:
        """The most states of any level."""
        return max(self.states_by_level)

    @property
    def rows(self) -> float:
        """(step, conditional) pairs."""
        return sum(self.rows_by_level)

    @property
    def entries(self) -> float:
        """V log-probabilities a row."""
        return self.rows * self.vocab


def verifier_complexity(
    truth: GroundTruth, *, precision: float = PRECISION, residual: float = RESIDUAL
) -> VerifierComplexity:
    """Complexity of the reward. precision: rewards that differ by less, as a share of their range
    in the prompt, are equal; coefficients smaller, as a share of the norm, are 0.

    Raises InputError for a precision or residual outside (0, 1), or a reward that is not finite.
    """
    _check_shares(precision, residual)
    tree, mask = truth.tree, truth.tree.leaf_mask
    rewards = check_reward(tree, truth.reward)
    cut, bits = strings(tree), token_bits(tree)
    counts, levels = [], []
    for reward in rewards:
        live = reward[mask]
        labels = np.full(tree.n_leaves, -1)
        labels[mask] = label_values(live, precision * float(np.ptp(live)))
        levels.append(_count_states(tree, labels, None))
        if bits is not None:
            coefficients = walsh_coefficients(reward[cut[-1]])
            counts.append(count_coefficients([coefficients[1:]], precision, residual))
    return VerifierComplexity(_mean_count(counts), _mean_rows(levels), tree.vocab)


def generator_complexity(
    truth: GroundTruth,
    beta: float,
    *,
    precision: float = PRECISION,
    residual: float = RESIDUAL,
) -> GeneratorComplexity:
    """Complexity of the soft-optimal policy of the reward at this beta (reward units a nat).

    precision: log-probabilities that differ by less nats are equal; coefficients smaller, as a
    share of the norm of all levels together, are 0. Q of levels 0..H-1 counts, each without its
    constant. Raises InputError for beta <= 0 or a precision or residual outside (0, 1).
    """
    _check_shares(precision, residual)
    tree = truth.tree
    solution = soft_value_iteration(tree, truth.reward, beta=beta)
    values = [np.asarray(level) for level in solution.values[1:]]
    policy = [np.asarray(level) for level in solution.log_policy]
    cut, bits = strings(tree), token_bits(tree)
    q_counts, logit_counts, states, rows, distinct = [], [], [], [], []
    for x in range(tree.n_prompts):
        labels = _label_rows(tree, [level[x] for level in policy], precision)
        opened = [row[live] for row, live in zip(labels, open_prefixes(tree), strict=True)]
        rows.append([len(np.unique(row)) for row in opened])
        distinct.append(len(np.unique(np.concatenate(opened))))
        ends = np.where(tree.leaf_mask, 0, -1)
        states.append(_count_states(tree, ends, labels)[:-1])
        if bits is not None:
            tables = [walsh_coefficients(v[x][c]) for v, c in zip(values, cut[1:], strict=True)]
            q_counts.append(count_coefficients([t[1:] for t in tables], precision, residual))
            tokens = [t.reshape(-1, tree.vocab)[:, 1:].reshape(-1) for t in tables]
            logit_counts.append(count_coefficients(tokens, precision, residual))
    return GeneratorComplexity(
        _mean_count(q_counts),
        _mean_count(logit_counts),
        _mean_rows(states),
        _mean_rows(rows),
        float(np.mean(distinct)),
        tree.vocab,
    )


# --- Walsh coefficients ---------------------------------------------------------------------------


def token_bits(tree: TokenTree) -> int | None:
    """log2 V, if V >= 2 is a power of 2 and nothing is forbidden; None otherwise."""
    width = tree.vocab.bit_length() - 1
    return width if width and tree.vocab == 2**width and not tree.forbidden else None


def strings(tree: TokenTree) -> list[np.ndarray]:
    """For h = 0..H, the node of level h that stands for each of the V**h strings of h tokens.

    What follows EOS is not read: a string is the node of its completion, whose slot is filled with
    EOS. So a reward and its Q are functions of all strings, and have Walsh coefficients.
    """
    nodes, ended = [np.zeros(1, dtype=np.int64)], np.zeros(1, dtype=bool)
    end = -1 if tree.eos is None else tree.tokens.index(tree.eos)
    for _ in range(tree.horizon):
        token = np.where(ended[:, None], end, np.arange(tree.vocab)[None, :])
        nodes.append((nodes[-1][:, None] * tree.vocab + token).reshape(-1))
        ended = (token == end).reshape(-1)
    return nodes


def walsh_coefficients(values: np.ndarray) -> np.ndarray:
    """c_S = mean over b of f(b) chi_S(b) of a table of 2**n values, (2**n,), S as a number.

    Bit i of S (most significant first, as in `theory.walsh.all_bits`) says whether b_i is in S;
    c_0 is the mean. The fast transform, n 2**n additions. Coefficients that rounding may have made
    are exactly 0.
    """
    table = np.array(values, dtype=np.float64)
    size, step = len(table), 1
    while step < size:
        pairs = table.reshape(-1, 2, step)
        table = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1)
        step *= 2
    table = table.reshape(-1) / size
    return np.where(np.abs(table) > ROUNDING * np.abs(values).max(), table, 0.0)


def count_coefficients(tables: list[np.ndarray], precision: float, residual: float) -> WalshCount:
    """Counts over all tables together; the norm and the variance are those of all together."""
    power = np.sort(np.concatenate(tables) ** 2)
    left = np.cumsum(power)  # what is lost if all up to here are dropped
    total = left[-1] if len(left) else 0.0
    return WalshCount(
        float(np.count_nonzero(power > precision**2 * total)),
        float(np.count_nonzero(left > residual * total)),
    )


# --- states ---------------------------------------------------------------------------------------


def open_prefixes(tree: TokenTree) -> list[np.ndarray]:
    """For h = 0..H-1, (V**h,) which prefixes of h tokens exist and have not ended."""
    end = None if tree.eos is None else tree.tokens.index(tree.eos)
    live, levels = np.ones(1, dtype=bool), []
    for h in range(tree.horizon):
        levels.append(live)
        onward = tree.allowed(h) & live[:, None]
        if end is not None:
            onward[:, end] = False
        live = onward.reshape(-1)
    return levels


def label_values(values: np.ndarray, tolerance: float) -> np.ndarray:
    """Equal numbers for values that a chain of steps of at most `tolerance` joins, (n,) int."""
    order = np.argsort(values)
    rises = np.diff(values[order]) > tolerance
    labels = np.empty(len(values), dtype=np.int64)
    labels[order] = np.concatenate([[0], np.cumsum(rises)])
    return labels


def _label_rows(tree: TokenTree, policy: list[np.ndarray], precision: float) -> list[np.ndarray]:
    """One number for each prefix of each level; equal where conditionals are, at any levels."""
    table = np.concatenate(policy)
    allowed = np.concatenate(tree.allowed_levels)
    labels = np.full(table.shape, -1)
    labels[allowed] = label_values(table[allowed], precision)
    cuts = np.cumsum([len(level) for level in policy])[:-1]
    return np.split(_label_equal_rows(labels), cuts)


def _count_states(tree: TokenTree, ends: np.ndarray, rows: list[np.ndarray] | None) -> list[int]:
    """Classes of prefixes of 0..H tokens, by merging from the completions up.

    ends: (L,) label of each completion, -1 at other slots. Two prefixes are in one class if their
    labels in `rows` agree, if given, and each token leads both to one class, or neither on.
    """
    classes, counts = ends, [len(np.unique(ends[tree.leaf_mask]))]
    for h in reversed(range(tree.horizon)):
        table = np.where(tree.allowed(h), classes.reshape(-1, tree.vocab), -1)
        if rows is not None:
            table = np.concatenate([rows[h][:, None], table], axis=1)
        classes = _label_equal_rows(table)
        counts.insert(0, len(np.unique(classes[open_prefixes(tree)[h]])))
    return counts


def _label_equal_rows(table: np.ndarray) -> np.ndarray:
    return np.unique(table, axis=0, return_inverse=True)[1].reshape(-1)


# --- helpers --------------------------------------------------------------------------------------


def _mean_count(counts: list[WalshCount]) -> WalshCount | None:
    if not counts:
        return None
    return WalshCount(
        math.fsum(count.nonzero for count in counts) / len(counts),
        math.fsum(count.bulk for count in counts) / len(counts),
    )


def _mean_rows(rows: list[list[int]]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.mean(rows, axis=0))


def _check_shares(precision: float, residual: float) -> None:
    for name, value in (("precision", precision), ("residual", residual)):
        if not 0 < value < 1:
            raise InputError(f"{name} must lie between 0 and 1, got {value!r}")
