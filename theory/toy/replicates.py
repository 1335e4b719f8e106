"""Replicates: one compiled program, a few of them at a time, each with its own key."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from theory.errors import InputError
from theory.toy.pieces import ToyConfig, World

BATCH = 8  # replicates between two reports
OWN = ("reward", "log_reference", "beats", "sft")  # what differs between the worlds of one family

Report = Callable[[int], object]


def run_replicates(
    run: Callable[[World, jax.Array], Any],
    worlds: World | Sequence[World],
    config: ToyConfig,
    report: Report = lambda done: None,
) -> Any:
    """run(world, key) for every replicate: its arrays with a leading axis (R,).

    worlds: one for all replicates, or one each, of one tree and one set of features. report(n) is
    called as the first n are done.
    """
    keys = jax.random.split(jax.random.key(config.seed), config.replicates)
    if isinstance(worlds, World):
        first, own = worlds, {}
    else:
        if len(worlds) != config.replicates:
            raise InputError(f"{len(worlds)} worlds for {config.replicates} replicates")
        first = worlds[0]
        own = {name: np.stack([getattr(world, name) for world in worlds]) for name in OWN}

    def one(row: tuple[jax.Array, dict[str, jax.Array]]) -> Any:
        key, arrays = row
        return run(replace(first, **arrays), key)

    def given(start: int) -> tuple[jax.Array, dict[str, jax.Array]]:
        # Every batch has one shape, hence one program: the last one is filled up and cut.
        chosen = np.arange(start, start + BATCH) % config.replicates
        return keys[chosen], {name: jnp.asarray(table[chosen]) for name, table in own.items()}

    program = jax.jit(lambda some: jax.lax.map(one, some)).lower(given(0)).compile()
    starts = range(0, config.replicates, BATCH)
    parts = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # one batch runs on about one core
        for start, part in zip(starts, pool.map(lambda s: program(given(s)), starts), strict=True):
            parts.append(jax.tree.map(np.asarray, part))
            report(min(start + BATCH, config.replicates))
    return jax.tree.map(lambda *rows: np.concatenate(rows)[: config.replicates], *parts)
