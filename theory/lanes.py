"""One level of soft value iteration in one pass over its memory, compiled by numba (float64).

A block of states that fits the first cache is read once: its maxima, the sums of exp, the values
and the conditionals are all made while it is there. exp and log are polynomials, so that every loop
is vector code. Of few tokens the processor's lanes run over states, of many over tokens. The
order of all sums is fixed: the same bits whatever the blocks and threads.

A level's q(s, a) are nats, as a sum of two floats (`high` + `low`, about 100 bits); at the leaves
they are rewards times 1 / beta. Where no completion is they are -inf.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.np import arrayobj

LN2_HIGH = float.fromhex("0x1.62e42feep-1")  # its last 21 bits are 0: n * LN2_HIGH is exact
LN2_LOW = 1.9082149292705877e-10  # ln 2 - LN2_HIGH
LN2, LOG2_E = math.log(2.0), math.log2(math.e)
TO_INTEGER = 1.5 * 2.0**52  # n + TO_INTEGER holds the integer n in its lowest bits
FLOOR = -700.0  # exp(-700) is about 1e-304, still a normal number
ROOT_HALF_BITS = 0x3FE6A09E667F3BCD  # the bits of sqrt(1/2)
RANGE = 1e306  # of rewards / beta and their differences
BLOCK = 128  # states a block, of few tokens
ROWS = 32  # states a block, of many tokens
TOP, TOP_LOW, TOTAL, LOG_SUM, WORTH, HIGH, LOW = (BLOCK * k for k in range(7))  # in `state`
MANY_TOKENS = 12  # from which a row of tokens fills the lanes by itself

intrinsic: Any = numba.extending.intrinsic  # its types say nothing of what it makes
_numbers = types.Array(types.float64, 1, "C")
_read = types.Array(types.float64, 1, "C", readonly=True)
_read_bool = types.Array(types.boolean, 1, "C", readonly=True)
_scale = types.UniTuple(types.float64, 4)


def _compiled(function: Any = None, signature: Any = None) -> Any:
    """numba's jit, kept on disk; where nothing can be written it is compiled once a process.

    With a signature it is compiled here and now, else with the functions that call it.
    """
    if function is None:
        return partial(_compiled, signature=signature)
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(signature, cache=True, **options)(function)
    except (RuntimeError, OSError):  # no folder for the cache takes files, or its disk is full
        return numba.njit(signature, **options)(function)


def _inlined(function: Any) -> Any:
    """Compiled into each function that calls it, before loops are turned into vector code."""
    return numba.njit(inline="always", error_model="numpy")(function)


# --- instructions that numba has no name for -----------------------------------------------------


@intrinsic
def _fma(typing, a, b, c):
    """a * b + c, rounded once."""
    double = types.float64
    return double(double, double, double), lambda _, builder, __, args: builder.fma(*args)


@intrinsic
def _bits(typing, x):
    return types.int64(types.float64), lambda _, to, __, args: to.bitcast(args[0], ir.IntType(64))


@intrinsic
def _from_bits(typing, x):
    return types.float64(types.int64), lambda _, to, __, args: to.bitcast(args[0], ir.DoubleType())


@intrinsic
def _plus(typing, a, b):
    """a + b, in a sum that may be taken in any (fixed) order: one partial sum a lane."""
    double = types.float64
    return double(double, double), lambda _, to, __, args: to.fadd(*args, flags=("reassoc",))


def _address(context, builder, kind, array, index):
    return builder.gep(arrayobj.make_array(kind)(context, builder, array).data, [index])


def _prefetch(for_writing: int) -> Any:
    @intrinsic
    def prefetch(typing, array, index):
        """Fetch the cache line of array[index], which may lie beyond its end."""

        def make(context, builder, signature, args):
            where, int32 = _address(context, builder, signature.args[0], *args), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [where.type, int32, int32, int32])
            call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
            builder.call(call, [where, int32(for_writing), int32(3), int32(1)])
            return context.get_dummy_value()

        return types.none(array, types.intp), make

    return prefetch


def _tile(width: int) -> Any:
    """Transposes width x width numbers in registers, in log2(width) steps."""
    vector, int32 = ir.VectorType(ir.DoubleType(), width), ir.IntType(32)

    def pick(builder, a, b, half, second):
        take = [(k ^ half) + width if k & half else k for k in range(width)]
        if second:  # from a the upper halves, moved down
            take = [k + width if k & half else k | half for k in range(width)]
        mask = ir.Constant(ir.VectorType(int32, width), [ir.Constant(int32, k) for k in take])
        return builder.shuffle_vector(a, b, mask)

    @intrinsic
    def tile(typing, source, i, i_step, target, j, j_step):
        """target[j + c * j_step + r] = source[i + r * i_step + c] for r, c < width."""

        def make(context, builder, signature, args):
            def line(array, start, step, r):
                index = builder.add(args[start], builder.mul(args[step], args[step].type(r)))
                where = _address(context, builder, signature.args[array], args[array], index)
                return builder.bitcast(where, vector.as_pointer())

            rows = [builder.load(line(0, 1, 2, r), align=8) for r in range(width)]
            for half in (1, 2, 4)[: width.bit_length() - 1]:
                for r in (r for r in range(width) if not r & half):
                    a, b = rows[r], rows[r | half]
                    rows[r], rows[r | half] = (pick(builder, a, b, half, x) for x in (0, 1))
            for r in range(width):
                builder.store(rows[r], line(3, 4, 5, r), align=8)
            return context.get_dummy_value()

        n = types.intp
        return types.none(source, n, n, target, n, n), make

    return tile


_prefetch_read, _prefetch_write = _prefetch(0), _prefetch(1)
_tile_8, _tile_4, _tile_2 = _tile(8), _tile(4), _tile(2)


@_compiled
def transpose(source, i, rows, cols, i_step, target, j, j_step):
    """target[j + c * j_step + r] = source[i + r * i_step + c]; the last tiles overlap."""
    least = min(rows, cols)
    width = 8 if least >= 8 else 4 if least >= 4 else 2 if least >= 2 else 1
    for row in range(0, rows, width):
        r = min(row, rows - width)
        for col in range(0, cols, width):
            c = min(col, cols - width)
            at, to = i + r * i_step + c, j + c * j_step + r
            if width == 8:
                _tile_8(source, at, i_step, target, to, j_step)
            elif width == 4:
                _tile_4(source, at, i_step, target, to, j_step)
            elif width == 2:
                _tile_2(source, at, i_step, target, to, j_step)
            else:
                target[to] = source[at]


# --- exp and log ---------------------------------------------------------------------------------


def _exp_coefficients(degree: int) -> list[float]:
    """Of the polynomial g with exp(f) = 1 + f + f^2 g(f) for |f| <= ln(2) / 2, lowest first.

    g interpolates at Chebyshev's points; of degree 9 it leaves exp(f) off by less than 1e-17.
    """
    series = [1.0 / math.factorial(k + 2) for k in range(20)]
    exact, interval = np.polynomial.Polynomial(series), [-LN2 / 2, LN2 / 2]
    g = np.polynomial.Chebyshev.interpolate(exact, degree, interval)
    return [float(c) for c in g.convert(kind=np.polynomial.Polynomial).coef]


G0, G1, G2, G3, G4, G5, G6, G7, G8, G9 = _exp_coefficients(9)


@_inlined
def exp_near_zero(x):
    """exp(x) for x <= 1, off by less than 3e-16, and by 3e-16 + 4e-17 |x| of itself.

    exp(-700) in place of anything smaller, and of NaN. x = n ln 2 + f; 2**n is added to the bits of
    the exponent.
    """
    x = x if x > FLOOR else FLOOR
    shifted = _fma(x, LOG2_E, TO_INTEGER)
    f = _fma(shifted - TO_INTEGER, -LN2, x)
    f2 = f * f
    f4 = f2 * f2
    low = _fma(_fma(G3, f, G2), f2, _fma(G1, f, G0))
    high = _fma(_fma(G9, f, G8), f4, _fma(_fma(G7, f, G6), f2, _fma(G5, f, G4)))
    return _from_bits(_bits(1.0 + _fma(_fma(high, f4, low), f2, f)) + (_bits(shifted) << 52))


@_inlined
def log_from_one(x):
    """log(x) for 1 <= x < 2**1000, absolute error below 1e-15 * max(1, log x).

    x = 2**k z with sqrt(1/2) <= z < sqrt(2), and log z = 2 artanh(w), w = (z - 1) / (z + 1), by its
    series to w**21, which is off by at most 3e-18.
    """
    bits = _bits(x)
    k = (bits - ROOT_HALF_BITS) >> 52
    z = _from_bits(bits - (k << 52))
    w = (z - 1.0) / (z + 1.0)
    w2 = w * w
    series = _fma(_fma(_fma(2.0 / 21.0, w2, 2.0 / 19.0), w2, 2.0 / 17.0), w2, 2.0 / 15.0)
    series = _fma(_fma(_fma(series, w2, 2.0 / 13.0), w2, 2.0 / 11.0), w2, 2.0 / 9.0)
    series = _fma(_fma(_fma(series, w2, 2.0 / 7.0), w2, 2.0 / 5.0), w2, 2.0 / 3.0)
    return k * LN2_HIGH + (w * _fma(series, w2, 2.0) + k * LN2_LOW)


@_inlined
def _order(bits):
    """Bits of a float as an integer that sorts as the float does, and back."""
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


# --- blocks of states ----------------------------------------------------------------------------
# scale: (beta, s, s_low, hole): s + s_low = 1 / beta to twice the digits (at upper levels q is in
# nats: 1 and 0); hole: -inf if q may be -inf, NaN if it may not. Each returns how many states, or
# terms, are not finite or out of RANGE.


@_inlined
def _states(n, work, scale, leaf, value, high, low):
    """From TOP, TOP_LOW and TOTAL of n states: LOG_SUM, V in reward units and in nats.

    All in one piece of memory, or the compiler would have to ask too often which arrays overlap.
    """
    beta, s, s_low, _ = scale
    bad = 0
    for i in range(n):
        up, rest = work[TOP + i], work[TOP_LOW + i]
        log_sum = log_from_one(work[TOTAL + i])
        if leaf:
            rest = _fma(up, s, -(up * s)) + up * s_low
            up = up * s
        whole = up + log_sum
        back = whole - up
        rest += (up - (whole - back)) + (log_sum - back)  # what rounding took
        worth = _fma(beta, whole, beta * rest)
        bad += (not ((abs(up) <= RANGE) & (abs(worth) < np.inf))) & (work[TOTAL + i] > 0.5)
        work[LOG_SUM + i], work[WORTH + i] = log_sum, worth
        work[HIGH + i], work[LOW + i] = whole, rest
    for i in range(n):  # the largest term is 1: where the sum is almost 0, no state is
        value[i] = work[WORTH + i] if work[TOTAL + i] > 0.5 else -np.inf
    for i in range(n):
        high[i] = work[HIGH + i] if work[TOTAL + i] > 0.5 else -np.inf
    for i in range(n):
        low[i] = work[LOW + i] if work[TOTAL + i] > 0.5 else 0.0
    return bad


@_inlined
def _few_tokens(q, q_low, at, policy, n, work, blocks, state, scale, value, high, low):
    """States of which q lies at q[at:], and their conditionals at policy[at:]; lanes over states.

    work: memory for q and then q_low with the states last, which `blocks` (2, vocab, BLOCK) is too.
    """
    _, s, s_low, hole = scale
    vocab, bad = blocks.shape[1], 0
    after, lows = at + n * vocab, vocab * BLOCK
    block, block_low = blocks[0], blocks[1]
    transpose(q, at, n, vocab, vocab, work, 0, BLOCK)
    if q_low is not None:
        transpose(q_low, at, n, vocab, vocab, work, lows, BLOCK)
    for i in range(n):
        state[TOP + i], state[TOP_LOW + i], state[TOTAL + i] = -np.inf, 0.0, 0.0
    for token in range(vocab):
        for i in range(n):
            q_i, top = block[token, i], state[TOP + i]
            if q_low is not None:
                state[TOP_LOW + i] = block_low[token, i] if q_i > top else state[TOP_LOW + i]
            state[TOP + i] = q_i if q_i > top else top
    for i in range(n):
        state[TOP + i] = state[TOP + i] if state[TOP + i] > -np.inf else 0.0
    for token in range(vocab):
        for i in range(n):
            x = (block[token, i] - state[TOP + i]) * s
            if q_low is not None:
                x += block_low[token, i] - state[TOP_LOW + i]
            bad += (not (x >= -RANGE)) & (block[token, i] != hole)
            state[TOTAL + i] += exp_near_zero(x)
        if q_low is None:
            for line in range((n + 7) >> 3):
                _prefetch_read(q, after + token * n + 8 * line)
                _prefetch_write(policy, after + token * n + 8 * line)
    bad += _states(n, state, scale, q_low is None, value, high, low)
    for token in range(vocab):
        for i in range(n):
            x = block[token, i] - state[TOP + i]
            if q_low is None:
                rest = _fma(x, s_low, -state[LOG_SUM + i])
            else:
                rest = block_low[token, i] - state[TOP_LOW + i] - state[LOG_SUM + i]
            block[token, i] = _fma(x, s, rest) if x > -np.inf else -np.inf
    transpose(work, 0, vocab, n, BLOCK, policy, at, vocab)
    return bad


@_inlined
def _many_tokens(rows, rows_low, first, out, n, state, scale, value, high, low):
    """As `_few_tokens`, lanes over tokens, straight from memory: rows `first` and on."""
    _, s, s_low, hole = scale
    vocab, bad = rows.shape[1], 0
    for i in range(n):
        r = first + i
        least = _order(_bits(-np.inf))
        place, place_low, most_low, whole = least, least, 0.0, 0.0
        for token in range(vocab):  # of integers: no order of the maxima matters, NaN or not
            place = max(place, _order(_bits(rows[r, token])))
        most = _from_bits(_order(place))
        if rows_low is not None:
            for token in range(vocab):
                tied_low = rows_low[r, token] if rows[r, token] == most else -np.inf
                place_low = max(place_low, _order(_bits(tied_low)))
            most_low = _from_bits(_order(place_low))
        most = most if most > -np.inf else 0.0
        for token in range(vocab):
            x = (rows[r, token] - most) * s
            if rows_low is not None:
                x += rows_low[r, token] - most_low
            bad += (not (x >= -RANGE)) & (rows[r, token] != hole)
            whole = _plus(whole, exp_near_zero(x))
        state[TOP + i], state[TOP_LOW + i], state[TOTAL + i] = most, most_low, whole
    bad += _states(n, state, scale, rows_low is None, value, high, low)
    for i in range(n):
        r = first + i
        most, most_low, less = state[TOP + i], state[TOP_LOW + i], -state[LOG_SUM + i]
        for token in range(vocab):
            x = rows[r, token] - most
            if rows_low is None:
                rest = _fma(x, s_low, less)
            else:
                rest = less + (rows_low[r, token] - most_low)
            out[r, token] = _fma(x, s, rest) if x > -np.inf else -np.inf
    return bad


_rest = (_numbers, types.intp, _scale, *[_numbers] * 3)  # what both have after q and q_low


@_compiled(signature=[types.intp(_read, types.none, *_rest), types.intp(*[_numbers] * 2, *_rest)])
def level(q, q_low, policy, vocab, scale, value, high, low):
    """All states of one level of some subtrees: q and policy are (states * vocab,).

    q: rewards, with q_low None, or V of the level below in nats. Fills the policy, V in reward
    units, and V in nats as high + low.
    """
    few = vocab < MANY_TOKENS
    work = np.zeros(2 * vocab * BLOCK if few else 0)
    blocks = work.reshape(2, -1, BLOCK)
    rows, out = q.reshape(-1, vocab), policy.reshape(-1, vocab)
    rows_low = None if q_low is None else q_low.reshape(-1, vocab)
    state = np.zeros(7 * BLOCK)
    step, bad = BLOCK if few else ROWS, 0
    for first in range(0, value.size, step):
        last = min(first + step, value.size)
        n, at = last - first, first * vocab
        to, up, down = value[first:last], high[first:last], low[first:last]
        if few:
            bad += _few_tokens(q, q_low, at, policy, n, work, blocks, state, scale, to, up, down)
        else:
            bad += _many_tokens(rows, rows_low, first, out, n, state, scale, to, up, down)
    return bad


@_compiled(signature=types.intp(_read, _read_bool, types.intp, _numbers))
def masked(reward, kept, start, leaf):
    """leaf = reward where kept, else -inf; `kept` (leaves,) serves every prompt.

    reward and leaf begin at leaf slot `start` of all prompts together. Returns how many kept
    rewards are not finite. With `kept` of size 0 all are kept.
    """
    bad, at = 0, 0
    if kept.size == 0:
        for i in range(leaf.size):
            bad += not (abs(reward[i]) < np.inf)
            leaf[i] = reward[i]
    while kept.size > 0 and at < leaf.size:
        offset = (start + at) % kept.size
        n = min(kept.size - offset, leaf.size - at)
        keep, source, target = kept[offset : offset + n], reward[at : at + n], leaf[at : at + n]
        for i in range(n):
            bad += keep[i] & (not (abs(source[i]) < np.inf))
            target[i] = source[i] if keep[i] else -np.inf
        at += n
    return bad
