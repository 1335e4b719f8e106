"""A Batch from a cell: every replicate's true reward, reward class, reference and pairs."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from theory.batch import Batch
from theory.draws import NARROW_TEMPERATURE, pairs_of, reference_of, tempered
from theory.errors import InputError
from theory.families import GroundTruth, orthonormal, spec_of
from theory.families.bits import check_bits, polynomials
from theory.sweep.cells import BIT_FAMILIES, Cell
from theory.tree import TokenTree

MAX_CLASS = 1_024  # dimensions of a reward class
TABLES = 6  # arrays of (candidate, replicate, completion) alive at once
CHECKPOINTS = 4  # candidates a ridge of arms that stop early, for the estimate of memory


def make_batch(cell: Cell) -> Batch:
    """Draw all replicates. Raises InputError where the family cannot be drawn."""
    truths = [cell.spec(seed).draw() for seed in cell.seeds]
    tree = truths[0].tree
    for seed, truth in zip(cell.seeds, truths, strict=True):
        if _shape(truth.tree) != _shape(tree):
            raise InputError(f"cell {cell.name}: seed {seed} lives on another tree")
    reward = np.stack([truth.reward for truth in truths])
    log_reference = reference_of(tree, reward, cell.reference_share, cell.beta)
    features, degree = _reward_class(cell, truths)
    pairs = []
    draws = _sampler(cell, tree, log_reference)
    for i, seed in enumerate(cell.seeds):
        row = None if draws is None else draws[i]
        pairs.append(pairs_of(tree, reward[i], cell.n_pairs, seed, draws=row, noise=cell.noise))
    return Batch(
        tree=tree,
        beta=cell.beta,
        seeds=cell.seeds,
        reward=reward,
        features=features,
        degree=degree,
        log_reference=log_reference,
        pairs=np.stack(pairs),
        n_held=cell.n_held,
        ridges=cell.ridges,
        width=cell.width,
    )


def check_memory(cell: Cell) -> None:
    """Raise InputError, with the number, if the cell would not fit into half of the memory.

    Draws the ground truth of one seed, which also shows settings that cannot be drawn at all.
    """
    dimension, prompts, leaves = sizes(cell)
    if dimension > MAX_CLASS:
        raise InputError(
            f"cell {cell.name}: the reward class has {dimension:,} dimensions, at most "
            f"{MAX_CLASS:,}"
        )
    replicates = len(cell.seeds)
    copies = 1 if cell.spec(0).fixed_features else replicates
    stops = any(arm.startswith(("mlp", "transformer", "online")) for arm in cell.arms)
    candidates = len(cell.ridges) * (CHECKPOINTS if stops else 1)
    row = 8 * prompts * leaves
    features = row * dimension * copies
    outcomes = TABLES * row * candidates * replicates
    tables = TABLES * row * leaves  # all pairs of completions of one replicate
    total, limit = features + outcomes + tables + 16 * replicates * cell.n_pairs, memory() // 2
    if total > limit:
        raise InputError(
            f"cell {cell.name}: {replicates:,} replicates of {prompts:,} prompt(s) with "
            f"{leaves:,} leaves each take about {total:,} bytes (features {features:,}, fits "
            f"{outcomes:,}, pairs of completions {tables:,}); the limit is half of this machine's "
            f"memory, {limit:,}"
        )


def memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def sizes(cell: Cell) -> tuple[int, int, int]:
    """Dimensions of the reward class, prompts and leaf slots, from the first seed's draw."""
    return _sizes_of(cell.family, cell.settings, cell.reward_class, cell.seeds[0])


# --- helpers --------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _sizes_of(
    family: str, settings: tuple[tuple[str, object], ...], reward_class: str, seed: int
) -> tuple[int, int, int]:
    truth = spec_of(family, {**dict(settings), "seed": seed}).draw()
    tree = truth.tree
    dimension = truth.features.shape[2]
    if reward_class == "full":
        dimension = tree.n_prompts * (len(tree.leaves) - 1)
    elif reward_class != "true":
        bits, degree = tree.n_leaves.bit_length() - 1, int(reward_class.partition("-")[2])
        dimension = sum(math.comb(bits, j) for j in range(1, degree + 1))
    return dimension, tree.n_prompts, tree.n_leaves


def _shape(tree: TokenTree) -> tuple[object, ...]:
    """All of a tree but the names of its prompts."""
    return tree.tokens, tree.horizon, tree.weights, tree.eos, tree.forbidden


def _sampler(
    cell: Cell, tree: TokenTree, log_reference: Float[np.ndarray, "R P L"]
) -> Float[np.ndarray, "R P L"] | None:
    """What each completion of a pair is drawn from; None for uniform pairs."""
    if cell.coverage == "uniform":
        return None
    if cell.coverage == "narrow":
        return np.exp(tempered(tree, log_reference, NARROW_TEMPERATURE))
    return np.exp(log_reference)


def _reward_class(
    cell: Cell, truths: list[GroundTruth]
) -> tuple[Float[np.ndarray, "F P L D"], int | None]:
    """Features of R_sim, one for all replicates where they agree, and its Walsh degree."""
    if cell.reward_class == "true":
        tables = [truths[0].features]
        if not cell.spec(0).fixed_features:
            tables = [truth.features for truth in truths]
        wide = max(table.shape[2] for table in tables)
        padded = [np.pad(t, ((0, 0), (0, 0), (0, wide - t.shape[2]))) for t in tables]
        return np.stack(padded), truths[0].degree
    if cell.family in BIT_FAMILIES:
        bits = int(dict(cell.settings)["bits"])
        degree = bits if cell.degree is None else cell.degree
        check_bits(bits, int(dict(cell.settings)["horizon"]), degree)
        return polynomials(bits, degree)[None, None], degree
    return full_class(truths[0].tree)[None], None


def full_class(tree: TokenTree) -> Float[np.ndarray, "P L D"]:
    """All rewards up to a shift a prompt, orthonormal: D = P times (completions - 1)."""
    one = replace(tree, prompts=tree.prompts[:1], weights=(1.0,))
    basis = orthonormal(one, np.eye(tree.n_leaves)[None])[0]
    blocks = np.zeros((tree.n_prompts, tree.n_leaves, tree.n_prompts, basis.shape[1]))
    for x in range(tree.n_prompts):  # 0 on the other prompts, so the mean square is divided
        blocks[x, :, x] = basis * math.sqrt(tree.n_prompts)
    return blocks.reshape(tree.n_prompts, tree.n_leaves, -1)
