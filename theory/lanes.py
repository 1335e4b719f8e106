"""exp and log in float64 that compile to straight vector code, about twice as fast as XLA's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

import theory._x64  # noqa: F401

LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # its last 21 bits are 0: n * LN2_HIGH is exact
LN2_LOW = 1.9082149292705877e-10  # ln 2 - LN2_HIGH
TO_INTEGER = 1.5 * 2.0**52  # n + TO_INTEGER holds the integer n in its lowest bits
FLOOR = -700.0  # exp(-700) is about 1e-304, still a normal number
ROOT_HALF_BITS = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
TO_FLOAT_BITS, TO_FLOAT = 0x4330000000000000, 2.0**52  # an integer in the bits of 2**52 + it
TAYLOR = [1.0 / math.factorial(k) for k in range(14)]


def exp_below_zero(x: jax.Array) -> jax.Array:
    """exp(x) for x <= 0, relative error below 1e-15; exp(-700) in place of anything smaller.

    x = n ln 2 + f with |f| <= ln(2) / 2; exp(f) is its Taylor polynomial of degree 13, which is off
    by at most 5e-18, and 2**n is added to the exponent bits. NaN stays NaN. Any shape, float64.
    """
    x = jnp.where(x < FLOOR, FLOOR, x)
    n = lax.round(x * math.log2(math.e), lax.RoundingMethod.TO_NEAREST_EVEN)
    f = (x - n * LN2_HIGH) - n * LN2_LOW
    f2 = f * f
    f4 = f2 * f2
    pairs = [TAYLOR[k] + TAYLOR[k + 1] * f for k in range(0, 14, 2)]
    low = (pairs[0] + pairs[1] * f2) + f4 * (pairs[2] + pairs[3] * f2)
    high = (pairs[4] + pairs[5] * f2) + f4 * pairs[6]
    bits = lax.bitcast_convert_type(low + (f4 * f4) * high, jnp.int64)
    exponent = lax.bitcast_convert_type(n + TO_INTEGER, jnp.int64) << 52
    return lax.bitcast_convert_type(bits + exponent, jnp.float64)


def log_from_one(x: jax.Array) -> jax.Array:
    """log(x) for 1 <= x < 2**1000, absolute error below 1e-15 * max(1, log x). NaN stays NaN.

    x = 2**k z with sqrt(1/2) <= z < sqrt(2), and log z = 2 artanh(w), w = (z - 1) / (z + 1), by its
    series to w**21, which is off by at most 3e-18. Any shape, float64.
    """
    bits = lax.bitcast_convert_type(x, jnp.int64)
    k = lax.shift_right_logical(bits - ROOT_HALF_BITS, jnp.int64(52))
    z = lax.bitcast_convert_type(bits - (k << 52), jnp.float64)
    power = lax.bitcast_convert_type(k + TO_FLOAT_BITS, jnp.float64) - TO_FLOAT
    w = (z - 1.0) / (z + 1.0)
    series = jnp.full_like(w, 2.0 / 21.0)
    for odd in range(19, 0, -2):
        series = series * (w * w) + 2.0 / odd
    return power * LN2_HIGH + (w * series + power * LN2_LOW) + 0.0 * x
