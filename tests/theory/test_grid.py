"""Grids: lists crossed, families and axes by name, everything else refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from theory.draws import COVERAGES
from theory.errors import InputError
from theory.families import FAMILIES
from theory.sweep import ARM_NAMES, find_grid, load_grid, parse_grid
from theory.sweep.cells import COMPLEXITY
from theory.sweep.cost import COSTS, estimate
from theory.sweep.data import check_memory
from theory.sweep.grid import SHIPPED

TOP = ("seeds", "ridges", "replicates", "extra_top")


def grid(**changes: object) -> dict:
    """A valid grid with these keys changed; None takes a key away."""
    block: dict = {
        "name": "b", "arms": ["two_stage"], "bits": 4, "degree": 2, "sharpness": 1.0,
        "horizon": 4, "n_pairs": [8, 16],
    }  # fmt: skip
    top: dict = {"name": "g", "seeds": [0, 1], "ridges": [1], "block": [block]}
    for key, value in changes.items():
        table = top if key in TOP else block
        table[key] = value
        if value is None:
            del table[key]
    return top


def test_lists_are_crossed_and_hashes_differ():
    cells = parse_grid(grid(degree=[1, 2])).cells
    found = [(dict(c.settings)["degree"], c.n_pairs) for c in cells]
    assert found == [(1, 8), (1, 16), (2, 8), (2, 16)]
    other = parse_grid(grid(degree=[1, 2], seeds=[0, 2])).cells
    noisy = parse_grid(grid(degree=[1, 2], noise=0.1)).cells
    assert len({c.file_name for c in (*cells, *other, *noisy)}) == 12


def test_replicates_are_seeds_from_zero():
    assert parse_grid(grid(seeds=None, replicates=3)).cells[0].seeds == (0, 1, 2)


def test_a_reward_class_may_be_a_table_or_words():
    cells = parse_grid(grid(n_pairs=8, reward_class=["true", {"degree": 3}, "full"])).cells
    assert [(c.reward_class, c.degree) for c in cells] == [
        ("true", None), ("degree-3", 3), ("full", None),
    ]  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_an_axis_with_its_own_settings(family: str):
    body = grid(bits=None, degree=None, horizon=None, family=family)
    cell = parse_grid(body).cells[0]
    assert cell.family == family
    assert cell.complexity_name == COMPLEXITY[family]
    assert cell.spec(7).seed == 7
    assert set(dict(cell.settings)) | {"seed"} == set(vars(cell.spec(7)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"degree": 5}, r"block 'b': degree must lie in 1\.\.4, got 5"),
        ({"class_degree": 3}, "class_degree is of version 1.*degree-3"),
        ({"reward_class": "degree-0"}, r"'degree-0': the degree lies outside 1\.\.4"),
        ({"reward_class": "degree-9"}, "outside 1..4"),
        ({"reward_class": "small"}, "'small' is none of true, full"),
        ({"reward_class": {"k": 3}}, "must hold words"),
        ({"beta": 0.0}, r"beta must be a number in .*got 0\.0"),
        ({"beta": [1.0, -2.0]}, r"got -2\.0"),
        ({"noise": 0.6}, r"noise must be a number in 0\.\.0\.5, got 0\.6"),
        ({"noise": True}, "noise must hold finite numbers, got True"),
        ({"coverage": "wide"}, "coverage 'wide' is none of uniform, on_policy, narrow"),
        ({"coverage": "narrow"}, "coverage 'narrow' with reference_share 0"),
        ({"coverage": "on_policy"}, "would be those of coverage 'uniform'"),
        ({"coverage": 3}, "coverage must hold words, got 3"),
        ({"family": "poems"}, "block 'b': family 'poems' is none of walsh"),
        ({"family": "sat", "clauses": 0}, "clauses must lie in"),
        ({"family": "lookup"}, "unknown key 'degree'"),
        ({"horizon": 3}, "horizon 3 does not divide 4"),
        ({"bits": 27, "horizon": 27}, "134,217,728 completions.*bytes"),
        ({"bits": 400, "horizon": 20}, "bits must lie in"),
        ({"colour": 1}, "unknown key 'colour'"),
        ({"extra_top": 1}, "unknown key 'extra_top'"),
        ({"arms": ["other"]}, "arm 'other' is none of two_stage"),
        ({"arms": []}, "arms must be a list of different names, got \\[\\]"),
        ({"n_pairs": 12.5}, r"n_pairs must hold whole numbers, got 12\.5"),
        ({"n_pairs": 4}, r"n_pairs must be a whole number in 5\.\..*got 4"),
        ({"n_pairs": None}, "key 'n_pairs' is missing"),
        ({"width": 0}, "width"),
        ({"sharpness": float("nan")}, "nan"),
        ({"sharpness": "high"}, "sharpness must hold finite numbers, got 'high'"),
        ({"ridges": [0]}, r"ridges must lie in 1e-09\.\.1e\+09, got \[0\]"),
        ({"ridges": [1e-320]}, "ridges must lie in"),
        ({"ridges": [1, 1e308]}, "ridges must lie in"),
        ({"seeds": []}, "seeds is an empty list"),
        ({"seeds": [1, 1]}, "twice"),
        ({"seeds": [-1]}, "seeds must be whole numbers >= 0"),
        ({"seeds": None}, "either replicates .* or seeds"),
        ({"replicates": 3}, "either replicates .* or seeds"),
        ({"seeds": None, "replicates": 0}, "replicates must lie in"),
        ({"n_pairs": [8, 8]}, "twice"),
        ({"n_pairs": list(range(5, 2000)), "beta": [1 + i / 100 for i in range(60)]}, "cells"),
    ],
)
def test_bad_grids_are_refused_by_name(changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        parse_grid(grid(**changes))


def test_an_empty_grid_and_a_block_that_is_no_table_are_refused():
    with pytest.raises(InputError, match=r"no \[\[block\]\]"):
        parse_grid({"name": "g", "seeds": [0], "ridges": [1], "block": []})
    with pytest.raises(InputError, match="not a table: 3"):
        parse_grid({"name": "g", "seeds": [0], "ridges": [1], "block": [3]})
    body = grid()
    with pytest.raises(InputError, match="occurs twice"):
        parse_grid(body | {"block": body["block"] * 2})


def test_a_missing_file_and_broken_toml_are_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.toml: cannot be read.*shipped grids: .*quick"):
        load_grid(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="not TOML"):
        load_grid(tmp_path / "bad.toml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ridges": [10**400]}, "ridges must hold finite numbers"),
        ({"seeds": [10**400]}, "seeds must hold finite numbers"),
        ({"beta": 10**400}, "beta must hold finite numbers"),
        ({"reward_class": "degree-1" + 5000 * "0"}, "lies outside 1..4"),
        ({"name": 230 * "a"}, "shorten the block's name"),
    ],
)
def test_what_no_float_and_no_file_name_can_hold_is_refused(changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        parse_grid(grid(**changes))


@pytest.mark.parametrize("value", ["1" + 5000 * "0", 5000 * "["])
def test_toml_that_its_parser_gives_up_on_is_named(tmp_path: Path, value: str):
    path = tmp_path / "g.toml"
    path.write_text(f"name = {value}")
    with pytest.raises(InputError, match="not TOML"):
        load_grid(path)


def test_a_cell_that_does_not_fit_is_refused_with_its_bytes():
    cells = parse_grid(grid(bits=14, horizon=14, seeds=None, replicates=200_000)).cells
    with pytest.raises(InputError, match=r"16,384 leaves each take about \d[\d,]+ bytes"):
        check_memory(cells[0])
    cells = parse_grid(grid(bits=12, horizon=12, reward_class="full")).cells
    with pytest.raises(InputError, match="the reward class has 4,095 dimensions, at most 1,024"):
        check_memory(cells[0])


@pytest.mark.parametrize("name", [path.stem for path in sorted(SHIPPED.glob("*.toml"))])
def test_every_shipped_grid_is_valid_and_fits(name: str):
    found = load_grid(find_grid(name))
    assert found.name == name
    shapes = {(c.family, c.settings): c for c in found.cells}
    for cell in shapes.values():
        check_memory(cell)
    assert estimate(found).seconds > 0


def test_the_quick_grid_has_every_comparison():
    cells = [(c, dict(c.settings)) for c in load_grid(find_grid("quick")).cells]
    assert {c.n_pairs for c, _ in cells if c.block == "pairs"} == {64, 256, 1024}
    assert {s["degree"] for _, s in cells} >= {1, 2, 8}
    assert {s["horizon"] for _, s in cells if s["bits"] == 8} == {1, 2, 8}
    assert {s["bits"] for _, s in cells if s["bits"] == s["horizon"]} >= {4, 6, 8}


def test_the_paper_grid_has_every_family_at_its_default_and_every_axis():
    cells = load_grid(find_grid("paper")).cells
    assert min(len(cell.seeds) for cell in cells) >= 200
    for family in FAMILIES:
        plain = parse_grid(
            grid(family=family, bits=None, degree=None, horizon=None, sharpness=None)
        ).cells[0]
        curve = [c for c in cells if (c.family, c.settings) == (family, plain.settings)]
        curve = [c for c in curve if c.fixed == plain.fixed]
        assert len({c.n_pairs for c in curve if "offline_matched" in c.arms}) >= 2, family
    assert {cell.coverage for cell in cells} == set(COVERAGES)
    for axis in ("noise", "beta", "reward_class"):
        assert len({getattr(cell, axis) for cell in cells}) >= 3, axis
    walsh = [dict(cell.settings) for cell in cells if cell.family == "walsh"]
    for axis in ("degree", "sharpness", "horizon", "bits"):
        assert len({settings[axis] for settings in walsh}) >= 3, axis
    assert {arm for cell in cells for arm in cell.arms} == set(ARM_NAMES)
    assert estimate(load_grid(find_grid("paper"))).seconds < 1800


def test_every_arm_has_a_cost_and_more_work_takes_longer():
    assert set(COSTS) == set(ARM_NAMES)
    small, large = (
        estimate(parse_grid(grid(seeds=None, replicates=count))) for count in (10, 1000)
    )
    assert (small.cells, small.fits, large.fits) == (2, 40, 4000)
    assert large.seconds > small.seconds
