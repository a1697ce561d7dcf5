"""From what a host reports to what a method may trust: one checked, stacked, read-only `Groups`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain
from numbers import Real
from typing import Any

import numpy as np

from edgewise.errors import OutcomeError
from edgewise.types import GROUP_ARRAYS, Array, Bools, Floats, Groups, Ints, Outcome, Ticket

OnProblem = Callable[[OutcomeError], None]
"""Told of each value that cannot be used; raises in strict mode, counts otherwise."""

_STATUSES = ("ok", "truncated", "failed", "cancelled")
_PLAIN = frozenset({bool, int, float, type(None)})
_MOST = 2**62  # tokens of one group
LARGEST = 1e100
"""Size beyond which a reward is as good as infinite: sums, squares and means of what is smaller stay finite."""
LARGEST_ENTROPY = 1e6
"""Nats a token. A vocabulary of a million words allows 14."""


def _number(value: Any) -> float | None:
    """The value as a float, NaN for a missing one, None if it is no number at all.

    >>> _number(True), _number(np.float32(0.5)), _number(None), _number("1.0")
    (1.0, 0.5, nan, None)
    """
    if value is None:
        return math.nan
    if isinstance(value, (bool, np.bool_, Real, np.integer, np.floating)):
        try:
            return float(value)
        except OverflowError:  # a whole number beyond the floats
            return math.inf
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # 0-d numpy arrays and torch tensors
        return _number(value.item())
    return None


def _tables(given: Sequence[Any], what: str, tickets: Sequence[Ticket], on_problem: OnProblem) -> tuple[Floats, Ints]:
    """One list of numbers a ticket, as (n, widest ticket) floats, NaN where missing or refused, and (n,) their lengths."""
    plain = [values.tolist() if hasattr(values, "tolist") else values for values in given]  # numpy and torch, of any type
    width = max((t.rollouts for t in tickets), default=0)
    limits = np.array([t.rollouts for t in tickets], dtype=np.int64)
    if all(type(values) in (list, tuple) for values in plain):
        lengths = np.array([len(values) for values in plain], dtype=np.int64)
        if (lengths <= limits).all() and _PLAIN.issuperset(map(type, chain.from_iterable(plain))):
            table = _filled(list(chain.from_iterable(plain)), lengths, width)
            if table is not None:
                return table, lengths
    rows = [_numbers(values, what, ticket, on_problem) for values, ticket in zip(plain, tickets, strict=True)]
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    table = _filled(list(chain.from_iterable(rows)), lengths, width)
    assert table is not None
    return table, lengths


def _filled(flat: list[Any], lengths: Ints, width: int) -> Floats | None:
    """(n, width) with the numbers of each row at its front; None if one of them is infinite, or as good as."""
    table = np.full((len(lengths), width), math.nan)
    try:
        table[np.arange(width) < lengths[:, None]] = np.array(flat, dtype=np.float64)
    except OverflowError:
        return None
    return None if (np.abs(table) > LARGEST).any() else table


def _numbers(values: Any, what: str, ticket: Ticket, on_problem: OnProblem) -> list[float]:
    """The numbers of one ticket, NaN where missing or refused; ±inf, huge and non-numbers are refused, never clipped."""
    where = f"Outcome({what}=...) of prompt {ticket.prompt_id!r}"
    if isinstance(values, (str, bytes)) or not (hasattr(values, "__len__") and hasattr(values, "__iter__")):
        on_problem(
            OutcomeError(
                f"{where} must be a list with one entry a rollout, got {type(values).__name__}. The group counts as not "
                "rolled out."
            )
        )
        return []
    entries = list(values)
    if len(entries) > ticket.rollouts:
        on_problem(
            OutcomeError(
                f"{where} has {len(entries)} entries for a ticket of {ticket.rollouts} rollouts. The group counts as not "
                "rolled out: its entries may belong to another prompt."
            )
        )
        return []
    numbers = []
    for i, entry in enumerate(entries):
        number = _number(entry)
        if number is None:
            on_problem(
                OutcomeError(
                    f"{where}: entry {i} must be a number or None, got {entry!r} ({type(entry).__name__}). That rollout counts "
                    "as missing."
                )
            )
        elif abs(number) > LARGEST:
            on_problem(
                OutcomeError(
                    f"{where}: entry {i} must be finite, got {number}. That rollout counts as missing; check the reward "
                    f"function. (Beyond {LARGEST:g}, sums are infinite.)"
                )
            )
        numbers.append(math.nan if number is None or abs(number) > LARGEST else number)
    return numbers


def _whole(value: Any, ticket: Ticket, on_problem: OnProblem) -> int:
    """A count of tokens; 0 where it is none."""
    if type(value) is int and 0 <= value <= _MOST:
        return value
    number = _number(value)
    if number is None or not 0 <= number <= _MOST:
        on_problem(
            OutcomeError(
                f"Outcome(response_tokens=...) of prompt {ticket.prompt_id!r} must be a whole number >= 0, got {value!r}. "
                "It counts as 0."
            )
        )
        return 0
    return int(number)


def stack(outcomes: Sequence[Outcome], on_problem: OnProblem) -> Groups:
    """Check and stack outcomes whose tickets are known, in the order given.

    Rewards: None and NaN are missing rollouts; ±inf, numbers beyond `LARGEST`, strings and the like go to `on_problem` and
    count as missing. Entropies that are none, or beyond `LARGEST_ENTROPY`, are missing.
    `failed` and `cancelled` rollouts are missing whatever reward they carry; `truncated` ones count as scored.
    Raises whatever `on_problem` raises.
    """
    tickets = tuple(o.ticket for o in outcomes)
    rewards, lengths = _tables([o.rewards for o in outcomes], "rewards", tickets, on_problem)
    correct = np.full(rewards.shape, np.nan)
    judged = [i for i, o in enumerate(outcomes) if o.correct is not None]
    if judged:
        verdicts, _ = _tables([outcomes[i].correct for i in judged], "correct", [tickets[i] for i in judged], on_problem)
        correct[judged, : verdicts.shape[1]] = np.where(np.isnan(verdicts), np.nan, verdicts > 0.5)
    truncated = np.zeros(len(outcomes), dtype=np.int64)
    entropies = np.full(rewards.shape, np.nan)
    entropy = np.full(len(outcomes), np.nan)
    for i, outcome in enumerate(outcomes):
        if outcome.statuses is not None:
            given: Any = outcome.statuses
            statuses = list(given) if hasattr(given, "__iter__") else [given]
            if len(statuses) != lengths[i] or any(status not in _STATUSES for status in statuses):
                on_problem(
                    OutcomeError(
                        f"Outcome(statuses=...) of prompt {tickets[i].prompt_id!r} must hold one of {_STATUSES} a rollout, got "
                        f"{statuses!r} for {lengths[i]} rewards. The statuses are ignored."
                    )
                )
            else:
                truncated[i] = statuses.count("truncated")
                rewards[i, [j for j, status in enumerate(statuses) if status in ("failed", "cancelled")]] = np.nan
        if outcome.rollout_entropy is not None:
            entropy[i] = _entropies(outcome.rollout_entropy, tickets[i], entropies[i], on_problem)
    valid: Bools = np.isfinite(rewards)
    correct[~valid] = np.nan
    asked = np.array([t.rollouts for t in tickets], dtype=np.int64)
    inside = np.arange(rewards.shape[1]) < asked[:, None]
    versions = np.array([t.policy_version for t in tickets], dtype=np.int64)
    return Groups(
        tickets=tickets,
        rows=np.array([t.row for t in tickets], dtype=np.int64),
        asked=asked,
        rewards=rewards,
        correct=correct,
        valid=valid,
        truncated=truncated,
        entropies=entropies,
        rollout_entropy=entropy,
        response_tokens=np.array([_whole(o.response_tokens, o.ticket, on_problem) for o in outcomes], dtype=np.int64),
        policy_versions=np.where(inside, versions[:, None], -1),
        trained=inside,
        weights=inside.astype(np.float64),
    )


def _entropies(given: Any, ticket: Ticket, into: Floats, on_problem: OnProblem) -> float:
    """Write the entropy of each response into `into` (G,), where they are known one by one; return their mean, or NaN."""
    alone = _number(given)
    if alone is not None:
        return alone if abs(alone) <= LARGEST_ENTROPY else math.nan
    values = np.array(_numbers(given.tolist() if hasattr(given, "tolist") else given, "rollout_entropy", ticket, on_problem))
    into[: len(values)] = np.where(np.abs(values) <= LARGEST_ENTROPY, values, math.nan)
    known = into[np.isfinite(into)]
    return float(known.mean()) if len(known) else math.nan


def joined(parts: Sequence[Groups]) -> Groups:
    """One `Groups` of all parts, one after the other, each padded to the widest. At least one part."""
    width = max(part.rewards.shape[1] for part in parts)
    arrays = {}
    for name, fill in GROUP_ARRAYS.items():
        columns = [getattr(part, name) for part in parts]
        arrays[name] = np.concatenate(columns if fill is None else [padded(column, width, fill) for column in columns])
    return Groups(tickets=tuple(t for part in parts for t in part.tickets), **arrays)


def trimmed(groups: Groups) -> Groups:
    """The same groups without the columns that are padding in all of them: as if they had been reported by themselves."""
    width = int(groups.asked.max(initial=0))
    if width == groups.rewards.shape[1]:
        return groups
    cut = {name: getattr(groups, name)[:, :width] for name, fill in GROUP_ARRAYS.items() if fill is not None}
    return replace(groups, **cut)


def copied(groups: Groups) -> Groups:
    """The same, in arrays of its own: a method may make what it is given writable again, and then changes a copy."""
    return Groups(tickets=groups.tickets, **{name: np.array(getattr(groups, name)) for name in GROUP_ARRAYS})


def padded(array: Array, width: int, fill: Any) -> Array:
    """(n, width): `array` with `fill` on the right."""
    if array.shape[1] == width:
        return array
    wide = np.full((len(array), width), fill, dtype=array.dtype)  # np.pad takes ten times as long, and this is done a group
    wide[:, : array.shape[1]] = array
    return wide


def continued(begun: Groups, more: Groups) -> Groups:
    """One group that was begun, and its continuation, as one: `begun` and `more` hold one group each, of the same row."""
    head, tail = int(begun.asked[0]), int(more.asked[0])
    arrays = {
        name: getattr(begun, name)
        if fill is None
        else np.concatenate([getattr(begun, name)[:, :head], getattr(more, name)[:, :tail]], axis=1)
        for name, fill in GROUP_ARRAYS.items()
    }
    for name in ("asked", "truncated", "response_tokens"):
        arrays[name] = getattr(begun, name) + getattr(more, name)
    known = [(part.rollout_entropy[0], part.valid[0].sum()) for part in (begun, more) if np.isfinite(part.rollout_entropy[0])]
    weight = sum(n for _, n in known)
    arrays["rollout_entropy"] = np.array([sum(h * n for h, n in known) / weight if weight else math.nan])
    return Groups(tickets=begun.tickets, **arrays)
