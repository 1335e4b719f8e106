"""Soft and hard value iteration over (step, automaton state), float64.

Work and memory are H S V, whatever the number V**H of completions. States from which no completion
exists have the value -inf and log-probabilities -inf, never NaN.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.special import logsumexp

from theory._x64 import AnyArray
from theory.automaton.machine import Automaton, Verifier, check_match
from theory.errors import InputError
from theory.soft import check_beta

MAX_BYTES = 4 * 2**30  # default limit for one (H, S, V) table of float64
REFERENCE_TOLERANCE = 1e-9  # on the sum of the reference's probabilities at a state


@dataclass(frozen=True)
class AutomatonSolution:
    """The soft-optimal values and policy of one reward."""

    values: jax.Array  # V(h, s), (H + 1, S), reward units
    log_policy: jax.Array  # (H, S, V), nats
    log_z: float  # log sum exp(r / beta), times P_ref if there is one, over the completions


@dataclass(frozen=True)
class HardSolution:
    """The limit beta -> 0: best rewards, and the policy that shares ties by optimal completions."""

    values: jax.Array  # (H + 1, S), reward units
    log_policy: jax.Array  # (H, S, V), nats
    best: float  # the largest reward of any completion
    log_optima: float  # log of the number of optimal completions, or of their P_ref mass


def solve_automaton(
    verifier: Verifier,
    horizon: int,
    *,
    beta: float = 1.0,
    log_ref: AnyArray | None = None,
    max_bytes: int = MAX_BYTES,
) -> AutomatonSolution:
    """Soft-optimal values and policy of a reward that an automaton computes.

    V(h, s) = beta logsumexp_a((Q(h, s, a)) / beta), Q = step + beta log ref + V(h + 1, next), with
    the final reward at the end (the paper's App. D on the quotient of the tree; Lemma B.1 with a
    reference). The policy's completion distribution is P_ref exp(r / beta) / Z over the
    completions that are allowed and end in an accepting state.

    log_ref: (S, V) or (H, S, V), nats, normalised over tokens at each state; -inf is allowed, and a
    row of -inf is no state of the reference. Raises InputError for bad input, and if no completion
    exists.
    """
    check_beta(beta)
    verifier.check_horizon(horizon)
    machine = verifier.machine
    _check_size(machine, horizon, max_bytes)
    ref = None if log_ref is None else check_reference(machine, horizon, log_ref)
    values, log_policy = _soft(
        jnp.asarray(machine.next),
        jnp.asarray(machine.allowed),
        jnp.asarray(_finals(verifier, horizon)),
        _by_step(verifier.step),
        _by_step(ref),
        jnp.float64(beta),
        machine.end,
        horizon,
    )
    root = float(values[0, machine.start])
    _check_root(root, horizon)
    return AutomatonSolution(values, log_policy, root / beta)


@functools.partial(jax.jit, static_argnums=(6, 7))
def _soft(
    table: jax.Array,  # (S, V)
    allowed: jax.Array,  # (S, V)
    final: jax.Array,  # (H + 1, S), -inf where a completion may not end
    step: tuple[jax.Array | None, jax.Array | None],  # (S, V) or None, (H, S, V) or None
    ref: tuple[jax.Array | None, jax.Array | None],
    beta: jax.Array,
    end: int | None,
    horizon: int,
) -> tuple[jax.Array, jax.Array]:
    base = jnp.where(allowed, 0.0, -jnp.inf)
    base = base if step[0] is None else base + step[0]
    base = base if ref[0] is None else base + beta * ref[0]

    def back(value: jax.Array, level: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        ended, step_h, ref_h = level
        q = base + _onward(table, value, ended, end)
        q = q if step_h is None else q + step_h
        q = q if ref_h is None else q + beta * ref_h
        top = jnp.max(q, axis=1, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        scaled = (q - top) / beta
        log_sum = jnp.log(jnp.sum(jnp.exp(scaled), axis=1, keepdims=True))
        policy = scaled - jnp.where(jnp.isfinite(log_sum), log_sum, 0.0)
        value = (top + beta * log_sum)[:, 0]
        return value, (value, policy)

    levels = (final[1:], step[1], ref[1])
    _, (values, policy) = jax.lax.scan(back, final[horizon], levels, reverse=True)
    return jnp.concatenate([values, final[horizon:]]), policy


def _onward(table: jax.Array, value: jax.Array, ended: jax.Array, end: int | None) -> jax.Array:
    """(S, V): the value after each token; after EOS, what a completion that ended there gets."""
    onward = value[table]
    return onward if end is None else onward.at[:, end].set(ended[table[:, end]])


def solve_automaton_hard(
    verifier: Verifier,
    horizon: int,
    *,
    log_ref: AnyArray | None = None,
    tie: float = 0.0,
    max_bytes: int = MAX_BYTES,
) -> HardSolution:
    """Hard value iteration, and the limit of the soft optimum as beta -> 0.

    Tied optima share in proportion to their number of optimal completions (to their P_ref mass).
    tie: tokens whose value lies within this of the best, reward units, count as tied; rewards that
    are sums of step terms need some, for equal sums can round differently.
    """
    if not (math.isfinite(tie) and tie >= 0):
        raise InputError(f"tie must be >= 0, got {tie!r}")
    verifier.check_horizon(horizon)
    machine = verifier.machine
    _check_size(machine, horizon, max_bytes)
    ref = None if log_ref is None else check_reference(machine, horizon, log_ref)
    final, end, table = _finals(verifier, horizon), machine.end, machine.next
    values, mass = final.copy(), np.where(np.isneginf(final), -np.inf, 0.0)
    policy = np.empty((horizon, machine.n_states, machine.vocab))
    for h in reversed(range(horizon)):
        q, weight = values[h + 1][table], mass[h + 1][table]
        if end is not None:
            q[:, end] = final[h + 1][table[:, end]]
            weight[:, end] = np.where(np.isneginf(q[:, end]), -np.inf, 0.0)
        q = q + at_step(verifier.step, h)
        weight = weight + at_step(ref, h)
        q[~machine.allowed | np.isneginf(weight)] = -np.inf
        values[h] = q.max(axis=1)
        best = (q >= values[h][:, None] - tie) & ~np.isneginf(q)
        weight = np.where(best, weight, -np.inf)
        mass[h] = _log_sum(weight)
        policy[h] = weight - np.where(np.isneginf(mass[h]), 0.0, mass[h])[:, None]
    root = float(values[0, machine.start])
    _check_root(root, horizon)
    optima = float(mass[0, machine.start])
    return HardSolution(jnp.asarray(values), jnp.asarray(policy), root, optima)


# --- helpers --------------------------------------------------------------------------------------


def at_step(table: np.ndarray | None, h: int) -> np.ndarray | float:
    """The (S, V) entries of step h of a (S, V) or (H, S, V) table; 0.0 for no table."""
    if table is None:
        return 0.0
    return table[h] if table.ndim == 3 else table


def check_reference(
    machine: Automaton, horizon: int, log_ref: AnyArray
) -> Float[np.ndarray, "*H S V"]:
    """log_ref as float64. Raises InputError naming the first state where it is no distribution."""
    ref = np.asarray(log_ref, dtype=np.float64)
    if ref.shape[-2:] != machine.next.shape or ref.ndim not in (2, 3):
        raise InputError(f"log_ref has shape {ref.shape}, the automaton needs {machine.next.shape}")
    if ref.ndim == 3:
        check_match("log_ref", len(ref), horizon)
    for h, rows in enumerate(ref if ref.ndim == 3 else ref[None]):
        place = f" at step {h}" if ref.ndim == 3 else ""
        if np.isnan(rows).any() or np.isposinf(rows).any():
            state, v = (int(i) for i in np.argwhere(~(rows < np.inf))[0])
            raise InputError(f"log_ref[{state}, {machine.tokens[v]!r}] is {rows[state, v]}{place}")
        total = _log_sum(rows)
        bad = ~np.isneginf(total) & ~(np.abs(total) <= REFERENCE_TOLERANCE)
        if bad.any():
            state = int(np.argmax(bad))
            raise InputError(
                f"the reference sums to {math.exp(total[state])!r} in state {state}{place}, not 1 "
                f"(tolerance {REFERENCE_TOLERANCE})"
            )
    return ref


def _log_sum(rows: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(rows, axis=1))


def _finals(verifier: Verifier, horizon: int) -> Float[np.ndarray, "H1 S"]:
    final = np.broadcast_to(verifier.final, (horizon + 1, verifier.machine.n_states))
    return np.where(verifier.machine.ends, final, -np.inf)


def _by_step(table: np.ndarray | None) -> tuple[jax.Array | None, jax.Array | None]:
    """(the table if it is the same at every step, the table if it is not)."""
    if table is None:
        return None, None
    return (jnp.asarray(table), None) if table.ndim == 2 else (None, jnp.asarray(table))


def _check_size(machine: Automaton, horizon: int, max_bytes: int) -> None:
    needed = 8 * horizon * machine.n_states * machine.vocab
    if needed > max_bytes:
        raise InputError(
            f"a policy over {horizon:,} steps, {machine.n_states:,} states and {machine.vocab:,} "
            f"tokens takes {needed:,} bytes; the limit is {max_bytes:,}"
        )


def _check_root(value: float, horizon: int) -> None:
    if value == -math.inf:
        raise InputError(
            f"no completion of horizon {horizon} exists: every path from the start meets a "
            f"forbidden token, an end that does not accept, or a reference of 0"
        )
