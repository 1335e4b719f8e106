"""Settings, families and axes of a sweep in words."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

WORDS = {
    "degree": "k",
    "sharpness": "s",
    "horizon": "H",
    "vocab": "V",
    "bits": "bits",
    "states": "states",
    "clauses": "clauses",
    "salient": "salient words",
    "words": "words",
    "prompts": "prompts",
    "reference": "reference length",
    "reward_class": "class",
    "coverage": "pairs",
    "noise": "noise",
    "reference_share": "reference share",
    "beta": "beta",
    "width": "width",
}
USUAL = {  # coordinates that go without saying
    "reward_class": "true", "coverage": "uniform", "noise": 0.0, "reference_share": 0.0,
    "beta": 1.0, "width": 32,
}  # fmt: skip
VALUES = {
    "full": "all rewards",
    "true": "its own",
    "on_policy": "on-policy",
}
FAMILIES = {
    "walsh": "Walsh polynomial",
    "automaton": "automaton",
    "automaton modulo": "automaton: modular sum",
    "automaton pattern": "automaton: pattern",
    "automaton brackets": "automaton: brackets",
    "coverage": "coverage of salient words",
    "sat": "k-SAT",
    "lookup": "lookup table",
    "rouge": "ROUGE-L",
}


SHORT = {  # the same on a narrow axis
    "walsh": "Walsh",
    "automaton modulo": "modular sum",
    "automaton pattern": "pattern",
    "automaton brackets": "brackets",
    "coverage": "salient words",
}
COMPLEXITIES = {  # the setting that is a family's own number of complexity, as an axis
    "walsh": "degree k of the reward",
    "automaton": "states of the automaton",
    "coverage": "salient words of a prompt",
    "sat": "k of k-SAT (literals a clause)",
    "lookup": "bits of the lookup table",
    "rouge": "length of the hidden reference (words)",
}


def family_words(kind: str) -> str:
    """The printed name of a family."""
    return FAMILIES.get(kind, kind.replace("_", " "))


def short_words(kind: str) -> str:
    """The printed name of a family where there is little room."""
    return SHORT.get(kind, family_words(kind))


def is_usual(coordinates: Mapping[str, Any]) -> bool:
    """Whether every coordinate is the one that goes without saying."""
    return all(coordinates[key] == usual for key, usual in USUAL.items())


def value_words(value: Any) -> str:
    """A coordinate's value: 2.0 -> '2', 'on_policy' -> 'on-policy'."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:g}"
    return VALUES.get(str(value), str(value).replace("_", " "))


def setting_words(place: Mapping[str, Any], only: Collection[str] | None = None) -> str:
    """'k = 2, s = 2, H = 8': the coordinates in words; what is as usual goes without saying.

    only: the coordinates to name, all of them without it.
    """
    named = [key for key in WORDS if key in place and (only is None or key in only)]
    named += sorted(k for k in place if k not in WORDS and (only is None or k in only))
    return ", ".join(
        f"{WORDS.get(key, key.replace('_', ' '))} = {value_words(place[key])}"
        for key in named
        if key not in ("family", "kind") and place[key] != USUAL.get(key)
    )


def apart(setting: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """What sets a setting apart from `here`, in words; '' where nothing does."""
    other = {k: v for k, v in setting.items() if k in here and v != here[k]}
    usual = {k: v for k, v in other.items() if k in USUAL and v == USUAL[k]}
    words = [setting_words({k: v for k, v in other.items() if k not in usual})]
    words += [f"usual {key.replace('_', ' ')}" for key in usual]
    return ", ".join(filter(None, words))


def varied(places: Iterable[Mapping[str, Any]]) -> set[str]:
    """The coordinates that do not have one value in all places."""
    seen: dict[str, set] = {}
    rows = list(places)
    for key in {key for place in rows for key in place}:
        seen[key] = {place.get(key) for place in rows}
    return {key for key, values in seen.items() if len(values) > 1}
