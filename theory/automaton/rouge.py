"""ROUGE-L against a hidden reference, as an automaton; and what of its optimum can be read off.

The longest common subsequence (LCS) of a completion and a reference of m words is a dynamic
program. Its row L_0 <= L_1 <= .. <= L_m (L_j: LCS with the first j words of the reference) rises
by 0 or 1 at each word, so a state is m bits. No two rows are equivalent: after reading the words
j + 1 to m of the reference, the LCS is L_j + m - j. So the automaton cannot be made smaller.
Measured: 2**m states for m distinct words; for k words in turn the product over the words of their
times plus 1, so m + 1 for one word m times; for three words in random order about 1.65**m.

The paper (Figure 6, Closing the Generation-Verification Gap II) says that the soft-optimal policy
for ROUGE-L can be read off from the reference. `read_off` measures it. The hard optimum is the
reference itself, and so is the soft optimum as beta -> 0. At a finite beta the soft optimum depends
on the whole row, and a finger in the reference is not enough: for 8 distinct words of 12, H = 16,
it loses 1.35 nats at beta = 0.02 and 0.13 at beta = 0.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from theory.automaton.machine import (
    MAX_STATES,
    Automaton,
    Verifier,
    check_horizon,
    check_states,
    check_tokens,
    pair_states,
)
from theory.automaton.policies import merge_states, table_sizes
from theory.automaton.solve import solve_automaton, solve_automaton_hard
from theory.errors import InputError

MAX_WORDS = 62  # of a reference: its row is one 64-bit integer


@dataclass(frozen=True)
class ReadOff:
    """How much of the soft optimum for ROUGE-L a reader of the reference knows; nats."""

    states: int  # of the LCS automaton
    reachable_rows: int  # (step, state) pairs that the soft optimum visits
    distinct_rows: int  # different rows among them
    pointer_rows: int  # (step, words of the reference done) pairs: what a reader keeps
    log_prob_reference: float  # of the reference itself under the soft optimum
    kl_pointer: float  # KL(soft optimum || best policy that keeps a pointer only)
    best: float  # the largest F1 of any completion
    log_optima: float  # log of the number of completions that reach it


def rouge_l_states(
    reference: Sequence[str], *, steps: int | None = None, max_states: int = 2**22
) -> int:
    """The number of states of the smallest automaton of the LCS with a reference.

    steps: count only states met after exactly this many words (any words), if given.
    Raises InputError for an empty reference, or beyond `max_states`.
    """
    masks = _masks(_check_reference(reference))
    sets = list(masks.values())
    if steps is None:
        return len(_reachable(len(reference), sets, max_states))
    here = np.array([0], dtype=np.int64)
    for _ in range(steps):  # a word that is not in the reference leaves the row as it is
        here = np.unique(np.concatenate([here, *(_advance(here, mask) for mask in sets)]))
        check_states(len(here), max_states, f"the LCS with {len(reference)} words")
    return len(here)


def rouge_l_verifier(
    tokens: Sequence[str],
    reference: Sequence[str],
    horizon: int,
    *,
    eos: str | None = None,
    max_states: int = MAX_STATES,
) -> Verifier:
    """ROUGE-L F1 of a completion with the reference, in [0, 1] (Lin 2004); tokens are words.

    F1 = 2 LCS / (n + m) for n words, EOS not counted, and a reference of m words. States: the
    reachable rows, and with EOS one end state a value of the LCS. Every word of the reference must
    be a token other than EOS, or it could never be matched.
    """
    _check_words(tokens, reference, eos)
    check_horizon(horizon)
    masks, m = _masks(reference), len(reference)
    rows = _reachable(m, list(masks.values()), max_states)
    count = len(rows)
    table = np.repeat(np.arange(count)[:, None], len(tokens), axis=1)
    for v, token in enumerate(tokens):
        if token in masks:
            table[:, v] = np.searchsorted(rows, _advance(rows, masks[token]))
    lcs = _bits(rows)
    words = np.arange(horizon + 1)[:, None]
    final = 2 * lcs[None, :] / (words + m)
    if eos is not None:
        values = np.arange(m + 1)
        table[:, list(tokens).index(eos)] = count + lcs
        table = np.concatenate([table, np.repeat(count + values[:, None], len(tokens), axis=1)])
        ended = 2 * values[None, :] / (np.maximum(words - 1, 0) + m)
        final = np.concatenate([final, ended], axis=1)
    start = int(np.searchsorted(rows, 0))
    return Verifier(Automaton(tuple(tokens), table, start, eos), final)


def pointer_automaton(
    tokens: Sequence[str], reference: Sequence[str], *, eos: str | None = None
) -> Automaton:
    """The m + 1 states of a reader who keeps one finger in the reference.

    The finger stands after j words and moves on when the next word of the reference is read.
    """
    _check_words(tokens, reference, eos)
    states = np.arange(len(reference) + 1)
    table = np.repeat(states[:, None], len(tokens), axis=1)
    for j, word in enumerate(reference):
        table[j, list(tokens).index(word)] = j + 1
    return Automaton(tuple(tokens), table, 0, eos)


def read_off(
    tokens: Sequence[str],
    reference: Sequence[str],
    horizon: int,
    *,
    eos: str,
    beta: float,
    precision: float = 1e-9,
) -> ReadOff:
    """What the soft optimum for ROUGE-L F1 needs beyond a finger in the reference.

    Compares it with the best policy, by KL(soft optimum || policy), that sees the step and the
    state of `pointer_automaton` only. beta: F1 units a nat. The reference and EOS must fit in the
    horizon.
    """
    m = len(reference)
    if m + 1 > horizon:
        raise InputError(f"{m} words and EOS do not fit in horizon {horizon}")
    verifier = rouge_l_verifier(tokens, reference, horizon, eos=eos)
    machine = verifier.machine
    soft = solve_automaton(verifier, horizon, beta=beta)
    hard = solve_automaton_hard(verifier, horizon)
    sizes = table_sizes(machine, soft.log_policy, precision=precision)
    pairs, table = pair_states(machine, pointer_automaton(tokens, reference, eos=eos))
    policy = np.asarray(soft.log_policy)
    on_pairs = Automaton(machine.tokens, table, 0, eos)
    _, kl_pointer = merge_states(on_pairs, policy[:, pairs[:, 0]], pairs[:, 1])
    return ReadOff(
        states=machine.n_states - (m + 1),
        reachable_rows=sizes.reachable_rows,
        distinct_rows=sizes.distinct_rows,
        pointer_rows=sum(min(h, m) + 1 for h in range(horizon)),
        log_prob_reference=machine.log_prob(policy, [*reference, eos]),
        kl_pointer=kl_pointer,
        best=hard.best,
        log_optima=hard.log_optima,
    )


# --- rows of the dynamic program as bits ----------------------------------------------------------


def _masks(reference: Sequence[str]) -> dict[str, int]:
    """For each word of the reference, the bits at which it stands."""
    masks: dict[str, int] = {}
    for j, word in enumerate(reference):
        masks[word] = masks.get(word, 0) | (1 << j)
    return masks


def _advance(rows: Int[np.ndarray, " n"], mask: int) -> Int[np.ndarray, " n"]:
    """The rows after one more word, which stands in the reference at the bits of `mask`.

    A block is the places after one rise of the row, up to and with the next rise. A word that
    stands in a block moves that block's rise to the word's first place in it (after the last rise
    it makes a new one): in each block the lowest bit of x = row | mask stays. Subtracting 1 at the
    foot of every block changes just the bits up to that one (Allison and Dix 1986).
    """
    either = rows | mask
    shifted = (rows << 1) | 1
    return either & ((either - shifted) ^ either)


def _reachable(m: int, masks: Sequence[int], max_states: int) -> Int[np.ndarray, " n"]:
    """All rows that some words lead to, ascending, the empty row 0 first."""
    seen = frontier = np.array([0], dtype=np.int64)
    while len(frontier):
        ahead = np.unique(np.concatenate([_advance(frontier, mask) for mask in masks]))
        frontier = np.setdiff1d(ahead, seen, assume_unique=True)
        seen = np.union1d(seen, frontier)
        check_states(len(seen), max_states, f"the LCS with {m} words")
    return seen


def _bits(rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    return np.bitwise_count(rows.astype(np.uint64)).astype(np.int64)


def _check_reference(reference: Sequence[str]) -> Sequence[str]:
    if not 1 <= len(reference) <= MAX_WORDS:
        raise InputError(f"the reference has {len(reference)} words, 1 to {MAX_WORDS} can be held")
    return reference


def _check_words(tokens: Sequence[str], reference: Sequence[str], eos: str | None) -> None:
    check_tokens(tokens, eos)
    for word in _check_reference(reference):
        if word not in tokens or word == eos:
            raise InputError(f"word {word!r} of the reference is no token that can be generated")
