r"""Regular expressions whose letters are tokens: `the (cat | dog)+ . sat?`.

Tokens are separated by white space. `|` is either, `*` any number, `+` at least one, `?` at most
one, `.` any token (never EOS), parentheses group, `()` and an empty alternative are the empty
sequence. A backslash takes the next character as it is: the token `etc.` is written `etc\.`, the
token `*` is `\*` (`escape` does it). An operator binds to the whole token before it, not to its
last letter. The whole completion, EOS not counted, must match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
from jaxtyping import Bool

from theory.automaton.machine import Automaton, Verifier, check_states, check_tokens
from theory.automaton.minimise import refine
from theory.errors import InputError

SPECIAL = "|*+?.()\\"
MAX_DEPTH = 50  # of parentheses
MAX_PATTERN = 2_000  # characters
MAX_SUBSETS = 4_096  # default limit on the states before minimisation
ANY = None  # the letter that stands for every token


def escape(token: str) -> str:
    """The token as a pattern that matches it alone."""
    return "".join("\\" + c if c in SPECIAL else c for c in token)


def regex_verifier(
    pattern: str,
    tokens: Sequence[str],
    *,
    eos: str | None = None,
    value: float = 1.0,
    max_states: int = MAX_SUBSETS,
) -> Verifier:
    """Reward `value` for a completion that matches the pattern, 0 for another."""
    machine, matched = regex_automaton(pattern, tokens, eos=eos, max_states=max_states)
    return Verifier(machine, np.where(matched, value, 0.0))


def regex_constraint(
    pattern: str, tokens: Sequence[str], *, eos: str | None = None, max_states: int = MAX_SUBSETS
) -> Verifier:
    """Reward 0, and no completion but those that match the pattern."""
    machine, matched = regex_automaton(pattern, tokens, eos=eos, max_states=max_states)
    closed = Automaton(machine.tokens, machine.next, machine.start, eos, accepting=matched)
    return Verifier(closed, np.zeros(machine.n_states))


def regex_automaton(
    pattern: str, tokens: Sequence[str], *, eos: str | None = None, max_states: int = MAX_SUBSETS
) -> tuple[Automaton, Bool[np.ndarray, " S"]]:
    """The smallest complete automaton of a pattern, and in which of its states it has matched.

    Thompson's construction, then sets of states, then Moore's minimisation. EOS leaves the state
    as it is. Raises InputError with the position (characters from 0) for a bad pattern or an
    unknown token, and beyond `max_states` states before minimisation.
    """
    check_tokens(tokens, eos)
    if len(pattern) > MAX_PATTERN:
        raise InputError(f"the pattern has {len(pattern):,} characters, more than {MAX_PATTERN:,}")
    parser = _Parser(pattern, frozenset(tokens) - {eos})
    start, accept = parser.parse()
    letters = sorted(parser.net.letters())
    table, matched = _subsets(parser.net, start, accept, letters, max_states)
    classes = refine(table, matched.astype(np.int64))
    first = np.unique(classes, return_index=True)[1]
    table, matched = classes[table[first]], matched[first]
    columns = {letter: i for i, letter in enumerate(letters)}
    width = len(letters)  # the last column is every token that the pattern does not name
    full = table[:, [columns.get(token, width) for token in tokens]]
    if eos is not None:
        full[:, tokens.index(eos)] = np.arange(len(full))
    return Automaton(tuple(tokens), full, int(classes[0]), eos), matched


@dataclass
class _Net:
    """A nondeterministic automaton: at each node, at most one letter to read, and free moves."""

    free: list[list[int]] = field(default_factory=list)
    read: list[tuple[str | None, int] | None] = field(default_factory=list)

    def node(self) -> int:
        self.free.append([])
        self.read.append(None)
        return len(self.free) - 1

    def letters(self) -> set[str]:
        return {move[0] for move in self.read if move is not None and move[0] is not None}

    def closure(self, node: int) -> set[int]:
        """The node with everything that free moves reach from it."""
        stack, seen = [node], {node}
        while stack:
            for target in self.free[stack.pop()]:
                if target not in seen:
                    seen.add(target)
                    stack.append(target)
        return seen


def _subsets(
    net: _Net, start: int, accept: int, letters: list[str], max_states: int
) -> tuple[np.ndarray, np.ndarray]:
    """((states, letters + 1) transitions, (states,) matched); the last column is other tokens.

    A subset is the bits of an integer: one for each node that reads, and the last for `accept`;
    other nodes make no difference. The work for one subset is its reading nodes and the letters.
    """
    readers = [node for node, move in enumerate(net.read) if move is not None]
    bit = {node: 1 << i for i, node in enumerate([*readers, accept])}

    def onward(node: int) -> int:
        return sum(bit[reached] for reached in net.closure(node) if reached in bit)

    moves = [(move[0], onward(move[1])) for move in net.read if move is not None]
    number = {onward(start): 0}
    queue, rows = list(number), []
    for subset in queue:  # grows while it is read
        into: dict[str | None, int] = {}
        for i, (letter, target) in enumerate(moves):
            if subset >> i & 1:
                into[letter] = into.get(letter, 0) | target
        other, row = into.get(ANY, 0), []
        for letter in [*letters, ANY]:
            target = into.get(letter, 0) | other
            if target not in number:
                number[target] = len(number)
                queue.append(target)
                check_states(len(number), max_states, "the automaton of the pattern")
            row.append(number[target])
        rows.append(row)
    return np.asarray(rows), np.asarray([subset & bit[accept] != 0 for subset in queue])


class _Parser:
    """Recursive descent; each rule returns the first and the last node of its part of the net."""

    def __init__(self, pattern: str, tokens: frozenset[str | None]) -> None:
        self.pattern, self.tokens = pattern, tokens
        self.position, self.depth = 0, 0
        self.net = _Net()

    def parse(self) -> tuple[int, int]:
        both = self.either()
        if self.position < len(self.pattern):
            self.fail("unmatched ')'", self.position)
        return both

    def either(self) -> tuple[int, int]:
        branches = [self.sequence()]
        while self.peek() == "|":
            self.position += 1
            branches.append(self.sequence())
        if len(branches) == 1:
            return branches[0]
        first, last = self.net.node(), self.net.node()
        for begin, stop in branches:
            self.net.free[first].append(begin)
            self.net.free[stop].append(last)
        return first, last

    def sequence(self) -> tuple[int, int]:
        first = last = self.net.node()
        while (char := self.peek()) not in ("", "|", ")"):
            if char in "*+?":
                self.fail(f"nothing before {char!r}", self.position)
            begin, stop = self.repeated()
            self.net.free[last].append(begin)
            last = stop
        return first, last

    def repeated(self) -> tuple[int, int]:
        begin, stop = self.atom()
        while (char := self.peek()) and char in "*+?":
            self.position += 1
            first, last = self.net.node(), self.net.node()
            self.net.free[first].append(begin)
            self.net.free[stop].append(last)
            if char in "*?":
                self.net.free[first].append(last)
            if char in "*+":
                self.net.free[stop].append(begin)
            begin, stop = first, last
        return begin, stop

    def atom(self) -> tuple[int, int]:
        at = self.position
        if self.pattern[at] == "(":
            self.position, self.depth = at + 1, self.depth + 1
            if self.depth > MAX_DEPTH:
                self.fail(f"parentheses nested deeper than {MAX_DEPTH}", at)
            both = self.either()
            if self.peek() != ")":
                self.fail("unclosed '('", at)
            self.position, self.depth = self.position + 1, self.depth - 1
            return both
        if self.pattern[at] == ".":
            self.position += 1
            return self.letter(ANY)
        token = self.word()
        if token not in self.tokens:
            self.fail(f"unknown token {token!r} (EOS is none here)", at)
        return self.letter(token)

    def letter(self, token: str | None) -> tuple[int, int]:
        first, last = self.net.node(), self.net.node()
        self.net.read[first] = (token, last)
        return first, last

    def word(self) -> str:
        at, chars = self.position, []
        while self.position < len(self.pattern):
            char = self.pattern[self.position]
            if char == "\\":
                self.position += 1
                if self.position == len(self.pattern):
                    self.fail("nothing after the backslash", self.position - 1)
                chars.append(self.pattern[self.position])
            elif char in SPECIAL or char.isspace():
                break
            else:
                chars.append(char)
            self.position += 1
        if self.position == at:
            self.fail("no token", at)
        return "".join(chars)

    def peek(self) -> str:
        """The next character that is no white space; '' at the end."""
        while self.position < len(self.pattern) and self.pattern[self.position].isspace():
            self.position += 1
        return self.pattern[self.position : self.position + 1]

    def fail(self, what: str, position: int) -> NoReturn:
        raise InputError(f"pattern {_shorten(self.pattern)}: {what} at position {position}")


def _shorten(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")
