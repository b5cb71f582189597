"""Fields of a config and their allowed values. Defaults come from the code that uses the values."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from zoo.errors import UserError


class ConfigError(UserError):
    """A config that cannot work; the message names the path, the value and the fix."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A restriction of a field's values, beyond their type.

    Attributes:
        words: describes the allowed values in messages; follows "must be".
        allows: whether a value of the right type is allowed.
        choices: the names to choose from, if the field is a choice.
    """

    words: str = ""
    allows: Callable[[Any], bool] = lambda value: True
    choices: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Field:
    """One field of a config: its default, whose type is the field's type, and its rule."""

    default: Any
    rule: Rule = Rule()


Fields = Mapping[str, Field]
Rules = Mapping[str, Rule]


def choice(*names: str) -> Rule:
    """Allows the given names."""
    return Rule(f"one of {', '.join(map(repr, names))}", lambda value: value in names, names)


def at_least(minimum: float) -> Rule:
    """Allows numbers that are at least a minimum."""
    return Rule(f"at least {minimum}", lambda value: value >= minimum)


def between(low: float, high: float) -> Rule:
    """Allows numbers in a range, including its ends."""
    return Rule(f"between {low} and {high}", lambda value: low <= value <= high)


ABOVE_ZERO = Rule("above 0", lambda value: value > 0)
FRACTION = Rule("at least 0 and below 1", lambda value: 0 <= value < 1)
FINITE = Rule("finite", math.isfinite)
COUNTS = Rule(
    "numbers, each at least 1", lambda values: len(values) > 0 and all(v >= 1 for v in values)
)


def _compiles(expression: str) -> bool:
    try:
        re.compile(expression)
    except re.error:
        return False
    return True


PATTERN = Rule("a regular expression", _compiles)


def defaults(source: Callable[..., Any]) -> dict[str, Any]:
    """Returns the parameters of a function or dataclass that have a default, and the defaults.

    A linen module's ``name`` and ``parent`` are left out.
    """
    return {
        name: parameter.default
        for name, parameter in inspect.signature(source).parameters.items()
        if parameter.default is not parameter.empty and name not in ("name", "parent")
    }


def of(source: Callable[..., Any], rules: Rules, *, only: bool = False) -> dict[str, Field]:
    """Makes a field of each parameter of a function, or each attribute of a dataclass.

    Args:
        source: what takes the values; each field has the default and type of a parameter.
        rules: the rules of the fields; a parameter without a rule may have any value of its type.
        only: whether parameters without a rule are left out.

    Raises:
        ValueError: a rule does not belong to a parameter with a default.
    """
    known = defaults(source)
    if strange := sorted(rules.keys() - known.keys()):
        raise ValueError(f"{source} has no parameters {strange} with a default")
    return {
        name: Field(default, rules.get(name, Rule()))
        for name, default in known.items()
        if name in rules or not only
    }


def as_tuples(value: Any) -> Any:
    """Turns the lists of a value, nested ones too, into tuples: JSON has only lists."""
    return tuple(map(as_tuples, value)) if isinstance(value, tuple | list) else value


def check_divides(section: Mapping[str, Any], divisor: str, number: str) -> None:
    """Raises ConfigError unless one integer field of a model divides another."""
    if section[number] % section[divisor]:
        raise ConfigError(
            f"model.{divisor}={section[divisor]} must divide model.{number}={section[number]}"
        )
