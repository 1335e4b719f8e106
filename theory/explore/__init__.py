"""One data set, both roads, in numpy and at once: for looking, and to check `theory.arms` by.

>>> from theory.explore import Question, explore
>>> from theory.families import Walsh
>>> found = explore(Walsh(bits=6, horizon=6).draw(), Question(n_pairs=256))
>>> bool(found.gap > 0)
True
"""

from theory.explore.roads import (
    RIDGES,
    ROADS,
    Exploration,
    Question,
    Road,
    best_in_hindsight,
    conditionals,
    curve,
    draw_pairs,
    explore,
    log_optimum,
    node_probabilities,
    policy_rank,
    walk,
)

__all__ = [
    "RIDGES",
    "ROADS",
    "Exploration",
    "Question",
    "Road",
    "best_in_hindsight",
    "conditionals",
    "curve",
    "draw_pairs",
    "explore",
    "log_optimum",
    "node_probabilities",
    "policy_rank",
    "walk",
]
