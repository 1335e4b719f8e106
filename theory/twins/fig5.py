"""Fig. 5: a short horizon, where generating is nearly as simple as verifying."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import numpy as np

from theory.tasks import Task, WalshTask
from theory.toy import Report, Toy, ToyConfig, World, run_replicates, walsh_worlds
from theory.twins import words
from theory.twins.base import WIN_UNIT, Figure, Quantity, Twin

CLAIM = (
    "On two-word summaries, a bandit-like task, online DPO improves on offline DPO by at most "
    "about 1% win rate, unlike at the full horizon (section 3.2, Fig. 5)."
)
MARGIN = 0.01  # win rate: what counts as no gap
GAP = "win_rate[online_dpo_dpo] - win_rate[dpo]"


@dataclass(frozen=True)
class Short:
    """How the short task differs from the long one, the default Walsh task."""

    completion_bits: int = 2
    token_bits: int = 1
    table: bool = False
    """The reward model is a table, one number a (prompt, completion): tokens are ids to it."""


@dataclass(frozen=True, eq=False)
class Gaps:
    """Win rates (R,) of dpo and online_dpo_dpo at both horizons."""

    long: dict[str, np.ndarray]
    short: dict[str, np.ndarray]
    spec: WalshTask
    setting: Short


LONG, SHORT = WalshTask(), Short()


def simulate(
    _: Task,
    config: ToyConfig,
    report: Report,
    *,
    spec: WalshTask = LONG,
    setting: Short = SHORT,
) -> Gaps:
    """DPO and online DPO from it, on the long and on the short task."""
    bits = setting.completion_bits
    table = np.eye(2**bits) if setting.table else None
    short = walsh_worlds(
        replace(spec, completion_bits=bits),
        config.replicates,
        token_bits=setting.token_bits,
        features=table,
    )
    long = walsh_worlds(spec, config.replicates)

    def one(world: World, key: jax.Array) -> dict[str, jax.Array]:
        of_pairs, of_online = jax.random.split(key)
        toy = Toy(world, config)
        pairs = toy.preferences(of_pairs)
        dpo = toy.dpo(pairs)
        score = toy.global_reward(pairs)
        online, lost = toy.online(of_online, pairs.prompt, score, dpo)
        return {"dpo": toy.judge(dpo), "online_dpo_dpo": toy.judge(online), "dropped": lost}

    first = run_replicates(one, long, config, lambda done: report(done // 2))
    half = config.replicates // 2
    second = run_replicates(one, short, config, lambda done: report(half + done // 2))
    return Gaps(first, second, spec, setting)


def read(_: Task, config: ToyConfig, result: Gaps) -> Twin:
    """The gap at the short horizon, and how much smaller it is."""
    long, short = (r["online_dpo_dpo"] - r["dpo"] for r in (result.long, result.short))
    policies = ("online_dpo_dpo", "dpo")
    means = {f"{p} (two tokens)": float(np.mean(result.short[p])) for p in policies}
    spec, bits = result.spec, result.setting.completion_bits
    shape = (
        f"the short task has {bits} completion bits in {bits // result.setting.token_bits} "
        f"token(s), all else as the long one of {spec.completion_bits} tokens, and as many pairs"
    )
    return Twin(
        (
            Quantity(
                "gap[fig3] - gap[fig5]",
                long - short,
                WIN_UNIT,
                {"gap at the long horizon": float(long.mean()), "short": float(short.mean())},
            ),
            Quantity(GAP, short, WIN_UNIT, means, "equal", MARGIN),
        ),
        "walsh",
        (
            words.own_tasks(spec, config),
            shape,
            f"gap: {GAP}; fig3 stands for the long task, fig5 for the short one",
            words.SFT,
            words.TABLES,
            words.training(config),
            f"the global reward model is linear in the gold reward's own Walsh features, ridge "
            f"{config.ridge:g}",
            words.online(config),
            words.dropped_rows({"long": result.long["dropped"], "short": result.short["dropped"]}),
            words.judged(config),
        ),
    )


OTHERS = {
    "the same 6 bits as two tokens of 3 bits, which the reward model sees as bits": partial(
        simulate, setting=Short(6, 3)
    ),
    "the same 6 bits as one token, an id to policy and reward model": partial(
        simulate, setting=Short(6, 6, table=True)
    ),
}
FIGURE = Figure("fig5", CLAIM, simulate, read, OTHERS)
