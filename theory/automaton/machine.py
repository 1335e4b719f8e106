"""Finite automata over tokens, rewards that see a completion through one, and products of them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from theory._x64 import AnyArray
from theory.errors import InputError

MAX_STATES = 2**16  # default limit on the states that a construction may make


@dataclass(frozen=True, eq=False)
class Automaton:
    """A deterministic automaton that reads a completion token by token.

    next: (S, V) state after each token. With `eos` a completion may end early: it then ends in
    next[s, eos], and nothing is read after it. A completion of H tokens that does not end in EOS
    is cut by the horizon, as in `TokenTree`.
    forbidden: (S, V), tokens that may not follow a state. accepting: (S,), states in which a
    completion may end (all, if not given). Raises InputError naming the bad entry.
    """

    tokens: tuple[str, ...]
    next: np.ndarray  # (S, V) int
    start: int = 0
    eos: str | None = None
    forbidden: np.ndarray | None = None  # (S, V) bool
    accepting: np.ndarray | None = None  # (S,) bool

    def __post_init__(self) -> None:
        check_tokens(self.tokens, self.eos)
        table = np.asarray(self.next)
        if table.ndim != 2 or table.shape[0] < 1 or table.shape[1] != len(self.tokens):
            raise InputError(
                f"next has shape {table.shape}; it needs one row a state and "
                f"{len(self.tokens)} columns, one a token"
            )
        if not np.issubdtype(table.dtype, np.integer):
            raise InputError(f"next must hold state numbers, got {table.dtype}")
        bad = np.argwhere((table < 0) | (table >= len(table)))
        if len(bad):
            state, token = (int(i) for i in bad[0])
            raise InputError(
                f"next[{state}, {self.tokens[token]!r}] is {table[state, token]}, "
                f"there are states 0 to {len(table) - 1}"
            )
        if not 0 <= self.start < len(table):
            raise InputError(f"start is {self.start}, there are states 0 to {len(table) - 1}")
        self._freeze("next", table.astype(np.int64))
        for name, shape in (("forbidden", table.shape), ("accepting", table.shape[:1])):
            value = getattr(self, name)
            if value is not None:
                if np.shape(value) != shape or np.asarray(value).dtype != np.bool_:
                    raise InputError(
                        f"{name} must be booleans of shape {shape}, got "
                        f"{np.asarray(value).dtype} of shape {np.shape(value)}"
                    )
                self._freeze(name, np.array(value))

    def _freeze(self, name: str, array: np.ndarray) -> None:
        array.setflags(write=False)
        object.__setattr__(self, name, array)

    @property
    def n_states(self) -> int:
        """S."""
        return self.next.shape[0]

    @property
    def vocab(self) -> int:
        """V, the number of tokens (EOS included)."""
        return len(self.tokens)

    @property
    def end(self) -> int | None:
        """The column of EOS, None without one."""
        return None if self.eos is None else self.tokens.index(self.eos)

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "S V"]:
        """(S, V): which tokens may follow each state."""
        if self.forbidden is None:
            return np.ones(self.next.shape, dtype=bool)
        return ~self.forbidden

    @cached_property
    def ends(self) -> Bool[np.ndarray, " S"]:
        """(S,): in which states a completion may end."""
        return np.ones(self.n_states, dtype=bool) if self.accepting is None else self.accepting

    def completable(self, horizon: int) -> Bool[np.ndarray, "H1 S"]:
        """(H + 1, S): from which states at each step some completion of the horizon exists."""
        check_horizon(horizon)
        live = np.zeros((horizon + 1, self.n_states), dtype=bool)
        live[horizon] = self.ends
        for h in reversed(range(horizon)):
            live[h] = (self.open_tokens(live[h + 1])).any(axis=1)
        return live

    def open_tokens(self, live_next: Bool[np.ndarray, " S"]) -> Bool[np.ndarray, "S V"]:
        """(S, V): allowed tokens after which the completion has ended well or is still live."""
        good = live_next[self.next]
        if self.end is not None:
            good[:, self.end] = self.ends[self.next[:, self.end]]
        return good & self.allowed

    def path(self, completion: Sequence[str]) -> list[int]:
        """The states along a completion, the start first; one more than its tokens.

        Raises InputError for an unknown or forbidden token, a token after EOS, or an end in a state
        that does not accept.
        """
        text, states = " ".join(completion), [self.start]
        for i, token in enumerate(completion):
            if token not in self._columns:
                raise InputError(f"unknown token {token!r} in {text!r}")
            if i and completion[i - 1] == self.eos:
                raise InputError(f"{text!r} goes on after EOS {self.eos!r}")
            column = self._columns[token]
            if not self.allowed[states[-1], column]:
                raise InputError(f"token {token!r}, number {i + 1} of {text!r}, is forbidden there")
            states.append(int(self.next[states[-1], column]))
        if not self.ends[states[-1]]:
            raise InputError(f"{text!r} ends in state {states[-1]}, which does not accept")
        return states

    def log_prob(self, log_policy: AnyArray, completion: Sequence[str]) -> float:
        """log P(completion) under a (H, S, V) or (S, V) table of log-probabilities, nats."""
        table, total = np.asarray(log_policy), 0.0
        if table.ndim == 3 and len(completion) > len(table):
            raise InputError(f"{len(completion)} tokens, and the policy has horizon {len(table)}")
        for h, (state, token) in enumerate(
            zip(self.path(completion)[:-1], completion, strict=True)
        ):
            row = table[state] if table.ndim == 2 else table[h, state]
            total += float(row[self._columns[token]])
        return total

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {token: v for v, token in enumerate(self.tokens)}


@dataclass(frozen=True, eq=False)
class Verifier:
    """A reward that sees a completion through an automaton, reward units.

    r(xi) = final[end state] + sum_h step[h, s_h, a_h]. final: (S,), or (H + 1, S) with one row a
    number of tokens, EOS counted. step: (S, V), or (H, S, V), or None for no such terms. Finite
    everywhere; what must not happen belongs into `forbidden` and `accepting`.
    """

    machine: Automaton
    final: np.ndarray
    step: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, shape in (("final", (self.machine.n_states,)), ("step", self.machine.next.shape)):
            value = getattr(self, name)
            if value is None and name == "step":
                continue
            array = np.asarray(value, dtype=np.float64)
            if array.shape[-len(shape) :] != shape or array.ndim > len(shape) + 1:
                raise InputError(f"{name} has shape {array.shape}, the automaton needs {shape}")
            if not np.isfinite(array).all():
                place = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
                raise InputError(f"{name}{list(place)} is {array[place]!r}, not finite")
            object.__setattr__(self, name, array)
        if self.final_horizon is not None and self.step is not None and self.step.ndim == 3:
            check_match("step", len(self.step), self.final_horizon)

    @property
    def final_horizon(self) -> int | None:
        """H, if `final` depends on the number of tokens."""
        return None if self.final.ndim == 1 else len(self.final) - 1

    def check_horizon(self, horizon: int) -> None:
        """Raises InputError unless the reward is defined for completions of this horizon."""
        check_horizon(horizon)
        if self.final_horizon is not None:
            check_match("final", self.final_horizon, horizon)
        if self.step is not None and self.step.ndim == 3:
            check_match("step", len(self.step), horizon)

    def reward(self, completion: Sequence[str]) -> float:
        """r of one completion, by running it through the automaton."""
        states, n = self.machine.path(completion), len(completion)
        for name, table, ndim in (("final", self.final, 2), ("step", self.step, 3)):
            if table is not None and table.ndim == ndim:
                horizon = len(table) - (name == "final")
                if n > horizon:
                    raise InputError(f"{n} tokens, and {name} is given for horizon {horizon}")
        final = self.final if self.final_horizon is None else self.final[n]
        total = float(final[states[-1]])
        if self.step is not None:
            for h, token in enumerate(completion):
                step = self.step[h] if self.step.ndim == 3 else self.step
                total += float(step[states[h], self.machine.tokens.index(token)])
        return total


def product(left: Verifier, right: Verifier, *, max_states: int = MAX_STATES) -> Verifier:
    """The sum of two rewards, on the pairs of states that some completion reaches.

    A token is forbidden where either forbids it, a completion may end where both accept.
    Raises InputError if tokens, EOS or horizons differ, or beyond `max_states` pairs.
    """
    pairs, table = pair_states(left.machine, right.machine, max_states=max_states)
    a, b = pairs.T
    machine = Automaton(
        left.machine.tokens,
        table,
        0,
        left.machine.eos,
        ~(left.machine.allowed[a] & right.machine.allowed[b]),
        left.machine.ends[a] & right.machine.ends[b],
    )
    final = _add("final", left.final[..., a], right.final[..., b], 1)
    step = None if left.step is None else left.step[..., a, :]
    if right.step is not None:
        other = right.step[..., b, :]
        step = other if step is None else _add("step", step, other, 2)
    return Verifier(machine, final, step)


def pair_states(
    left: Automaton, right: Automaton, *, max_states: int = MAX_STATES
) -> tuple[Int[np.ndarray, "pairs 2"], Int[np.ndarray, "pairs V"]]:
    """The reachable pairs of states, the start first, and their transitions.

    Forbidden tokens are followed too, so that any policy on either automaton lives on the pairs.
    """
    if left.tokens != right.tokens or left.eos != right.eos:
        raise InputError("the two automata read different tokens, or end by different ones")
    width = right.n_states
    codes = np.array([left.start * width + right.start])
    seen, frontier = list(codes), codes
    known = set(seen)
    while len(frontier):
        a, b = np.divmod(frontier, width)
        reached = np.unique(left.next[a] * width + right.next[b])
        frontier = np.array([code for code in reached if code not in known], dtype=np.int64)
        known.update(frontier)
        seen.extend(frontier)
        check_states(len(seen), max_states, "the product")
    order = np.array(seen)
    a, b = np.divmod(order, width)
    sorter = np.argsort(order)
    table = np.empty((len(order), left.vocab), dtype=np.int64)
    for i in range(len(order)):  # one row at a time: the table is the largest thing here
        target = left.next[a[i]] * width + right.next[b[i]]
        table[i] = sorter[np.searchsorted(order, target, sorter=sorter)]
    return np.stack([a, b], axis=1), table


def _add(name: str, left: np.ndarray, right: np.ndarray, rank: int) -> np.ndarray:
    if left.ndim == right.ndim > rank:
        check_match(name, len(left), len(right))
    return left + right


def check_tokens(tokens: Sequence[str], eos: str | None) -> None:
    """Raises InputError for empty or double tokens, white space, or an EOS that is no token."""
    if not tokens:
        raise InputError("the automaton has no tokens")
    for token, count in Counter(tokens).items():
        if token.split() != [token]:
            raise InputError(f"token {token!r} is empty or contains white space")
        if count > 1:
            raise InputError(f"token {token!r} is named twice")
    if eos is not None and eos not in tokens:
        shown = " ".join(itertools.islice(tokens, 10))
        raise InputError(f"eos {eos!r} is none of the {len(tokens)} tokens {shown} ...")


def check_horizon(horizon: int) -> None:
    """Raises InputError for a horizon below 1."""
    if horizon < 1:
        raise InputError(f"horizon must be at least 1, got {horizon}")


def check_match(name: str, have: int, need: int) -> None:
    """Raises InputError if a table made for one horizon is used with another."""
    if have != need:
        raise InputError(f"{name} is given for horizon {have}, not {need}")


def check_states(count: int, limit: int, what: str) -> None:
    """Raises InputError beyond the limit on states."""
    if count > limit:
        raise InputError(f"{what} has more than {limit:,} states")
