"""One cell of a sweep: a family and its settings, how pairs are drawn, the arms and replicates."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from theory.draws import COVERAGES
from theory.errors import InputError
from theory.families import FAMILIES, Family, spec_of

VERSION = 2  # of what a cell holds; part of its hash
ARM_NAMES = (
    *("two_stage", "two_stage_full"),
    *("offline_all", "offline_all_one_hot", "offline_matched", "offline_proper"),
    *("online_dpo_sft", "online_dpo_dpo", "online_population_sft", "online_population_dpo"),
    *("mlp_two_stage", "mlp_offline", "mlp_dpo"),
    *("transformer_two_stage", "transformer_offline", "transformer_dpo"),
)
COMPLEXITY = {  # the setting that is a family's own number of complexity
    "walsh": "degree",
    "automaton": "states",
    "coverage": "salient",
    "sat": "degree",
    "lookup": "bits",
    "rouge": "reference",
}
BIT_FAMILIES = ("walsh", "sat", "lookup")  # completions are bits: R_sim may be all of one degree
LEAST_PAIRS = 5  # of which the last fifth is held out
MOST_PAIRS = 10**7
MOST_DIGITS = 9  # of a degree; no tree has so many bits
LONGEST = 240  # bytes of a file's name, with room for an ending


@dataclass(frozen=True)
class Cell:
    """One point of the grid with all its arms, ridges and replicates. Raises InputError."""

    block: str
    family: str
    settings: tuple[tuple[str, Any], ...]  # of the family, without the seed, by name
    n_pairs: int
    coverage: str
    noise: float  # chance that a label is turned round
    reference_share: float  # P_ref proportional to exp(share r* / beta)
    beta: float  # reward units a nat
    reward_class: str  # of the two-stage road: true, full or degree-k
    width: int  # hidden units of the networks
    arms: tuple[str, ...]
    ridges: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = {"n_pairs": (LEAST_PAIRS, MOST_PAIRS), "width": (1, 4096)}
        for name, (low, high) in whole.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(f"{name} must be a whole number in {low}..{high}, got {value!r}")
        for name, low, high in (("noise", 0.0, 0.5), ("reference_share", 0.0, 100.0)):
            value = getattr(self, name)
            if not is_number(value) or not low <= value <= high:
                raise InputError(f"{name} must be a number in {low:g}..{high:g}, got {value!r}")
        if not is_number(self.beta) or not 1e-6 <= self.beta <= 1e6:
            raise InputError(f"beta must be a number in 1e-06..1e+06, got {self.beta!r}")
        if self.coverage not in COVERAGES:
            raise InputError(f"coverage {self.coverage!r} is none of {', '.join(COVERAGES)}")
        _check_class(self)
        self.spec(max(self.seeds))
        if len(self.file_name.encode()) > LONGEST:
            raise InputError(
                f"the file of cell {self.name:.60}.. would have a name of "
                f"{len(self.file_name.encode())} bytes, at most {LONGEST}: shorten the block's name"
            )
        if self.reference_share == 0 and self._would_be_uniform:
            raise InputError(
                f"coverage {self.coverage!r} with reference_share 0: the reference is uniform over "
                "completions, so these pairs would be those of coverage 'uniform'; set "
                "reference_share > 0"
            )

    @property
    def _would_be_uniform(self) -> bool:
        """Whether a uniform reference makes this coverage the uniform one.

        Tempering the uniform distribution changes it only where completions end early.
        """
        ends_early = self.family in ("coverage", "rouge")
        return self.coverage == "on_policy" or (self.coverage == "narrow" and not ends_early)

    def spec(self, seed: int) -> Family:
        """The family's settings with this seed. Raises InputError for a value out of range."""
        return spec_of(self.family, {**dict(self.settings), "seed": seed})

    @property
    def degree(self) -> int | None:
        """The k of reward_class degree-k, or None."""
        kind, _, number = self.reward_class.partition("-")
        return int(number) if kind == "degree" else None

    @property
    def n_held(self) -> int:
        """How many of the pairs, the last ones, choose among an arm's candidates."""
        return self.n_pairs // 5

    @property
    def complexity_name(self) -> str:
        """The setting that is the family's own number of complexity."""
        return COMPLEXITY[self.family]

    @property
    def fixed(self) -> dict[str, Any]:
        """All that decides the data of a replicate and its reward class, n_pairs left out."""
        names = ("coverage", "noise", "reference_share", "beta", "reward_class", "width")
        return {"family": self.family, **dict(self.settings)} | {n: getattr(self, n) for n in names}

    @property
    def name(self) -> str:
        """Readable; unique within a grid up to the block's arms, ridges and seeds.

        The complexity and N are always there, anything else only where it is not the default.
        """
        defaults = {f.name: f.default for f in fields(FAMILIES[self.family])}
        parts = [self.block, self.family]
        for key, value in self.settings:
            if key == self.complexity_name or value != defaults[key]:
                parts.append(f"{key}{_text(value)}")
        for key, default in CELL_DEFAULTS.items():
            if getattr(self, key) != default:
                parts.append(f"{key}{_text(getattr(self, key))}")
        return "-".join([*parts, f"N{self.n_pairs}"])

    @property
    def file_name(self) -> str:
        """`<name>-<hash>.parquet`; the hash covers everything that decides the content."""
        text = json.dumps({"version": VERSION, **self.resolved()}, sort_keys=True)
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.parquet"

    def resolved(self) -> dict[str, Any]:
        """Every field as plain data."""
        return asdict(self) | {"settings": dict(self.settings)}


CELL_DEFAULTS: dict[str, Any] = {
    "coverage": "uniform",
    "noise": 0.0,
    "reference_share": 0.0,
    "beta": 1.0,
    "reward_class": "true",
    "width": 32,
}


def family_defaults(family: str) -> dict[str, Any]:
    """The family's settings without the seed. Raises InputError for an unknown family."""
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"family {family!r} is none of {', '.join(FAMILIES)}")
    settings = {f.name: f.default for f in fields(FAMILIES[family]) if f.name != "seed"}
    assert MISSING not in settings.values()
    return settings


def _check_class(cell: Cell) -> None:
    text = cell.reward_class
    if text in ("true", "full"):
        return
    kind, _, number = str(text).partition("-")
    if kind != "degree" or not number.isdecimal():
        raise InputError(f"reward_class {text!r} is none of true, full, degree-1, degree-2, ..")
    if cell.family not in BIT_FAMILIES:
        raise InputError(
            f"reward_class {text!r} needs completions of bits ({', '.join(BIT_FAMILIES)}), not "
            f"family {cell.family!r}"
        )
    bits = dict(cell.settings)["bits"]
    if len(number) > MOST_DIGITS or not 1 <= int(number) <= bits:
        raise InputError(f"reward_class {text!r}: the degree lies outside 1..{bits}, the bits")


def is_number(value: Any) -> bool:
    """Whether this is a finite int or float that float64 can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
