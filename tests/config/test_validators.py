"""Tests of the rules for fields, and of their declaration on every numeric recipe field."""

import dataclasses
import math
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError, Recipe
from mosaicbert.config.blimp import BlimpConfig
from mosaicbert.config.finetune import FinetuneRecipe
from mosaicbert.config.glue import GlueRecipe
from mosaicbert.config.pareto import ParetoRecipe
from mosaicbert.config.validators import (
    FILE_NAME,
    NOT_EMPTY,
    POSITIVE,
    at_least,
    check_value,
    distinct,
    each_within,
    must_be,
    not_supported,
    validate,
    within,
)


@given(
    low=st.floats(-1e6, 1e6), high=st.floats(-1e6, 1e6), ends=st.tuples(st.sampled_from("[("), st.sampled_from(")]"))
)
def test_an_interval_includes_only_closed_ends(low, high, ends):
    rule = within(f"{ends[0]}{low}, {high}{ends[1]}")
    if low < high:
        assert rule.is_met((low + high) / 2) or (low + high) / 2 in (low, high)
        assert rule.is_met(low) == (ends[0] == "[")
        assert rule.is_met(high) == (ends[1] == "]")
    assert not rule.is_met(math.nextafter(min(low, high), -math.inf))
    assert not rule.is_met(math.nextafter(max(low, high), math.inf))


@pytest.mark.parametrize(
    "rule, valid_values, invalid_values",
    [
        (POSITIVE, [5e-324, 1, 1e308], [0, 0.0, -1.0, math.inf, math.nan]),
        (within("[0, 1]"), [0, 0.0, 1.0], [-0.1, 1.1, math.inf, -math.inf, math.nan]),
        (each_within("[0, 1)"), [(0.0, 0.9)], [(0.0, 1.0), (math.nan, 0.5)]),
        (at_least(3), [3, 4], [2, -3]),
        (NOT_EMPTY, [["a"], {"a": 1}], [[], {}]),
        (FILE_NAME, ["run", "a b", ".hidden"], ["", ".", "..", "a/b", "a/", "/"]),
        (distinct(["a", "b"]), [[], ["b"], ["b", "a"]], [["a", "a"], ["c"], ["a", "c"]]),
    ],
    ids=["positive", "within", "each-within", "at-least", "not-empty", "file-name", "distinct"],
)
def test_a_rule_accepts_exactly_its_valid_values(rule, valid_values, invalid_values):
    assert all(rule.is_met(value) for value in valid_values)
    assert not any(rule.is_met(value) for value in invalid_values)


@dataclass(frozen=True)
class _Section:
    rate: Annotated[float | None, within("(0, 1)")] = None
    unchecked: float = math.nan


def test_an_invalid_value_is_an_error_with_its_full_key():
    with pytest.raises(ConfigError, match=r"^`data\.rate` must be in \(0, 1\), got 1\.5\.$"):
        validate(_Section(rate=1.5), "data")
    with pytest.raises(ConfigError, match=r"^`rate` must be in \(0, 1\), got 1\.5\.$"):
        validate(_Section(rate=1.5))


def test_none_and_values_without_a_rule_are_accepted():
    validate(_Section(), "data")
    validate(_Section(rate=0.5), "data")


def test_the_remedy_is_the_end_of_the_message():
    assert str(must_be("a.b", "even", 3, "Set a.b=4.")) == "`a.b` must be even, got 3. Set a.b=4."
    assert str(not_supported("a=1", "b=2", "Set b=1.")) == "`a=1` is not supported with `b=2`. Set b=1."
    with pytest.raises(ConfigError, match=r"^`a\.b` must be non-empty, got \[\]\.$"):
        check_value("a.b", [], NOT_EMPTY)


def _numeric_fields(schema, prefix=""):
    """Yield key, types and rules of every numeric field of a recipe."""
    for name, kind in get_type_hints(schema, include_extras=True).items():
        rules = getattr(kind, "__metadata__", ())
        base = get_args(kind)[0] if rules else kind
        if dataclasses.is_dataclass(base):
            yield from _numeric_fields(base, f"{prefix}{name}.")
        elif get_origin(base) is dict and dataclasses.is_dataclass(get_args(base)[1]):
            yield from _numeric_fields(get_args(base)[1], f"{prefix}{name}.NAME.")
        else:
            types = get_args(base) if get_origin(base) in (UnionType, tuple) else (base,)
            if {int, float} & set(types):
                yield f"{prefix}{name}", types, rules


@pytest.mark.parametrize("schema", [Recipe, FinetuneRecipe, GlueRecipe, ParetoRecipe, BlimpConfig])
def test_every_numeric_field_has_a_rule_that_rejects_non_finite_values(schema):
    for key, types, rules in _numeric_fields(schema):
        assert rules, key
        invalid_values = (math.nan, math.inf) if float in types else (-math.inf,)
        for value in invalid_values:
            assert not all(rule.is_met((value, value) if types == (float, float) else value) for rule in rules), key
