"""Checks that every belief makes: of its hyper-parameters when it is built, of a state before it becomes that."""

from __future__ import annotations

import math
from collections.abc import Mapping

from edgewise.errors import ConfigError, StateMismatchError
from edgewise.types import Array


def number(owner: object, name: str, *, low: float, high: float = math.inf, above: bool = False, advice: str = "") -> None:
    """Require a finite number in [low, high], or in (low, high] with `above`. Raises ConfigError."""
    value = getattr(owner, name)
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (above and value == low):
        upper = f" and at most {high:g}" if high < math.inf else ""
        rule = f"must be a number {'above' if above else 'of at least'} {low:g}{upper}"
        raise ConfigError(f"{type(owner).__name__}({name}=...) {rule}, got {value!r}.{' ' * bool(advice)}{advice}")


def refill(owner: object, live: Mapping[str, Array], saved: Mapping[str, Array]) -> None:
    """Write the saved arrays into the live ones. Raises StateMismatchError, changing nothing, if one is missing or differs."""
    for name, array in live.items():
        got = saved[name].shape if name in saved else "nothing"
        if got != array.shape:
            raise StateMismatchError(
                f"{type(owner).__name__}.restore: {name!r} must have shape {array.shape}, got {got}. Use a state of this pool."
            )
    for name, array in live.items():
        array[...] = saved[name]


def shared(owner: object, saved: Mapping[str, Array], *names: str) -> list[Array]:
    """The saved arrays of these names. Raises StateMismatchError if one is missing."""
    for name in names:
        if name not in saved:
            raise StateMismatchError(
                f"{type(owner).__name__}.restore: the state lacks {name!r}, it has {sorted(saved)}. Use a state it wrote."
            )
    return [saved[name] for name in names]
