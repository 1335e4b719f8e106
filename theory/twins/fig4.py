"""Fig. 4: best of N with reward models and policies of several sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from theory.tasks import Task, WalshTask, joint_features, joint_terms
from theory.toy import Report, Toy, ToyConfig, World, policy_basis, run_replicates, walsh_worlds
from theory.twins import words
from theory.twins.base import WIN_UNIT, Figure, Quantity, Twin, more_pairs

CLAIM = (
    "A larger global reward model does not improve best-of-N, a larger policy does: the verifier "
    "is simpler than the generator (section 3.2, Fig. 4)."
)
MARGIN = 0.02  # win rate: what counts as flat


TASK = WalshTask()


@dataclass(frozen=True)
class Sizes:
    """Degrees of the Walsh polynomials that policies' logits and reward models are."""

    task: WalshTask = TASK
    policies: tuple[int, ...] = (1, 2, 3)
    reward_models: tuple[int, ...] = (2, 3, 4)
    n_sft: int = 2048
    """Draws of the reference that SFT policies are fitted to."""
    sft_steps: int = 128
    n: int = 25
    penalty: float = 1.0
    """How much the ridge of a reward model's terms grows with each degree."""


SIZES = Sizes()


def simulate(
    _: Task, config: ToyConfig, report: Report, *, sizes: Sizes = SIZES
) -> tuple[Sizes, np.ndarray]:
    """Win rates (R, policies, reward models) of best-of-n."""
    spec = sizes.task
    shape = (spec.prompt_bits, spec.completion_bits)
    bases = [policy_basis(*shape, degree) for degree in sizes.policies]
    tables = [graded(shape, degree, sizes.penalty) for degree in sizes.reward_models]

    def one(world: World, key: jax.Array) -> jax.Array:
        of_sft, of_pairs = jax.random.split(key)
        toy = Toy(world, config)
        pairs = toy.preferences(of_pairs)
        scores = [toy.global_reward(pairs, jnp.asarray(table)) for table in tables]
        log_ps = [sft_policy(Toy(world, config, b), of_sft, sizes) for b in bases]
        return jnp.stack(
            [jnp.stack([toy.win(toy.best_of(p, s, sizes.n)) for s in scores]) for p in log_ps]
        )

    worlds = walsh_worlds(spec, config.replicates)
    return sizes, run_replicates(one, worlds, config, report)


def graded(shape: tuple[int, int], degree: int, penalty: float) -> np.ndarray:
    """Joint features (P, L, D) whose ridge is `penalty` to the power of a term's degree less 1.

    A feature divided by c pays a ridge c^2 times as large.
    """
    terms = joint_terms(*shape, degree)
    return joint_features(*shape, degree) * np.array(
        [penalty ** (-0.5 * (len(term) - 1)) for term in terms]
    )


def sft_policy(toy: Toy, key: jax.Array, sizes: Sizes) -> jax.Array:
    """log P (P, L), tempered, of the policy of this basis fitted to draws of the reference."""
    of_prompt, of_draw = jax.random.split(key)
    prompt = toy.prompts(of_prompt, sizes.n_sft)
    drawn = jax.random.categorical(of_draw, toy.log_reference[prompt])
    logits = toy.train(
        lambda some: -jnp.mean(toy.log_probs(some)[prompt, drawn]),
        jnp.zeros_like(toy.sft),
        sizes.sft_steps,
    )
    return toy.log_probs(logits, toy.config.temperature)


def read(_: Task, config: ToyConfig, result: tuple[Sizes, np.ndarray]) -> Twin:
    """Largest less smallest reward model, mean over policies; and the other way round."""
    sizes, rates = result
    by_policy, by_model = rates.mean(axis=2), rates.mean(axis=1)
    n = sizes.n
    return Twin(
        (
            Quantity(
                f"win_rate[best_of_{n}_largest_rm] - win_rate[best_of_{n}_smallest_rm]",
                by_model[:, -1] - by_model[:, 0],
                WIN_UNIT,
                _means("reward model", sizes.reward_models, by_model),
                "equal",
                MARGIN,
            ),
            Quantity(
                f"win_rate[best_of_{n}_largest_policy] - win_rate[best_of_{n}_smallest_policy]",
                by_policy[:, -1] - by_policy[:, 0],
                WIN_UNIT,
                _means("policy", sizes.policies, by_policy),
            ),
        ),
        "walsh",
        (
            words.own_tasks(sizes.task, config),
            f"SFT policies of three sizes: logits are Walsh polynomials of degree {sizes.policies} "
            "in prompt, prefix and token, a level its own, fitted from zero to "
            f"{sizes.n_sft} draws of the reference by {sizes.sft_steps} Adam steps",
            "global reward models of three sizes: Walsh polynomials of degree "
            f"{sizes.reward_models} in prompt and completion, ridge {config.ridge:g} on each",
            f"best of {n} samples of the SFT policy at temperature {config.temperature:g}, exact; "
            "a size's rate is the mean over the sizes of the other side",
            "win rate against one draw of the reference, by the gold reward, ties half, exact",
        ),
    )


def _means(what: str, degrees: tuple[int, ...], rates: np.ndarray) -> Mapping[str, float]:
    return {
        f"{what} of degree {degree}": float(mean)
        for degree, mean in zip(degrees, rates.mean(axis=0), strict=True)
    }


OTHERS = {
    "four times as many preference pairs": more_pairs(simulate, 4),
    "a ridge 10 times as large for each further degree of a term, so that the pairs fit simple "
    "terms first (chosen after a first look: with ridge 10 on every term larger reward models "
    "were still worse)": partial(simulate, sizes=Sizes(penalty=10.0)),
}
FIGURE = Figure("fig4", CLAIM, simulate, read, OTHERS)
