"""Tempering, best-of-N, best/worst-of-K and win rates against enumeration of the draws."""

from __future__ import annotations

import itertools
from decimal import Decimal, localcontext

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theory.errors import InputError
from theory.operators import beats, best_of_n, best_worst_of_k, compare, temper, win_rate
from theory.soft import leaf_log_probs, policy_from_leaves
from theory.tree import TokenTree

PLAIN = TokenTree(("a", "b"), 2, ("x", "y"), (0.3, 0.7))
ENDING = TokenTree(("a", "b", "."), 2, ("x", "y"), (0.3, 0.7), eos=".", forbidden=(("b", "b"),))
TREES = [PLAIN, ENDING]


def random_case(tree: TokenTree, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(log P, utilities with planted ties)."""
    generator = np.random.default_rng(seed)
    score = np.where(
        tree.leaf_mask, generator.normal(size=(tree.n_prompts, tree.n_leaves)), -np.inf
    )
    log_p = score - np.log(np.exp(score).sum(axis=1, keepdims=True))
    return log_p, generator.integers(0, 3, size=log_p.shape).astype(float)


def draws(p: np.ndarray, k: int):
    """Every sequence of k leaves with its probability."""
    for leaves in itertools.product(np.flatnonzero(p), repeat=k):
        yield leaves, float(np.prod(p[list(leaves)]))


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_equals_enumeration(tree: TokenTree, n: int):
    log_p, u = random_case(tree, 3)
    expected = np.zeros_like(u)
    for x in range(tree.n_prompts):
        for leaves, mass in draws(np.exp(log_p[x]), n):
            best = [leaf for leaf in leaves if u[x, leaf] == max(u[x, list(leaves)])]
            for leaf in best:
                expected[x, leaf] += mass / len(best)
    np.testing.assert_allclose(np.exp(best_of_n(tree, log_p, u, n)), expected, atol=1e-14)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("k", [2, 3, 4])
def test_best_and_worst_equal_enumeration(tree: TokenTree, k: int):
    log_p, u = random_case(tree, 5)
    expected, tied = np.zeros((*u.shape, u.shape[1])), np.zeros(tree.n_prompts)
    for x in range(tree.n_prompts):
        for leaves, mass in draws(np.exp(log_p[x]), k):
            values = u[x, list(leaves)]
            best = [leaf for leaf, v in zip(leaves, values, strict=True) if v == values.max()]
            worst = [leaf for leaf, v in zip(leaves, values, strict=True) if v == values.min()]
            if values.max() == values.min():
                tied[x] += mass
                continue
            for i, j in itertools.product(best, worst):
                expected[x, i, j] += mass / len(best) / len(worst)
    pairs = best_worst_of_k(tree, log_p, u, k)
    np.testing.assert_allclose(pairs.joint, expected, atol=1e-14)
    np.testing.assert_allclose(pairs.no_pair, tied, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 30), st.floats(0.1, 5.0), st.floats(-9.0, 9.0))
def test_only_the_order_of_utilities_counts(seed: int, k: int, scale: float, shift: float):
    log_p, u = random_case(ENDING, seed)
    pairs, moved = (best_worst_of_k(ENDING, log_p, v, k) for v in (u, np.exp(u) * scale + shift))
    np.testing.assert_allclose(pairs.joint, moved.joint, atol=1e-15)
    np.testing.assert_allclose(pairs.joint.sum(axis=(1, 2)) + pairs.no_pair, 1.0, atol=1e-12)
    turned = best_worst_of_k(ENDING, log_p, -u, k).joint
    np.testing.assert_allclose(pairs.joint, turned.transpose(0, 2, 1), atol=1e-13)


WIDE = TokenTree(tuple("abcdefgh"), 1, ("x",), (1.0,))
# masses of eight completions over forty orders of magnitude, two of them in one tie group
MASSES = np.asarray([1e-40, 3e-13, 0.2, 1e-25, 2e-6, 7e-9, 0.0, 5e-31])
MASSES[6] = 1.0 - MASSES.sum()
ORDER = np.asarray([[0.0, 1.0, 2.0, 3.0, 3.0, 5.0, 6.0, 7.0]])


def tie_groups() -> list[tuple[list[int], Decimal]]:
    """(members, mass) of every tie group of ORDER, ascending; the largest mass makes up 1."""
    mass = [Decimal(float(m)) for m in MASSES]
    mass[6] = 1 - sum(mass[:6]) - mass[7]
    members = [np.flatnonzero(value == ORDER[0]).tolist() for value in np.unique(ORDER)]
    return [(leaves, sum((mass[i] for i in leaves), Decimal(0))) for leaves in members]


@pytest.mark.parametrize("n", [1, 2, 25, 10**3, 10**6, 10**12, 10**45])
def test_best_of_any_n_has_exact_logarithms(n: int):
    logs = best_of_n(WIDE, np.log(MASSES)[None], ORDER, n)[0]
    with localcontext() as context:
        context.prec, context.Emin = 130, -(10**17)
        below = Decimal(0)
        for leaves, mass in tie_groups():
            up = below + mass
            if n > 10**12 and below + mass < Decimal("0.999"):
                below = up  # its power needs more digits than any decimal holds
                continue
            cell = up**n - below**n
            for leaf in leaves:
                exact = (cell * Decimal(float(MASSES[leaf])) / mass).ln()
                assert logs[leaf] == pytest.approx(float(exact), rel=1e-13, abs=1e-13)
            below = up
    assert np.exp(logs).sum() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 25, 10**4, 10**6])
def test_every_cell_of_best_and_worst_has_its_own_accuracy(k: int):
    pairs = best_worst_of_k(WIDE, np.log(MASSES)[None], ORDER, k)
    with localcontext() as context:
        context.prec, context.Emin = 300, -(10**17)
        groups = tie_groups()
        tied = sum((mass**k for _, mass in groups), Decimal(0))
        assert pairs.no_pair[0] == pytest.approx(float(tied), rel=1e-12)
        for j, i in itertools.combinations(range(len(groups)), 2):
            low, high = groups[j][1], groups[i][1]
            inner = sum((mass for _, mass in groups[j + 1 : i]), Decimal(0))
            cell = (low + inner + high) ** k - (inner + high) ** k - (low + inner) ** k + inner**k
            for best, worst in itertools.product(groups[i][0], groups[j][0]):
                share = Decimal(float(MASSES[best])) * Decimal(float(MASSES[worst])) / low / high
                exact = float(cell * share)
                found = pairs.joint[0, best, worst]
                assert found == pytest.approx(exact, rel=1e-9 if k > 25 else 1e-12, abs=1e-300)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(1, 10**7))
def test_best_of_n_sees_only_the_order_and_composes(seed: int, n: int):
    log_p, u = random_case(ENDING, seed)
    best = best_of_n(ENDING, log_p, u, n)
    np.testing.assert_allclose(best_of_n(ENDING, log_p, np.exp(u) * 3 - 1, n), best, atol=1e-12)
    twice = best_of_n(ENDING, best_of_n(ENDING, log_p, u, 3), u, n)  # best of n bests of 3
    rows = ENDING.leaf_mask
    np.testing.assert_allclose(
        np.exp(twice[:, rows]), np.exp(best_of_n(ENDING, log_p, u, 3 * n)[:, rows]), atol=1e-12
    )


WIDE_LOGS = st.lists(st.floats(-800.0, 0.0), min_size=2, max_size=8)


def spread(logs: list[float]) -> np.ndarray:
    """log-probabilities of the eight completions of WIDE, normalised; -inf where none is given."""
    row = np.full(8, -np.inf)
    row[: len(logs)] = logs
    top = row.max()
    return (row - top - np.log(np.exp(row - top).sum()))[None]


@pytest.mark.parametrize("k", [2, 25, 10**6, 10**300], ids="{:.0e}".format)
@pytest.mark.parametrize("logs", [[-720.0, 0.0, -1.0], [0.0, -720.0, -744.0, -745.0], [-744.0, 0]])
def test_masses_at_the_end_of_float64_make_no_nan(logs: list[float], k: int):
    for row in (logs, logs[::-1]):
        pairs = best_worst_of_k(WIDE, spread(row), ORDER, k)
        assert (pairs.joint >= 0.0).all()
        assert pairs.joint.sum() + pairs.no_pair[0] == pytest.approx(1.0, abs=1e-12)


@settings(max_examples=60)
@given(WIDE_LOGS, st.integers(2, 10**5), st.permutations(range(8)))
def test_wide_masses_give_distributions_without_a_warning(logs: list[float], k: int, order):
    log_p = spread(logs)[:, list(order)]
    pairs = best_worst_of_k(WIDE, log_p, ORDER, k)
    assert (pairs.joint >= 0.0).all()
    assert pairs.joint.sum() + pairs.no_pair[0] == pytest.approx(1.0, abs=1e-11)
    best = best_of_n(WIDE, log_p, ORDER, k)
    assert np.exp(best).sum() == pytest.approx(1.0, abs=1e-11)
    made = pairs.joint.sum(axis=2)[0]  # a pair's best is the best of k, which may also be a tie's
    assert (made <= np.exp(best[0]) * (1.0 + 1e-9) + 1e-300).all()


def test_rounding_of_the_mass_above_gives_no_warning():
    """The masses above a group may sum to more than 1 by rounding."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        log_p = spread(list(generator.normal(0.0, 30.0, size=8)))
        u = generator.integers(0, 8, size=(1, 8)).astype(float)
        total = np.exp(best_of_n(WIDE, log_p, u, 7)).sum()
        assert total == pytest.approx(1.0, abs=1e-12)


# --- against Monte Carlo: five standard errors a cell --------------------------------------------


def assert_within_five_errors(hits: np.ndarray, probability: np.ndarray, n: int):
    """hits / n estimates probability, cell by cell; a cell that expects under 5 hits is pooled."""
    rare = probability * n < 5.0
    hits = np.append(hits[~rare], hits[rare].sum())
    expected = np.append(probability[~rare], probability[rare].sum())
    error = np.sqrt(np.maximum(expected * (1.0 - expected), 1.0 / n) / n)
    assert (np.abs(hits / n - expected) <= 5.0 * error).all()


@pytest.mark.parametrize("tree", TREES)
def test_best_of_n_and_pairs_of_k_agree_with_sampling(tree: TokenTree):
    log_p, u = random_case(tree, 21)
    rng, n = np.random.default_rng(22), 100_000
    for x, k in itertools.product(range(tree.n_prompts), (4, 25)):
        drawn = rng.choice(tree.n_leaves, size=(n, k), p=np.exp(log_p[x]))
        order = u[x, drawn] + 0.5 * rng.random((n, k))  # ties broken at random
        rows = np.arange(n)
        best, worst = drawn[rows, order.argmax(axis=1)], drawn[rows, order.argmin(axis=1)]
        hits = np.bincount(best, minlength=tree.n_leaves)
        assert_within_five_errors(hits, np.exp(best_of_n(tree, log_p, u, k)[x]), n)
        made = u[x, best] > u[x, worst]
        pairs = best_worst_of_k(tree, log_p, u, k)
        cells = np.zeros((tree.n_leaves, tree.n_leaves))
        np.add.at(cells, (best[made], worst[made]), 1.0)
        assert_within_five_errors(cells.ravel(), pairs.joint[x].ravel(), n)
        assert_within_five_errors(np.asarray([(~made).sum()]), pairs.no_pair[x : x + 1], n)
        if k == 4 and pairs.no_pair[x] < 0.9:  # a wrong number of draws is far outside
            with pytest.raises(AssertionError):
                assert_within_five_errors(hits, np.exp(best_of_n(tree, log_p, u, 3)[x]), n)


@pytest.mark.parametrize("tree", TREES)
def test_tempering_and_win_rates_agree_with_sampling(tree: TokenTree):
    log_p, u = random_case(tree, 23)
    log_q, _ = random_case(tree, 24)
    policy, tau, n = policy_from_leaves(tree, log_p), 0.5, 100_000
    rng = np.random.default_rng(25)
    tempered = np.asarray(leaf_log_probs(tree, temper(tree, policy, tau)))
    outcome = []
    for x in range(tree.n_prompts):
        state = np.zeros(n, dtype=int)
        for level in policy:  # one token at a time, by hand
            weight = np.exp(np.asarray(level)[x]) ** (1.0 / tau)
            chance = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)
            pick = rng.random((n, 1)) < np.cumsum(chance, axis=1)[state]
            state = state * tree.vocab + pick.argmax(axis=1)
        assert_within_five_errors(
            np.bincount(state, minlength=tree.n_leaves), np.exp(tempered[x]), n
        )
        rival = rng.choice(tree.n_leaves, size=n, p=np.exp(log_q[x]))
        gap = u[x, state] - u[x, rival]
        outcome.append([(gap > 0).mean(), (gap == 0).mean(), (gap < 0).mean()])
    found = compare(tree, tempered, log_q, u)
    sampled = tree.rho0 @ np.asarray(outcome)
    np.testing.assert_allclose([found.win, found.tie, found.loss], sampled, atol=5 * 0.5 / n**0.5)
    assert found.win + found.tie + found.loss == pytest.approx(1.0, abs=1e-13)
    assert found.rate == pytest.approx(win_rate(tree, tempered, log_q, u), abs=1e-15)


@pytest.mark.parametrize("tree", TREES)
def test_win_rate_equals_enumeration_and_both_sides_sum_to_one(tree: TokenTree):
    log_p, u = random_case(tree, 7)
    log_q, _ = random_case(tree, 8)
    expected = sum(
        weight * np.exp(log_p[x, i] + log_q[x, j]) * (1.0 if u[x, i] > u[x, j] else 0.5)
        for x, weight in enumerate(tree.weights)
        for i in tree.leaves
        for j in tree.leaves
        if u[x, i] >= u[x, j]
    )
    assert win_rate(tree, log_p, log_q, u) == pytest.approx(expected, abs=1e-14)
    both = win_rate(tree, log_p, log_q, u) + win_rate(tree, log_q, log_p, u)
    assert both == pytest.approx(1.0, abs=1e-14)


def test_beats_integrates_to_the_win_rate():
    log_p, u = random_case(PLAIN, 9)
    log_q, _ = random_case(PLAIN, 10)
    chance = np.sum(PLAIN.rho0[:, None] * np.exp(log_p) * beats(u, np.exp(log_q)))
    assert chance == pytest.approx(win_rate(PLAIN, log_p, log_q, u), abs=1e-14)


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("tau", [0.1, 1.0, 3.0])
def test_tempering_is_a_token_at_a_time(tree: TokenTree, tau: float):
    log_p, _ = random_case(tree, 11)
    policy = policy_from_leaves(tree, log_p)
    tempered = temper(tree, policy, tau)
    for level, before in zip(tempered, policy, strict=True):
        for row, old in zip(
            np.exp(np.asarray(level).reshape(-1, tree.vocab)),
            np.exp(np.asarray(before).reshape(-1, tree.vocab)),
            strict=True,
        ):
            if old.sum() > 0:
                np.testing.assert_allclose(
                    row, old ** (1 / tau) / (old ** (1 / tau)).sum(), atol=1e-14
                )
            else:
                assert row.sum() == 0
    total = np.exp(np.asarray(leaf_log_probs(tree, tempered))).sum(axis=1)
    np.testing.assert_allclose(total, 1.0, atol=1e-12)
    if tau != 1.0:
        whole = jnp.exp(jnp.asarray(log_p) / tau)
        whole = whole / whole.sum(axis=1, keepdims=True)
        assert np.abs(np.exp(np.asarray(leaf_log_probs(tree, tempered))) - whole).max() > 1e-3


def test_bad_arguments_are_named():
    log_p, u = random_case(PLAIN, 1)
    with pytest.raises(InputError, match=r"-0\.1"):
        temper(PLAIN, policy_from_leaves(PLAIN, log_p), -0.1)
    with pytest.raises(InputError, match="temperature 1e-310 is below"):
        temper(PLAIN, policy_from_leaves(PLAIN, log_p), 1e-310)
    far = policy_from_leaves(PLAIN, np.log([[0.001, 0.001, 0.499, 0.499], [0.25] * 4]))
    with pytest.raises(InputError, match=r"temperature 3e-308 .* 'a' at prompt 'x', level 0"):
        temper(PLAIN, far, 3e-308)
    with pytest.raises(InputError, match="one of 401 digits"):
        best_worst_of_k(PLAIN, log_p, u, 10**400)
    with pytest.raises(InputError, match="got 0"):
        best_of_n(PLAIN, log_p, u, 0)
    with pytest.raises(InputError, match="got 1"):
        best_worst_of_k(PLAIN, log_p, u, 1)
    with pytest.raises(InputError, match="'x'"):
        win_rate(PLAIN, log_p + 0.1, log_p, u)
    with pytest.raises((InputError, TypeError), match=r"2\.5"):
        best_of_n(PLAIN, log_p, u, 2.5)  # pyright: ignore
    small = TokenTree(("a", "b"), 6, ("x",), (1.0,), max_bytes=8_000)
    flat = np.full((1, 64), -6 * np.log(2.0))
    with pytest.raises(InputError, match="pair table"):
        best_worst_of_k(small, flat, np.zeros((1, 64)), 2)
    with pytest.raises(InputError, match="'a a' of prompt 'x' is not finite"):
        win_rate(PLAIN, log_p, log_p, np.full_like(u, np.nan))
