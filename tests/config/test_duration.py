import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaicbert.config import ConfigError, Duration, parse_duration

_UNITS = {"steps": "steps", "samples": "samples", "tokens": "tokens", "s": "seconds", "min": "seconds", "h": "seconds"}
_SECONDS = {"s": 1, "min": 60, "h": 3600}


@pytest.mark.parametrize(
    "text, amount, unit",
    [
        ("70_000 steps", 70_000, "steps"),
        ("1 steps", 1, "steps"),
        ("286_720_000 samples", 286_720_000, "samples"),
        ("36.7e9 tokens", 36_700_000_000, "tokens"),
        ("20e9 tokens", 20_000_000_000, "tokens"),
        ("1E+3 tokens", 1000, "tokens"),
        ("1.5e1 steps", 15, "steps"),
        ("90s", 90, "seconds"),
        ("0.5s", 0.5, "seconds"),
        ("30min", 1800, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("1_000 h", 3_600_000, "seconds"),
    ],
)
def test_every_notation_of_a_duration_is_parsed(text, amount, unit):
    assert parse_duration("train.duration", text) == Duration(amount, unit)


@pytest.mark.parametrize("text", ["500steps", "500  steps", " 500 steps ", "\t500 steps\n"])
def test_spaces_around_the_number_and_the_unit_are_ignored(text):
    assert parse_duration("train.duration", text) == Duration(500, "steps")


def test_equal_times_in_different_units_are_equal_durations():
    assert len({parse_duration("train.duration", text) for text in ("5400s", "90min", "1.5h")}) == 1


@given(number=st.integers(1, 2**53), unit=st.sampled_from(list(_UNITS)), grouped=st.booleans())
def test_an_integer_is_parsed_exactly(number, unit, grouped):
    duration = parse_duration("train.duration", f"{number:_} {unit}" if grouped else f"{number}{unit}")
    assert duration == Duration(float(number * _SECONDS.get(unit, 1)), _UNITS[unit])


@given(number=st.floats(1e-3, 1e6), unit=st.sampled_from(list(_SECONDS)))
def test_a_time_can_be_any_decimal_number(number, unit):
    duration = parse_duration("train.duration", f"{number:.6f}{unit}")
    assert duration == Duration(float(f"{number:.6f}") * _SECONDS[unit], "seconds")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "500",
        "steps",
        "500 step",
        "500 batches",
        "500 Steps",
        "30 MIN",
        "2 days",
        "2d",
        "-5 steps",
        "+5 steps",
        "5,000 steps",
        "5 000 steps",
        "_5 steps",
        ".5h",
        "1.h",
        "1e-3h",
        "1e h",
        "0x10 steps",
        "nan h",
        "inf h",
        "1h30min",
        "1h 30min",
        "500 steps of 32",
        "five hundred steps",
        "\u0665 steps",
        "None",
    ],
)
def test_text_without_a_number_and_a_known_unit_is_rejected(text):
    with pytest.raises(ConfigError) as raised:
        parse_duration("eval.interval", text)
    assert str(raised.value) == (
        "`eval.interval` must be a positive whole number of steps, samples or tokens, or a positive time in s, min "
        f"or h, got {text!r}. Examples: 70_000 steps, 30min."
    )


@pytest.mark.parametrize(
    "text", ["0 steps", "0h", "0.0 tokens", "0e9 samples", "1.5 steps", "0.5 samples", "1.5e0 tokens", "1e400h"]
)
def test_zero_and_fractions_of_a_step_are_rejected(text):
    with pytest.raises(ConfigError, match=r"`checkpoint\.interval` must be a positive whole number of steps, .* or a"):
        parse_duration("checkpoint.interval", text)
