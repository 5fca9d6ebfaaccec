"""Rules for recipe fields, declared as `Annotated[type, RULE]`, and their error messages."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from mosaicbert.config.errors import ConfigError

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


class Rule(NamedTuple):
    """Rule for a value.

    Attributes:
        text: Phrase that follows "must be" in the error message.
        is_met: Function that returns True for a valid value.
        remedy: Last sentence of the error message, if the rule does not imply the remedy.
    """

    text: str
    is_met: Callable[[Any], bool]
    remedy: str = ""


def at_least(minimum: int) -> Rule:
    """Create a rule for an integer with a minimum."""
    return Rule(f"at least {minimum}", lambda value: value >= minimum)


def auto_or_at_least(minimum: int) -> Rule:
    """Create a rule for "auto" or an integer with a minimum."""
    return Rule(f"auto or at least {minimum}", lambda value: value == "auto" or value >= minimum)


def within(interval: str) -> Rule:
    """Create a rule for a number in an interval.

    Args:
        interval: Interval in mathematical notation, e.g. "(0, 1)" or "[0, 1)".
    """
    match = _INTERVAL.fullmatch(interval)
    assert match is not None, interval
    low, high = float(match[2]), float(match[3])

    def is_met(value: float) -> bool:
        is_above = value >= low if match[1] == "[" else value > low
        return is_above and (value <= high if match[4] == "]" else value < high)

    return Rule(f"in {interval}", is_met)


def each_within(interval: str) -> Rule:
    """Create a rule for a sequence of numbers in an interval, see `within`."""
    rule = within(interval)
    return Rule(f"numbers {rule.text}", lambda values: all(map(rule.is_met, values)))


def distinct(names: Collection[str]) -> Rule:
    """Create a rule for a list of distinct names from a collection."""

    def is_met(values: Sequence[str]) -> bool:
        return len(set(values)) == len(values) and set(values) <= set(names)

    return Rule(f"distinct names among {', '.join(names)}", is_met)


def _is_file_name(value: str) -> bool:
    return value not in ("", "..") and Path(value).name == value


POSITIVE = Rule("a positive finite number", lambda value: 0.0 < value < math.inf)
NOT_EMPTY = Rule("non-empty", lambda value: len(value) > 0)
FILE_NAME = Rule("a file name without slashes", _is_file_name)


def validate(section: Any, name: str = "") -> None:
    """Check the fields of a section against the rules in their annotations. The value None is not checked.

    Args:
        section: Dataclass instance to check.
        name: Dotted key of the section; empty for the recipe itself.

    Raises:
        ConfigError: If a value violates a rule.
    """
    for field, annotation in get_type_hints(type(section), include_extras=True).items():
        value = getattr(section, field)
        for rule in getattr(annotation, "__metadata__", ()):
            if value is not None:
                check_value(f"{name}.{field}" if name else field, value, rule)


def check_value(key: str, value: Any, rule: Rule) -> None:
    """Check one value against a rule.

    Args:
        key: Dotted key of the value.
        value: Value to check.
        rule: Rule for the value.

    Raises:
        ConfigError: If the value violates the rule.
    """
    if not rule.is_met(value):
        raise must_be(key, rule.text, value, rule.remedy)


def must_be(key: str, rule: str, value: Any, remedy: str = "") -> ConfigError:
    """Create the error for a value that violates a rule.

    Args:
        key: Dotted key of the value.
        rule: Phrase that follows "must be".
        value: Value that violates the rule.
        remedy: Sentence with the remedy.
    """
    return ConfigError(f"`{key}` must be {rule}, got {value!r}. {remedy}".rstrip())


def not_supported(setting: str, other: str, remedy: str) -> ConfigError:
    """Create the error for two conflicting settings.

    Args:
        setting: First setting as key=value.
        other: Second setting as key=value.
        remedy: Sentence with the remedy.
    """
    return ConfigError(f"`{setting}` is not supported with `{other}`. {remedy}")
