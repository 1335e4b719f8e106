"""Token trees of fixed depth: prompts, tokens, EOS, forbidden tokens, leaf <-> tokens."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
from jaxtyping import Bool

from theory.errors import InputError
from theory.sizes import EXACT_DIGITS, digits_of_power, power_in_words

MAX_BYTES = 2 * 2**30  # default limit for the float64 arrays of one soft value iteration


@dataclass(frozen=True)
class TokenTree:
    """All completions of at most `horizon` tokens under each prompt, as one dense array a level.

    Level h holds V**h states a prompt, in lexicographic order of token ids (first token most
    significant); level H holds the L = V**H leaf slots. With `eos` a completion may end early; it
    then occupies the slot whose remaining tokens are EOS and the other slots below it are masked.
    A completion of H tokens need not end in EOS (it is cut by the horizon).

    weights: rho0 > 0, one a prompt, sum 1. forbidden: prefixes whose last token is forbidden at the
    state before it (for every prompt). max_bytes: what the values and the policy of all levels and
    one temporary of the last may take. Raises InputError naming the bad value.
    """

    tokens: tuple[str, ...]
    horizon: int
    prompts: tuple[str, ...]
    weights: tuple[float, ...]
    eos: str | None = None
    forbidden: tuple[tuple[str, ...], ...] = ()
    max_bytes: int = MAX_BYTES

    def __post_init__(self) -> None:
        _check_names("token", self.tokens)
        _check_names("prompt", self.prompts)
        if any(not token or token.split() != [token] for token in self.tokens):
            bad = next(token for token in self.tokens if token.split() != [token])
            raise InputError(f"token {bad!r} is empty or contains white space")
        if self.horizon < 1:
            raise InputError(f"horizon must be at least 1, got {self.horizon}")
        self._check_weights()
        if self.eos is not None and self.eos not in self.tokens:
            raise InputError(f"eos {self.eos!r} is none of the tokens {list(self.tokens)}")
        self._check_size()
        self._check_forbidden()

    # --- sizes ------------------------------------------------------------------------------------

    @property
    def vocab(self) -> int:
        """V, the number of tokens (EOS included)."""
        return len(self.tokens)

    @property
    def n_prompts(self) -> int:
        """P."""
        return len(self.prompts)

    @property
    def n_leaves(self) -> int:
        """L = V**H leaf slots a prompt; `leaf_mask` says which are completions."""
        return self.vocab**self.horizon

    @property
    def rho0(self) -> np.ndarray:
        """Prompt weights, (P,) float64."""
        return np.asarray(self.weights, dtype=np.float64)

    # --- masks ------------------------------------------------------------------------------------

    @cached_property
    def allowed_levels(self) -> tuple[np.ndarray, ...]:
        """`allowed(h)` for h = 0..H-1."""
        blocked: dict[int, list[int]] = {}
        for prefix in self.forbidden:
            blocked.setdefault(len(prefix) - 1, []).append(self._index(prefix))
        live = np.ones(1, dtype=bool)
        ended = np.zeros(1, dtype=bool)
        end = None if self.eos is None else self.tokens.index(self.eos)
        levels = []
        for h in range(self.horizon):
            mask = np.repeat(live[:, None], self.vocab, axis=1)
            if end is not None:
                mask[ended] = False
                mask[ended, end] = True
            mask.reshape(-1)[blocked.get(h, [])] = False
            empty = live & ~mask.any(axis=1)
            if empty.any():
                state = self._words(int(np.argmax(empty)), h)
                raise InputError(f"every token is forbidden at state {' '.join(state)!r}")
            mask.setflags(write=False)
            levels.append(mask)
            live = mask.reshape(-1)
            ended = np.repeat(ended, self.vocab)
            if end is not None:
                ended[end :: self.vocab] = True
            ended &= live
        return tuple(levels)

    def allowed(self, h: int) -> Bool[np.ndarray, "S V"]:
        """(V**h, V): which tokens may follow each state of level h; all False where no state is."""
        return self.allowed_levels[h]

    @cached_property
    def leaf_mask(self) -> Bool[np.ndarray, " L"]:
        """(L,): which leaf slots are completions."""
        return self.allowed_levels[-1].reshape(-1)

    @cached_property
    def leaves(self) -> np.ndarray:
        """Leaf slots that are completions, ascending, (number of completions,) int."""
        return np.flatnonzero(self.leaf_mask)

    # --- leaf <-> tokens --------------------------------------------------------------------------

    def leaf_tokens(self, leaf: int) -> tuple[str, ...]:
        """The tokens of one completion, cut after its first EOS. Raises InputError if masked."""
        if not 0 <= leaf < self.n_leaves or not self.leaf_mask[leaf]:
            raise InputError(f"leaf {leaf} is no completion of this tree")
        words = self._words(leaf, self.horizon)
        if self.eos in words:
            words = words[: words.index(self.eos) + 1]
        return words

    def leaf_index(self, tokens: Sequence[str]) -> int:
        """The slot of a completion given by its tokens, the inverse of `leaf_tokens`."""
        words = tuple(tokens)
        if self.eos is not None and words and words[-1] == self.eos:
            words += (self.eos,) * (self.horizon - len(words))
        if len(words) != self.horizon:
            raise InputError(f"{' '.join(tokens)!r} is no completion of horizon {self.horizon}")
        leaf = self._index(words)
        if not self.leaf_mask[leaf] or self.leaf_tokens(leaf) != tuple(tokens):
            raise InputError(f"{' '.join(tokens)!r} is no completion of this tree")
        return leaf

    def to_networkx(self) -> nx.DiGraph:
        """The tree of one prompt: nodes are token tuples, each edge carries its token."""
        graph = nx.DiGraph()
        graph.add_node(())
        for leaf in self.leaves:
            words = self.leaf_tokens(int(leaf))
            for h, token in enumerate(words):
                graph.add_edge(words[:h], words[: h + 1], token=token)
        return graph

    # --- helpers ----------------------------------------------------------------------------------

    def _words(self, index: int, level: int) -> tuple[str, ...]:
        words = []
        for _ in range(level):
            index, last = divmod(index, self.vocab)
            words.append(self.tokens[last])
        return tuple(reversed(words))

    def _index(self, words: Sequence[str]) -> int:
        index = 0
        for word in words:
            if word not in self._place:
                raise InputError(
                    f"unknown token {word!r} in {' '.join(words)!r}; known: {list(self.tokens)}"
                )
            index = index * self.vocab + self._place[word]
        return index

    @cached_property
    def _place(self) -> dict[str, int]:
        """Token -> its number."""
        return {token: place for place, token in enumerate(self.tokens)}

    def _check_weights(self) -> None:
        if len(self.weights) != len(self.prompts):
            raise InputError(f"{len(self.weights)} weights for {len(self.prompts)} prompts")
        for prompt, weight in zip(self.prompts, self.weights, strict=True):
            if not (math.isfinite(weight) and weight > 0):
                raise InputError(f"weight of prompt {prompt!r} must be > 0, got {weight!r}")
        if abs(math.fsum(self.weights) - 1.0) > 1e-9:
            raise InputError(f"prompt weights sum to {math.fsum(self.weights)!r}, not 1")

    def _check_size(self) -> None:
        """Values: V**0 + ... + V**H a prompt; policy: V**1 + ... + V**H; one temporary: V**H."""
        vocab, horizon, row = self.vocab, self.horizon, 8 * self.n_prompts
        if digits_of_power(vocab, horizon) < EXACT_DIGITS:
            last = vocab**horizon
            values = horizon + 1 if vocab == 1 else (last * vocab - 1) // (vocab - 1)
            total = row * (values + values - 1 + last)
            if total <= self.max_bytes:
                return
            needed = f"{total:,}"
        else:
            levels = 1 + 2 * vocab / (vocab - 1)
            needed = f"about 10^{digits_of_power(vocab, horizon, row * levels)}"
        raise InputError(
            f"the dense tree does not fit: {vocab} tokens at horizon {horizon} make "
            f"{power_in_words(vocab, horizon)} leaves a prompt, {needed} bytes for the values and "
            f"policies of all levels and one temporary, {self.n_prompts} prompt(s); the limit is "
            f"{self.max_bytes:,} bytes"
        )

    def _check_forbidden(self) -> None:
        for prefix in self.forbidden:
            if not 1 <= len(prefix) <= self.horizon:
                raise InputError(
                    f"forbidden prefix {prefix!r} must have 1 to {self.horizon} tokens"
                )
            self._index(prefix)
            if self.eos in prefix[:-1]:
                raise InputError(f"forbidden prefix {prefix!r} goes on after EOS {self.eos!r}")
        _ = self.allowed_levels  # raises if a state is left without a token


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not names:
        raise InputError(f"the tree has no {kind}s")
    doubled = sorted(name for name, count in Counter(names).items() if count > 1)
    if doubled:
        raise InputError(f"{kind} {doubled[0]!r} is named twice")
