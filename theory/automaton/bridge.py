"""A verifier on the dense token tree, to hold the two exact computations against each other."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from theory._x64 import AnyArray
from theory.automaton.machine import Automaton, Verifier
from theory.errors import InputError
from theory.tree import TokenTree


def to_tree(
    verifier: Verifier, horizon: int, *, prompt: str = "x"
) -> tuple[TokenTree, Float[np.ndarray, "1 L"]]:
    """The tree of one prompt, and the reward of each completion by running it (0 at other slots).

    What the automaton forbids, and what leads to no accepting end, is forbidden on the tree.
    Raises InputError if the tree does not fit or nothing is left of it.
    """
    verifier.check_horizon(horizon)
    machine = verifier.machine
    live = machine.completable(horizon)
    if not live[0, machine.start]:
        raise InputError(f"no completion of horizon {horizon} exists")
    free = TokenTree(machine.tokens, horizon, (prompt,), (1.0,), machine.eos)  # checks the size
    blocked = []
    states: dict[tuple[str, ...], int] = {(): machine.start}
    for h in range(horizon):
        good, ahead = machine.open_tokens(live[h + 1]), {}
        for words, state in states.items():
            for v, token in enumerate(machine.tokens):
                if not good[state, v]:
                    blocked.append((*words, token))
                elif token != machine.eos:
                    ahead[(*words, token)] = int(machine.next[state, v])
        states = ahead
    tree = TokenTree(free.tokens, horizon, (prompt,), (1.0,), machine.eos, tuple(blocked))
    reward = np.zeros((1, tree.n_leaves))
    for leaf in tree.leaves:
        reward[0, leaf] = verifier.reward(tree.leaf_tokens(int(leaf)))
    return tree, reward


def leaf_log_probs_of(
    tree: TokenTree, machine: Automaton, log_policy: AnyArray
) -> Float[np.ndarray, "1 L"]:
    """log P of each completion of the tree under a (H, S, V) or (S, V) policy; -inf elsewhere."""
    table = np.asarray(log_policy, dtype=np.float64)
    log_p = np.full((1, tree.n_leaves), -math.inf)
    for leaf in tree.leaves:
        log_p[0, leaf] = machine.log_prob(table, tree.leaf_tokens(int(leaf)))
    return log_p
