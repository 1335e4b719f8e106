"""Settings of families that are refused, each with one clear error."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from theory.errors import InputError
from theory.families import (
    FAMILIES,
    Automata,
    Coverage,
    Lookup,
    Rouge,
    Sat,
    Walsh,
    make,
    spec_of,
)

BAD = [
    (Walsh, {"bits": 0}, "bits.*0"),
    (Walsh, {"bits": 8.0}, r"bits.*8\.0"),
    (Walsh, {"degree": 9}, "degree.*9"),
    (Walsh, {"horizon": 3}, "horizon 3"),
    (Walsh, {"sharpness": 0}, "sharpness.*0"),
    (Walsh, {"sharpness": math.nan}, "sharpness.*nan"),
    (Walsh, {"sharpness": "2"}, "sharpness.*'2'"),
    (Walsh, {"sharpness": 10**400}, "sharpness"),
    (Walsh, {"seed": -1}, "seed.*-1"),
    (Walsh, {"seed": True}, "seed.*True"),
    (Walsh, {"bits": 20, "degree": 10, "horizon": 20}, "features, at most"),
    (Walsh, {"bits": 26, "horizon": 26}, "bytes, the limit"),
    (Walsh, {"bits": 16, "horizon": 1}, "65,536 tokens"),
    (Lookup, {"bits": 12, "horizon": 12}, "4,095 features"),
    (Sat, {"clauses": 449}, "clauses.*448.*449"),
    (Sat, {"clauses": 0}, "clauses.*0"),
    (Automata, {"kind": "stack"}, "'stack'"),
    (Automata, {"states": 10}, "states.*10"),
    (Automata, {"kind": "pattern", "states": 10}, "states.*10"),
    (Automata, {"kind": "brackets", "states": 2}, "states.*2"),
    (Automata, {"vocab": 1}, "vocab.*1"),
    (Automata, {"vocab": 25, "horizon": 40}, "bytes, the limit"),
    (Coverage, {"salient": 8}, "salient.*8"),
    (Coverage, {"prompts": 36}, "prompts.*35.*36"),
    (Coverage, {"length_penalty": -0.5}, r"length_penalty.*-0\.5"),
    (Coverage, {"duplicate_penalty": math.inf}, "duplicate_penalty.*inf"),
    (Coverage, {"horizon": 10**9}, "features, at most"),
    (Coverage, {"horizon": 20}, "bytes, the limit"),
    (Rouge, {"reference": 5}, "reference.*5"),
    (Rouge, {"words": 20, "reference": 4}, "features, at most"),
    (Rouge, {"words": 20, "reference": 40, "horizon": 40}, "possible references"),
]


@pytest.mark.parametrize(("family", "settings", "words"), BAD)
def test_bad_settings_are_named_where_they_are_made(family, settings, words: str):
    with pytest.raises(InputError, match=words):
        family(**settings)


def test_brackets_that_no_completion_matches_are_refused():
    with pytest.raises(InputError, match="same reward"):
        Automata(kind="brackets", horizon=7).draw()


def test_unknown_families_and_settings_are_named():
    with pytest.raises(InputError, match=r"'tree'.*walsh"):
        spec_of("tree", {})
    with pytest.raises(InputError, match=r"'degrees'.*'degree'"):
        make("walsh", {"degrees": 2})
    with pytest.raises(dataclasses.FrozenInstanceError):
        Walsh().seed = 1  # type: ignore[misc]


VALUES = st.one_of(
    st.integers(-2, 12), st.floats(), st.booleans(), st.none(), st.text(max_size=3), st.just([1])
)


@given(st.sampled_from(sorted(FAMILIES)), st.data())
def test_any_settings_make_a_family_or_one_clear_error(family: str, data: st.DataObject):
    names = [field.name for field in dataclasses.fields(FAMILIES[family])]
    settings = data.draw(st.dictionaries(st.sampled_from(names), VALUES, max_size=3))
    try:
        spec = spec_of(family, settings)
    except InputError:
        return
    assert json.loads(json.dumps(dataclasses.asdict(spec)))  # type: ignore[call-overload]
