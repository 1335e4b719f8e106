"""Soft value iteration against a memory floor and against its peers, in one process.

python benchmarks/theory_soft.py [--json OUT] [--quick]

The floor is the larger of a jitted copy and a jitted exp of the same array. It is taken twice: into
new memory, as ours without `reuse`, and into memory that is used again, as ours with `reuse`.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp
from timing import IMITATION, INSTALL, finish, measure, memory_bytes, row

from theory.soft import soft_value_iteration
from theory.tree import TokenTree

CASES = ((4, 10), (10, 7), (32, 5))
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "quantecon", "imitation")
MISSING = {"imitation": IMITATION, "quantecon": INSTALL}
MEMORY_SHARE = 0.25  # of the machine, what a peer's arrays may take


def complete_tree(vocab: int, horizon: int) -> TokenTree:
    return TokenTree(tuple(f"t{i}" for i in range(vocab)), horizon, ("x",), (1.0,))


def big_case(vocab: int, horizon: int, repeats: int) -> list[dict]:
    """Ours, the floors, scipy and numpy on one large tree."""
    case = f"V={vocab} H={horizon}"
    tree = complete_tree(vocab, horizon)
    r = 3.0 * jax.random.normal(jax.random.key(0), (1, tree.n_leaves))
    r_numpy = np.array(r)
    into = partial(jax.jit, donate_argnums=0, keep_unused=True)
    copy, exp = jax.jit(jnp.copy), jax.jit(jnp.exp)
    copy_into, exp_into = into(lambda memory, x: x.copy()), into(lambda memory, x: jnp.exp(x))
    memory = [jnp.zeros_like(r)]
    solution = [soft_value_iteration(tree, r)]

    def refill(program) -> None:
        memory[0] = jax.block_until_ready(program(memory[0], r))

    def reuse() -> None:
        solution[0] = soft_value_iteration(tree, r, reuse=solution[0])
        jax.block_until_ready((solution[0].values, solution[0].log_policy))

    def fresh(x) -> None:
        made = soft_value_iteration(tree, x)
        jax.block_until_ready((made.values, made.log_policy))

    costs = measure(
        {
            "copy, new memory": lambda: jax.block_until_ready(copy(r)),
            "exp, new memory": lambda: jax.block_until_ready(exp(r)),
            "copy, same memory": lambda: refill(copy_into),
            "exp, same memory": lambda: refill(exp_into),
            "ours, same memory": reuse,
            "ours, new memory": lambda: fresh(r),
            "ours, from numpy": lambda: fresh(r_numpy),
        },
        repeats,
    )
    check_agreement(case, solution[0].log_policy, by_scipy(r_numpy, vocab, horizon), "scipy")
    check_agreement(case, solution[0].log_policy, by_numpy(r_numpy, vocab, horizon), "numpy")
    costs |= measure(
        {
            "scipy logsumexp": lambda: by_scipy(r_numpy, vocab, horizon),
            "scipy logsumexp, values alone": lambda: values_by_scipy(r_numpy, vocab, horizon),
            "numpy, linear space": lambda: by_numpy(r_numpy, vocab, horizon),
        },
        max(1, repeats // 4),
    )
    for kind in ("new", "same"):
        pair = [costs[f"{what}, {kind} memory"] for what in ("copy", "exp")]
        costs[f"floor, {kind} memory"] = {k: max(p[k] for p in pair) for k in ("min", "median")}
    floors = {"ours, same memory": "floor, same memory"}
    floors |= dict.fromkeys(("ours, new memory", "ours, from numpy"), "floor, new memory")
    peers = ("scipy logsumexp", "scipy logsumexp, values alone", "numpy, linear space")
    against = dict.fromkeys(peers, "ours, new memory")
    targets = {"ours, same memory": 2.0}
    to = floors | against
    return [row(case, n, cost, to.get(n, ""), target=targets.get(n)) for n, cost in costs.items()]


def check_agreement(case: str, ours, theirs: list[np.ndarray], name: str) -> None:
    """Raises AssertionError unless every log-probability agrees to 1e-11; `theirs` leaves first."""
    pairs = zip(reversed(ours), theirs, strict=True)
    off = float(np.max([np.abs(np.asarray(a).reshape(b.shape) - b).max() for a, b in pairs]))
    if not off <= 1e-11:
        raise AssertionError(f"{case}: {name} is {off:.1e} from our policy")


def by_scipy(r: np.ndarray, vocab: int, horizon: int) -> list[np.ndarray]:
    """The same levels with scipy's logsumexp."""
    value, policies = r, []
    for _ in range(horizon):
        q = value.reshape(-1, vocab)
        value = np.asarray(logsumexp(q, axis=1))
        policies.append(q - value[:, None])
    return policies


def values_by_scipy(r: np.ndarray, vocab: int, horizon: int) -> np.ndarray:
    """Without the policies: log Z."""
    value = r
    for _ in range(horizon):
        value = np.asarray(logsumexp(value.reshape(-1, vocab), axis=1))
    return value


def by_numpy(r: np.ndarray, vocab: int, horizon: int) -> list[np.ndarray]:
    """The same levels as sums of exp(r); right only while exp(r) does not overflow."""
    weight, policies = np.exp(r), []
    for _ in range(horizon):
        q = weight.reshape(-1, vocab)
        weight = q.sum(axis=1)
        policies.append(np.log(q / weight[:, None]))
    return policies


# --- generic libraries for Markov decision processes: every node of the tree is a state -----------


def n_nodes(vocab: int, horizon: int) -> int:
    return sum(vocab**h for h in range(horizon + 1))


def children(vocab: int, horizon: int) -> np.ndarray:
    """(nodes, V): the successor of every node; a leaf is its own."""
    nodes = n_nodes(vocab, horizon)
    next_node = np.arange(nodes)[:, None] * vocab + 1 + np.arange(vocab)[None, :]
    inner = nodes - vocab**horizon
    next_node[inner:] = np.arange(inner, nodes)[:, None]
    return next_node


def dense_bytes(vocab: int, horizon: int) -> int:
    """A dense (states, actions, states) table, and Q for each step."""
    nodes = n_nodes(vocab, horizon)
    return 8 * nodes * vocab * (nodes + 3 * (horizon + 1))


def sparse_bytes(vocab: int, horizon: int) -> int:
    """A sparse (states x actions, states) matrix with its indices, rewards and three copies."""
    return 8 * n_nodes(vocab, horizon) * vocab * 12


def stops_at(size, vocab: int) -> str:
    limit = MEMORY_SHARE * memory_bytes()
    horizon = next(h for h in range(1, 60) if size(vocab, h) > limit)
    return (
        f"predicted from array sizes, not run: above {MEMORY_SHARE:.0%} of this machine's memory "
        f"from H={horizon} ({size(vocab, horizon) / 1e9:,.0f} GB)"
    )


class DenseTree:
    """What imitation reads of an environment."""

    def __init__(self, vocab: int, horizon: int, r: np.ndarray) -> None:
        following, nodes = children(vocab, horizon), n_nodes(vocab, horizon)
        self.horizon, self.state_dim, self.action_dim = horizon + 1, nodes, vocab
        self.transition_matrix = np.zeros((nodes, vocab, nodes))
        state, token = np.indices(following.shape)
        self.transition_matrix[state, token, following] = 1.0
        self.reward_matrix = np.zeros(nodes)
        self.reward_matrix[nodes - vocab**horizon :] = r[0]


def library_case(name: str, vocab: int, horizon: int, repeats: int) -> list[dict]:
    """One library and ours on one tree, if it is installed and its arrays fit."""
    case = f"V={vocab} H={horizon}, {name}"
    size = dense_bytes if name == "imitation" else sparse_bytes
    limit = stops_at(size, vocab)
    tree = complete_tree(vocab, horizon)
    r = np.random.default_rng(0).normal(size=(1, tree.n_leaves))
    try:
        prepared = (imitation_run if name == "imitation" else quantecon_run)(vocab, horizon, r)
    except ImportError as error:
        return [row(case, name, None, "", f"{MISSING[name]} ({error}); {limit}")]
    if size(vocab, horizon) > MEMORY_SHARE * memory_bytes():
        return [row(case, name, None, "", limit)]
    run, root = prepared()
    ours = float(soft_value_iteration(tree, r).values[0][0, 0])
    if name == "quantecon":
        ours = float(r.max())
    if abs(root() - ours) > 1e-9 * max(1.0, abs(ours)):
        raise AssertionError(f"{case}: the root's value is {root()!r}, ours is {ours!r}")
    on_device = jnp.asarray(r)
    costs = measure(
        {
            "ours": lambda: jax.block_until_ready(soft_value_iteration(tree, on_device).log_policy),
            name: run,
        },
        repeats,
    )
    note = f"of ours; {limit}"
    rows = [row(case, "ours", costs["ours"], ""), row(case, name, costs[name], "ours", note)]
    if name == "quantecon":
        rows[1]["note"] += "; hard maximum only; sweeps every node of the tree H times"
        sweep = {k: v / horizon for k, v in costs[name].items()}
        rows.append(row(case, "quantecon, a sweep", sweep, "ours", "of ours; the above / H"))
    return rows


def imitation_run(vocab: int, horizon: int, r: np.ndarray):
    """mce_partition_fh; its softmax also runs over the leaf's V equal loops, taken out of V."""
    from imitation.algorithms.mce_irl import mce_partition_fh

    def prepare():
        env = DenseTree(vocab, horizon, r)

        def run():
            return mce_partition_fh(env)

        # at the last step every action of a leaf pays r, so V(leaf) = r + log V
        return run, lambda: float(run()[0][0, 0]) - np.log(vocab)

    return prepare


def quantecon_run(vocab: int, horizon: int, r: np.ndarray):
    """backward_induction of a sparse DiscreteDP; the leaves' values are the terminal values."""
    from quantecon.markov import DiscreteDP, backward_induction
    from scipy import sparse

    def prepare():
        following, nodes = children(vocab, horizon), n_nodes(vocab, horizon)
        rows = nodes * vocab
        chain = sparse.csr_matrix(
            (np.ones(rows), following.reshape(-1), np.arange(rows + 1)), shape=(rows, nodes)
        )
        states = np.repeat(np.arange(nodes), vocab)
        tokens = np.tile(np.arange(vocab), nodes)
        problem = DiscreteDP(np.zeros(rows), chain, 1.0 - 1e-15, states, tokens)
        terminal = np.zeros(nodes)
        terminal[nodes - vocab**horizon :] = r[0]

        def run():
            return backward_induction(problem, horizon, v_term=terminal)

        return run, lambda: float(run()[0][0, 0])

    return prepare


# --- memory --------------------------------------------------------------------------------------


def peak_growth(vocab: int, horizon: int, kind: str) -> float:
    """Growth of this process's peak memory over one call, in arrays of r; r is numpy or JAX.

    The programs are compiled before, by a first call on another reward. What that call gave back is
    returned to the system, so that the call that counts cannot take it again unseen.
    """
    tree = complete_tree(vocab, horizon)
    r = np.random.default_rng(0).normal(size=(1, tree.n_leaves))
    reward = r if kind == "numpy" else jax.block_until_ready(jnp.array(r))
    jax.block_until_ready(soft_value_iteration(tree, 2.0 * reward).log_policy)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from what is held now
    before = peak_bytes()
    solution = soft_value_iteration(tree, reward)
    jax.block_until_ready((solution.values, solution.log_policy))
    return (peak_bytes() - before) / r.nbytes


def peak_bytes() -> int:
    """Peak resident memory of this program (getrusage also counts its parent's, across exec)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def memory_row(vocab: int, horizon: int, kind: str) -> dict:
    command = [sys.executable, __file__, "--peak", str(vocab), str(horizon), kind]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    grown = json.loads(done.stdout)
    note = f"the call grows the process by {grown:.2f} x the rewards array"
    name = f"peak memory, from {kind}"
    return row(f"V={vocab} H={horizon}", name, None, "", note, target=3.0, value=grown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="tiny trees, to see that it runs")
    parser.add_argument("--peak", nargs=3, metavar=("V", "H", "KIND"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak:
        vocab, horizon, kind = asked.peak
        print(peak_growth(int(vocab), int(horizon), kind))
        return
    repeats = 2 if asked.quick else 20
    rows = []
    for vocab, horizon in ((4, 4), (10, 2)) if asked.quick else CASES:
        rows += big_case(vocab, horizon, repeats)
        if not asked.quick:
            rows += [memory_row(vocab, horizon, kind) for kind in ("numpy", "JAX")]
    sizes = (("imitation", (2,)), ("quantecon", (2,))) if asked.quick else LIBRARY_SIZES
    for name, horizons in sizes:
        for horizon in horizons:
            rows += library_case(name, 4, horizon, max(1, repeats // 4))
    finish("theory_soft", rows, PACKAGES, asked.json)


LIBRARY_SIZES = (("imitation", (5, 6, 7)), ("quantecon", (5, 6, 10, 12)))

if __name__ == "__main__":
    main()
