"""Strict settings for the exact core: float64, no silent promotion, shapes checked at run time."""

from __future__ import annotations

import jax
from hypothesis import settings
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

CORE = (
    *("tree", "soft", "preferences", "classes", "fit", "fit_policy", "projection", "claims"),
    *("rational", "logsum", "instance", "automaton", "operators", "population", "objectives"),
    *("backup", "explore"),
)
install_import_hook([f"theory.{name}" for name in CORE], "beartype.beartype")

settings.register_profile("exact", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("exact")
