"""Notebook 02: proper learning in pictures: when the online road needs less data, and when not."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Proper learning: the gap, and where it goes", width="medium")


@app.cell
def _():
    from dataclasses import replace

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from scipy.stats import t

    from theory.explore import Question, best_in_hindsight, curve, draw_pairs, explore, policy_rank
    from theory.families import Lookup, Walsh

    return (
        Figure,
        Lookup,
        Question,
        Walsh,
        best_in_hindsight,
        curve,
        draw_pairs,
        explore,
        mo,
        np,
        policy_rank,
        replace,
        t,
    )


@app.cell
def _(mo):
    mo.md(r"""
    # Proper learning: the gap, and where it goes

    With classes of the same size both roads end at the same policies (Theorem 2.2), and the data
    are the same. So where could an advantage of online fine-tuning come from? The paper's answer
    (section 3.1, H6): the *verifier* can be simpler than the *generator*. If the true reward lies
    in a small class $\mathcal{R}_{sim}$, the online road searches only the policies that are
    optimal for one of its rewards, $\Pi(\mathcal{R}_{sim})$. In the language of learning theory it
    learns **properly**: its answer always lies in the class that holds the truth. The offline road
    searches all of $\Pi$.

    Completions are 6 bits, written one at a time; the true reward is a random polynomial of degree
    2 in the bits, of standard deviation 2. All policies are measured exactly, by their KL to the
    optimum $P^* \propto e^{r/\beta}$, with $\beta = 1$. Every number is computed, and asserted, in
    the cell that shows it.
    """)
    return


@app.cell
def _(Question, Walsh, mo, policy_rank):
    spec = Walsh(bits=6, degree=2, horizon=6, sharpness=2.0)
    quick = Question(polish=False)
    _truth = spec.draw()
    capacity = _truth.features.shape[2]
    assert capacity == 21
    rank = {name: policy_rank(_truth, quick, name) for name in ("offline_all", "offline_matched")}
    assert rank["offline_all"] == 2**6 - 1
    assert rank["offline_matched"] == capacity

    mo.md(f"""
    ## 1. How large are the classes?

    A number of parameters says little: logits have shifts that no policy shows. What counts is
    the rank of $\\partial \\log P / \\partial \\theta$, the directions in which the policy moves.

    | road | parameters | rank |
    |---|---|---|
    | online: reward of degree 2, then soft RL | {capacity} | {capacity} |
    | offline: all policies, one logit a (state, token) | {2 * (2**6 - 1)} | {rank["offline_all"]} |
    | offline, matched: logits of degree 2 in prefix and token | 56 | {rank["offline_matched"]} |
    """)
    return quick, spec


@app.cell
def _(Figure, best_in_hindsight, draw_pairs, mo, np, quick, replace, spec):
    _question = replace(quick, n_pairs=128, seed=1)
    _truth = replace(spec, seed=1).draw()
    _pairs = draw_pairs(_truth, _question)
    _star = np.where(_truth.tree.leaf_mask, _truth.reward, -np.inf)[0]
    _star = _star - np.log(np.exp(_star).sum())
    _figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    _axes = _figure.subplots(1, 2, sharex=True, sharey=True)
    one = {}
    for _ax, _name, _title, _colour in (
        (_axes[0], "two_stage", "online: reward of degree 2, soft RL", "#009e73"),
        (_axes[1], "offline_all", "offline: all policies", "#d55e00"),
    ):
        one[_name] = best_in_hindsight(_truth, _question, _name, _pairs)
        _ax.plot([_star.min(), 0], [_star.min(), 0], color="#999999", linewidth=1)
        _ax.plot(_star, one[_name].log_p[0], "o", color=_colour, markersize=4)
        _ax.set_title(f"{_title}\nKL {one[_name].kl:.2f} nats", fontsize=10)
        _ax.set_xlabel("log P*, the optimum (nats)")
    _axes[0].set_ylabel("log P, fitted (nats)")
    assert one["offline_all"].kl > one["two_stage"].kl > 0

    mo.vstack(
        [
            mo.md(r"""
    ## 2. One data set

    128 pairs, the same for both; one dot a completion; each road at its best ridge of five, chosen
    in hindsight. Offline has no way to carry what it learns about one completion over to another
    that shares bits but not the prefix.
    """),
            _figure,
        ]
    )
    return


@app.cell
def _(np, t):
    def interval(values):
        """Mean over the last axis and the half width of its 95 % t interval."""
        n = values.shape[-1]
        return values.mean(axis=-1), t.ppf(0.975, n - 1) * values.std(axis=-1, ddof=1) / np.sqrt(n)

    looks = {
        "two_stage": ("online: reward of degree 2, soft RL", "#009e73", "o"),
        "offline_all": ("offline: all policies", "#d55e00", "^"),
        "offline_matched": ("offline, matched in rank", "#cc79a7", "D"),
        "full": ("online: all rewards, soft RL", "#0072b2", "s"),
    }
    seeds = tuple(range(16))
    ridges = (0.3, 1.0, 3.0, 10.0, 30.0)
    return interval, looks, ridges, seeds


@app.cell
def _(Figure, curve, interval, looks, mo, quick, replace, ridges, seeds, spec):
    numbers = (32, 64, 128, 256, 512)
    _roads = ("two_stage", "offline_all", "offline_matched")
    kls = curve(spec, quick, numbers, seeds, roads=_roads, ridges=ridges)
    _all = replace(quick, reward_class="full")
    kls["full"] = curve(spec, _all, numbers, seeds, roads=("two_stage",), ridges=ridges)[
        "two_stage"
    ]

    _figure = Figure(figsize=(6.6, 3.8), layout="constrained")
    _ax = _figure.add_subplot()
    for _name, (_words, _colour, _marker) in looks.items():
        _mean, _half = interval(kls[_name])
        _ax.errorbar(
            numbers, _mean, yerr=_half, label=_words, color=_colour, marker=_marker, capsize=2
        )
    _ax.set_xscale("log", base=2)
    _ax.set_xticks(numbers, [str(n) for n in numbers])
    _ax.set_ylim(bottom=0.0)
    _ax.set_xlabel("preference pairs N")
    _ax.set_ylabel("KL to the optimum (nats)")
    _ax.set_title(f"{len(seeds)} data sets; bars: 95 % t intervals", fontsize=10)
    _ax.legend(frameon=False, fontsize=9)

    gap, gap_half = interval(kls["offline_all"] - kls["two_stage"])
    matched, matched_half = interval(kls["offline_matched"] - kls["two_stage"])
    every, every_half = interval(kls["offline_all"] - kls["full"])
    assert (gap > gap_half).all()  # it stands out at every N, paired by data set
    assert (abs(matched) < gap / 2).all()
    assert (every < gap / 2).all()

    mo.vstack(
        [
            mo.md(r"""
    ## 3. Over N, with replicates

    Every road at its own best ridge for each N. The curves fall on two lines, and not online on
    one and offline on the other: offline with a **class matched in rank** keeps up with online, and
    online with **all rewards** ($R = R(\Pi)$) is as slow as offline. It is the class, not the road.
    """),
            _figure,
            mo.md(
                "Gap of offline over all policies to online: "
                + ", ".join(
                    f"{g:.2f} ± {h:.2f} nats at N = {n}"
                    for n, g, h in zip(numbers, gap, gap_half, strict=True)
                )
                + ". Matched in rank: "
                + ", ".join(f"{m:+.2f}" for m in matched)
                + ". Against online with all rewards: "
                + ", ".join(f"{e:+.2f}" for e in every)
                + "."
            ),
        ]
    )
    return every, every_half, gap, gap_half, kls, matched, matched_half, numbers


@app.cell
def _(Lookup, Question, explore, mo, np, replace):
    _spec = Lookup(bits=6, horizon=1)
    _question = Question(n_pairs=128, ridge=3.0)
    _found = explore(_spec.draw(), _question)
    same = float(np.abs(_found.roads["two_stage"].log_p - _found.roads["offline_all"].log_p).max())
    assert same < 1e-7
    _longer = explore(replace(_spec, horizon=6).draw(), _question, pairs=_found.pairs)
    apart = float(
        np.abs(_longer.roads["two_stage"].log_p - _longer.roads["offline_all"].log_p).max()
    )
    assert apart > 0.05

    mo.md(rf"""
    ## 4. One token, seen as an id: the same estimator

    Let the completion be *one* token of 64, and let the reward be a lookup table that sees that
    token as an id, as the policy does. In the same basis and at the same ridge the two roads are
    one estimator: their log-probabilities differ by at most **{same:.0e} nats**. Written as six
    tokens, with the same 128 pairs and the same ridge, they differ by up to {apart:.2f}: the chain
    rule has changed what the ridge means.
    """)
    return


@app.cell
def _(Figure, Walsh, curve, interval, mo, np, quick, replace, ridges, seeds):
    # Trap: two meanings of a shorter horizon, at a fixed number of pairs
    _n = (128,)

    def _gap(spec, question):
        kl = curve(spec, question, _n, seeds, ridges=ridges)
        return interval((kl["offline_all"] - kl["two_stage"])[0])

    _larger = (1, 2, 3, 6)
    _fewer = (3, 4, 5, 6)
    as_bits = np.array([_gap(Walsh(bits=6, degree=2, horizon=h), quick) for h in _larger])
    _full = replace(quick, reward_class="full")
    as_ids = np.array([_gap(Walsh(bits=6, degree=2, horizon=h), _full) for h in _larger])
    fewer = np.array([_gap(Walsh(bits=h, degree=2, horizon=h), quick) for h in _fewer])
    assert as_bits[0, 0] > as_bits[0, 1]  # one token, and the gap is still there
    assert abs(as_ids[0, 0]) < 1e-3  # up to the optimiser's tolerance
    assert fewer[0, 0] < fewer[-1, 0] / 2

    _figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    _ax = _figure.add_subplot()
    for _horizons, _values, _words, _colour, _marker in (
        (_larger, as_bits, "64 outcomes in larger tokens, reward sees bits", "#009e73", "o"),
        (_larger, as_ids, "64 outcomes in larger tokens, reward sees ids", "#0072b2", "s"),
        (_fewer, fewer, "fewer tokens of one bit", "#d55e00", "^"),
    ):
        _ax.errorbar(
            _horizons,
            _values[:, 0],
            yerr=_values[:, 1],
            label=_words,
            color=_colour,
            marker=_marker,
            capsize=2,
        )
    _ax.axhline(0.0, color="#999999", linewidth=1)
    _ax.set_ylim(-0.1, 1.15)
    _ax.set_xlabel("horizon (tokens)")
    _ax.set_ylabel("gap, offline less online (nats)")
    _ax.set_title(f"N = {_n[0]}, {len(seeds)} data sets; bars: 95 % t intervals", fontsize=10)
    _ax.legend(frameon=False, fontsize=9, loc="upper left")

    mo.vstack(
        [
            mo.md(r"""
    ## 5. Three traps

    **Trap one: counting parameters.** The matched class of section 3 has 56 parameters to the
    reward's 21, and no disadvantage: its rank is 21 too.

    **Trap two: "shorter horizon" has two meanings.** Fewer tokens of one vocabulary make the whole
    problem smaller, and the gap with it. Cutting the same outcomes into larger tokens does not:
    with one token of 64 the gap is still there, as long as the reward model sees the token's bits.
    It closes when the reward model sees the token as an id, as the policy does.
    """),
            _figure,
        ]
    )
    return


@app.cell
def _(Figure, curve, interval, mo, np, quick, replace, seeds, spec):
    _n = (64,)
    _tried = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    _roads = ("two_stage", "offline_all", "offline_all_one_hot")
    by_ridge = {name: [] for name in _roads}
    for _ridge in _tried:
        _kl = curve(spec, replace(quick, ridge=_ridge), _n, seeds, roads=_roads)
        for _name in _roads:
            by_ridge[_name].append(interval(_kl[_name][0]))
    by_ridge = {name: np.array(values) for name, values in by_ridge.items()}
    least = {name: _tried[int(values[:, 0].argmin())] for name, values in by_ridge.items()}
    assert least["offline_all_one_hot"] < least["offline_all"]
    assert by_ridge["two_stage"][0, 0] > by_ridge["offline_all"][:, 0].min()  # the order turns

    _figure = Figure(figsize=(6.6, 3.6), layout="constrained")
    _ax = _figure.add_subplot()
    for _name, _words, _colour, _marker in (
        ("two_stage", "online: reward of degree 2, soft RL", "#009e73", "o"),
        ("offline_all", "offline, logits scaled by level (Walsh)", "#d55e00", "^"),
        ("offline_all_one_hot", "offline, one logit a (state, token)", "#e69f00", "v"),
    ):
        _values = by_ridge[_name]
        _ax.errorbar(
            _tried,
            _values[:, 0],
            yerr=_values[:, 1],
            label=_words,
            color=_colour,
            marker=_marker,
            capsize=2,
        )
    _ax.set_xscale("log")
    _ax.set_ylim(bottom=0.0)
    _ax.set_xlabel("ridge (0.5 ridge |theta|² on the summed loss)")
    _ax.set_ylabel("KL to the optimum (nats)")
    _ax.set_title(f"N = {_n[0]}, {len(seeds)} data sets; bars: 95 % t intervals", fontsize=10)
    _ax.legend(frameon=False, fontsize=9)

    mo.vstack(
        [
            mo.md(r"""
    **Trap three: one ridge for both.** With few pairs regularisation decides more than the road
    does, and so do the coordinates that it is applied in. Give each road its own best strength, and
    name the coordinates.
    """),
            _figure,
            mo.md(
                "Best ridge: "
                + f"{least['two_stage']:g} online, {least['offline_all']:g} offline, "
                + f"{least['offline_all_one_hot']:g} in one-hot coordinates. Online at the weakest "
                + f"ridge ({by_ridge['two_stage'][0, 0]:.2f} nats) loses to offline at its best "
                + f"({by_ridge['offline_all'][:, 0].min():.2f})."
            ),
        ]
    )
    return


@app.cell
def _(Figure, Walsh, curve, interval, mo, np, quick, replace, ridges, seeds, spec):
    _n = (128,)
    _degrees = (1, 2, 3, 4, 6)
    by_degree = []
    for _k in _degrees:
        _kl = curve(Walsh(bits=6, degree=_k, horizon=6), quick, _n, seeds, ridges=ridges)
        by_degree.append(interval((_kl["offline_all"] - _kl["two_stage"])[0]))
    by_degree = np.array(by_degree)
    assert by_degree[1, 0] > by_degree[1, 1]
    assert by_degree[-1, 0] < by_degree[1, 0] / 2  # a lookup table: nothing is simple

    _numbers = (64, 256, 1024)
    _wrong = replace(quick, reward_class="degree-1")
    wrong = curve(spec, _wrong, _numbers, seeds, ridges=ridges)
    _simple, _simple_half = interval(wrong["two_stage"])
    _whole, _whole_half = interval(wrong["offline_all"])
    assert (_simple > _whole).all()
    assert _simple[-1] > 4 * _whole[-1]  # more data do not help the class that is too small

    _figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    _left, _right = _figure.subplots(1, 2)
    _left.errorbar(
        _degrees, by_degree[:, 0], yerr=by_degree[:, 1], color="#333333", marker="o", capsize=2
    )
    _left.axhline(0.0, color="#999999", linewidth=1)
    _left.set_xlabel("degree of the true reward (6: a lookup table)")
    _left.set_ylabel("gap, offline less online (nats)")
    _left.set_title(f"N = {_n[0]}", fontsize=10)
    for _mean, _half, _words, _colour, _marker in (
        (_simple, _simple_half, "online, degree 1: too simple", "#009e73", "o"),
        (_whole, _whole_half, "offline: all policies", "#d55e00", "^"),
    ):
        _right.errorbar(
            _numbers, _mean, yerr=_half, label=_words, color=_colour, marker=_marker, capsize=2
        )
    _right.set_xscale("log", base=2)
    _right.set_xticks(_numbers, [str(n) for n in _numbers])
    _right.set_ylim(bottom=0.0)
    _right.set_xlabel("preference pairs N")
    _right.set_ylabel("KL to the optimum (nats)")
    _right.set_title("true reward of degree 2", fontsize=10)
    _right.legend(frameon=False, fontsize=9)

    mo.vstack(
        [
            mo.md(r"""
    ## 6. When not

    **The verifier is no simpler than the generator** (left): as the degree of the true reward
    rises, its class grows towards all rewards and the gap goes.

    **The verifier is too simple** (right): a reward class that does not hold the truth has a floor
    that no data go below. Offline has none, and is nearer at every N shown.
    """),
            _figure,
            mo.md(
                "Gap by degree: "
                + ", ".join(
                    f"{g:+.2f} ± {h:.2f} at {k}"
                    for k, (g, h) in zip(_degrees, by_degree, strict=True)
                )
                + f" nats. At N = {_numbers[-1]} the class of degree 1 stands at "
                + f"{_simple[-1]:.2f} nats, offline at {_whole[-1]:.2f}."
            ),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
