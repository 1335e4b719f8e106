"""Notebook 03: reading a study: records, seeds, intervals, verdicts, and what contradicts what.

    marimo edit notebooks/03_reading_a_study.py -- --study out/study

Without --study it reads the small study that lies beside it; nothing is trained here.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Reading a study", width="medium")


@app.cell
def _():
    from collections import Counter
    from dataclasses import replace
    from pathlib import Path

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure
    from scipy.stats import t

    from paper_figures.curves import TRAINING, series
    from paper_figures.levels import ARMS, levels, measured_row, per_seed, score_name
    from paper_figures.prose import number, span, verdict_row
    from paper_figures.records import load_study
    from paper_figures.style import label, mark
    from theory.predictions import judge

    return (
        ARMS,
        Counter,
        Figure,
        Path,
        TRAINING,
        judge,
        label,
        levels,
        load_study,
        mark,
        measured_row,
        mo,
        np,
        number,
        per_seed,
        replace,
        score_name,
        series,
        span,
        t,
        verdict_row,
    )


@app.cell
def _(Path, load_study, mo):
    _asked = mo.cli_args().get("study")
    folder = Path(str(_asked)) if _asked else Path(__file__).parent / "study"
    study = load_study(folder)

    mo.md(f"""
    # Reading a study

    A study is a folder of records. Everything that the report says follows from them, and this
    notebook walks the way from one seed's number to a verdict. Each step is computed a second time,
    and asserted, in the cell that shows it.

    - made by `{study.commands[0] if study.commands else "a command that was not recorded"}`
    - preset **{study.preset}**, figures {", ".join(study.figures)}, seeds
      {", ".join(map(str, study.seeds))}, data: {study.data["kind"]}
    - {len(study.stages)} finished stages, one folder each under `stages/`
    """)
    return (study,)


@app.cell
def _(mo, study, verdict_row):
    verdicts = study.verdicts or ()
    _rows = [
        {
            "figure": f"{row.figure} {row.size}".strip(),
            "predicted claim": row.claim,
            "at the toy rung": row.predicted,
            "measured": f"{row.measured} {row.interval}".strip(),
            "verdict": row.outcome,
            "what would decide": row.needs,
        }
        for row in map(verdict_row, verdicts)
    ]
    mo.vstack(
        [
            mo.md(r"""
    ## 1. The verdicts

    One row a prediction (and model size). The claim was fixed before anything was trained. From the
    toy rung the **order and the sign** carry over, never the size of a difference.
    """),
            mo.ui.table(_rows, selection=None, page_size=20),
        ]
    )
    return (verdicts,)


@app.cell
def _(ARMS, Figure, label, levels, mark, mo, number, score_name, study):
    score = score_name(study)
    arms = levels(study, score, ARMS["fig3"], "fig3")
    _figure = Figure(figsize=(6.6, 0.5 * len(arms) + 1.2), layout="constrained")
    _ax = _figure.add_subplot()
    for _i, _arm in enumerate(arms):
        _colour, _marker = mark(_arm.name)
        _ax.plot(_arm.per_seed, [_i] * len(_arm.per_seed), _marker, color=_colour, alpha=0.7)
        _ax.plot([_arm.mean] * 2, [_i - 0.3, _i + 0.3], color=_colour)
        if _arm.low is not None and _arm.high is not None:
            _ax.plot([_arm.low, _arm.high], [_i, _i], color=_colour, linewidth=1)
    _ax.set_yticks(range(len(arms)), [label(arm.name) for arm in arms])
    _ax.invert_yaxis()
    _ax.set_xlabel(f"{label(score)} (0-1)")
    _ax.set_title("Fig. 3: a mark a seed, a bar the mean, a line the interval", fontsize=10)

    mo.vstack(
        [
            mo.md(r"""
    ## 2. Fig. 3's arms, seed by seed

    SFT is one model, shared by all seeds; everything after it is trained once a seed. Look at the
    spread before looking at the means: a difference smaller than it will not be decided.
    """),
            _figure,
            mo.md("Means: " + ", ".join(f"{label(a.name)} {number(a.mean)}" for a in arms) + "."),
        ]
    )
    return arms, score


@app.cell
def _(measured_row, mo, np, number, per_seed, score, span, study, t):
    QUANTITY = f"{score}[online_dpo_sft] - {score}[dpo]"
    first = measured_row(study, "fig3", QUANTITY)
    assert first is not None
    _online, _offline = (per_seed(study, score, name) for name in ("online_dpo_sft", "dpo"))
    difference = np.array([_online[seed] - _offline[seed] for seed in first.seeds])
    assert np.allclose(difference, first.per_seed, atol=1e-12)
    assert np.isclose(difference.mean(), first.value, atol=1e-12)

    if len(difference) > 1:
        _n = len(difference)
        _half = t.ppf(0.975, _n - 1) * difference.std(ddof=1) / np.sqrt(_n)
        assert np.isclose(difference.mean() - _half, first.low, atol=1e-9)
        assert np.isclose(difference.mean() + _half, first.high, atol=1e-9)
    _within = [
        f"seed {seed}: {span(*inside)}"
        for seed, inside in zip(first.seeds, first.within or (), strict=False)
        if inside is not None
    ]

    mo.md(f"""
    ## 3. One difference, by hand

    `{QUANTITY}`, seed by seed out of the two arms' records:
    {", ".join(number(float(d), sign=True) for d in difference)}. Their mean is
    **{number(first.value, sign=True)}**, their interval **{span(first.low, first.high) or "none"}**
    ({first.interval}).

    There are two spreads, and they answer two questions. *Over seeds*: would another training run
    say the same? *Within a seed, over prompts*: would other prompts, on this very model?
    {"; ".join(_within) or "No interval over prompts was recorded"}. All seeds answer the same
    prompts, so that seeds which agree say nothing of other prompts: where prompts are a sample of
    more, a verdict stands only if an interval over prompts (mean over seeds) says the same.
    """)
    return


@app.cell
def _(Counter, judge, mo, verdicts):
    _again = [
        judge(
            v.prediction,
            v.measurement,
            too_small=v.reason if v.outcome == "model too small to judge" else None,
            margin=v.margin,
        )
        for v in verdicts
    ]
    assert [v.outcome for v in _again] == [v.outcome for v in verdicts]
    counts = Counter(v.outcome for v in verdicts)

    mo.md(f"""
    ## 4. From an interval to a verdict

    The rule is short, and running it again gives the stored verdicts
    ({", ".join(f"{n} {name}" for name, n in sorted(counts.items()))}):

    - *greater* is **supported** if the whole interval lies above 0, **contradicted** if it lies
      below;
    - *equal* is **supported** only if the interval lies inside a margin that was fixed beforehand,
      and never because nothing could be told apart;
    - all else is **inconclusive**, with the seeds or prompts that would decide;
    - a small model on real text gets no verdict at all.
    """)
    return


@app.cell
def _(judge, mo, replace, verdicts):
    # One measurement as it is, with its sign turned round, and with an interval too wide to tell.
    _some = next(v for v in verdicts if v.measurement is not None and v.measurement.low is not None)
    _claim, _measured = _some.prediction, _some.measurement
    _size = 2 * abs(_measured.value) + (_claim.margin or 0.0) or 0.1
    _sign = 1 if _claim.relation == "less" else -1
    _values = {
        "as measured": (_measured.low, _measured.high),
        "with the other sign": tuple(sorted((0.5 * _sign * _size, _sign * _size))),
        "with an interval around 0": (-_size, _size),
    }
    tried = {
        words: judge(_claim, replace(_measured, low=low, high=high)).outcome
        for words, (low, high) in _values.items()
    }
    if _claim.relation != "equal":
        assert tried["with the other sign"] == "contradicted"
        assert tried["with an interval around 0"] == "inconclusive"
    against = [v for v in verdicts if v.outcome == "contradicted"]
    _rest_on = dict.fromkeys(line for v in against for line in v.prediction.assumptions)

    mo.md(
        """
    ## 5. What a contradiction means

    The same prediction, """
        + "; ".join(f"{words}: *{outcome}*" for words, outcome in tried.items())
        + """.

    A prediction stands on assumptions. If a measurement contradicts it, one of them does not hold
    here; it does not refute a theorem. So read the assumptions first: which one could this model,
    this data, this optimiser break? Then look for the figure that would tell: a gap in Fig. 3 that
    does not shrink in Fig. 5 speaks against the verifier being simpler (H6); an extra gain in
    Fig. 7 speaks for computation alone (H3).

    """
        + (
            "Contradicted in this study:\n\n"
            + "\n".join(f"- `{v.prediction.quantity}` ({v.prediction.figure})" for v in against)
            + "\n\nThey rest on:\n\n"
            + "\n".join(f"- {line}" for line in _rest_on)
            if against
            else "Nothing is contradicted in this study."
        )
    )
    return


@app.cell
def _(mo, study):
    stage = next(s for s in study.stages if s.base == "online_dpo_sft")
    assert stage.weights_sha256 is not None
    mo.vstack(
        [
            mo.md(f"""
    ## 6. One stage's record

    `{stage.name}` lies in `{stage.folder.name}`. The end of that name is the hash of what decides
    the stage's content: its settings, its seed, and the hashes of its inputs. The same hash means
    the same numbers, on a run that was killed and resumed as well.
    """),
            mo.ui.table(
                [
                    {"field": name, "value": str(value)}
                    for name, value in (
                        ("device", stage.device),
                        ("wall seconds", stage.wall_seconds),
                        ("weights sha256", stage.weights_sha256[:16]),
                        *stage.versions.items(),
                        *stage.metrics.items(),
                    )
                ],
                selection=None,
                page_size=12,
            ),
            mo.json(stage.config, label="settings"),
        ]
    )
    return (stage,)


@app.cell
def _(label, mo, np, study):
    _evaluations = [s for s in study.stages if s.base in ("eval_dpo", "eval_online_dpo_sft")]
    _shown = [s for s in _evaluations if s.seed in (None, study.seeds[0]) and not s.branch + s.size]
    _samples = {s.base.removeprefix("eval_"): s.samples() or () for s in _shown}
    _lengths = {name: np.array([row.tokens for row in rows]) for name, rows in _samples.items()}
    _rows = [
        {
            "prompt": row.prompt[-60:],
            "policy": label(name),
            "sample": row.sample,
            "tokens": row.tokens,
            "ended": row.ended,
            "reference": row.reference,
        }
        for rows in zip(*(rows[:5] for rows in _samples.values()), strict=False)
        for name, row in zip(_samples, rows, strict=True)
    ]
    mo.vstack(
        [
            mo.md(
                "## 7. Samples\n\nRead some before believing a score. Mean length in tokens: "
                + ", ".join(f"{label(n)} {v.mean():.1f}" for n, v in _lengths.items() if v.size)
                + ". A judge that likes length would reward it, so every win rate stands beside it."
            ),
            mo.ui.table(_rows, selection=None, page_size=10),
        ]
    )
    return


@app.cell
def _(Figure, TRAINING, label, mark, mo, series, study):
    _names = ("dpo", "online_dpo_sft", "global_rm", "local_rm")
    _curves = {
        name: [
            (stage.seed, *series(stage.history, TRAINING))
            for stage in study.stages
            if stage.stage == name and stage.history
        ]
        for name in _names
    }
    _curves = {name: found for name, found in _curves.items() if found}
    for _found in _curves.values():
        assert all(len(steps) == len(values) > 1 for _, steps, values in _found)
    _figure = Figure(figsize=(7.4, 2.6), layout="constrained")
    _axes = _figure.subplots(1, max(1, len(_curves)), squeeze=False)[0]
    for _ax, (_name, _found) in zip(_axes, _curves.items(), strict=False):
        for _, _steps, _values in _found:
            _ax.plot(_steps, _values, color=mark(_name)[0], linewidth=1)
        _ax.set_title(label(_name), fontsize=10)
        _ax.set_xlabel("step")
    _axes[0].set_ylabel("loss (nats)")

    mo.vstack(
        [
            mo.md(r"""
    ## 8. Training curves

    One line a seed. A preference loss starts at $\ln 2 \approx 0.693$ where policy and reference
    are the same model; a run that starts elsewhere has a reference that is not its own.
    """),
            _figure,
        ]
    )
    return


if __name__ == "__main__":
    app.run()
