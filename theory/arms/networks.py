"""An MLP and a one-layer causal transformer on the tokens of any tree, exact at every prefix.

One trunk serves both roads, so that a reward model and a policy have the same size up to the head:
the global reward reads a whole completion and gives one number, the policy reads a prefix and gives
the logits of the next token. What a network sees of a prefix is its prompt and which token stands
at which position; all prefixes of a tree are rows of one batch, and log P of every completion is
exact.

- mlp: one-hot of the prompt and of (position, token), two hidden layers of `width` ReLU units.
- transformer: the prompt is the first position; `width` channels, two heads, a feed-forward layer
  of 2 `width` ReLU units, normalisation before each block without parameters (pre-norm). With a
  single layer the keys and values of a position depend on its own token alone, so attention is a
  table of (query, key) items and one masked softmax a prefix.

Heads start at 0: reward 0 and the uniform next token.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

import theory._x64  # noqa: F401
from theory.classes import chain, masked_log_softmax
from theory.errors import InputError
from theory.tree import TokenTree

KINDS = ("mlp", "transformer")
ATTENTION_HEADS = 2
FEED_FORWARD = 2  # units of the transformer's feed-forward layer a channel

Parameters = dict[str, jax.Array]


@dataclass(frozen=True)
class Network:
    """One architecture on one tree. Raises InputError for an unknown kind or a bad width."""

    kind: str
    tree: TokenTree
    width: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"network {self.kind!r} is none of {', '.join(KINDS)}")
        if self.width < 1 or (self.kind == "transformer" and self.width % ATTENTION_HEADS):
            raise InputError(
                f"width of the {self.kind} must be a whole number >= 1"
                f"{' and even' * (self.kind == 'transformer')}, got {self.width!r}"
            )

    # --- parameters -------------------------------------------------------------------------------

    @property
    def trunk_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the trunk: the same for a reward model and for a policy."""
        tree, w, units = self.tree, self.width, FEED_FORWARD * self.width
        if self.kind == "mlp":
            tokens = tree.horizon * tree.vocab
            first: dict[str, tuple[int, ...]] = {
                "prompt": (tree.n_prompts, w),
                "token": (tokens, w),
            }
            return first | {"hidden": (w, w), "hidden_bias": (w,)}
        return {
            "prompt": (tree.n_prompts, w),
            "token": (tree.vocab, w),
            "position": (tree.horizon, w),
            "query": (w, w),
            "key": (w, w),
            "value": (w, w),
            "mix": (w, w),
            "up": (w, units),
            "up_bias": (units,),
            "down": (units, w),
            "down_bias": (w,),
        }

    def shapes(self, *, policy: bool) -> dict[str, tuple[int, ...]]:
        """Trunk and head. A reward's head has no bias: Bradley-Terry would not see it (Eq. 4)."""
        if policy:
            head: dict[str, tuple[int, ...]] = {
                "head": (self.width, self.tree.vocab),
                "head_bias": (self.tree.vocab,),
            }
        else:
            head = {"head": (self.width,)}
        return self.trunk_shapes | head

    def n_parameters(self, *, policy: bool) -> int:
        """Trunk and head; rows that no input reaches (a policy's last position) count too."""
        return sum(int(np.prod(shape)) for shape in self.shapes(policy=policy).values())

    def initial(self, seed: int, *, policy: bool) -> dict[str, np.ndarray]:
        """Normal weights scaled by the number of active inputs (He et al. 2015); biases, head 0.

        The trunk of one seed is the same for a reward model and for a policy.
        """
        generator = np.random.default_rng([seed, self.width, 5])
        made = {}
        for name, shape in self.shapes(policy=policy).items():
            if name.endswith("bias") or name == "head":
                made[name] = np.zeros(shape)
                continue
            one_hot = name in ("prompt", "token", "position")
            active = (self.tree.horizon + 1 if self.kind == "mlp" else 2) if one_hot else shape[0]
            gain = 2.0 if self.kind == "mlp" or name == "up" else 1.0
            made[name] = generator.standard_normal(shape) * np.sqrt(gain / active)
        return made

    # --- what each road reads off the trunk -------------------------------------------------------

    def reward(self, theta: Parameters) -> Float[jax.Array, "P L"]:
        """The global reward of every completion, reward units; 0 where none is."""
        hidden = self._trunk(theta, self._seen[-1], self._last[-1])
        return jnp.where(jnp.asarray(self.tree.leaf_mask)[None], hidden @ theta["head"], 0.0)

    def log_policy(self, theta: Parameters) -> tuple[jax.Array, ...]:
        """log pi(a | s) of every prefix: one (P, V**h, V) array a level, -inf where not allowed."""
        seen, last = np.concatenate(self._seen[:-1]), np.concatenate(self._last[:-1])
        hidden = self._trunk(theta, seen, last)
        logits = hidden @ theta["head"] + theta["head_bias"][None, None, :]
        cuts = np.cumsum([mask.shape[0] for mask in self.tree.allowed_levels])[:-1]
        return tuple(
            masked_log_softmax(level, jnp.asarray(mask))
            for level, mask in zip(
                jnp.split(logits, cuts, axis=1), self.tree.allowed_levels, strict=True
            )
        )

    def log_probs(self, theta: Parameters) -> Float[jax.Array, "P L"]:
        """log P_pi(xi | x) of every completion, nats; 0 at slots that are none (for gradients)."""
        mask = jnp.asarray(self.tree.leaf_mask)[None]
        return jnp.where(mask, chain(self.log_policy(theta)), 0.0)

    # --- prefixes as rows -------------------------------------------------------------------------

    @cached_property
    def _seen(self) -> tuple[Bool[np.ndarray, "S HV"], ...]:
        """Which (position, token) each prefix holds, levels 0..H; item number position * V + token.

        A completion that ended early holds EOS at its remaining positions, as its slot does.
        """
        vocab, horizon = self.tree.vocab, self.tree.horizon
        levels = []
        for h in range(horizon + 1):
            states = np.arange(vocab**h)
            seen = np.zeros((vocab**h, horizon * vocab), dtype=bool)
            for j in range(h):
                token = states // vocab ** (h - 1 - j) % vocab
                seen[states, j * vocab + token] = True
            levels.append(seen)
        return tuple(levels)

    @cached_property
    def _last(self) -> tuple[Int[np.ndarray, " S"], ...]:
        """The item that a prefix ends in, levels 0..H: 0 the prompt, 1 + position * V + token."""
        vocab = self.tree.vocab
        return tuple(
            1 + (h - 1) * vocab + np.arange(vocab**h) % vocab if h else np.zeros(1, dtype=int)
            for h in range(self.tree.horizon + 1)
        )

    # --- trunks -----------------------------------------------------------------------------------

    def _trunk(self, theta: Parameters, seen: np.ndarray, last: np.ndarray) -> jax.Array:
        """(P, S, width): what the head reads at every prefix."""
        if self.kind == "mlp":
            first = jnp.asarray(seen, jnp.float64) @ theta["token"]
            hidden = jax.nn.relu(theta["prompt"][:, None, :] + first[None])
            return jax.nn.relu(hidden @ theta["hidden"] + theta["hidden_bias"][None, None, :])
        items = self._items(theta)
        stream = items[:, last] + self._attention(theta, items, seen, last)
        up = normalise(stream) @ theta["up"] + theta["up_bias"][None, None, :]
        stream = stream + jax.nn.relu(up) @ theta["down"] + theta["down_bias"][None, None, :]
        return normalise(stream)

    def _items(self, theta: Parameters) -> jax.Array:
        """(P, 1 + H V, width): embeddings of the prompt and of every token at every position."""
        prompts, w = self.tree.n_prompts, self.width
        tokens = (theta["position"][:, None, :] + theta["token"][None]).reshape(1, -1, w)
        tokens = jnp.broadcast_to(tokens, (prompts, tokens.shape[1], w))
        return jnp.concatenate([theta["prompt"][:, None, :], tokens], axis=1)

    def _attention(
        self, theta: Parameters, items: jax.Array, seen: np.ndarray, last: np.ndarray
    ) -> jax.Array:
        """(P, S, width): each prefix attends from its last item to the prompt and all it holds."""
        prompts, n_items, w = items.shape
        size = w // ATTENTION_HEADS
        read = normalise(items)

        def heads(name: str) -> jax.Array:
            return (read @ theta[name]).reshape(prompts, n_items, ATTENTION_HEADS, size)

        table = jnp.einsum("xqhc,xkhc->xhqk", heads("query"), heads("key")) / np.sqrt(size)
        mask = np.concatenate([np.ones((len(seen), 1), dtype=bool), seen], axis=1)
        scores = jnp.where(jnp.asarray(mask)[None, None], table[:, :, last], -jnp.inf)
        share = jax.nn.softmax(scores, axis=3)
        read_out = jnp.einsum("xhsk,xkhc->xshc", share, heads("value"))
        return read_out.reshape(prompts, len(last), w) @ theta["mix"]


def normalise(x: jax.Array) -> jax.Array:
    """Mean 0 and variance 1 over the last axis (Ba et al. 2016), without scale and shift."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
