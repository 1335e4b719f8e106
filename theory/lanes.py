"""exp and log in float64 that compile to straight vector code, about twice as fast as XLA's.

And, built on them, the programs of one large level of a soft backup: `below` is (P, S * V), the
values of the next level, and results are (P, S), or (P, S, V) for the conditionals.
"""

from __future__ import annotations

import math
from functools import partial

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
into = partial(jax.jit, donate_argnums=0, keep_unused=True)  # argument 0: memory for the result
for_vocab = partial(jax.jit, static_argnames="vocab")
TAYLOR = [1.0 / math.factorial(k) for k in range(14)]


def exp_below_zero(x: jax.Array) -> jax.Array:
    """exp(x) for x <= 0, relative error below 1e-15; exp(-700) in place of anything smaller.

    x = n ln 2 + f with |f| <= ln(2) / 2; exp(f) is its Taylor polynomial of degree 13, which is off
    by at most 5e-18, and 2**n is added to the exponent bits. NaN stays NaN. Any shape, float64.
    """
    x = jnp.maximum(x, FLOOR)
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


# --- one level -----------------------------------------------------------------------------------


def by_state(below: jax.Array, vocab: int) -> jax.Array:
    """(P, S * V) as (P, S, V)."""
    return below.reshape(below.shape[0], -1, vocab)


@for_vocab
def largest(below: jax.Array, vocab: int) -> jax.Array:
    """max_a q(s, a), (P, S)."""
    return jnp.max(by_state(below, vocab), axis=2)


@for_vocab
def sum_exp(below: jax.Array, top: jax.Array, beta: jax.Array, vocab: int) -> jax.Array:
    """sum_a exp((q(s, a) - top(s)) / beta), (P, S); NaN where one of these is not finite.

    One slice a token, so that the processor's lanes run over states: a reduction over few tokens
    leaves them half empty. The sum of all x is not finite where one is not, and 0 times it is NaN.
    1 / beta must be a normal number.
    """
    q = by_state(below, vocab)
    scale = 1.0 / beta
    total, seen = jnp.zeros_like(top), jnp.zeros_like(top)
    for token in range(vocab):
        x = (q[:, :, token] - top) * scale
        total, seen = total + exp_below_zero(x), seen + x
    return total + 0.0 * seen


@into
def conditionals(
    scratch: tuple[jax.Array, ...],
    below: jax.Array,
    top: jax.Array,
    log_sum: jax.Array,
    beta: jax.Array,
) -> jax.Array:
    """(q(s, a) - top(s)) / beta - log_sum(s), (P, S, V), in the memory of scratch if given."""
    q = below.reshape(*top.shape, -1)
    return (q - top[:, :, None]) / beta - log_sum[:, :, None]


@partial(into, static_argnames="shape")
def small_levels(
    scratch: tuple[jax.Array, ...], leaf: jax.Array, beta: jax.Array, shape: tuple[int, int]
) -> tuple[list[jax.Array], list[jax.Array]]:
    """V and the conditionals of small levels, shape = (tokens, levels), in one program, root first.

    V is NaN at the root where a reward, or a difference / beta, is not finite.
    """
    values, policies = [leaf], []
    for _ in range(shape[1]):
        q = by_state(values[0], shape[0])
        top = jnp.max(q, axis=2)
        scaled = (q - top[:, :, None]) / beta
        log_sum = jnp.log(jnp.sum(jnp.exp(scaled) + 0.0 * scaled, axis=2))
        policies.insert(0, scaled - log_sum[:, :, None])
        values.insert(0, top + beta * log_sum)
    return values[:-1], policies
