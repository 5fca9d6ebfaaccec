"""Rules for the fields of recipes, declared as `Annotated[type, RULE]`, and the one form of their error messages."""

import math
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from mosaicbert.config.errors import ConfigError

_INTERVAL = re.compile(r"([\[(])(\S+), (\S+)([\])])")


class Rule(NamedTuple):
    """A rule for a value.

    Attributes:
        text: Words that follow "must be" in a message.
        is_met: Function that returns True for an allowed value.
        remedy: Sentence that ends the message where the rule does not say what to do.
    """

    text: str
    is_met: Callable[[Any], bool]
    remedy: str = ""


def at_least(minimum: int) -> Rule:
    """Make the rule for a whole number with a minimum."""
    return Rule(f"at least {minimum}", lambda value: value >= minimum)


def within(interval: str) -> Rule:
    """Make the rule for a number in an interval, written as in mathematics.

    Args:
        interval: Interval with open or closed ends, e.g. "(0, 1)" or "[0, 1)".
    """
    match = _INTERVAL.fullmatch(interval)
    assert match is not None, interval
    low, high = float(match[2]), float(match[3])

    def is_met(value: float) -> bool:
        is_above = value >= low if match[1] == "[" else value > low
        return is_above and (value <= high if match[4] == "]" else value < high)

    return Rule(f"in {interval}", is_met)


def each_within(interval: str) -> Rule:
    """Make the rule for a sequence of numbers in an interval, see `within`."""
    rule = within(interval)
    return Rule(f"numbers {rule.text}", lambda values: all(map(rule.is_met, values)))


def distinct(names: Collection[str]) -> Rule:
    """Make the rule for a list of distinct names out of the known ones."""

    def is_met(values: Sequence[str]) -> bool:
        return len(set(values)) == len(values) and set(values) <= set(names)

    return Rule(f"distinct names out of {', '.join(names)}", is_met)


def _is_file_name(value: str) -> bool:
    return value not in ("", "..") and Path(value).name == value


POSITIVE = Rule("a positive finite number", lambda value: 0.0 < value < math.inf)
NOT_EMPTY = Rule("non-empty", lambda value: len(value) > 0)
FILE_NAME = Rule("a file name without slashes", _is_file_name)


def validate(section: Any, name: str = "") -> None:
    """Check the fields of a section against the rules in their annotations. None is allowed where the type allows it.

    Args:
        section: Section to check, a dataclass instance.
        name: Dotted key of the section; empty for the recipe itself.

    Raises:
        ConfigError: If a value breaks a rule.
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
        rule: Rule that it must meet.

    Raises:
        ConfigError: If the value breaks the rule.
    """
    if not rule.is_met(value):
        raise must_be(key, rule.text, value, rule.remedy)


def must_be(key: str, rule: str, value: Any, remedy: str = "") -> ConfigError:
    """Make the error for a value that breaks a rule.

    Args:
        key: Dotted key of the value.
        rule: Words that follow "must be".
        value: Value that breaks the rule.
        remedy: Sentence that says what to do.
    """
    return ConfigError(f"`{key}` must be {rule}, got {value!r}. {remedy}".rstrip())


def not_supported(setting: str, other: str, remedy: str) -> ConfigError:
    """Make the error for two settings that exclude each other.

    Args:
        setting: Setting as key=value.
        other: Setting that it conflicts with, as key=value.
        remedy: Sentence that says what to do.
    """
    return ConfigError(f"`{setting}` is not supported with `{other}`. {remedy}")
