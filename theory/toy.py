"""The toy rung: the five policies and three reward models with finite data, on one exact tree.

Policies are tables of logits, one a (prompt, state, token), trained by Adam from the reference; the
global reward model is linear in Walsh features. Every number is computed by enumeration; the only
randomness is the data, of which each replicate draws its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from theory.arms import logits_to_leaves, newton_linear
from theory.errors import InputError, require_positive
from theory.operators import beats, step, temper_level
from theory.soft import policy_from_leaves
from theory.tasks import Task, joint_features

POLICIES = ("sft", "dpo", "dpo_2x", "online_dpo_sft", "online_dpo_dpo")
REWARD_MODELS = ("global_rm", "local_rm", "dpo_rm")
BATCH = 8  # replicates between two reports
CONTAINED = 1e-8  # relative: task files round the gold reward at 1e-10


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


@dataclass(frozen=True)
class ToyResult:
    """Per replicate, (R,) each."""

    win_rate: dict[str, np.ndarray]  # policy -> against one reference draw, ties half, 0-1
    val_loss: dict[str, np.ndarray]  # reward model -> nats a pair
    val_accuracy: dict[str, np.ndarray]  # reward model -> 0-1, ties half
    dropped: dict[str, np.ndarray]  # online policy -> share of pairs whose samples were identical


@dataclass(frozen=True)
class _Pairs:
    """prompt (N,), winner and loser as leaf numbers (N,), weight (N,)."""

    prompt: jax.Array
    winner: jax.Array
    loser: jax.Array
    weight: jax.Array


def simulate(
    task: Task, config: ToyConfig, report: Callable[[int], object] = lambda done: None
) -> ToyResult:
    """Run every replicate; report(n) is called as the first n are done.

    Raises InputError for a task that is not a Walsh task, one bit a token, without EOS.
    """
    toy = _Toy(task, config)
    keys = jax.random.split(jax.random.key(config.seed), config.replicates)
    batch = jax.jit(lambda some: jax.lax.map(toy.replicate, some))
    parts = []
    for start in range(0, config.replicates, BATCH):
        # Every batch has one shape, hence one program: the last one is filled up and cut.
        some = jnp.take(keys, jnp.arange(start, start + BATCH), mode="wrap")
        parts.append(jax.tree.map(np.asarray, batch(some)))
        report(min(start + BATCH, config.replicates))
    whole = jax.tree.map(lambda *rows: np.concatenate(rows)[: config.replicates], *parts)
    return ToyResult(*whole)


class _Toy:
    """The arrays of one task that every replicate shares."""

    def __init__(self, task: Task, config: ToyConfig) -> None:
        if task.family != "walsh" or task.tree.eos is not None:
            raise InputError(
                "the toy forecast needs a walsh task without EOS, got family "
                f"{task.family!r}, eos {task.tree.eos!r}"
            )
        if not np.isfinite(task.log_reference).all():
            raise InputError("the toy forecast needs a reference > 0 on every completion")
        bits, length, degree = _walsh_parameters(task)
        table = joint_features(bits, length, degree)
        self.config, self.horizon = config, length
        self.features = jnp.asarray(table)
        self.reward = jnp.asarray(task.reward)
        self.log_reference = jnp.asarray(task.log_reference)
        self.weights = jnp.asarray(task.tree.rho0)
        self.beats = jnp.asarray(beats(task.reward, np.exp(task.log_reference)))
        levels = policy_from_leaves(task.tree, task.log_reference)
        self.sft = jnp.concatenate(
            [level.reshape(level.shape[0], -1) for level in levels], axis=1
        ).reshape(task.tree.n_prompts, -1, 2)
        self.leaves = jax.vmap(logits_to_leaves(length, length))

    # --- one replicate ----------------------------------------------------------------------------

    def replicate(self, key: jax.Array) -> tuple[dict[str, jax.Array], ...]:
        """(win_rate, val_loss, val_accuracy, dropped) of one data set."""
        config, keys = self.config, jax.random.split(key, 3)
        pairs = self.preferences(keys[0])
        score = self.global_reward(pairs)
        dpo = self.train(self.dpo_loss(pairs, self.sft, 1.0), self.sft, config.steps)
        twice = self.train(self.dpo_loss(pairs, self.sft, 1.0), self.sft, 2 * config.steps)
        local = self.train(self.local_loss(pairs), self.sft, config.steps)
        from_sft, lost_sft = self.online(keys[1], pairs, score, self.sft)
        from_dpo, lost_dpo = self.online(keys[2], pairs, score, dpo)
        policies = (self.sft, dpo, twice, from_sft, from_dpo)
        implied = (
            score,
            self.log_probs(local) / self.horizon,
            config.dpo_beta * (self.log_probs(dpo) - self.log_reference),
        )
        judged = {name: self.validate(r) for name, r in zip(REWARD_MODELS, implied, strict=True)}
        return (
            {name: self.judge(p) for name, p in zip(POLICIES, policies, strict=True)},
            {name: loss for name, (loss, _) in judged.items()},
            {name: accuracy for name, (_, accuracy) in judged.items()},
            {"online_dpo_sft": lost_sft, "online_dpo_dpo": lost_dpo},
        )

    def log_probs(self, logits: jax.Array, tau: float = 1.0) -> jax.Array:
        """log P (P, L) of logits (P, S, V) sampled token by token at temperature tau."""
        return self.leaves(temper_level(logits, tau).reshape(logits.shape[0], -1))

    def preferences(self, key: jax.Array) -> _Pairs:
        """Prompts by weight, two reference draws each, Bradley-Terry labels by the gold reward."""
        of_prompt, of_draws, of_label = jax.random.split(key, 3)
        n = self.config.n_pairs
        prompt = jax.random.categorical(of_prompt, jnp.log(self.weights), shape=(n,))
        draws = jax.random.categorical(of_draws, self.log_reference[prompt], shape=(2, n))
        reward = self.reward[prompt, draws]
        first = jax.random.uniform(of_label, (n,)) < jax.nn.sigmoid(reward[0] - reward[1])
        winner, loser = jnp.where(first, draws, draws[::-1])
        return _Pairs(prompt, winner, loser, jnp.ones(n))

    def global_reward(self, pairs: _Pairs) -> jax.Array:
        """The fitted global reward (P, L)."""
        winner = self.features[pairs.prompt, pairs.winner]
        loser = self.features[pairs.prompt, pairs.loser]
        theta, _ = newton_linear(winner - loser, pairs.weight, jnp.float64(self.config.ridge))
        return self.features @ theta

    def dpo_loss(
        self, pairs: _Pairs, reference: jax.Array, tau: float
    ) -> Callable[[jax.Array], jax.Array]:
        """Mean DPO loss; logits of policy and reference are divided by tau (Table 3)."""
        log_reference = self.log_probs(reference, tau)

        def loss(logits: jax.Array) -> jax.Array:
            return _mean_loss(
                pairs, self.config.dpo_beta * (self.log_probs(logits, tau) - log_reference)
            )

        return loss

    def local_loss(self, pairs: _Pairs) -> Callable[[jax.Array], jax.Array]:
        """Mean loss of the local reward log P / H, no reference (Table 4)."""
        return lambda logits: _mean_loss(pairs, self.log_probs(logits) / self.horizon)

    def train(
        self, loss: Callable[[jax.Array], jax.Array], start: jax.Array, steps: int
    ) -> jax.Array:
        """`steps` full-batch Adam steps from `start`, the rate falling linearly to 0."""
        solver = optax.adam(optax.linear_schedule(self.config.rate, 0.0, steps))

        def update(_: int, carry: tuple[jax.Array, optax.OptState]):
            logits, state = carry
            slope = jax.grad(loss)(logits)
            with jax.numpy_dtype_promotion("standard"):  # optax counts in int32
                updates, state = solver.update(slope, state)
            return logits + updates, state  # pyright: ignore

        return jax.lax.fori_loop(0, steps, update, (start, solver.init(start)))[0]

    def online(
        self, key: jax.Array, pairs: _Pairs, score: jax.Array, generator: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One round of online DPO from `generator`: (logits, share of pairs dropped)."""
        config = self.config
        log_p = self.log_probs(generator, config.temperature)[pairs.prompt]
        shape = (config.samples, config.n_pairs)
        drawn = jax.random.categorical(key, log_p, shape=shape)
        utility = score[pairs.prompt, drawn]
        rows = jnp.arange(config.n_pairs)
        winner = drawn[jnp.argmax(utility, axis=0), rows]
        differs = drawn != winner[None, :]
        other = jnp.where(differs, utility, jnp.inf)
        loser = drawn[jnp.argmin(other, axis=0), rows]
        distinct = jnp.any(differs, axis=0)
        made = _Pairs(pairs.prompt, winner, loser, distinct.astype(jnp.float64))
        loss = self.dpo_loss(made, generator, config.temperature)
        return self.train(loss, generator, config.steps), 1.0 - jnp.mean(made.weight)

    # --- exact measurements -----------------------------------------------------------------------

    def judge(self, logits: jax.Array) -> jax.Array:
        """Win rate against one draw of the reference by the gold reward, ties half."""
        p = jnp.exp(self.log_probs(logits, self.config.decode))
        return jnp.sum(self.weights[:, None] * p * self.beats)

    def validate(self, score: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(loss, accuracy) in expectation over pairs made as the training pairs are."""
        q = jnp.exp(self.log_reference)
        mass = self.weights[:, None, None] * q[:, :, None] * q[:, None, :]
        margin = score[:, :, None] - score[:, None, :]
        label = jax.nn.sigmoid(self.reward[:, :, None] - self.reward[:, None, :])
        loss = 2.0 * jnp.sum(mass * label * jax.nn.softplus(-margin))
        return loss, 2.0 * jnp.sum(mass * label * step(margin))


def _walsh_parameters(task: Task) -> tuple[int, int, int]:
    """(prompt bits, completion bits, degree); raises InputError if the task is not made of them."""
    found = []
    for key in ("prompt_bits", "completion_bits", "degree"):
        value = task.parameters.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(
                f"the task's parameters need {key}, a whole number >= 1, got {value!r}"
            )
        found.append(value)
    bits, length, degree = found
    tree = task.tree
    if tree.vocab != 2 or tree.horizon != length:
        raise InputError(
            f"parameters say completion_bits {length}, one bit a token; the task has {tree.vocab} "
            f"tokens at horizon {tree.horizon}"
        )
    if tree.n_prompts.bit_length() != bits + 1 or tree.n_prompts & (tree.n_prompts - 1):
        raise InputError(
            f"parameters say prompt_bits {bits}, that is 2^{bits} prompts; the task has "
            f"{tree.n_prompts}"
        )
    if degree > bits + length:
        raise InputError(f"parameters say degree {degree} of {bits + length} bits")
    return bits, length, degree


def contains_gold(task: Task) -> bool:
    """Whether the gold reward is linear in the features of the global reward model.

    Up to a shift a prompt, which no comparison sees. Raises InputError for a task that is not
    made of Walsh features.
    """
    return _contains(joint_features(*_walsh_parameters(task)), task.reward)


def _contains(table: np.ndarray, reward: np.ndarray) -> bool:
    features = (table - table.mean(axis=1, keepdims=True)).reshape(reward.size, -1)
    gold = (reward - reward.mean(axis=1, keepdims=True)).reshape(-1)
    left = gold - features @ np.linalg.lstsq(features, gold)[0]
    return float(np.abs(left).max()) <= CONTAINED * max(1.0, float(np.abs(gold).max()))


def _mean_loss(pairs: _Pairs, reward: jax.Array) -> jax.Array:
    """Mean Bradley-Terry loss of rewards (P, L), nats; pairs of weight 0 do not count."""
    margin = reward[pairs.prompt, pairs.winner] - reward[pairs.prompt, pairs.loser]
    total = jnp.sum(pairs.weight * jax.nn.softplus(-margin))
    return total / jnp.maximum(jnp.sum(pairs.weight), 1.0)
