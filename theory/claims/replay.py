"""The file of a broken twin: every number that it needs, so that anyone can run it again.

{"claim": "theorem-2.2", "twin": "unscaled", "instance": {...}, "beta": 1.0,
 "rewards": [{prompt: {completion: number}}], "policies": [{prompt: {completion: probability}}],
 "numbers": {"tau": 0.5}}. `instance` is the format of `theory.instance`; the last three may be left
out. Policies are completion distributions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from theory.errors import InputError
from theory.instance import Instance, parse_instance, read_json
from theory.preferences import PairData
from theory.tree import TokenTree

TWINS = Path(__file__).parent / "twins"
REQUIRED = {"claim", "twin", "instance", "beta"}
OPTIONAL = {"rewards", "policies", "numbers"}


@dataclass(frozen=True)
class Replay:
    """One broken twin as its file holds it."""

    claim: str
    twin: str
    instance: Instance
    beta: float
    rewards: Float[np.ndarray, "M P L"]  # (0, P, L) if the file has none; 0 where no completion is
    policies: Float[np.ndarray, "K P L"]  # log-probabilities, nats; (0, P, L) if there are none
    numbers: dict[str, float]

    def number(self, name: str) -> float:
        """One of `numbers`. Raises InputError if the file has none of that name."""
        if name not in self.numbers:
            raise self._missing(f"numbers.{name}")
        return self.numbers[name]

    def integer(self, name: str, most: int) -> int:
        """One of `numbers` that is a whole number from 1 to `most`. Raises InputError if not."""
        value = self.number(name)
        if not (value.is_integer() and 1 <= value <= most):
            raise InputError(
                f"twin {self.twin!r} of {self.claim}: numbers.{name} must be a whole number from 1 "
                f"to {most}, got {value!r}"
            )
        return int(value)

    def positive(self, name: str) -> float:
        """One of `numbers` that is above 0. Raises InputError if not."""
        value = self.number(name)
        if not value > 0:
            raise InputError(
                f"twin {self.twin!r} of {self.claim}: numbers.{name} must be > 0, got {value!r}"
            )
        return value

    @property
    def tree(self) -> TokenTree:
        """The tree of the instance."""
        return self.instance.tree

    @property
    def data(self) -> PairData:
        """The preferences. Raises InputError if the file has none, not one; so do the next two."""
        if self.instance.data is None:
            raise self._missing("instance.preferences")
        if not self.instance.data.size:
            raise self._missing("at least one comparison in instance.preferences")
        return self.instance.data

    @property
    def reward(self) -> Float[np.ndarray, "P L"]:
        """The reward of the instance, 0 where no completion is."""
        if self.instance.reward is None:
            raise self._missing("instance.reward")
        return self.instance.reward

    @property
    def log_ref(self) -> Float[np.ndarray, "P L"]:
        """The reference of the instance, nats."""
        if self.instance.log_ref is None:
            raise self._missing("instance.reference")
        return self.instance.log_ref

    def need(self, *, rewards: int = 0, policies: int = 0) -> None:
        """Raises InputError if the file has fewer rewards or policies than that."""
        for name, least in (("rewards", rewards), ("policies", policies)):
            if len(getattr(self, name)) < least:
                raise self._missing(f"at least {least} {name}")

    def _missing(self, what: str) -> InputError:
        return InputError(f"twin {self.twin!r} of {self.claim} needs {what}")


def twin_file(claim: str, twin: str) -> Path:
    """Where the file of a shipped twin is."""
    return TWINS / claim / f"{twin}.json"


def load_replay(path: Path) -> Replay:
    """Read and check a twin's file. Raises InputError naming file, place and value."""
    place, body = str(path), read_json(path)
    if not isinstance(body, dict):
        raise InputError(f"{place}: not an object")
    missing, unknown = REQUIRED - set(body), set(body) - REQUIRED - OPTIONAL
    if missing or unknown:
        raise InputError(f"{place}: missing keys {sorted(missing)}, unknown keys {sorted(unknown)}")
    for key in ("claim", "twin"):
        if not isinstance(body[key], str):
            raise InputError(f"{place}: {key} must be a string, got {body[key]!r}")
    instance = parse_instance(body["instance"], f"{place}: instance")
    beta = _number(body["beta"], f"{place}: beta")
    if beta <= 0:
        raise InputError(f"{place}: beta must be > 0, got {beta!r}")
    return Replay(
        body["claim"],
        body["twin"],
        instance,
        beta,
        _tables(body, "rewards", "reward", instance, place),
        _tables(body, "policies", "reference", instance, place),
        _numbers(body.get("numbers", {}), place),
    )


def _tables(body: dict, key: str, role: str, instance: Instance, place: str) -> np.ndarray:
    """The tables of a list, each checked as an instance's reward or reference would be."""
    rows = body.get(key, [])
    if not isinstance(rows, list):
        raise InputError(f"{place}: {key} must be a list")
    bare = {k: v for k, v in body["instance"].items() if k not in ("reward", "reference")}
    bare.pop("preferences", None)
    found = []
    for i, row in enumerate(rows):
        parsed = parse_instance({**bare, role: row}, f"{place}: {key}[{i}]")
        found.append(parsed.reward if role == "reward" else parsed.log_ref)
    shape = (0, instance.tree.n_prompts, instance.tree.n_leaves)
    return np.stack(found) if found else np.zeros(shape)


def _numbers(body: Any, place: str) -> dict[str, float]:
    if not isinstance(body, dict):
        raise InputError(f"{place}: numbers must be an object")
    return {name: _number(value, f"{place}: numbers.{name}") for name, value in body.items()}


def _number(value: object, place: str) -> float:
    """A finite JSON number as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{place} must be a number, got {value!r}")
    try:
        number = float(value)
    except OverflowError:
        number = float("inf")
    if not np.isfinite(number):
        raise InputError(f"{place} must be finite, got {number!r}")
    return number
