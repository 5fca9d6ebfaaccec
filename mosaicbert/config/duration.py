"""Lengths of training: in steps, samples, tokens or wall-clock time, written as `70_000 steps` or `30min`."""

import math
import re
from dataclasses import dataclass
from typing import Literal

from mosaicbert.config.errors import ConfigError

Unit = Literal["steps", "samples", "tokens", "seconds"]

_WRITTEN = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE]\+?[0-9]+)?) *([a-z]+)")
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
    """A length of training.

    Attributes:
        amount: of the unit; whole unless the unit is seconds.
        unit: steps and samples are those of the global batch, tokens are real ones, without padding.
    """

    amount: float
    unit: Unit


def parse_duration(name: str, text: str) -> Duration:
    """Reads `70_000 steps`, `286_720_000 samples`, `36.7e9 tokens`, `90s`, `30min` or `1.5h`.

    Args:
        name: of the key, for the error.
        text: the key's value.

    Raises:
        ConfigError: it is none of these, or nothing.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or match[2] not in _UNITS:
        raise ConfigError(
            f"{name}={text!r} is no length; give a number and steps, samples, tokens, s, min or h, e.g. 30min."
        )
    unit, size = _UNITS[match[2]]
    amount = float(match[1].replace("_", "")) * size
    if not 0 < amount < math.inf or (unit != "seconds" and amount != round(amount)):
        raise ConfigError(f"{name}={text!r} is no length; give a number above zero, whole unless it is a time.")
    return Duration(amount, unit)
