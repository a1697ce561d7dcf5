"""Checks of hyper-parameters when a method is built: class, argument, rule, value got, remedy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgewise.errors import ConfigError, nearest


def number(owner: object, name: str, *, low: float, high: float = math.inf, above: bool = False, advice: str = "") -> None:
    """Require a finite number in [low, high], or in (low, high] with `above`. Raises ConfigError."""
    value = getattr(owner, name)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (above and value == low):
        upper = f" and at most {high:g}" if high < math.inf else ""
        rule = f"must be a number {'above' if above else 'of at least'} {low:g}{upper}"
        raise ConfigError(f"{type(owner).__name__}({name}=...) {rule}, got {value!r}.{' ' * bool(advice)}{advice}")


def whole(owner: object, name: str, *, low: int, advice: str = "") -> None:
    """Require a whole number >= low. Raises ConfigError."""
    value = getattr(owner, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        rule = f"must be a whole number of at least {low}"
        raise ConfigError(f"{type(owner).__name__}({name}=...) {rule}, got {value!r}.{' ' * bool(advice)}{advice}")


def switch(owner: object, name: str) -> None:
    """Require True or False. Raises ConfigError."""
    value = getattr(owner, name)
    if not isinstance(value, bool):
        raise ConfigError(f"{type(owner).__name__}({name}=...) must be True or False, got {value!r}.")


def one_of(owner: object, name: str, known: Sequence[str]) -> None:
    """Require one of the known words. Raises ConfigError with the nearest one."""
    value = getattr(owner, name)
    if value not in known:
        hint = nearest(value, known) if isinstance(value, str) else ""
        words = ", ".join(repr(word) for word in known)
        raise ConfigError(f"{type(owner).__name__}({name}=...) must be one of {words}, got {value!r}.{hint}")
