"""Switch JAX to float64; import this before anything that makes an array."""

from __future__ import annotations

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

AnyArray = jax.Array | np.ndarray
