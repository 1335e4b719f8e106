"""Exact soft-optimal policies at the length of real completions, over (step, automaton state).

If a reward sees a completion only through the state of a finite automaton (plus a term a step),
soft value iteration is a dynamic program of H S V work instead of V**H:

>>> from theory.automaton import modulo_verifier, solve_automaton, expected_reward
>>> even = modulo_verifier(["a", "b", "."], ["a"], 2, eos=".", score=[1.0, 0.0])
>>> solution = solve_automaton(even, 53, beta=0.5)  # 2**53 completions of 53 tokens alone
>>> round(expected_reward(even, solution.log_policy), 6)
0.880797
>>> [round(float(p), 3) for p in solution.log_policy[0, 0]]  # the first token, nats
[-0.693, -0.693, -36.864]

A `Verifier` is an `Automaton` with rewards. Verifiers come from a written table, from counting,
from a regular expression over tokens, from ROUGE-L against a reference; `product` adds two.
"""

from theory.automaton.bridge import leaf_log_probs_of, to_tree
from theory.automaton.build import (
    count_verifier,
    coverage_verifier,
    length_verifier,
    modulo_verifier,
    verifier_from_table,
)
from theory.automaton.machine import Automaton, Verifier, pair_states, product
from theory.automaton.minimise import minimise
from theory.automaton.policies import (
    Occupancy,
    Samples,
    Sizes,
    expected_reward,
    expected_term,
    merge_states,
    occupancy,
    policy_entropy,
    policy_kl,
    policy_kl_between,
    sample_completions,
    table_sizes,
)
from theory.automaton.regex import escape, regex_automaton, regex_constraint, regex_verifier
from theory.automaton.rouge import (
    ReadOff,
    pointer_automaton,
    read_off,
    rouge_l_states,
    rouge_l_verifier,
)
from theory.automaton.solve import (
    AutomatonSolution,
    HardSolution,
    solve_automaton,
    solve_automaton_hard,
)

__all__ = [
    "Automaton",
    "AutomatonSolution",
    "HardSolution",
    "Occupancy",
    "ReadOff",
    "Samples",
    "Sizes",
    "Verifier",
    "count_verifier",
    "coverage_verifier",
    "escape",
    "expected_reward",
    "expected_term",
    "leaf_log_probs_of",
    "length_verifier",
    "merge_states",
    "minimise",
    "modulo_verifier",
    "occupancy",
    "pair_states",
    "pointer_automaton",
    "policy_entropy",
    "policy_kl",
    "policy_kl_between",
    "product",
    "read_off",
    "regex_automaton",
    "regex_constraint",
    "regex_verifier",
    "rouge_l_states",
    "rouge_l_verifier",
    "sample_completions",
    "solve_automaton",
    "solve_automaton_hard",
    "table_sizes",
    "to_tree",
    "verifier_from_table",
]
