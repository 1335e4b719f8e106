"""Exact simulator of preference fine-tuning on small token trees (JAX, float64).

The public names below are loaded when they are first used: `import theory` stays light.
docs/api.md has one line on each, and examples that run.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from theory.automaton import solve_automaton
    from theory.classes import FiniteRewards, LinearRewards, local_reward
    from theory.errors import InputError
    from theory.fit import fit_finite, fit_linear, fit_tabular
    from theory.instance import Instance, load_instance
    from theory.operators import best_of_n, best_worst_of_k, temper, win_rate
    from theory.preferences import PairData
    from theory.soft import (
        entropy,
        expected_reward,
        hard_value_iteration,
        kl,
        leaf_log_probs,
        log_optimal,
        policy_from_leaves,
        soft_value_iteration,
    )
    from theory.solution import solve
    from theory.tree import TokenTree

__all__ = [
    "FiniteRewards",
    "InputError",
    "Instance",
    "LinearRewards",
    "PairData",
    "TokenTree",
    "best_of_n",
    "best_worst_of_k",
    "entropy",
    "expected_reward",
    "fit_finite",
    "fit_linear",
    "fit_tabular",
    "hard_value_iteration",
    "kl",
    "leaf_log_probs",
    "load_instance",
    "local_reward",
    "log_optimal",
    "policy_from_leaves",
    "soft_value_iteration",
    "solve",
    "solve_automaton",
    "temper",
    "win_rate",
]

_HOME = {
    "theory.automaton": ("solve_automaton",),
    "theory.classes": ("FiniteRewards", "LinearRewards", "local_reward"),
    "theory.errors": ("InputError",),
    "theory.fit": ("fit_finite", "fit_linear", "fit_tabular"),
    "theory.instance": ("Instance", "load_instance"),
    "theory.operators": ("best_of_n", "best_worst_of_k", "temper", "win_rate"),
    "theory.preferences": ("PairData",),
    "theory.soft": (
        "entropy",
        "expected_reward",
        "hard_value_iteration",
        "kl",
        "leaf_log_probs",
        "log_optimal",
        "policy_from_leaves",
        "soft_value_iteration",
    ),
    "theory.solution": ("solve",),
    "theory.tree": ("TokenTree",),
}


def __getattr__(name: str) -> object:
    """A public name, from the module that defines it. Raises AttributeError for any other."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'theory' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
