"""Families of ground-truth rewards, each with its verifier complexity as a number.

>>> from theory.families import Walsh, make
>>> truth = Walsh(bits=8, degree=2, sharpness=2.0, seed=0).draw()
>>> truth.reward.shape, truth.features.shape
((1, 256), (1, 256, 36))
>>> again = make(truth.family, truth.parameters)  # from plain data, such as a line of a grid
>>> bool((again.reward == truth.reward).all())
True

A family is a frozen dataclass of settings with a method `draw`. `theory.complexity` measures how
complex the reward and its soft-optimal policy are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from theory.errors import InputError
from theory.families.automata import Automata
from theory.families.base import Family, GroundTruth, orthonormal
from theory.families.coverage import Coverage
from theory.families.lookup import Lookup
from theory.families.rouge import Rouge
from theory.families.sat import Sat
from theory.families.walsh import Walsh, walsh_reward

FAMILIES: dict[str, type] = {
    spec.family: spec for spec in (Walsh, Automata, Coverage, Sat, Lookup, Rouge)
}


def spec_of(family: str, settings: Mapping[str, Any]) -> Family:
    """The settings of a family from plain data; what is not named has its default.

    Raises InputError for an unknown family or setting, or a value out of range.
    """
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"family {family!r} is none of {', '.join(FAMILIES)}")
    known = [field.name for field in fields(FAMILIES[family])]
    for name in settings:
        if name not in known:
            raise InputError(f"family {family!r} has no setting {name!r}; known: {known}")
    return FAMILIES[family](**settings)


def make(family: str, settings: Mapping[str, Any]) -> GroundTruth:
    """Draw one ground truth from plain data; see `spec_of` for the errors."""
    return spec_of(family, settings).draw()


__all__ = [
    "FAMILIES",
    "Automata",
    "Coverage",
    "Family",
    "GroundTruth",
    "Lookup",
    "Rouge",
    "Sat",
    "Walsh",
    "make",
    "orthonormal",
    "spec_of",
    "walsh_reward",
]
