"""From what a host reports to what a method may trust: one checked, stacked, read-only `Groups`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from edgewise.errors import OutcomeError
from edgewise.types import Bools, Floats, Groups, Outcome, Ticket

OnProblem = Callable[[OutcomeError], None]
"""Told of each value that cannot be used; raises in strict mode, counts otherwise."""

_STATUSES = ("ok", "truncated", "failed", "cancelled")


def _number(value: Any) -> float | None:
    """The value as a float, NaN for a missing one, None if it is no number at all.

    >>> _number(True), _number(np.float32(0.5)), _number(None), _number("1.0")
    (1.0, 0.5, nan, None)
    """
    if value is None:
        return math.nan
    if isinstance(value, (bool, np.bool_, Real, np.number)):
        return float(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # 0-d numpy arrays and torch tensors
        return _number(value.item())
    return None


def _numbers(values: Any, what: str, ticket: Ticket, on_problem: OnProblem) -> Floats:
    """(k,) floats, NaN where missing or refused; ±inf and non-numbers are refused, never clipped."""
    array = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    if isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in "biuf":
        numbers = array.astype(np.float64)
    else:
        if isinstance(array, (str, bytes)) or not hasattr(array, "__len__"):
            on_problem(
                OutcomeError(
                    f"Outcome({what}=...) of prompt {ticket.prompt_id!r} must be a list with one entry a rollout, got "
                    f"{type(values).__name__}. The group counts as not rolled out."
                )
            )
            return np.empty(0)
        converted = [_number(v) for v in array]
        for i, number in enumerate(converted):
            if number is None:
                on_problem(
                    OutcomeError(
                        f"Outcome({what}=...) of prompt {ticket.prompt_id!r}: entry {i} must be a number or None, got "
                        f"{array[i]!r} ({type(array[i]).__name__}). That rollout counts as missing."
                    )
                )
        numbers = np.array([math.nan if v is None else v for v in converted], dtype=np.float64)
    infinite = np.isinf(numbers)
    if infinite.any():
        i = int(np.flatnonzero(infinite)[0])
        on_problem(
            OutcomeError(
                f"Outcome({what}=...) of prompt {ticket.prompt_id!r}: entry {i} must be finite, got {numbers[i]}. "
                "That rollout counts as missing; check the reward function."
            )
        )
        numbers[infinite] = math.nan
    if len(numbers) > ticket.rollouts:
        on_problem(
            OutcomeError(
                f"Outcome({what}=...) of prompt {ticket.prompt_id!r} has {len(numbers)} entries for a ticket of "
                f"{ticket.rollouts} rollouts. The group counts as not rolled out: its entries may belong to another prompt."
            )
        )
        return np.empty(0)
    return numbers


def stack(outcomes: Sequence[Outcome], on_problem: OnProblem) -> Groups:
    """Check and stack outcomes whose tickets are known, in the order given.

    Rewards: None and NaN are missing rollouts; ±inf, strings and the like go to `on_problem` and count as missing.
    `failed` and `cancelled` rollouts are missing whatever reward they carry; `truncated` ones count as scored.
    Raises whatever `on_problem` raises.
    """
    n = len(outcomes)
    width = max((o.ticket.rollouts for o in outcomes), default=0)
    rewards = np.full((n, width), np.nan)
    correct = np.full((n, width), np.nan)
    truncated = np.zeros(n, dtype=np.int64)
    entropy = np.full(n, np.nan)
    tokens = np.zeros(n, dtype=np.int64)
    for i, outcome in enumerate(outcomes):
        ticket = outcome.ticket
        values = _numbers(outcome.rewards, "rewards", ticket, on_problem)
        rewards[i, : len(values)] = values
        if outcome.correct is not None:
            verdicts = _numbers(outcome.correct, "correct", ticket, on_problem)
            correct[i, : len(verdicts)] = np.where(np.isnan(verdicts), np.nan, verdicts > 0.5)
        if outcome.statuses is not None:
            if len(outcome.statuses) != len(values) or any(s not in _STATUSES for s in outcome.statuses):
                on_problem(
                    OutcomeError(
                        f"Outcome(statuses=...) of prompt {ticket.prompt_id!r} must hold one of {_STATUSES} a rollout, got "
                        f"{list(outcome.statuses)!r} for {len(values)} rewards. The statuses are ignored."
                    )
                )
            else:
                for j, status in enumerate(outcome.statuses):
                    truncated[i] += status == "truncated"
                    if status in ("failed", "cancelled"):
                        rewards[i, j] = np.nan
        if outcome.rollout_entropy is not None:
            h = _number(outcome.rollout_entropy)
            entropy[i] = h if h is not None and math.isfinite(h) else np.nan
        tokens[i] = outcome.response_tokens
    valid: Bools = np.isfinite(rewards)
    correct[~valid] = np.nan
    return Groups(
        tickets=tuple(o.ticket for o in outcomes),
        rows=np.array([o.ticket.row for o in outcomes], dtype=np.int64),
        rewards=rewards,
        correct=correct,
        valid=valid,
        truncated=truncated,
        rollout_entropy=entropy,
        response_tokens=tokens,
    )
