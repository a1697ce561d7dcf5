"""What a selector's arguments must be, checked before anything is loaded or written. Every refusal is a `ConfigError`."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewise.errors import ConfigError, nearest
from edgewise.foreign import shown
from edgewise.types import MOST_ROLLOUTS

_LARGEST = 2**62
"""Of whole numbers that are saved."""
_LONGEST_NAME = 1_000
"""Characters of the name of a call: the last one is in the header of each saved state."""


def require(
    *, batch_size: Any, group_size: Any, seed: Any, parameters: Any, directory: Any, resume: Any, generations: Any,
    on_problem: Any, correct_at: Any, total_steps: Any, expire_after: Any,
) -> None:  # fmt: skip
    """Raise ConfigError unless these can be arguments of `Selector`: names, types and ranges."""
    require_count("batch_size", batch_size)
    require_count("group_size", group_size)
    if group_size > MOST_ROLLOUTS:
        raise ConfigError(f"Selector(group_size=...) must be at most {MOST_ROLLOUTS:,}, got {shown(group_size)}.")
    require_count("seed", seed, least=0)
    if not isinstance(on_problem, str) or on_problem not in ("degrade", "strict"):
        hint = nearest(str(on_problem), ("degrade", "strict")) if isinstance(on_problem, str) else ""
        raise ConfigError(f"Selector(on_problem=...) must be 'degrade' or 'strict', got {shown(on_problem)}.{hint}")
    step = isinstance(resume, (int, np.integer)) and not isinstance(resume, bool) and 0 <= resume <= _LARGEST
    if not (step or (isinstance(resume, str) and resume in ("auto", "adapt", "fresh"))):
        hint = nearest(resume, ("auto", "adapt", "fresh")) if isinstance(resume, str) else ""
        raise ConfigError(f"Selector(resume=...) must be 'auto', 'adapt', 'fresh' or a step >= 0, got {shown(resume)}.{hint}")
    if parameters is not None and not (isinstance(parameters, Mapping) and all(isinstance(name, str) for name in parameters)):
        raise ConfigError(f"Selector(parameters=...) must be a mapping of names to values, got {shown(parameters)}.")
    _require_folder(directory)
    if step and directory is None:
        raise ConfigError(f"Selector(resume={resume!r}) needs a directory=... that holds the state of that step.")
    require_count("generations", generations)
    if generations < 2:
        raise ConfigError(f"Selector(generations=...) must be at least 2, got {generations!r}: one may turn out damaged.")
    if isinstance(correct_at, bool) or not isinstance(correct_at, (int, float)) or not abs(correct_at) < 1e300:
        raise ConfigError(f"Selector(correct_at=...) must be a finite number, got {shown(correct_at)}.")
    if total_steps is not None:
        require_count("total_steps", total_steps)
    if expire_after is not None and (
        isinstance(expire_after, bool) or not isinstance(expire_after, (int, np.integer)) or not 0 <= expire_after <= _LARGEST
    ):
        raise ConfigError(
            f"Selector(expire_after=...) must be None or a whole number of policy versions >= 0, got {shown(expire_after)}."
        )


def require_count(name: str, value: Any, where: str = "", *, least: int = 1) -> None:
    """Raise ConfigError unless argument `name` (of method `where`) is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not least <= value <= _LARGEST:
        call = f"Selector{'.' + where if where else ''}({name}=...)"
        limit = f" and at most {_LARGEST:,}" if isinstance(value, int) and value > _LARGEST else ""
        raise ConfigError(f"{call} must be a whole number >= {least}{limit}, got {shown(value)}.")


def call_name(call: str | None, where: str) -> str | None:
    """The name of a call as text: what is saved is text, and a retry is told by it."""
    number = isinstance(call, int) and not isinstance(call, bool) and abs(call) <= _LARGEST
    if call is None or number or isinstance(call, uuid.UUID):
        return None if call is None else str(call)
    if isinstance(call, str) and len(call) <= _LONGEST_NAME:
        return call
    raise ConfigError(
        f"Selector.{where}(call=...) must be a name of at most {_LONGEST_NAME:,} characters, such as a uuid, got {shown(call)}."
    )


def require_version(value: Any, where: str) -> None:
    """Raise ConfigError unless `value` can be a policy version."""
    try:
        if abs(int(value)) <= _LARGEST - 1:
            return
    except (TypeError, ValueError, OverflowError):
        pass
    raise ConfigError(
        f"Selector.{where}(policy_version=...) must be a whole number below 2^62, such as the optimizer step, "
        f"got {shown(value)}."
    )


def _require_folder(directory: object) -> None:
    if directory is None:
        return
    path = os.fspath(directory) if isinstance(directory, (str, os.PathLike)) else None
    try:
        named = isinstance(path, str) and 0 < len(os.fsencode(path)) <= 4_000 and "\0" not in path
    except UnicodeEncodeError:
        named = False
    if not named:
        raise ConfigError(f"Selector(directory=...) must be the path of a folder, or None, got {shown(directory)}.")
