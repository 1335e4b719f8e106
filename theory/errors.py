"""The one exception that means: the input is wrong, and here is where; and a check that uses it."""

import math


class InputError(ValueError):
    """Bad input. The message names the bad value and its place; the command line exits with 2."""


def require_positive(record: object, *names: str) -> None:
    """Raise InputError naming the first of a record's settings that is not finite and > 0."""
    for name in names:
        value = getattr(record, name)
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} must be > 0, got {value!r}")
