"""What a policy over (step, state) does: who is where, sampling, KL, entropy, rewards, sizes.

A policy is a (H, S, V) table of log-probabilities in nats; one step is held at a time, so nothing
here needs more memory than the table itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from theory._x64 import AnyArray
from theory.automaton.machine import Automaton, Verifier, check_match, pair_states
from theory.automaton.solve import at_step
from theory.errors import InputError

TOLERANCE = 1e-9  # on the sum of a policy's probabilities at a state
PHASE = 0.381966  # where a rounding cell begins, so that 0, 1/2 and 1/V do not lie on its edge


@dataclass(frozen=True)
class Occupancy:
    """Where completions are, as probabilities."""

    live: Float[np.ndarray, "H1 S"]  # at state s after h tokens and not ended
    ended: Float[np.ndarray, "H1 S"]  # ended in state s by EOS, EOS being token number h

    @property
    def final(self) -> Float[np.ndarray, " S"]:
        """(S,): the distribution of the end state, by EOS or by the horizon."""
        return self.live[-1] + self.ended.sum(axis=0)

    @property
    def lengths(self) -> Float[np.ndarray, " H1"]:
        """(H + 1,): the distribution of the number of tokens, EOS counted."""
        lengths = self.ended.sum(axis=1)
        lengths[-1] += self.live[-1].sum()
        return lengths


@dataclass(frozen=True)
class Samples:
    """Completions as token numbers."""

    tokens: Int[np.ndarray, "N H"]  # EOS from the first EOS on
    lengths: Int[np.ndarray, " N"]  # number of tokens, EOS counted


@dataclass(frozen=True)
class Sizes:
    """Table entries: what it takes to verify, and what it takes to generate."""

    verifier: int  # S V + S: the transitions, and one number a state
    generator: int  # distinct rows times V
    reachable_rows: int  # (step, state) pairs that the policy visits
    distinct_rows: int  # of those, rows that differ by more than the precision


def occupancy(machine: Automaton, log_policy: AnyArray) -> Occupancy:
    """Where the completions of a policy are after each number of tokens.

    Raises InputError as `check_policy` does, and where the policy comes to a state at which its row
    is -inf everywhere.
    """
    policy = check_policy(machine, log_policy)
    live = np.zeros((len(policy) + 1, machine.n_states))
    ended = np.zeros_like(live)
    live[0, machine.start] = 1.0
    for h, flow in enumerate(_flows(machine, policy, live)):
        if machine.end is not None:
            into = machine.next[:, machine.end]
            ended[h + 1] = np.bincount(into, flow[:, machine.end], machine.n_states)
            flow[:, machine.end] = 0.0
        live[h + 1] = np.bincount(machine.next.ravel(), flow.ravel(), machine.n_states)
    return Occupancy(live, ended)


def _flows(machine: Automaton, policy: np.ndarray, live: np.ndarray) -> Iterator[np.ndarray]:
    """(S, V) a step: the probability of being at s and taking a; `live` fills as it is read."""
    for h in range(len(policy)):
        stuck = (live[h] > 0) & np.isneginf(policy[h]).all(axis=1)
        if stuck.any():
            state = int(np.argmax(stuck))
            raise InputError(
                f"log_policy[{h}, {state}] is -inf everywhere, and the policy comes there with "
                f"probability {float(live[h, state])!r}"
            )
        yield live[h][:, None] * np.exp(policy[h])


def expected_reward(verifier: Verifier, log_policy: AnyArray) -> float:
    """E_{xi ~ P} r(xi), reward units."""
    policy = check_policy(verifier.machine, log_policy)
    verifier.check_horizon(len(policy))
    where = occupancy(verifier.machine, policy)
    ends = where.ended.copy()
    ends[-1] += where.live[-1]
    total = _dot(ends, np.broadcast_to(verifier.final, ends.shape))
    if verifier.step is None:
        return total
    return total + expected_term(verifier.machine, policy, verifier.step)


def expected_term(machine: Automaton, log_policy: AnyArray, term: AnyArray) -> float:
    """E of a sum over steps of term[s_h, a_h], or term[h, s_h, a_h]; finite terms."""
    policy = check_policy(machine, log_policy)
    table = _check_term(machine, term, len(policy))
    flows = _flows(machine, policy, occupancy(machine, policy).live)
    return math.fsum(_dot(flow, np.asarray(at_step(table, h))) for h, flow in enumerate(flows))


def policy_entropy(machine: Automaton, log_policy: AnyArray) -> float:
    """H(P), nats, of the completion distribution."""
    policy = check_policy(machine, log_policy)
    flows = _flows(machine, policy, occupancy(machine, policy).live)
    return -math.fsum(_dot(flow, policy[h]) for h, flow in enumerate(flows))


def policy_kl(machine: Automaton, log_p: AnyArray, log_q: AnyArray) -> float:
    """KL(P || Q) of the completion distributions of two policies on one automaton, nats.

    log_p: (H, S, V). log_q: (H, S, V) or (S, V). inf where P goes and Q does not.
    """
    p = check_policy(machine, log_p)
    q = _check_other(machine, log_q, len(p))
    every = np.arange(machine.n_states)
    return _kl(occupancy(machine, p).live, p, q, every, every)


def policy_kl_between(
    machine_p: Automaton, log_p: AnyArray, machine_q: Automaton, log_q: AnyArray
) -> float:
    """KL(P || Q), nats, of policies over two automata that read the same tokens.

    Computed on the reachable pairs of states; what P never does, the pairs may forbid or not.
    """
    p = check_policy(machine_p, log_p)
    q = _check_other(machine_q, log_q, len(p))
    pairs, table = pair_states(machine_p, machine_q)
    both = Automaton(machine_p.tokens, table, 0, machine_p.eos)
    live = np.zeros((len(p) + 1, len(pairs)))
    live[0, 0] = 1.0
    for h in range(len(p)):
        flow = live[h][:, None] * np.exp(p[h][pairs[:, 0]])
        if both.end is not None:
            flow[:, both.end] = 0.0
        live[h + 1] = np.bincount(table.ravel(), flow.ravel(), len(pairs))
    return _kl(live, p, q, pairs[:, 0], pairs[:, 1])


def _kl(
    live: np.ndarray, p: np.ndarray, q: np.ndarray, rows_p: np.ndarray, rows_q: np.ndarray
) -> float:
    terms = []
    for h in range(len(p)):
        held = np.flatnonzero(live[h])
        log_p, log_q = p[h][rows_p[held]], np.asarray(at_step(q, h))[rows_q[held]]
        flow = live[h][held][:, None] * np.exp(log_p)
        terms.append(_dot(flow, np.where(flow > 0, log_p, 0.0) - np.where(flow > 0, log_q, 0.0)))
    return math.inf if math.inf in terms else math.fsum(terms)


def merge_states(
    machine: Automaton, log_policy: AnyArray, labels: Int[np.ndarray, " S"]
) -> tuple[Float[np.ndarray, "H S V"], float]:
    """The best policy that sees only the step and a label of the state, and its KL, nats.

    It minimises KL(P || Q) over all Q that are equal in states of one label: the conditional of P
    given step and label. Returned as a (H, S, V) table; -inf for labels that P does not meet then.
    """
    policy = check_policy(machine, log_policy)
    if np.shape(labels) != (machine.n_states,):
        raise InputError(f"labels have shape {np.shape(labels)}, not one a state")
    groups = np.unique(labels, return_inverse=True)[1].reshape(-1)
    live, merged = occupancy(machine, policy).live, np.empty(policy.shape)
    for h, flow in enumerate(_flows(machine, policy, live)):
        total = np.zeros((groups.max() + 1, machine.vocab))
        np.add.at(total, groups, flow)
        mass = total.sum(axis=1, keepdims=True)
        with np.errstate(divide="ignore"):
            merged[h] = np.log(total / np.where(mass > 0, mass, 1.0))[groups]
    return merged, policy_kl(machine, policy, merged)


# --- sampling -------------------------------------------------------------------------------------


def sample_completions(machine: Automaton, log_policy: AnyArray, key: jax.Array, n: int) -> Samples:
    """n independent completions of a policy, token by token, from its exact conditionals."""
    policy = check_policy(machine, log_policy)
    if n < 1:
        raise InputError(f"the number of samples must be at least 1, got {n}")
    if np.isneginf(policy[0, machine.start]).all():
        raise InputError("the policy has no token at the start")
    tokens = np.asarray(
        _draw(jnp.asarray(machine.next), jnp.asarray(policy), key, machine.start, machine.end, n)
    ).T
    lengths = np.full(n, len(policy))
    if machine.end is not None:
        ended = tokens == machine.end
        lengths = np.where(ended.any(axis=1), ended.argmax(axis=1) + 1, lengths)
    return Samples(tokens, lengths)


@functools.partial(jax.jit, static_argnums=(3, 4, 5))
def _draw(
    table: jax.Array, policy: jax.Array, key: jax.Array, start: int, end: int | None, n: int
) -> jax.Array:
    """(H, n) token numbers: the first token whose cumulated probability exceeds a uniform draw."""
    vocab = table.shape[1]
    halvings = max(vocab - 1, 1).bit_length()

    def step(carry: tuple[jax.Array, jax.Array], level: tuple[jax.Array, jax.Array]):
        state, done = carry
        rows, key_h = level
        cumulated = jnp.cumsum(jnp.exp(rows), axis=1)
        target = jax.random.uniform(key_h, (n,)) * cumulated[state, -1]

        def halve(_: jax.Array, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            low, high = bounds
            middle = (low + high) // 2
            right = cumulated[state, middle] <= target
            return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)

        bounds = (jnp.zeros(n, jnp.int64), jnp.full(n, vocab - 1, jnp.int64))
        token, _ = jax.lax.fori_loop(0, halvings, halve, bounds)
        if end is not None:
            token = jnp.where(done, end, token)
            done = done | (token == end)
        return (table[state, token], done), token

    first = (jnp.full(n, start, jnp.int64), jnp.zeros(n, bool))
    return jax.lax.scan(step, first, (policy, jax.random.split(key, len(policy))))[1]


# --- sizes ----------------------------------------------------------------------------------------


def table_sizes(machine: Automaton, log_policy: AnyArray, *, precision: float = 1e-9) -> Sizes:
    """How large the verifier's and the generator's tables are, in entries.

    The verifier: S V transitions and S final rewards. The generator: one row of V probabilities
    for each (step, state) that it visits; rows whose probabilities round to the same multiples of
    `precision` count once. Minimise the automaton first (`minimise`), or S itself is inflated.
    """
    if not 0 < precision < 1:
        raise InputError(f"precision must be between 0 and 1, got {precision!r}")
    policy = check_policy(machine, log_policy)
    here = np.zeros(machine.n_states, dtype=bool)
    here[machine.start] = True
    reachable, distinct = 0, set()
    for level in policy:
        rows = np.flatnonzero(here & ~np.isneginf(level).all(axis=1))
        reachable += len(rows)
        cells = np.floor(np.exp(level[rows]) / precision + PHASE).astype(np.int64)
        distinct.update(cell.tobytes() for cell in cells)
        taken = ~np.isneginf(level[rows])
        if machine.end is not None:
            taken[:, machine.end] = False
        here = np.zeros(machine.n_states, dtype=bool)
        here[machine.next[rows][taken]] = True
    states, vocab = machine.next.shape
    return Sizes(states * vocab + states, len(distinct) * vocab, reachable, len(distinct))


# --- checks at the boundary -----------------------------------------------------------------------


def check_policy(machine: Automaton, log_policy: AnyArray) -> Float[np.ndarray, "H S V"]:
    """The policy as float64.

    Raises InputError for a wrong shape, NaN or +inf, a row that is neither -inf everywhere nor sums
    to 1 within TOLERANCE, and a forbidden token whose entry is not -inf.
    """
    policy = np.asarray(log_policy, dtype=np.float64)
    if policy.ndim != 3 or policy.shape[1:] != machine.next.shape or not len(policy):
        states, vocab = machine.next.shape
        raise InputError(
            f"log_policy has shape {policy.shape}, the automaton needs (H, {states}, {vocab})"
        )
    _check_rows(machine, policy, "log_policy")
    if machine.forbidden is not None:
        for h, rows in enumerate(policy):
            bad = machine.forbidden & ~np.isneginf(rows)
            if bad.any():
                state, v = (int(i) for i in np.argwhere(bad)[0])
                raise InputError(
                    f"log_policy[{h}, {state}, {v}] is {rows[state, v]}, and token "
                    f"{machine.tokens[v]!r} is forbidden in state {state}"
                )
    return policy


def _check_other(machine: Automaton, log_q: AnyArray, horizon: int) -> np.ndarray:
    """The second policy of a KL, (H, S, V) or (S, V), as float64; it may use forbidden tokens."""
    table = np.asarray(log_q, dtype=np.float64)
    _check_shape(machine, table, "log_q", horizon)
    _check_rows(machine, table, "log_q")
    return table


def _check_term(machine: Automaton, term: AnyArray, horizon: int) -> np.ndarray:
    table = np.asarray(term, dtype=np.float64)
    _check_shape(machine, table, "term", horizon)
    bad = ~np.isfinite(table)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(f"term{list(place)} is {table[place]}")
    return table


def _check_shape(machine: Automaton, table: np.ndarray, name: str, horizon: int) -> None:
    if table.ndim not in (2, 3) or table.shape[-2:] != machine.next.shape:
        raise InputError(
            f"{name} has shape {table.shape}, the automaton needs {machine.next.shape}"
        )
    if table.ndim == 3:
        check_match(name, len(table), horizon)


def _check_rows(machine: Automaton, table: np.ndarray, name: str) -> None:
    """Raises InputError unless every row is -inf everywhere or sums to 1 within TOLERANCE."""
    for h, rows in enumerate(table if table.ndim == 3 else table[None]):
        step = [h] if table.ndim == 3 else []
        bad = ~(rows < np.inf)
        if bad.any():
            state, v = (int(i) for i in np.argwhere(bad)[0])
            raise InputError(f"{name}{[*step, state, v]} is {rows[state, v]}")
        with np.errstate(over="ignore"):
            total = np.exp(rows).sum(axis=1)
        bad = ~(np.abs(total - 1.0) <= TOLERANCE) & ~np.isneginf(rows).all(axis=1)
        if bad.any():
            state = int(np.argmax(bad))
            raise InputError(
                f"{name}{[*step, state]} sums to {float(total[state])!r} in probability, not 1 "
                f"(tolerance {TOLERANCE})"
            )


def _dot(weights: np.ndarray, values: np.ndarray) -> float:
    """sum of weights * values; a weight of 0 makes 0, whatever the value."""
    held = weights > 0
    return float(np.sum(weights[held] * values[held]))
