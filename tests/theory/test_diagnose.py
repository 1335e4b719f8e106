"""The diagnosis of preference data, against networkx, enumeration, an optimiser and real data."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_expit
from scipy.stats import binomtest

from theory import diagnose as module
from theory.commands.diagnose import Diagnose, _print, _table
from theory.comparisons import Comparisons, Row, read_comparisons
from theory.diagnose import Diagnosis, count_triples, diagnose, wilson
from theory.diagnosis_text import meaning
from theory.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TEXTS = "abcde"


@pytest.fixture(scope="module")
def tldr_dir() -> Path:
    folder = Path(os.environ.get("ROADS_TLDR_DIR", ROOT.parent / "shared" / "data" / "tldr"))
    if not folder.is_dir():
        pytest.skip(f"no real TL;DR data at {folder} (set ROADS_TLDR_DIR)")
    return folder


def of(*rows: str) -> Diagnosis:
    """From rows such as "x a>b" or "x a>b w1 3" (annotator, - for none, and count)."""
    made = []
    for row in rows:
        prompt, pair, *rest = row.split()
        annotator = rest[0] if rest and rest[0] != "-" else None
        count = int(rest[1]) if len(rest) > 1 else 1
        chosen, rejected = pair.split(">")
        made.append(Row(prompt, chosen, rejected, annotator, count))
    return diagnose(Comparisons.of(made))


comparison = st.builds(
    Row,
    st.sampled_from("xy"),
    st.sampled_from(TEXTS),
    st.sampled_from(TEXTS),
    st.sampled_from([None, "1", "2"]),
    st.integers(1, 3),
    st.none(),
).filter(lambda row: row.chosen != row.rejected)
data_sets = st.lists(comparison, min_size=1, max_size=24)


# --- oracles -------------------------------------------------------------------------------------


def wins(rows: list[Row]) -> Counter:
    """(prompt, winner, loser) -> comparisons."""
    table = Counter()
    for row in rows:
        table[row.prompt, row.chosen, row.rejected] += row.count
    return table


def graph(rows: list[Row], majority: bool = False) -> nx.DiGraph:
    table, made = wins(rows), nx.DiGraph()
    for (x, a, b), n in table.items():
        made.add_nodes_from([(x, a), (x, b)])
        if not majority or n > table[x, b, a]:
            made.add_edge((x, a), (x, b))
    return made


@given(data_sets)
def test_counts_agree_with_enumeration(rows):
    d, table, edges = diagnose(Comparisons.of(rows)), wins(rows), graph(rows)
    pairs = {(x, *sorted((a, b))) for x, a, b in table}
    sides = [(table[x, a, b], table[x, b, a]) for x, a, b in pairs]
    assert d.pairs == sum(row.count for row in rows)
    assert d.prompts == len({row.prompt for row in rows})
    assert d.completions == len(edges)
    assert d.distinct_pairs == len(pairs)
    assert d.repeated_pairs == sum(a + b >= 2 for a, b in sides)
    assert d.unanimous_pairs == sum(a + b >= 2 and 0 in (a, b) for a, b in sides)
    assert d.two_way_pairs == sum(a > 0 and b > 0 for a, b in sides)
    assert d.two_way_pairs == d.repeated_pairs - d.unanimous_pairs
    assert d.tied_pairs == sum(a == b for a, b in sides)
    assert d.annotators == (len({row.annotator for row in rows} - {None}) or None)


@given(data_sets)
def test_components_and_existence_agree_with_networkx(rows):
    d, edges = diagnose(Comparisons.of(rows)), graph(rows)
    weak = list(nx.weakly_connected_components(edges))
    strong = {node: i for i, c in enumerate(nx.strongly_connected_components(edges)) for node in c}
    prompts = {x for x, _ in edges}
    finite = {
        x
        for x in prompts
        if all(
            nx.is_strongly_connected(edges.subgraph(c)) for c in weak if (x,) < min(c) < (x, "z")
        )
    }
    of_prompt = Counter(min(c)[0] for c in weak)
    assert d.components == len(weak)
    assert d.largest_component == max(map(len, weak))
    assert d.strong_components == len(set(strong.values()))
    assert d.prompts_with_finite_mle == len(finite)
    assert d.prompts_in_one_component == sum(n == 1 for n in of_prompt.values())
    assert d.free_component_masses == len(weak) - len(prompts)
    assert d.dimension == (sum(of_prompt[x] - 1 for x in finite) if finite else None)
    crossing = [n for (x, a, b), n in wins(rows).items() if strong[x, a] != strong[x, b]]
    assert d.separable_pairs == sum(crossing)


@given(data_sets, st.sampled_from([1, 3, 2_000_000]))
def test_triples_and_cycles_agree_with_enumeration(rows, at_once):
    edges = graph(rows, majority=True)
    triples = cyclic = 0
    for nodes in itertools.combinations(sorted(edges), 3):
        inside = edges.subgraph(nodes)
        if inside.number_of_edges() == 3:
            triples += 1
            cyclic += nx.is_strongly_connected(inside)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATHS_AT_ONCE", at_once)
        d = diagnose(Comparisons.of(rows))
    assert (d.triples, d.intransitive_triples) == (triples, cyclic)
    cycles = [c for c in nx.strongly_connected_components(edges) if len(c) > 1]
    assert d.majority_cycles == len(cycles)


@given(data_sets)
def test_agreement_is_that_of_every_couple_of_two_annotators(rows):
    labels: dict[tuple, list[tuple]] = {}
    for i, row in enumerate(rows):
        for j in range(row.count):
            who = (i, j) if row.annotator is None else row.annotator
            key = (row.prompt, *sorted((row.chosen, row.rejected)))
            labels.setdefault(key, []).append((who, row.chosen))
    shares, own = [], 0
    for given_labels in labels.values():
        couples = list(itertools.combinations(given_labels, 2))
        two = [(a, b) for a, b in couples if a[0] != b[0]]
        own += len(couples) - len(two)
        if two:
            shares.append(np.mean([a[1] == b[1] for a, b in two]))
    noise = diagnose(Comparisons.of(rows)).label_noise
    if not shares:
        assert noise is None
        return
    assert noise is not None
    assert noise.agreement == pytest.approx(np.mean(shares), abs=1e-14)
    assert (noise.pairs, noise.couples_of_one_annotator) == (len(shares), own)


@given(data_sets)
def test_the_least_log_loss_agrees_with_an_optimiser(rows):
    data = Comparisons.of(rows)
    total = data.count.sum()

    def loss(r):
        return -np.dot(data.count, log_expit(r[data.winner] - r[data.loser])) / total

    def slope(r):
        s = data.count * np.exp(log_expit(r[data.loser] - r[data.winner])) / total
        return np.bincount(data.loser, s, len(r)) - np.bincount(data.winner, s, len(r))

    start = np.zeros(data.n_completions)
    options = {"maxiter": 10_000, "ftol": 1e-16, "gtol": 1e-11}
    found = minimize(loss, start, jac=slope, method="L-BFGS-B", options=options)
    least = diagnose(data).least_log_loss
    assert least is not None
    # The infimum is below every value; where it is not attained the optimiser stops short of it.
    assert -1e-11 <= found.fun - least < 1e-5


# --- symmetries ----------------------------------------------------------------------------------


@given(data_sets, st.permutations(TEXTS), st.randoms(use_true_random=False))
def test_names_and_order_do_not_matter(rows, names, random):
    new = dict(zip(TEXTS, names, strict=True)) | {"x": "y", "y": "x"}
    renamed = [
        row._replace(prompt=new[row.prompt], chosen=new[row.chosen], rejected=new[row.rejected])
        for row in rows
    ]
    random.shuffle(renamed)
    same(diagnose(Comparisons.of(rows)), diagnose(Comparisons.of(renamed)))


@given(data_sets)
def test_turning_every_comparison_round_changes_nothing(rows):
    turned = [row._replace(chosen=row.rejected, rejected=row.chosen) for row in rows]
    same(diagnose(Comparisons.of(rows)), diagnose(Comparisons.of(turned)))


@given(data_sets)
def test_a_count_is_so_many_rows(rows):
    split = [row._replace(count=1) for row in rows for _ in range(row.count)]
    a, b = diagnose(Comparisons.of(rows)), diagnose(Comparisons.of(split))
    same(replace(a, rows=0), replace(b, rows=0))


@given(data_sets, st.integers(2, 10**6))
def test_multiplied_counts_keep_existence_and_the_floor(rows, times):
    more = [row._replace(count=row.count * times) for row in rows]
    a, b = diagnose(Comparisons.of(rows)), diagnose(Comparisons.of(more))
    names = "prompts_with_finite_mle", "components", "dimension", "intransitive_triples"
    assert [getattr(a, name) for name in names] == [getattr(b, name) for name in names]
    assert a.least_log_loss == pytest.approx(b.least_log_loss, abs=1e-11)


def same(a: Diagnosis, b: Diagnosis) -> None:
    """Equal, floats up to rounding (completions are numbered by their hashes)."""
    bare = [replace(d, least_log_loss=0.0, label_noise=None) for d in (a, b)]
    assert bare[0] == bare[1]
    assert a.least_log_loss == pytest.approx(b.least_log_loss, abs=1e-11)
    assert (a.label_noise is None) == (b.label_noise is None)
    if a.label_noise is not None and b.label_noise is not None:
        assert a.label_noise.agreement == pytest.approx(b.label_noise.agreement, abs=1e-14)
        assert a.label_noise.couples == b.label_noise.couples


# --- by hand -------------------------------------------------------------------------------------


def test_a_cycle_by_hand():
    d = of("x a>b", "x b>c", "x c>a")
    assert (d.triples, d.intransitive_triples, d.majority_cycles) == (1, 1, 1)
    assert (d.prompts_with_finite_mle, d.components, d.dimension) == (1, 1, 0)
    # By symmetry the best reward is constant.
    assert d.least_log_loss == pytest.approx(math.log(2), abs=1e-12)
    text = " ".join(meaning(d))
    assert "1 of 1 triple (100%) are intransitive, and there are 1 majority cycle" in text
    assert "exists on every prompt" in text
    assert "cannot be measured" in text


def test_a_bradley_terry_floor_above_the_entropy_floor():
    rows = [f"x {pair} - {n}" for pair, n in (("a>b", 3), ("b>c", 3), ("c>a", 3))]
    d = of(*rows, "x b>a", "x c>b", "x a>c")
    assert d.label_noise is not None
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert d.label_noise.entropy_floor == pytest.approx(entropy, abs=1e-14)
    assert d.label_noise.least_log_loss == pytest.approx(math.log(2), abs=1e-12)
    assert any("the Bradley-Terry form costs" in line for line in meaning(d))


def test_separable_data_have_no_floor_and_no_finite_maximiser():
    d = of("x a>b", "x b>c", "y a>b", "y c>d")
    assert (d.prompts_with_finite_mle, d.dimension, d.least_log_loss) == (0, None, 0.0)
    assert (d.components, d.free_component_masses) == (3, 1)
    assert any("1 component mass is left" in line for line in meaning(d))


def test_one_annotator_twice_says_nothing_about_two():
    d = of("x a>b w", "x a>b w", "x b>a w")
    assert d.repeated_pairs == 1
    assert d.label_noise is None
    assert any("none by two annotators" in line for line in meaning(d))
    d = of("x a>b w 2", "x b>a v")
    assert d.label_noise is not None
    assert (d.label_noise.agreement, d.label_noise.couples_of_one_annotator) == (0.0, 1)


def test_a_floor_that_is_not_found_is_missing_with_its_reason(monkeypatch, capsys):
    monkeypatch.setattr("theory.bt_floor.MAX_STEPS", 1)
    d = of("x a>b - 5", "x b>c - 5", "x c>a", "x b>a", "y a>b")
    assert d.least_log_loss is None
    assert d.label_noise is not None
    assert d.least_log_loss_missing == "no Bradley-Terry minimum in 1 steps of Newton's method"
    assert any(f"was not found: {d.least_log_loss_missing}." in line for line in meaning(d))
    _print(_table(d), meaning(d))
    assert "not found" in capsys.readouterr().out


@pytest.mark.parametrize(("p", "n"), [(0.0, 1), (1.0, 7), (0.5, 40), (0.25, 1000)])
def test_wilson_agrees_with_scipy(p, n):
    interval = binomtest(round(p * n), n).proportion_ci(method="wilson")
    if p * n == round(p * n):
        np.testing.assert_allclose(wilson(p, n), [interval.low, interval.high], atol=1e-12)


def test_the_bounds_hold_for_known_probabilities():
    """Drawn pairs: the interval covers the agreement, and the bounds the entropy and accuracy."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.5, 1.0, size=4000)
    first = rng.random((len(p), 2)) < p[:, None]
    rows = [
        Row(f"{i}", "a" if won else "b", "b" if won else "a")
        for i, twice in enumerate(first.tolist())
        for won in twice
    ]
    noise = diagnose(Comparisons.of(rows)).label_noise
    assert noise is not None
    low, high = noise.interval
    assert low < float(np.mean(p**2 + (1 - p) ** 2)) < high
    entropy = -p * np.log(p) - (1 - p) * np.log1p(-p)
    assert noise.fresh_log_loss_interval[0] < float(entropy.mean())
    assert noise.best_accuracy[0] < float(p.mean()) < noise.best_accuracy[1]


def test_a_prompt_of_64_completions_and_many_triples():
    rng = np.random.default_rng(1)
    order = np.argsort(rng.random(64))
    low, high = np.triu_indices(64, 1)
    better = np.where(order[low] < order[high], low, high)
    assert count_triples(better, low + high - better, 64) == (math.comb(64, 3), 0)


# --- real data -----------------------------------------------------------------------------------


def test_batch13(tldr_dir):
    d = diagnose(read_comparisons(tldr_dir / "comparisons" / "batch13.json"))
    assert (d.pairs, d.prompts, d.annotators) == (1097, 905, 27)
    assert (d.repeated_pairs, d.unanimous_pairs, d.distinct_pairs) == (40, 14, 905)
    assert (d.two_way_pairs, d.prompts_with_finite_mle) == (26, 26)
    assert d.dropped == {}


def test_rows_without_an_id_join_their_post(tldr_dir):
    edges = diagnose(read_comparisons(tldr_dir / "comparisons" / "edit_b2_eval_test.json"))
    assert (edges.pairs, edges.prompts, edges.clashes) == (5, 5, None)
    both = diagnose(read_comparisons(tldr_dir / "comparisons"))
    assert both.clashes is not None
    assert both.clashes.rows_without_id == 5
    assert both.clashes.texts_with_and_without_id == 905 + 5 - both.prompts > 0


def test_ten_thousand_pairs(tldr_dir):
    d = diagnose(read_comparisons(tldr_dir / "preferences_10k.jsonl.gz"))
    assert (d.pairs, d.prompts) == (10_000, 1653)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_writes_and_prints(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    rows = [("a", "b", "1"), ("b", "a", "2"), ("a", "c", "1"), ("a", "a", "1")]
    file, out = tmp_path / "a.jsonl", tmp_path / "made" / "out.json"
    names = ("chosen", "rejected", "worker")
    file.write_text(
        "".join(json.dumps({"prompt": "x"} | dict(zip(names, r, strict=True))) + "\n" for r in rows)
    )
    assert Diagnose(path=file, json=out).run() == 0
    record = json.loads(out.read_text())
    wanted = "pairs prompts completions distinct_pairs repeated_pairs unanimous_pairs components "
    wanted += "prompts_with_finite_mle intransitive_triples annotators meaning files dropped"
    assert set(record) >= set(wanted.split())
    assert record["dropped"] == {"same text": 1}
    assert (record["pairs"], record["annotators"]) == (3, 2)
    assert record["label_noise"]["agreement"] == 0.0
    assert [f.name for f in out.parent.iterdir()] == ["out.json"]
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    words = " ".join(shown.split())
    for sentence in record["meaning"]:
        assert " ".join(sentence.split()) in words


def test_the_command_refuses_bad_input_and_writes_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": 1}')
    with pytest.raises(InputError, match="columns found are 'text'"):
        Diagnose(path=tmp_path / "a.jsonl", json=tmp_path / "out.json").run()
    assert not (tmp_path / "out.json").exists()
    with pytest.raises(InputError, match="is a folder"):
        Diagnose(path=tmp_path / "a.jsonl", json=tmp_path).run()


def test_the_record_may_not_replace_or_join_its_input(tmp_path):
    file = tmp_path / "a.json"
    file.write_text(body := '{"prompt": "x", "chosen": "a", "rejected": "b"}')
    with pytest.raises(InputError, match="is the input itself"):
        Diagnose(path=file, json=tmp_path / "." / "a.json").run()
    with pytest.raises(InputError, match="lies in the folder that is read"):
        Diagnose(path=tmp_path, json=tmp_path / "made" / "out.json").run()
    assert file.read_text() == body
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]
