"""Read JSON strictly: a missing key or a wrong type is an InputError naming file and key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn

from paper_figures.errors import InputError

KIND_NAMES = {
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    int: "an integer",
}


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises InputError naming the file, also for NaN and Infinity."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON: {error}") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


class Fields:
    """One JSON object with the place it came from, read field by field."""

    def __init__(self, body: Any, path: Path, where: str = "") -> None:
        """path: the file; where: the place inside it, for messages ("check 3")."""
        self.path = path
        self.where = f" {where}:" if where else ""
        if not isinstance(body, dict):
            raise InputError(f"{path}:{self.where} is not an object: {body!r:.80}")
        self.body: dict[str, Any] = body

    def _value(self, key: str) -> Any:
        if key not in self.body:
            raise InputError(f"{self.path}:{self.where} key {key!r} is missing")
        return self.body[key]

    def _wrong(self, key: str, wanted: str) -> NoReturn:
        got = repr(self.body[key])[:80]
        raise InputError(f"{self.path}:{self.where} key {key!r} must be {wanted}, got {got}")

    def _of(self, key: str, kind: type) -> Any:
        value = self._value(key)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self._wrong(key, KIND_NAMES[kind])
        return value

    def text(self, key: str) -> str:
        """A string."""
        return self._of(key, str)

    def flag(self, key: str) -> bool:
        """True or false."""
        return self._of(key, bool)

    def integer(self, key: str) -> int:
        """An integer (true and false are none)."""
        return self._of(key, int)

    def items(self, key: str) -> list[Any]:
        """A list."""
        return self._of(key, list)

    def table(self, key: str) -> dict[str, Any]:
        """An object."""
        return self._of(key, dict)

    def number(self, key: str) -> float | None:
        """A finite number, or None where the record says null."""
        value = self._value(key)
        if value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            self._wrong(key, "a finite number or null")
        return float(value)

    def numbers(self, key: str) -> dict[str, float | None]:
        """An object of numbers and nulls."""
        inner = Fields(self.table(key), self.path, f"{self.where.strip(' :')} {key}".strip())
        return {name: inner.number(name) for name in inner.body}

    def maybe(self, key: str, kind: type) -> Any:
        """A value of the kind, or None where the key is absent or null."""
        return None if self.body.get(key) is None else self._of(key, kind)
