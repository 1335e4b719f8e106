"""The smallest automaton that gives the same rewards (Moore's partition refinement)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from theory.automaton.machine import Automaton, Verifier

NOWHERE = -1  # stands for the target of a forbidden token


def minimise(verifier: Verifier) -> tuple[Verifier, Int[np.ndarray, " S"]]:
    """The quotient by states that no completion tells apart, and the class of each state.

    Two states are merged if they forbid the same tokens, give the same rewards (compared exactly)
    and lead to merged states. Classes are numbered in the order in which they are first met from
    the start; states that are never met have class -1. Exact for completions of any length; a
    finite horizon may tell still fewer states apart.
    """
    machine = verifier.machine
    met = reachable_states(machine)
    rows = [machine.ends[met], np.moveaxis(verifier.final[..., met], -1, 0)]
    if verifier.step is not None:
        allowed = machine.allowed[met]
        step = np.where(allowed, verifier.step[..., met, :], 0.0)  # no one sees a forbidden step
        rows.append(np.moveaxis(step, -2, 0))
    flat = [np.asarray(row, dtype=np.float64).reshape(len(met), -1) for row in rows]
    initial = np.unique(np.concatenate(flat, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
    place = np.full(machine.n_states, NOWHERE)
    place[met] = np.arange(len(met))
    table = np.where(machine.allowed[met], place[machine.next[met]], NOWHERE)
    classes, first = _in_order(refine(table, initial))
    picks = met[first]
    quotient = np.where(table[first] == NOWHERE, 0, classes[table[first]])
    small = Automaton(
        machine.tokens,
        quotient,
        0,
        machine.eos,
        ~machine.allowed[picks],
        machine.ends[picks],
    )
    labels = np.full(machine.n_states, NOWHERE)
    labels[met] = classes
    step = None if verifier.step is None else verifier.step[..., picks, :]
    return Verifier(small, verifier.final[..., picks], step), labels


def reachable_states(machine: Automaton) -> Int[np.ndarray, " met"]:
    """States that some sequence of allowed tokens leads to, the start first, breadth first."""
    met, known, frontier = [machine.start], {machine.start}, [machine.start]
    while frontier:
        ahead = []
        for state in frontier:
            for target in np.unique(machine.next[state][machine.allowed[state]]):
                if int(target) not in known:
                    known.add(int(target))
                    ahead.append(int(target))
        met.extend(ahead)
        frontier = ahead
    return np.asarray(met)


def refine(table: Int[np.ndarray, "S V"], labels: Int[np.ndarray, " S"]) -> Int[np.ndarray, " S"]:
    """The coarsest partition finer than `labels` in which equal states have equal successors.

    table: (S, V), `NOWHERE` for no successor.
    """
    while True:
        ahead = np.where(table == NOWHERE, NOWHERE, labels[table])
        joint = np.concatenate([labels[:, None], ahead], axis=1)
        finer = np.unique(joint, axis=0, return_inverse=True)[1].reshape(-1)
        if finer.max() == labels.max():
            return finer
        labels = finer


def _in_order(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels renumbered in order of first appearance, and the first state of each."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[inverse.reshape(-1)], first[order]
