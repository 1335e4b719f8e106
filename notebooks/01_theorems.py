"""Notebook 01: the theorems, their repairs and the smallest counterexamples, in pictures."""

import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="The theorems, their repairs, their counterexamples", width="medium")


@app.cell
def _():
    import itertools

    import marimo as mo
    import networkx as nx
    import numpy as np
    from matplotlib.figure import Figure

    from theory import claims
    from theory.claims.base import run_twins
    from theory.classes import TabularPolicies
    from theory.fit import fit_tabular
    from theory.fit_policy import fit_policy
    from theory.preferences import PairData, bt_log_likelihood, comparison_graph
    from theory.soft import leaf_log_probs, log_optimal, soft_value_iteration
    from theory.tree import TokenTree

    return (
        Figure,
        PairData,
        TabularPolicies,
        TokenTree,
        bt_log_likelihood,
        claims,
        comparison_graph,
        fit_policy,
        fit_tabular,
        itertools,
        leaf_log_probs,
        log_optimal,
        mo,
        np,
        nx,
        run_twins,
        soft_value_iteration,
    )


@app.cell
def _(mo):
    mo.md(r"""
    # The theorems, their repairs, their smallest counterexamples

    *All Roads Lead to Likelihood* proves that the online road (fit a reward, then soft RL) and the
    offline road (maximise the likelihood over policies) end at the same policies. Here each
    statement is put on a tree that is small enough to draw. Three things to watch for:

    1. "argmax" is a **set**, sometimes a line, sometimes empty;
    2. what the paper's proofs leave out, and whether the theorem survives it (it does);
    3. the smallest instance on which the statement fails once an assumption is dropped.

    Every number below is computed, and asserted, in the cell that shows it.
    """)
    return


@app.cell
def _(Figure, TokenTree, leaf_log_probs, mo, np, nx, soft_value_iteration):
    tree = TokenTree(("a", "b", "EOS"), 2, ("x",), (1.0,), eos="EOS")
    _words = [" ".join(tree.leaf_tokens(int(leaf))) for leaf in tree.leaves]
    _reward = np.zeros((1, tree.n_leaves))
    _reward[0, tree.leaf_index(("a", "b"))] = 1.5
    _solution = soft_value_iteration(tree, _reward)
    _p = np.exp(np.asarray(leaf_log_probs(tree, _solution.log_policy)))[0]
    assert abs(_p[tree.leaves].sum() - 1.0) < 1e-12

    def _layout(graph):
        """Leaves side by side, each state above the middle of its leaves."""
        leaves = [n for n in graph if graph.out_degree(n) == 0]
        across = {leaf: float(i) for i, leaf in enumerate(leaves)}
        for node in sorted(graph, key=len, reverse=True):
            below = [across[child] for child in graph.successors(node)]
            across.setdefault(node, float(np.mean(below)) if below else 0.0)
        return {node: (across[node], -len(node)) for node in graph}

    _graph = tree.to_networkx()
    _place = _layout(_graph)
    tree_figure = Figure(figsize=(7.0, 3.4), layout="constrained")
    _ax = tree_figure.add_subplot()
    for _parent, _child, _token in _graph.edges(data="token"):
        _level = len(_parent)
        _states = [tree.tokens.index(t) for t in _parent]
        _index = sum(s * tree.vocab ** (len(_states) - 1 - i) for i, s in enumerate(_states))
        _prob = float(np.exp(_solution.log_policy[_level][0, _index, tree.tokens.index(_token)]))
        (_x0, _y0), (_x1, _y1) = _place[_parent], _place[_child]
        _ax.plot([_x0, _x1], [_y0, _y1], color="#0072b2", linewidth=0.5 + 6 * _prob, zorder=1)
        _ax.text(
            0.45 * _x0 + 0.55 * _x1,
            0.45 * _y0 + 0.55 * _y1,
            f"{_token} {_prob:.2f}",
            ha="center",
            va="center",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )
    _leaf_nodes = [n for n in _graph if _graph.out_degree(n) == 0]
    for _node in _leaf_nodes:
        _x, _y = _place[_node]
        _ax.text(_x, _y - 0.14, f"{' '.join(_node)}\nP = {_p[tree.leaf_index(_node)]:.2f}",
                 ha="center", va="top", fontsize=8)  # fmt: skip
    _ax.set_ylim(-2.6, 0.15)
    _ax.set_axis_off()
    mo.vstack(
        [
            mo.md(r"""
    ## 1. The tree, and Eq. 11

    Completions of at most two tokens over $\{a, b, \mathrm{EOS}\}$. The reward is 1.5 at "a b",
    0 elsewhere. Soft value iteration chooses token by token (line width: probability); the chain of
    its choices is $P^*_r(\xi) \propto e^{r(\xi)/\beta}$ over whole completions.
    """),
            tree_figure,
        ]
    )
    return (tree,)


@app.cell
def _(mo, np, tree):
    _masks = [np.asarray(tree.allowed(h)) for h in range(tree.horizon)]
    _below = [int(_masks[1][i].sum()) if _masks[1][i].any() else 1 for i in range(3)]
    root = np.asarray(_below) / sum(_below)
    assert len(tree.leaves) == sum(_below) == 7
    assert abs(root[2] - 1 / 7) < 1e-12

    mo.md(rf"""
    **A limit that is easy to get wrong.** As $\beta \to \infty$ the optimum becomes uniform over
    *completions*: $\pi(\mathrm{{EOS}} \mid x) = {root[2]:.3f}$ (one completion of seven), not
    $1/3$. As $\beta \to 0$ it becomes hard value iteration, and tied optima share in proportion to
    how many optimal *leaves* lie below, not equally among tokens.
    """)
    return


@app.cell
def _(Figure, PairData, TokenTree, comparison_graph, mo, nx):
    flat = TokenTree(("a", "b", "c", "d"), 1, ("x",), (1.0,))
    both_ways = PairData.of(flat, [(0, 0, 1, 3.0), (0, 1, 0, 1.0), (0, 2, 3, 1.0), (0, 3, 2, 2.0)])
    one_way = PairData.of(flat, [(0, 0, 1, 3.0), (0, 1, 0, 1.0), (0, 1, 2, 1.0), (0, 3, 2, 1.0)])
    graph_both = comparison_graph(flat, both_ways)
    graph_one = comparison_graph(flat, one_way)
    assert graph_both.exists
    assert graph_both.dimension == 1
    assert not graph_one.exists
    witness = [flat.tokens[i] for i in graph_one.witness.leaves]

    def _draw(ax, data, found, title):
        places = {"a": (0.0, 1.0), "b": (1.0, 1.0), "c": (1.0, 0.0), "d": (0.0, 0.0)}
        graph = nx.DiGraph()
        graph.add_nodes_from(flat.tokens)
        for winner, loser, count in zip(data.winner, data.loser, data.count, strict=True):
            graph.add_edge(flat.tokens[winner], flat.tokens[loser], count=f"{count:g}")
        colours = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7"]
        shades = [colours[found.component[0, i]] for i in range(4)]
        nx.draw_networkx_nodes(graph, places, node_color=shades, node_size=700, ax=ax)
        nx.draw_networkx_labels(graph, places, ax=ax)
        bend = "arc3,rad=0.18"
        nx.draw_networkx_edges(graph, places, connectionstyle=bend, node_size=700, ax=ax)
        nx.draw_networkx_edge_labels(
            graph, places, nx.get_edge_attributes(graph, "count"), connectionstyle=bend, ax=ax
        )
        ax.set_title(title, fontsize=10)
        ax.margins(0.25)
        ax.set_axis_off()

    graph_figure = Figure(figsize=(7.0, 3.2), layout="constrained")
    _left, _right = graph_figure.subplots(1, 2)
    _draw(_left, both_ways, graph_both, "a maximiser exists: a line of policies")
    _draw(_right, one_way, graph_one, f"no maximiser: {{{', '.join(witness)}}} never loses outside")
    mo.vstack(
        [
            mo.md(r"""
    ## 2. When is there an optimum at all?

    The comparison graph of a prompt: an arrow from winner to loser with its count, one colour for
    each weakly connected component. A finite Bradley-Terry maximiser exists exactly when every
    component is strongly connected (Zermelo 1929, Ford 1957). Then it is unique up to one shift a
    component: the policies form a set of dimension *components less prompts*. Otherwise the set is
    **empty**, and the theorems say nothing.
    """),
            graph_figure,
        ]
    )
    return flat, one_way


@app.cell
def _(bt_log_likelihood, comparison_graph, flat, itertools, mo, np, one_way):
    _witness = comparison_graph(flat, one_way).witness
    _step = np.zeros((1, 4))
    _step[0, list(_witness.leaves)] = 1.0
    rising = [bt_log_likelihood(t * _step, one_way) for t in (0.0, 1.0, 5.0, 25.0, 125.0)]
    assert all(b > a for a, b in itertools.pairwise(rising[:4]))
    mo.md(
        "On the right the likelihood rises for ever along the witness: "
        + ", ".join(f"{v:.4f}" for v in rising)
        + " nats at steps 0, 1, 5, 25, 125. An optimiser that returns a number here has made it up."
    )
    return


@app.cell
def _(
    Figure,
    PairData,
    TabularPolicies,
    TokenTree,
    fit_policy,
    fit_tabular,
    leaf_log_probs,
    mo,
    np,
    soft_value_iteration,
):
    three = TokenTree(("a", "b", "c"), 1, ("x",), (1.0,))
    partial = PairData.of(three, [(0, 0, 1, 3.0), (0, 1, 0, 1.0)])  # c is never compared
    optima = fit_tabular(three, partial)
    assert optima.graph.dimension == 1
    policies = TabularPolicies.of(three)
    _rng = np.random.default_rng(3)

    online = []
    for _ in range(9):
        _r = optima.member(1.5 * _rng.normal(size=optima.graph.n_components))
        _pi = soft_value_iteration(three, _r).log_policy
        online.append(np.exp(np.asarray(leaf_log_probs(three, _pi)))[0])
    offline = [
        np.exp(fit_policy(policies, partial, _rng.normal(size=policies.dimension)).log_p)[0]
        for _ in range(9)
    ]
    for _p in (*online, *offline):
        assert abs(_p[0] / _p[1] - 3.0) < 1e-6  # on the line, wherever it is

    def corner(p):
        """A distribution over a, b, c as a point of the triangle."""
        return p[1] + 0.5 * p[2], np.sqrt(0.75) * p[2]

    set_figure = Figure(figsize=(5.6, 4.4), layout="constrained")
    _ax = set_figure.add_subplot()
    _edge = np.array([corner(v) for v in (np.eye(3)[[0, 1, 2, 0]])])
    _ax.plot(_edge[:, 0], _edge[:, 1], color="black", linewidth=0.8)
    for _name, _v in zip("abc", np.eye(3), strict=True):
        _x, _y = corner(_v)
        _ax.text(_x, _y + (0.03 if _y > 0 else -0.05), f"P({_name}) = 1", ha="center", fontsize=9)
    _line = np.array([corner(np.array([0.75 * (1 - c), 0.25 * (1 - c), c])) for c in (0.0, 1.0)])
    _ax.plot(_line[:, 0], _line[:, 1], color="#999999", linewidth=4, zorder=0,
             label="the set of optima")  # fmt: skip
    _on = np.array([corner(p) for p in online])
    _off = np.array([corner(p) for p in offline])
    _ax.plot(_on[:, 0], _on[:, 1], "o", color="#009e73", label="online: reward, then soft RL")
    _ax.plot(_off[:, 0], _off[:, 1], "x", color="#d55e00", label="offline: nine random starts")
    _ax.set_aspect("equal")
    _ax.set_axis_off()
    _ax.legend(frameon=False, loc="upper right", fontsize=8)
    mo.vstack(
        [
            mo.md(r"""
    ## 3. Theorem 2.2, as sets

    $a$ beat $b$ three times and lost once; $c$ was never compared. The likelihood fixes the odds
    $P(a)/P(b) = 3$ and leaves the mass of $c$ **free**. The optima are a line through the triangle
    of all policies. Both roads can end anywhere on it, and nowhere else: the *sets* are equal, two
    single runs need not be.
    """),
            set_figure,
        ]
    )
    return (three,)


@app.cell
def _(PairData, TabularPolicies, fit_policy, log_optimal, mo, np, three):
    _data = PairData.of(three, [(0, 0, 1, 3.0), (0, 1, 0, 1.0), (0, 1, 2, 2.0), (0, 2, 1, 1.0)])
    _log_ref = np.log([[0.5, 0.2, 0.3]])
    _all = TabularPolicies.of(three)
    _dpo = fit_policy(_all, _data, np.zeros(_all.dimension), log_ref=_log_ref).log_p
    _mle = fit_policy(_all, _data, np.zeros(_all.dimension)).log_p
    with_term = _dpo - (_mle + _log_ref - np.log(np.exp(_mle + _log_ref).sum()))
    without = _dpo - (_mle + _log_ref)
    assert np.abs(with_term).max() < 1e-9
    assert np.ptp(without) < 1e-9
    assert without.min() > 0.01

    # the RLHF road, through a reward and not through the DPO policy
    _rlhf = log_optimal(three, _mle, 1.0, _log_ref)
    assert np.abs(_rlhf - _dpo).max() < 1e-9

    mo.md(rf"""
    ## 4. Theorem 2.3, and the term that its proof drops

    With a reference, Eqs. 14 to 16 of the proof say
    $\log P_{{dpo}} = \log P_{{mle}} + \log P_{{ref}}$.
    For positive policies that can never hold: the right side does not sum to 1. On three
    completions it misses by **{without[0, 0]:.4f} nats, the same at every completion**. What
    is missing is $\log \sum_\xi P_{{mle}} P_{{ref}}$, a number that depends on the prompt alone.
    With it the two sides agree to {np.abs(with_term).max():.0e}. Bradley-Terry does not see such a
    term, and neither does the projection: the theorem stands.
    """)
    return


@app.cell
def _(Figure, mo, np):
    share = 0.8  # of the comparisons won by the first of two completions
    grid = np.linspace(0.01, 0.99, 981)

    def likelihood(p):
        """E over the data of log sigmoid(log p - log(1 - p)) = log p or log(1 - p), nats."""
        return share * np.log(p) + (1 - share) * np.log(1 - p)

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    both = likelihood(grid) + entropy(grid)
    eq_3 = float(grid[np.argmax(both)])
    roads = float(grid[np.argmax(likelihood(grid))])
    assert abs(roads - 0.8) < 1e-3
    assert abs(eq_3 - 0.655) < 1e-3

    eq_figure = Figure(figsize=(6.2, 3.2), layout="constrained")
    _ax = eq_figure.add_subplot()
    _ax.plot(
        grid, likelihood(grid), color="#0072b2", label="data likelihood: both roads maximise it"
    )
    _ax.plot(grid, both, color="#d55e00", label="likelihood + entropy: Eq. 3")
    for _x, _curve, _colour in ((roads, likelihood, "#0072b2"), (eq_3, None, "#d55e00")):
        _y = float(likelihood(_x)) if _curve else float(likelihood(_x) + entropy(_x))
        _ax.plot([_x], [_y], "o", color=_colour)
        _ax.annotate(f"{_x:.3f}", (_x, _y), textcoords="offset points", xytext=(0, 8), ha="center")
    _ax.set_ylim(-2.0, 0.5)
    _ax.set_xlabel("probability of the preferred completion")
    _ax.set_ylabel("objective (nats)")
    _ax.legend(frameon=False, loc="lower center", fontsize=8)
    mo.vstack(
        [
            mo.md(r"""
    ## 5. What neither road optimises

    Eqs. 2 and 3 motivate both roads: likelihood of the data *plus* a regulariser. With two
    completions and an empirical preference of 0.8 their optimum is 0.655. Both roads give 0.8: the
    soft-RL step undoes its own entropy term, because it regularises against a reward that was
    fitted without one.
    """),
            eq_figure,
        ]
    )
    return


@app.cell
def _(claims, mo, run_twins):
    rows = []
    for _claim in claims.CLAIMS:
        for _twin in run_twins(_claim):
            assert _twin.fails, (_claim.name, _twin.assumption)
            rows.append(
                {
                    "claim": _claim.name,
                    "what is broken": _twin.assumption,
                    "miss (nats)": round(_twin.violation, 3),
                    "file": f"theory/claims/twins/{_claim.name}/{_twin.name}.json",
                }
            )
    assert len(rows) > len(claims.CLAIMS)
    mo.vstack(
        [
            mo.md(f"""
    ## 6. The smallest counterexamples

    Drop one assumption, and the statement fails. These are the {len(rows)} smallest instances that
    we know of; `python -m theory check --replay FILE` runs one again, and a copy of the file can be
    edited. What each claim states, and what its proof leaves out, is in `theory/claims/README.md`.
    """),
            mo.ui.table(rows, selection=None, page_size=12),
        ]
    )
    return


if __name__ == "__main__":
    app.run()
