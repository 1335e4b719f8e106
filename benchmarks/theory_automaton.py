"""Seconds and memory of exact work over (step, automaton state), with the dense tree beside it.

Also what ROUGE-L's optimum costs as a table: the states of its automaton by the reference's length,
and what the soft optimum loses when it keeps only a finger in the reference.

Example: python benchmarks/theory_automaton.py --quick --json out/automaton.json
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jax
import numpy as np
from timing import finish, row

from theory.automaton import (
    Automaton,
    Verifier,
    expected_reward,
    leaf_log_probs_of,
    policy_kl,
    read_off,
    rouge_l_states,
    sample_completions,
    solve_automaton,
    table_sizes,
    to_tree,
)
from theory.errors import InputError
from theory.outputs import check_output
from theory.soft import log_optimal, soft_value_iteration
from theory.tree import TokenTree

HORIZON, VOCAB, STATES = 53, 4096, 64  # the length of a completion in the paper's Table 1


def seconds(work: Callable[[], object], repeats: int) -> dict[str, float]:
    """The first call (compilation included), and median and best of the following ones."""
    taken = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        jax.block_until_ready(work())
        taken.append(time.perf_counter() - begin)
    return {"first": taken[0], "median": statistics.median(taken[1:]), "best": min(taken[1:])}


def random_verifier(rng: np.random.Generator, states: int, vocab: int, horizon: int | None):
    """Random transitions and rewards, EOS; step terms (H, S, V) if a horizon is given."""
    tokens = (*(f"t{v}" for v in range(vocab - 1)), ".")
    machine = Automaton(tokens, rng.integers(0, states, (states, vocab)), 0, ".")
    step = None if horizon is None else rng.normal(size=(horizon, states, vocab))
    return Verifier(machine, rng.normal(size=states), step)


def long_horizon(repeats: int) -> dict[str, object]:
    """H = 53, V = 4096, S = 64: the solution, and what is computed from it."""
    rng = np.random.default_rng(0)
    plain = random_verifier(rng, STATES, VOCAB, None)
    full = random_verifier(rng, STATES, VOCAB, HORIZON)
    ref = rng.normal(size=(STATES, VOCAB))
    ref -= np.log(np.exp(ref).sum(axis=1, keepdims=True))
    solve = seconds(lambda: solve_automaton(plain, HORIZON).log_policy, repeats)
    policy = np.asarray(solve_automaton(plain, HORIZON).log_policy)
    machine, key = plain.machine, jax.random.key(0)
    return {
        "solve": solve,
        "solve, step terms and reference": seconds(
            lambda: solve_automaton(full, HORIZON, log_ref=ref).log_policy, repeats
        ),
        "1000 samples": seconds(lambda: sample_completions(machine, policy, key, 1000), repeats),
        "KL to the reference": seconds(lambda: policy_kl(machine, policy, ref), repeats),
        "expected reward": seconds(lambda: expected_reward(plain, policy), repeats),
        "policy bytes": policy.nbytes,
        "peak resident bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "sizes": asdict(table_sizes(machine, policy)),
    }


def against_tree(repeats: int, vocab: int, horizon: int, states: int) -> dict[str, object]:
    """The same reward on the dense tree, where both fit: times, their ratio, the difference."""
    rng = np.random.default_rng(1)
    machine = Automaton(
        tuple(f"t{v}" for v in range(vocab)), rng.integers(0, states, (states, vocab))
    )
    verifier = Verifier(machine, rng.normal(size=states))
    tree = TokenTree(machine.tokens, horizon, ("x",), (1.0,))
    ends = np.zeros(1, dtype=np.int64)
    for _ in range(horizon):  # the end state of every leaf, in the tree's order
        ends = machine.next[ends].reshape(-1)
    r = verifier.final[ends][None, :]
    mine = seconds(lambda: solve_automaton(verifier, horizon).log_policy, repeats)
    dense = seconds(lambda: soft_value_iteration(tree, r).log_policy, repeats)
    log_z = solve_automaton(verifier, horizon).log_z
    difference = abs(log_z - float(soft_value_iteration(tree, r).log_z[0]))
    return {
        "leaves": tree.n_leaves,
        "automaton": mine,
        "tree": dense,
        "tree / automaton": dense["median"] / mine["median"],
        "difference of log Z": difference,
    }


def largest_difference() -> float:
    """max |log P difference| over the completions of a small tree with EOS, step terms, all."""
    verifier = random_verifier(np.random.default_rng(2), 4, 3, 6)
    tree, r = to_tree(verifier, 6)
    mine = leaf_log_probs_of(tree, verifier.machine, solve_automaton(verifier, 6).log_policy)
    held = tree.leaf_mask
    return float(np.abs(mine[0, held] - log_optimal(tree, r)[0, held]).max())


def rouge(longest: int) -> dict[str, object]:
    """States by the number of words of the reference; the loss of a finger in the reference."""
    rng = np.random.default_rng(3)
    lengths = list(range(2, longest + 1, 2))
    draws = {m: rng.integers(0, 5, m) for m in lengths}
    words = tuple(f"w{i}" for i in range(12))
    betas = (1.0, 0.3, 0.1, 0.05, 0.02, 0.01, 0.005)
    found = {b: read_off((*words, "."), words[:8], 16, eos=".", beta=b) for b in betas}
    return {
        "states": [
            {
                "words": m,
                "distinct": rouge_l_states([f"w{j}" for j in range(m)]),
                "five, random order": rouge_l_states([f"w{i}" for i in draws[m]]),
                "two, in turn": rouge_l_states([f"w{j % 2}" for j in range(m)]),
            }
            for m in lengths
        ],
        "8 words of 12, H = 16": [{"beta": b, **asdict(found[b])} for b in betas],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller trees")
    options = parser.parse_args()
    try:
        if options.json is not None:
            check_output(options.json, "--json")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    repeats = 2 if options.quick else 7
    sizes = (4, 8, 8) if options.quick else (8, 7, 16)
    long, dense = long_horizon(repeats), against_tree(repeats, *sizes)
    record = {
        f"H={HORIZON} V={VOCAB} S={STATES}": long,
        "against the dense tree": dense,
        "largest difference of log P": largest_difference(),
        "ROUGE-L": rouge(10 if options.quick else 18),
    }
    show(record)
    finish("theory_automaton", rows_of(long, dense, *sizes), ("jax", "numpy"), options.json, record)
    return 0


def rows_of(long: dict, dense: dict, vocab: int, horizon: int, states: int) -> list[dict]:
    """The timed figures as the lines that all benchmarks share."""
    case = f"H={HORIZON} V={VOCAB} S={STATES}"
    rows = [row(case, name, in_ms(cost), "") for name, cost in long.items() if timed(cost)]
    case = f"H={horizon} V={vocab} S={states}"
    note = f"of the automaton; log Z differs by {dense['difference of log Z']:.0e}"
    rows.append(row(case, "automaton", in_ms(dense["automaton"]), ""))
    return [*rows, row(case, "dense tree", in_ms(dense["tree"]), "automaton", note)]


def timed(cost: object) -> bool:
    return isinstance(cost, dict) and "best" in cost


def in_ms(cost: dict[str, float]) -> dict[str, float]:
    return {"min": 1e3 * cost["best"], "median": 1e3 * cost["median"]}


def show(record: dict[str, object], indent: str = "") -> None:
    """Nested figures as indented lines."""
    for name, value in record.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            show(value, indent + "  ")
        elif isinstance(value, list):
            print(f"{indent}{name}:")
            for row in value:
                print(f"{indent}  " + ", ".join(f"{k} {text(v)}" for k, v in row.items()))
        else:
            print(f"{indent}{name}: {text(value)}")


def text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value}"


if __name__ == "__main__":
    sys.exit(main())
