"""Instance files: the shipped examples, the round trip, and one clear error for each fault."""

from __future__ import annotations

import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory import instance as instance_module
from theory.claims.instances import random_log_p, random_reward, random_tree, two_way_pairs
from theory.errors import InputError
from theory.instance import (
    Instance,
    instance_json,
    leaf_names,
    load_instance,
    parse_instance,
    read_json,
)

EXAMPLES = Path("docs/instances")
BODY = json.loads((EXAMPLES / "two_components.json").read_text()) | {
    "reward": {"x": {"a a": 1, "a b": 0, "a .": 0, "b a": 0.5, "b b": -1, "b .": 0}}
}


def changed(**parts):
    return copy.deepcopy(BODY) | parts


def test_the_shipped_examples_are_read():
    found = {path.stem: load_instance(path) for path in sorted(EXAMPLES.glob("*.json"))}
    assert sorted(found) == ["separable", "two_components", "unique"]
    unique = found["unique"]
    assert unique.reward is not None
    assert unique.reward[0].tolist() == [1.0, 0.0, -0.5, 2.0]
    assert unique.tree.weights == (0.75, 0.25)
    assert unique.data is not None
    assert unique.data.total == 24.0
    both = found["two_components"]
    assert both.log_ref is not None
    assert both.log_ref[0, both.tree.leaf_index(("a", "a"))] == math.log(0.25)
    assert (both.reward, both.tree.eos, len(both.tree.leaves)) == (None, ".", 6)


@given(st.sampled_from([(1, 2, 4), (2, 3, 2)]), st.integers(0, 10**6))
def test_the_round_trip(shape, seed):
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, shape)
    reward = np.where(tree.leaf_mask, random_reward(rng, tree, 1.0), 0.0)
    data = two_way_pairs(rng, tree, connected=False)
    once = Instance(tree, reward, random_log_p(rng, tree), data)
    body = json.loads(json.dumps(instance_json(once)))
    again = parse_instance(body, "again")
    assert again.tree == tree
    assert again.reward is not None
    assert again.log_ref is not None
    assert again.data is not None
    np.testing.assert_array_equal(again.reward, reward)
    np.testing.assert_allclose(again.log_ref, once.log_ref, atol=1e-14)
    for name in ("prompt", "winner", "loser", "count"):
        np.testing.assert_array_equal(getattr(again.data, name), getattr(data, name))
    assert parse_instance(instance_json(Instance(tree)), "bare") == Instance(tree)


@given(st.sampled_from([(1, 2, 4), (1, 3, 3), (2, 5, 1)]), st.integers(0, 10**6))
def test_leaf_names_are_the_tokens_of_every_leaf(shape, seed):
    tree = random_tree(np.random.default_rng(seed), shape)
    names = leaf_names(tree)
    assert len(names) == tree.n_leaves
    for leaf in tree.leaves:
        assert names[leaf] == " ".join(tree.leaf_tokens(int(leaf)))


def test_a_reference_is_normalised_within_the_tolerance():
    table = {name: p * (1 + 9e-7) for name, p in BODY["reference"]["x"].items()}
    found = parse_instance(changed(reference={"x": table}), "here").log_ref
    assert found is not None
    assert math.fsum(np.exp(found[0])) == pytest.approx(1.0, abs=1e-15)


def test_equal_rows_are_added_and_no_rows_are_no_data():
    rows = [["x", "a a", "b a", 1.5], ["x", "a a", "b a", 2]]
    data = parse_instance(changed(preferences=rows), "here").data
    assert data is not None
    assert data.count.tolist() == [3.5]
    none = parse_instance(changed(preferences=[]), "here").data
    assert none is not None
    assert none.size == 0


def reward_with(**values):
    return changed(reward={"x": BODY["reward"]["x"] | values})


def reference_with(**values):
    return changed(reference={"x": BODY["reference"]["x"] | values})


def row(*cells):
    return changed(preferences=[["x", "a a", "b a", 1], list(cells)])


FAULTS = {
    "no object": ([1], r"one JSON object, got \[1\]"),
    "missing key": ({"tokens": ["a"], "horizon": 1}, "key 'prompts' is missing"),
    "unknown key": (changed(rewards={}), "unknown key 'rewards'; known: tokens"),
    "no tokens": (changed(tokens=[]), "no tokens"),
    "tokens twice": (changed(tokens=["a", "a"]), "token 'a' is named twice"),
    "token types": (changed(tokens=["a", 1]), "tokens must hold strings only, got 1"),
    "token space": (changed(tokens=["a", "b c"]), "'b c' is empty or contains white space"),
    "surrogate": (changed(tokens=["a", "\ud800"]), r"tokens: '\\ud800' is no valid Unicode"),
    "token count": (changed(tokens=[f"t{i}" for i in range(10_001)]), "10,001 tokens; the limit"),
    "horizon true": (changed(horizon=True), "horizon must be a whole number, got True"),
    "horizon 0": (changed(horizon=0), r"horizon must lie in 1..64, got 0"),
    "horizon huge": (changed(horizon=10**400), r"horizon must lie in 1..64, got 1000"),
    "too large": (changed(horizon=13), "3 tokens at horizon 13 .* make 1,594,323 leaf slots"),
    "far too large": (changed(horizon=64), r"about 10\^31 leaf slots; the limit is 1,048,576"),
    "eos type": (changed(eos=3), "eos must be a token or null, got 3"),
    "eos unknown": (changed(eos="z"), "eos 'z' is none of the tokens"),
    "no prompts": (changed(prompts={}), "no prompts"),
    "prompts list": (changed(prompts=["x"]), r"prompts must be an object .* got \['x'\]"),
    "weight 0": (changed(prompts={"x": 1, "y": 0}), r"prompts\['y'\] must lie in \(0, 1\], got 0"),
    "weight NaN": (changed(prompts={"x": math.nan}), r"prompts\['x'\] must be finite, got nan"),
    "weight sum": (changed(prompts={"x": 0.5, "y": 0.4}), "prompt weights sum to 0.9"),
    "forbidden type": (changed(forbidden=["ab"]), r"forbidden\[0\] must be a list of strings"),
    "forbidden token": (changed(forbidden=[["q"]]), "unknown token 'q'"),
    "all forbidden": (changed(forbidden=[["a"], ["b"], ["."]]), "every token is forbidden"),
    "reward type": (changed(reward=[1]), r"reward must be an object \{prompt"),
    "reward prompt": (changed(reward={"y": {}}), "reward lacks prompt 'x'"),
    "reward prompts": (changed(reward=BODY["reward"] | {"y": {}}), "reward has unknown prompt 'y'"),
    "reward row": (changed(reward={"x": 1}), r"reward\['x'\] must be an object"),
    "reward leaf": (changed(reward={"x": {"a a": 1}}), r"reward\['x'\] lacks completion 'a b' \(5"),
    "no leaf": (reward_with(a=1), r"reward\['x'\]: 'a' is no completion of the tree"),
    "masked leaf": (reward_with(**{".": 1}), r"reward\['x'\]: '\.' is no completion"),
    "token unknown": (reward_with(**{"a z": 1}), r"unknown token 'z' in 'a z'"),
    "reward bool": (reward_with(**{"a a": True}), r"reward\['x'\]\['a a'\] must be a number"),
    "reward null": (reward_with(**{"a a": None}), "must be a number, got None"),
    "reward inf": (reward_with(**{"a a": math.inf}), r"reward\['x'\]\['a a'\] must be finite"),
    "reward huge": (reward_with(**{"a a": 10**400}), r"\['a a'\] must be finite, got 1000"),
    "reference sum": (reference_with(**{"a a": 0.3}), "sums to 1.05, not to 1 within 1e-06"),
    "negative": (reference_with(**{"a a": -0.25}), r"reference\['x'\]\['a a'\] is no probability"),
    "reference 0": (
        reference_with(**{"a a": 0.5, "b a": 0}),
        r"reference\['x'\]\['b a'\] is 0, but the completion is compared",
    ),
    "rows type": (changed(preferences={}), "preferences must be a list of rows"),
    "row length": (row("x", "a a", "a b"), r"preferences\[1\] must be \[prompt, winner"),
    "row prompt": (row("y", "a a", "a b", 1), r"preferences\[1\] has unknown prompt 'y'"),
    "two prompts": (row(["x", "x"], "a a", "a b", 1), "two of one prompt only"),
    "row leaf": (row("x", "a a", "a", 1), r"preferences\[1\]: 'a' is no completion"),
    "row token": (row("x", "a a", "q a", 1), r"preferences\[1\]: unknown token 'q'"),
    "row type": (row("x", 0, "a a", 1), "a completion is a string of tokens, got 0"),
    "itself": (row("x", "a a", "a a", 1), r"preferences\[1\] compares 'a a' with itself"),
    "count 0": (row("x", "a a", "a b", 0), r"preferences\[1\]: the count must be > 0"),
    "count negative": (row("x", "a a", "a b", -2), "the count must be > 0 .* got -2"),
    "count NaN": (row("x", "a a", "a b", math.nan), r"preferences\[1\]: the count must be finite"),
    "count huge": (row("x", "a a", "a b", 10**400), "the count must be finite"),
    "count bool": (row("x", "a a", "a b", True), "the count must be a number, got True"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_with_its_place(fault):
    body, message = FAULTS[fault]
    with pytest.raises(InputError, match=message) as caught:
        parse_instance(body, "file.json")
    assert str(caught.value).startswith("file.json: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not JSON: Expecting value"),
        (b'{"a": 1, "a": 2}', "key 'a' stands twice in one object"),
        (b'{"a": [{"b": 1, "c": 2, "b": 3}]}', "key 'b' stands twice"),
        (b"[" * 10_000 + b"]" * 10_000, "nested too deep"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deep"),
        (b'{"a": "\xff"}', "not UTF-8: byte 7"),
        (b"9" * 5000, "a whole number has 5,000 digits; the limit is 4,300"),
        (b"-" + b"9" * 5000, "a whole number has 5,000 digits"),
    ],
)
def test_files_that_are_no_json(tmp_path, raw, message):
    path = tmp_path / "bad.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=message) as caught:
        load_instance(path)
    assert str(caught.value).startswith(str(path))


def test_a_file_of_a_gigabyte_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "huge.json"
    with path.open("wb") as file:
        file.truncate(2**30)  # sparse
    with pytest.raises(InputError, match=r"1,073,741,824 bytes; the limit is 67,108,864"):
        read_json(path)
    monkeypatch.setattr(instance_module, "MAX_FILE", 1000)
    with pytest.raises(InputError, match="more than 1,000 bytes"):
        read_json("/proc/self/maps")  # regular, of size 0


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(InputError, match=f"{path}: is no regular file"):
            read_json(path)
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_json(tmp_path / "none.json")
    with pytest.raises(InputError, match="cannot be read: embedded null byte"):
        read_json("a\0b")


def test_a_byte_order_mark_is_allowed(tmp_path):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(path) == [1]


def test_a_pipe_without_a_writer_does_not_hang(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(InputError, match="pipe: is no regular file"):
        read_json(path)


def test_the_longest_whole_number_is_read(tmp_path):
    path = tmp_path / "long.json"
    path.write_bytes(b"-" + b"9" * 4300)
    assert read_json(path) == -(10**4300 - 1)
