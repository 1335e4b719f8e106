"""Token trees: which completions exist, where they stand, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.tree import TokenTree


def completions(tokens, horizon, eos, forbidden):
    """Every completion by plain enumeration of token sequences, shortest rules first."""
    found = []
    for length in range(1, horizon + 1):
        for words in itertools.product(tokens, repeat=length):
            ends = eos is not None and words[-1] == eos
            if (length < horizon and not ends) or (eos in words[:-1]):
                continue
            if any(words[: len(prefix)] == prefix for prefix in forbidden):
                continue
            found.append(words)
    return found


@given(st.integers(2, 3), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_the_leaves_are_the_completions(vocab, horizon, ends, seed):
    rng = np.random.default_rng(seed)
    tokens = tuple("abc"[:vocab])
    eos = tokens[-1] if ends else None
    prefix = tuple(rng.choice(tokens[: vocab - 1], size=rng.integers(0, horizon)).tolist())
    forbidden = ((*prefix, str(rng.choice(tokens))),)
    tree = TokenTree(tokens, horizon, ("x",), (1.0,), eos, forbidden)
    named = [tree.leaf_tokens(int(leaf)) for leaf in tree.leaves]
    assert sorted(named) == sorted(completions(tokens, horizon, eos, forbidden))
    assert [tree.leaf_index(words) for words in named] == tree.leaves.tolist()


def test_leaves_are_in_lexicographic_order():
    tree = TokenTree(("b", "a"), 2, ("x",), (1.0,))
    order = [tree.leaf_tokens(leaf) for leaf in range(4)]
    assert order == [("b", "b"), ("b", "a"), ("a", "b"), ("a", "a")]


def test_an_early_end_takes_the_slot_padded_with_eos():
    tree = TokenTree(("a", "e"), 3, ("x",), (1.0,), eos="e")
    assert tree.leaf_index(("a", "e")) == 0b011
    assert tree.leaf_tokens(0b011) == ("a", "e")
    assert tree.leaf_mask.tolist() == [True, True, False, True, False, False, False, True]


def test_the_networkx_view_has_one_sink_a_completion():
    tree = TokenTree(("a", "b", "e"), 2, ("x",), (1.0,), eos="e", forbidden=(("a", "b"),))
    graph = tree.to_networkx()
    sinks = {node for node in graph if graph.out_degree(node) == 0}
    assert sinks == {tree.leaf_tokens(int(leaf)) for leaf in tree.leaves}
    assert graph.edges[(("a",), ("a", "e"))]["token"] == "e"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"tokens": ("a", "a")}, "token 'a' is named twice"),
        ({"tokens": ("a", "b c")}, "token 'b c'"),
        ({"prompts": ("x", "x")}, "prompt 'x' is named twice"),
        ({"weights": (1.0, 0.0)}, "weight of prompt 'y' must be > 0, got 0.0"),
        ({"weights": (1.0, float("nan"))}, "weight of prompt 'y'"),
        ({"weights": (0.5, 0.6)}, "sum to 1.1"),
        ({"weights": (1.0,)}, "1 weights for 2 prompts"),
        ({"eos": "z"}, "eos 'z'"),
        ({"forbidden": (("z",),)}, "unknown token 'z'"),
        ({"forbidden": (("a", "a", "a"),)}, "must have 1 to 2 tokens"),
        ({"forbidden": (("a", "a"), ("a", "b"))}, "every token is forbidden at state 'a'"),
        ({"eos": "b", "forbidden": (("b", "a"),)}, "goes on after EOS 'b'"),
        ({"horizon": 40}, "1,099,511,627,776 leaves a prompt, 87,960,930,222,032 bytes"),
        ({"horizon": 20000}, r"about 10\^6021 leaves a prompt, about 10\^6023 bytes"),
        ({"horizon": 10**30}, r"leaves a prompt, about 10\^3"),
        ({"tokens": ("a",), "horizon": 10**9}, "1 leaves a prompt, 32,000,000,032 bytes"),
    ],
)
def test_bad_trees_are_refused_by_name(change, message):
    good = {"tokens": ("a", "b"), "horizon": 2, "prompts": ("x", "y"), "weights": (0.5, 0.5)}
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        TokenTree(**{**good, **change})


@pytest.mark.parametrize("words", [(), ("a",), ("a", "a", "a"), ("e", "a"), ("e", "e")])
def test_what_is_no_completion_has_no_index(words):
    tree = TokenTree(("a", "e"), 2, ("x",), (1.0,), eos="e")
    with pytest.raises(InputError, match="no completion"):
        tree.leaf_index(words)


def test_memory_is_counted_over_all_levels():
    """Two prompts, 2 tokens, horizon 3: values 1+2+4+8, policy 2+4+8, a temporary of 8."""
    exact = 8 * 2 * (15 + 14 + 8)
    TokenTree(("a", "b"), 3, ("x", "y"), (0.5, 0.5), max_bytes=exact)
    with pytest.raises(InputError, match=f"{exact} bytes for the values and policies of all"):
        TokenTree(("a", "b"), 3, ("x", "y"), (0.5, 0.5), max_bytes=exact - 1)
