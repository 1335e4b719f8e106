"""From the logits of every state, or the rewards of every completion, to log P of completions.

Any token tree. Arrays are (P, S, V, B) a level and (P, L, B) at the leaves: prompts, states,
tokens, and problems that are solved together (B last, so that the processor's lanes run over them).
Slots that are no completion have log P = -inf.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import theory._x64  # noqa: F401
from theory.tree import TokenTree

Masks = tuple[np.ndarray, ...]  # (S, V) a level; empty for a complete tree


def masks(tree: TokenTree) -> Masks:
    """Which tokens may follow each state, a level; everything where no state is. () if complete."""
    if tree.eos is None and not tree.forbidden:
        return ()
    return tuple(a | ~a.any(axis=1, keepdims=True) for a in tree.allowed_levels)


def live_entries(tree: TokenTree) -> tuple[int, ...]:
    """For each level: its (prompt, state, token) where the state leaves a choice."""
    counts = [a.sum(axis=1) for a in tree.allowed_levels]
    return tuple(tree.n_prompts * int(c[c > 1].sum()) for c in counts)


def tabular_rank(tree: TokenTree) -> int:
    """Rank of d log P / d logits for all policies: a prompt's completions less one, summed.

    A state with c allowed tokens gives c - 1, and these sum to that (each token that is allowed
    beside another adds a completion).
    """
    return tree.n_prompts * (len(tree.leaves) - 1)


def normalised(
    levels: Sequence[Float[jax.Array, "P S V B"]], allowed: Sequence[jax.Array]
) -> list[Float[jax.Array, "P S V B"]]:
    """log pi(a | s) = logits - logsumexp over the allowed tokens; -inf at the others."""
    out = []
    for h, logits in enumerate(levels):
        z = jnp.where(allowed[h][None, :, :, None], logits, -jnp.inf) if allowed else logits
        out.append(z - _logsumexp(z))
    return out


def chained(log_policy: Sequence[Float[jax.Array, "P S V B"]]) -> Float[jax.Array, "P L B"]:
    """log P(xi | x) = sum_h log pi(a_h | s_h)."""
    prompts, _, _, problems = log_policy[0].shape
    total = jnp.zeros((prompts, 1, problems))
    for level in log_policy:
        total = (total[:, :, None, :] + level).reshape(prompts, -1, problems)
    return total


def soft_policies(
    scaled: Float[jax.Array, "P L B"], vocab: int, leaf_mask: jax.Array | None = None
) -> list[Float[jax.Array, "P S V B"]]:
    """Soft-optimal log pi(a | s), root first, of rewards in units of beta.

    V(s) = logsumexp_a V(s.a), log pi = V(s.a) - V(s). leaf_mask (L,): which slots are completions;
    None: all. The traceable kernel of `theory.soft.soft_value_iteration`, for many rewards.
    """
    prompts, _, problems = scaled.shape
    values = scaled if leaf_mask is None else jnp.where(leaf_mask[None, :, None], scaled, -jnp.inf)
    levels: list[jax.Array] = []
    while values.shape[1] > 1:
        q = values.reshape(prompts, -1, vocab, problems)
        below = _logsumexp(q)
        levels.insert(0, q - below)
        values = jnp.where(jnp.isneginf(q).all(axis=2), -jnp.inf, below[:, :, 0])
    return levels


def _logsumexp(q: Float[jax.Array, "P S V B"]) -> Float[jax.Array, "P S 1 B"]:
    """Over the tokens; 0 where all are -inf: no state is there, and nothing to normalise."""
    top = jax.lax.stop_gradient(jnp.max(q, axis=2, keepdims=True))
    top = jnp.where(top > -jnp.inf, top, 0.0)
    total = jnp.sum(jnp.exp(q - top), axis=2, keepdims=True)
    return jnp.log(jnp.where(total > 0.0, total, 1.0)) + top
