"""The pieces that every toy run is made of: data, reward models, policies, online DPO, measures.

Policies are tables of logits, one a (prompt, state, token), trained by Adam from a start that is
given; with a `basis` only their sums with the basis are reached, which prompts and prefixes share.
Every measure is computed by enumeration; the only randomness is the data.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from theory.arms import newton_linear
from theory.errors import InputError, require_positive
from theory.operators import beats, step, temper_level
from theory.soft import policy_from_leaves
from theory.tree import TokenTree

FORBIDDEN = -1e9  # logit of a token that the tree does not allow: probability 0, gradient 0


@dataclass(frozen=True)
class ToyConfig:
    """How the toy runs are trained and measured."""

    n_pairs: int = 1024
    """Preference pairs: two reference draws each, Bradley-Terry labels by the gold reward."""
    steps: int = 64
    """Full-batch Adam steps of DPO, online DPO and the local reward model; DPO (2x) takes twice."""
    rate: float = 0.05
    """Adam's learning rate, falling linearly to 0."""
    dpo_beta: float = 0.05
    """KL weight of DPO, offline and online (Table 3)."""
    ridge: float = 1.0
    """Ridge of the global reward model, on the summed loss."""
    samples: int = 8
    """K: completions sampled for each pair of online DPO; best and worst are kept."""
    temperature: float = 0.1
    """Of online sampling, and what logits are divided by in its loss."""
    decode: float = 0.01
    """Temperature at which policies are judged."""
    replicates: int = 64
    """Independent data sets."""
    seed: int = 0
    """Of all data."""

    def __post_init__(self) -> None:
        least = {"n_pairs": 1, "steps": 1, "samples": 2, "replicates": 2, "seed": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InputError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        require_positive(self, "rate", "dpo_beta", "ridge", "temperature", "decode")


@dataclass(frozen=True, eq=False)
class World:
    """One tree with its gold reward, its reference and the features of the global reward model."""

    tree: TokenTree
    weights: np.ndarray  # (P,)
    features: np.ndarray  # (P, L, D): one weight vector for all prompts; (L, D): one a prompt
    reward: np.ndarray  # (P, L), reward units
    log_reference: np.ndarray  # (P, L), nats; FORBIDDEN at slots that are no completion
    beats: np.ndarray  # (P, L), chance to beat a draw of the reference, ties half
    sft: np.ndarray  # (P, S, V), log-probabilities of the reference, root level first


def make_world(
    tree: TokenTree, reward: np.ndarray, log_reference: np.ndarray, features: np.ndarray
) -> World:
    """A World of a reward and a reference (P, L). Raises InputError for a reference that is 0."""
    if not np.isfinite(log_reference[:, tree.leaf_mask]).all():
        raise InputError("the toy forecast needs a reference > 0 on every completion")
    levels = policy_from_leaves(tree, log_reference)
    shape = (tree.n_prompts, -1, tree.vocab)
    flat = [level.reshape(level.shape[0], -1) for level in levels]
    sft = np.maximum(np.concatenate(flat, axis=1).reshape(shape), FORBIDDEN)
    chance = np.exp(log_reference)
    chance[:, ~tree.leaf_mask] = 0.0
    return World(
        tree,
        np.asarray(tree.weights),
        features,
        reward,
        np.where(tree.leaf_mask, log_reference, FORBIDDEN),
        beats(reward, chance),
        sft,
    )


@dataclass(frozen=True)
class Pairs:
    """prompt (N,), winner and loser as leaf numbers (N,), weight (N,)."""

    prompt: jax.Array
    winner: jax.Array
    loser: jax.Array
    weight: jax.Array


class Toy:
    """What is done on one World. The arrays may be traced; everything here is traceable."""

    def __init__(
        self, world: World, config: ToyConfig, basis: jax.Array | np.ndarray | None = None
    ) -> None:
        """basis (P, S, V, d): policies are their start plus basis @ theta. None: every table."""
        self.config, self.horizon = config, world.tree.horizon
        self.features = jnp.asarray(world.features)
        self.reward = jnp.asarray(world.reward)
        self.log_reference = jnp.asarray(world.log_reference)
        self.weights = jnp.asarray(world.weights)
        self.beats = jnp.asarray(world.beats)
        self.sft = jnp.asarray(world.sft)
        self.basis = None if basis is None else jnp.asarray(basis)
        self.path = jnp.asarray(_paths(world.tree))

    # --- policies ---------------------------------------------------------------------------------

    def log_probs(self, logits: jax.Array, tau: float = 1.0) -> jax.Array:
        """log P (P, L) of logits (P, S, V) sampled token by token at temperature tau."""
        tempered = temper_level(logits, tau)
        log_policy = jax.nn.log_softmax(tempered, axis=2).reshape(logits.shape[0], -1)
        return jax.vmap(lambda row: jnp.sum(row[self.path], axis=1))(log_policy)

    def train(
        self, loss: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int
    ) -> jax.Array:
        """`steps` full-batch Adam steps from `start`, the rate falling linearly to 0."""
        if self.basis is None:
            return self._adam(loss, start, steps)
        basis = self.basis
        zero = jnp.zeros(basis.shape[-1])
        return start + basis @ self._adam(lambda t: loss(start + basis @ t), zero, steps)

    def _adam(
        self, loss: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int
    ) -> jax.Array:
        solver = optax.adam(optax.linear_schedule(self.config.rate, 0.0, steps))

        def update(_: int, carry: tuple[jax.Array, optax.OptState]):
            logits, state = carry
            slope = jax.grad(loss)(logits)
            with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
                updates, state = solver.update(slope, state)
            return logits + updates, state  # pyright: ignore

        return jax.lax.fori_loop(0, steps, update, (start, solver.init(start)))[0]

    def dpo_loss(
        self, pairs: Pairs, reference: jax.Array, tau: float
    ) -> Callable[[jax.Array], jax.Array]:
        """Mean DPO loss; logits of policy and reference are divided by tau (Table 3)."""
        log_reference = self.log_probs(reference, tau)

        def loss(logits: jax.Array) -> jax.Array:
            return mean_loss(
                pairs, self.config.dpo_beta * (self.log_probs(logits, tau) - log_reference)
            )

        return loss

    def dpo(self, pairs: Pairs, steps: int | None = None) -> jax.Array:
        """Offline DPO from the SFT policy: logits."""
        loss = self.dpo_loss(pairs, self.sft, 1.0)
        return self.train(loss, self.sft, self.config.steps if steps is None else steps)

    def local_loss(self, pairs: Pairs) -> Callable[[jax.Array], jax.Array]:
        """Mean loss of the local reward log P / H, no reference (Table 4)."""
        return lambda logits: mean_loss(pairs, self.log_probs(logits) / self.horizon)

    def local(self, pairs: Pairs) -> jax.Array:
        """The policy of the local reward model, trained from the SFT policy: logits."""
        return self.train(self.local_loss(pairs), self.sft, self.config.steps)

    # --- data -------------------------------------------------------------------------------------

    def prompts(self, key: jax.Array, n: int, weights: jax.Array | None = None) -> jax.Array:
        """n prompts by weight (P,), by default the World's."""
        log_weights = jnp.log(self.weights if weights is None else weights)
        return jax.random.categorical(key, log_weights, shape=(n,))

    def preferences(
        self, key: jax.Array, log_p: jax.Array | None = None, weights: jax.Array | None = None
    ) -> Pairs:
        """Prompts by weight, two draws each of log_p (default: the reference), labelled by gold."""
        of_prompt, of_draws, of_label = jax.random.split(key, 3)
        n = self.config.n_pairs
        prompt = self.prompts(of_prompt, n, weights)
        source = self.log_reference if log_p is None else log_p
        draws = jax.random.categorical(of_draws, source[prompt], shape=(2, n))
        reward = self.reward[prompt, draws]
        first = jax.random.uniform(of_label, (n,)) < jax.nn.sigmoid(reward[0] - reward[1])
        winner, loser = jnp.where(first, draws, draws[::-1])
        return Pairs(prompt, winner, loser, jnp.ones(n))

    def without_equals(self, pairs: Pairs) -> Pairs:
        """The pairs, those of a completion with itself at weight 0."""
        return replace(pairs, weight=(pairs.winner != pairs.loser).astype(jnp.float64))

    def best_and_worst(
        self, key: jax.Array, prompt: jax.Array, log_p: jax.Array, utility: jax.Array, k: int
    ) -> Pairs:
        """(best, worst other one) of k draws a row by `utility` (P, L); weight 0 if all equal."""
        drawn = jax.random.categorical(key, log_p[prompt], shape=(k, prompt.shape[0]))
        value = utility[prompt, drawn]
        rows = jnp.arange(prompt.shape[0])
        winner = drawn[jnp.argmax(value, axis=0), rows]
        differs = drawn != winner[None, :]
        other = jnp.where(differs, value, jnp.inf)
        loser = drawn[jnp.argmin(other, axis=0), rows]
        return Pairs(prompt, winner, loser, jnp.any(differs, axis=0).astype(jnp.float64))

    def online(
        self,
        key: jax.Array,
        prompt: jax.Array,
        score: jax.Array,
        generator: jax.Array,
        steps: int | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """One round of online DPO from `generator`: (logits, share of rows dropped)."""
        config = self.config
        log_p = self.log_probs(generator, config.temperature)
        made = self.best_and_worst(key, prompt, log_p, score, config.samples)
        loss = self.dpo_loss(made, generator, config.temperature)
        logits = self.train(loss, generator, config.steps if steps is None else steps)
        return logits, 1.0 - jnp.mean(made.weight)

    # --- reward models ----------------------------------------------------------------------------

    def global_reward(self, pairs: Pairs, features: jax.Array | None = None) -> jax.Array:
        """The fitted global reward (P, L); features (default: the World's) as in `World`."""
        table = self.features if features is None else features
        ridge = jnp.float64(self.config.ridge)
        if table.ndim == 3:
            differences = table[pairs.prompt, pairs.winner] - table[pairs.prompt, pairs.loser]
            theta, _ = newton_linear(differences, pairs.weight, ridge)
            return table @ theta
        differences = table[pairs.winner] - table[pairs.loser]

        def one(x: jax.Array) -> jax.Array:
            weight = jnp.where(pairs.prompt == x, pairs.weight, 0.0)
            return table @ newton_linear(differences, weight, ridge)[0]

        return jax.lax.map(one, jnp.arange(self.weights.shape[0]))

    def implied(self, score: jax.Array, dpo: jax.Array, local: jax.Array) -> tuple[jax.Array, ...]:
        """Rewards (P, L) of the global (its score), the local and the DPO reward model."""
        return (
            score,
            self.log_probs(local) / self.horizon,
            self.config.dpo_beta * (self.log_probs(dpo) - self.log_reference),
        )

    # --- exact measurements -----------------------------------------------------------------------

    def win(self, p: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        """Win rate of probabilities (P, L) against one draw of the reference, ties half."""
        of_prompt = self.weights if weights is None else weights
        return jnp.sum(of_prompt[:, None] * p * self.beats)

    def judge(self, logits: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        """Win rate of decoding against one draw of the reference by the gold reward, ties half."""
        return self.win(jnp.exp(self.log_probs(logits, self.config.decode)), weights)

    def best_of(self, log_p: jax.Array, score: jax.Array, n: int) -> jax.Array:
        """Probabilities (P, L) of the best of n draws of log_p by score; ties in proportion.

        F(u)^n - F(u-)^n with F the cdf of the score (`theory.operators.best_of_n`), traceable;
        scores nearer than `theory.operators.TIE` are a tie.
        """
        p = jnp.exp(log_p)
        above = step(score[:, :, None] - score[:, None, :])  # 1: i above j, 1/2: tied
        tied = jnp.sum(jnp.where(above == 0.5, p[:, None, :], 0.0), axis=2)
        below = jnp.sum(jnp.where(above == 1.0, p[:, None, :], 0.0), axis=2)
        share = p / jnp.where(tied > 0, tied, 1.0)
        return share * ((below + tied) ** n - below**n)

    def validate(
        self, score: jax.Array, log_q: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """(loss, accuracy) of a reward (P, L) in expectation over pairs of two draws of log_q.

        Labels by the gold reward. log_q: default the reference, as of the training pairs.
        """
        q = jnp.exp(self.log_reference if log_q is None else log_q)
        mass = self.weights[:, None, None] * q[:, :, None] * q[:, None, :]
        margin = score[:, :, None] - score[:, None, :]
        label = jax.nn.sigmoid(self.reward[:, :, None] - self.reward[:, None, :])
        loss = 2.0 * jnp.sum(mass * label * jax.nn.softplus(-margin))
        return loss, 2.0 * jnp.sum(mass * label * step(margin))


def mean_loss(pairs: Pairs, reward: jax.Array) -> jax.Array:
    """Mean Bradley-Terry loss of rewards (P, L), nats; pairs of weight 0 do not count."""
    margin = reward[pairs.prompt, pairs.winner] - reward[pairs.prompt, pairs.loser]
    total = jnp.sum(pairs.weight * jax.nn.softplus(-margin))
    return total / jnp.maximum(jnp.sum(pairs.weight), 1.0)


def _paths(tree: TokenTree) -> np.ndarray:
    """(L, H): where the logits of each completion's tokens lie in a flat table of all levels."""
    levels = np.arange(1, tree.horizon + 1)
    starts = np.concatenate([[0], np.cumsum(tree.vocab**levels)[:-1]])
    return starts[None, :] + np.arange(tree.n_leaves)[:, None] // tree.vocab ** (
        tree.horizon - levels
    )
