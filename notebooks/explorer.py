"""The proper-learning gap with sliders: one tree, one data set, both roads, redrawn at once."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Explorer of the proper-learning gap", width="full")


@app.cell
def _():
    import time
    from dataclasses import replace
    from html import escape

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    from theory.errors import InputError
    from theory.explore import (
        RIDGES,
        Exploration,
        Question,
        best_in_hindsight,
        curve,
        draw_pairs,
        explore,
        log_optimum,
        node_probabilities,
    )
    from theory.explore.choices import CHOICES, spec_for
    from theory.explore.pictures import COLOURS, NAMES, bars_svg, ranks_svg, tree_svg

    return (
        CHOICES,
        COLOURS,
        Exploration,
        Figure,
        InputError,
        NAMES,
        Question,
        RIDGES,
        bars_svg,
        best_in_hindsight,
        curve,
        draw_pairs,
        escape,
        explore,
        log_optimum,
        mo,
        node_probabilities,
        np,
        ranks_svg,
        replace,
        spec_for,
        time,
        tree_svg,
    )


@app.cell
def _(mo):
    mo.md(r"""
    # When does online fine-tuning need less data?

    Both roads see the same preference pairs. **Online**: fit a reward in a simple class, then do
    exact soft RL against it. **Offline**: maximise the same likelihood over *all* policies. The
    gap is how much further offline ends from the optimum $P^* \propto e^{r/\beta}$, in nats.
    """)
    return


@app.cell
def _(CHOICES, mo):
    family = mo.ui.dropdown(
        {choice.title: name for name, choice in CHOICES.items()},
        value=CHOICES["walsh"].title,
        label="family",
    )
    n_pairs = mo.ui.slider(
        steps=[16, 32, 64, 128, 256, 512, 1024],
        value=256,
        label="pairs N",
        show_value=True,
    )
    sharpness = mo.ui.slider(0.5, 4.0, 0.5, value=2.0, label="sharpness", show_value=True)
    noise = mo.ui.slider(0.0, 0.4, 0.05, value=0.0, label="labels flipped", show_value=True)
    seed = mo.ui.slider(0, 20, 1, value=0, label="seed", show_value=True)
    return family, n_pairs, noise, seed, sharpness


@app.cell
def _(CHOICES, family, mo):
    choice = CHOICES[family.value]
    bits = None
    if choice.bits:
        bits = mo.ui.dropdown(
            {f"{n} bits": n for n in choice.bits}, value="6 bits", label="completion"
        )
    complexity = None
    if choice.complexity is not None:
        _low, _start, _high = choice.complexity
        complexity = mo.ui.slider(
            _low, _high, 1, value=_start, label=choice.complexity_name, show_value=True
        )
    reward_class = mo.ui.dropdown(
        {
            {"true": "the family's own", "full": "all rewards"}.get(name, name): name
            for name in choice.reward_classes()
        },
        value="the family's own",
        label="reward class",
    )
    return bits, choice, complexity, reward_class


@app.cell
def _(bits, choice, mo):
    _steps = list(choice.horizons_of(bits.value if bits is not None else None))
    horizon = mo.ui.slider(
        steps=_steps, value=_steps[-1], label="horizon (tokens)", show_value=True
    )
    return (horizon,)


@app.cell
def _(RIDGES, mo):
    ridge = mo.ui.dropdown(
        {
            "each road's best, in hindsight": None,
            **{f"{r:g} for both": r for r in (0.03, 0.1, *RIDGES)},
        },
        value="each road's best, in hindsight",
        label="ridge",
    )
    return (ridge,)


@app.cell
def _(bits, complexity, family, horizon, mo, n_pairs, noise, reward_class, ridge, seed, sharpness):
    _shape = [part for part in (family, bits, complexity, horizon, sharpness) if part is not None]
    mo.vstack(
        [
            mo.hstack(_shape, wrap=True, justify="start", gap=1.5),
            mo.hstack(
                [n_pairs, noise, reward_class, ridge, seed], wrap=True, justify="start", gap=1.5
            ),
        ]
    )
    return


@app.cell
def _(
    Exploration,
    InputError,
    Question,
    bars_svg,
    best_in_hindsight,
    bits,
    complexity,
    draw_pairs,
    escape,
    explore,
    family,
    horizon,
    log_optimum,
    mo,
    n_pairs,
    node_probabilities,
    noise,
    ranks_svg,
    reward_class,
    ridge,
    seed,
    sharpness,
    spec_for,
    time,
    tree_svg,
):
    _start = time.perf_counter()
    spec, question = None, None
    try:
        spec = spec_for(
            family.value,
            bits=bits.value if bits is not None else None,
            horizon=horizon.value,
            complexity=complexity.value if complexity is not None else None,
            sharpness=sharpness.value,
            seed=seed.value,
        )
        question = Question(
            n_pairs=n_pairs.value,
            ridge=ridge.value or 1.0,
            noise=noise.value,
            reward_class=reward_class.value,
            seed=seed.value,
            polish=False,
        )
        _truth = spec.draw()
        if ridge.value is None:
            _pairs = draw_pairs(_truth, question)
            _roads = {
                name: best_in_hindsight(_truth, question, name, _pairs)
                for name in ("two_stage", "offline_all")
            }
            found = Exploration(_truth, question, _pairs, log_optimum(_truth, 1.0), _roads)
        else:
            found = explore(_truth, question)
        _tree = _truth.tree
        _log_p = {"optimum": found.log_optimum} | {k: v.log_p for k, v in found.roads.items()}
        _pictures = [
            tree_svg(_tree, node_probabilities(_tree, value), road)
            for road, value in _log_p.items()
        ]
        _pictures.append(ranks_svg(_tree, _log_p))
        _pictures.append(bars_svg({name: road.kl for name, road in found.roads.items()}))
        _online, _offline = found.roads["two_stage"], found.roads["offline_all"]
        _spent = 1000 * (time.perf_counter() - _start)
        _words = (
            f'<p style="font-size:1.25rem">Gap: <strong id="gap">{found.gap:+.3f}</strong> nats '
            f'(offline <span id="offline">{_offline.kl:.3f}</span> less online '
            f'<span id="online">{_online.kl:.3f}</span>)</p>'
            f"<p>{len(_tree.leaves)} completions a prompt, prompts: {_tree.n_prompts}; reward of "
            f"{_online.n_parameters} parameters at ridge {_online.ridge:g}, policy of "
            f"{_offline.n_parameters} at ridge {_offline.ridge:g}; regret {_online.regret:+.2f} "
            f"online, {_offline.regret:+.2f} offline (reward units). The trees show prompt "
            f"{_tree.prompts[0]}. Fitted and drawn in "
            f'<span id="milliseconds">{_spent:.0f}</span> ms.</p>'
        )
        _drawn = f'<div style="display:flex;flex-wrap:wrap;gap:8px">{"".join(_pictures)}</div>'
        _shown = mo.Html(f'<div id="explorer">{_words}{_drawn}</div>')
    except InputError as _error:
        spec = None
        _shown = mo.Html(
            '<p id="sentence" role="alert" style="border-left:4px solid #e69f00;padding:8px">'
            f"These settings do not go together: {escape(str(_error))}.</p>"
        )
    mo.vstack([_shown])
    return question, spec


@app.cell
def _(mo):
    draw_curve = mo.ui.run_button(label="Draw KL against N")
    mo.vstack([draw_curve])
    return (draw_curve,)


@app.cell
def _(COLOURS, Figure, NAMES, RIDGES, curve, draw_curve, mo, np, question, replace, ridge, spec):
    mo.stop(spec is None or not draw_curve.value)
    _numbers, _seeds = (32, 64, 128, 256, 512, 1024), range(8)
    with mo.status.progress_bar(
        total=len(_numbers) * len(_seeds), title="fitting", remove_on_exit=True
    ) as _bar:
        _kls = curve(
            replace(spec, seed=0),
            replace(question, seed=0),
            _numbers,
            _seeds,
            ridges=RIDGES if ridge.value is None else None,
            report=_bar.update,
        )
    _figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    _ax = _figure.add_subplot()
    for _road, _kl in _kls.items():
        _error = 1.96 * _kl.std(axis=1, ddof=1) / np.sqrt(len(_seeds))
        _ax.errorbar(
            _numbers,
            _kl.mean(axis=1),
            yerr=_error,
            color=COLOURS[_road],
            marker="o",
            capsize=2,
            label=NAMES[_road],
        )
    _ax.set_xscale("log", base=2)
    _ax.set_xticks(_numbers, [str(n) for n in _numbers])
    _ax.set_ylim(bottom=0.0)
    _ax.set_xlabel("preference pairs N")
    _ax.set_ylabel("KL to the optimum (nats)")
    _ax.set_title(f"mean of {len(_seeds)} seeds, bars: 1.96 standard errors", fontsize=10)
    _ax.legend(frameon=False)
    mo.vstack([mo.Html('<span id="curve-drawn"></span>'), _figure])
    return


if __name__ == "__main__":
    app.run()
