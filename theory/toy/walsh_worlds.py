"""Walsh tasks as worlds of the toy rung: those that were exported, and new draws like them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.tasks import Task, WalshTask, joint_features, make_task
from theory.toy.pieces import World, make_world
from theory.tree import TokenTree
from theory.walsh import all_bits, subsets
from theory.walsh import features as walsh_features

CONTAINED = 1e-8  # relative: task files round the gold reward at 1e-10


def task_world(task: Task) -> World:
    """The world of an exported task.

    Raises InputError for a task that is neither a Walsh task nor a lookup table, one bit a token,
    without EOS.
    """
    if task.family not in ("walsh", "lookup") or task.tree.eos is not None:
        raise InputError(
            "the toy forecast needs a walsh or lookup task without EOS, got family "
            f"{task.family!r}, eos {task.tree.eos!r}"
        )
    prompt_bits, bits, degree = _walsh_parameters(task)
    if degree == prompt_bits + bits:
        table = all_terms(prompt_bits, bits)
    else:
        table = joint_features(prompt_bits, bits, degree)
    return make_world(task.tree, task.reward, task.log_reference, table)


def all_terms(prompt_bits: int, completion_bits: int) -> Float[np.ndarray, "L D"]:
    """`joint_features` of full degree, a prompt its own weights: the same class, the same ridge.

    The weights of the prompts are the joint ones turned by an orthogonal matrix and divided by the
    root of the number of prompts, for which the features make up.
    """
    terms = subsets(completion_bits, completion_bits)
    return walsh_features(all_bits(completion_bits), terms) * math.sqrt(2**prompt_bits)


def walsh_worlds(
    spec: WalshTask, count: int, *, token_bits: int = 1, features: np.ndarray | None = None
) -> list[World]:
    """`count` tasks as `make_task` draws them, of seeds spec.seed, spec.seed + 1, ...

    token_bits: completion bits of one token; leaves keep their numbers. features (P, L, D) or
    (L, D): of the global reward model; default: the gold reward's own class.
    """
    bits = spec.completion_bits
    if token_bits < 1 or bits % token_bits:
        raise InputError(f"tokens of {token_bits} bits do not divide {bits} completion bits")
    if features is None:
        features = joint_features(spec.prompt_bits, bits, spec.degree)
    tokens = tuple(format(i, f"0{token_bits}b") for i in range(2**token_bits))
    made = []
    for i in range(count):
        body = make_task(replace(spec, seed=spec.seed + i))
        reward, reference = (
            np.array([list(row.values()) for row in body[key].values()])
            for key in ("reward", "reference")
        )
        names = tuple(body["prompts"])
        tree = TokenTree(tokens, bits // token_bits, names, tuple(body["prompts"].values()))
        log_reference = np.log(reference / reference.sum(axis=1, keepdims=True))
        made.append(make_world(tree, reward, log_reference, features))
    return made


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
