"""Durations in steps, samples, tokens or time, such as `70_000 steps` or `30min`."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from mosaicbert.config.validators import Rule, must_be

Unit = Literal["steps", "samples", "tokens", "seconds"]

_PATTERN = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?) *([a-z]+)")
_UNITS: dict[str, tuple[Unit, int]] = {
    "steps": ("steps", 1),
    "samples": ("samples", 1),
    "tokens": ("tokens", 1),
    "s": ("seconds", 1),
    "min": ("seconds", 60),
    "h": ("seconds", 3600),
}


@dataclass(frozen=True)
class Duration:
    """Duration of training.

    Attributes:
        amount: Number of units; an integer unless the unit is seconds.
        unit: Unit of the amount. Samples and real tokens (without padding) are counted over all devices.
    """

    amount: float
    unit: Unit


def parse_duration(key: str, text: str) -> Duration:
    """Parse `70_000 steps`, `286_720_000 samples`, `36.7e9 tokens`, `90s`, `30min` or `1.5h`.

    Args:
        key: Dotted recipe key, for the error message.
        text: Value of the key.

    Raises:
        ConfigError: If the text is not a duration.
    """
    duration = _parse(text)
    if duration is None:
        raise must_be(key, DURATION.text, text, DURATION.remedy)
    return duration


def _parse(text: str) -> Duration | None:
    match = _PATTERN.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        return None
    unit, size = _UNITS[match[2]]
    amount = float(match[1].replace("_", "")) * size
    if not 0 < amount < math.inf or (unit != "seconds" and amount != round(amount)):
        return None
    return Duration(amount, unit)


DURATION = Rule(
    "a positive whole number of steps, samples or tokens, or a positive time in s, min or h",
    lambda text: _parse(text) is not None,
    "Examples: 70_000 steps, 30min.",
)
