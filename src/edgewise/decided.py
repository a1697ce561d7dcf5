"""Groups whose verdict is final: what a report answers with, and what of it the method has still to learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgewise import outcomes
from edgewise.types import Array, Floats, Groups, Ints, Verdicts

LATE = "late"
"""Reason of the verdict on groups whose ticket had expired: they teach, and are never trained on."""


class Judged(NamedTuple):
    """What became of reported groups: the checked groups and the final verdicts on them, one each."""

    groups: Groups
    verdicts: Verdicts


def nothing() -> Judged:
    """No group at all."""
    return Judged(outcomes.stack([], lambda error: None), Verdicts(np.empty(0, dtype=np.bool_), ()))


def together(one: Judged, other: Judged) -> Judged:
    """Both, one after the other."""
    if len(other.groups) == 0 or len(one.groups) == 0:
        return one if len(one.groups) else other
    groups = outcomes.joined([one.groups, other.groups])
    width = groups.rewards.shape[1]

    def both(name: str, fill: bool | float, wide: bool) -> Array | None:
        parts = [getattr(judged.verdicts, name) for judged in (one, other)]
        if all(part is None for part in parts):
            return None
        whole = []
        for part, judged in zip(parts, (one, other), strict=True):
            n, held = len(judged.groups), judged.groups.rewards.shape[1]
            shape = (n, held) if wide else (n,)
            column = np.full(shape, fill) if part is None else part
            whole.append(outcomes.padded(column, width, fill) if wide else column)
        return np.concatenate(whole)

    return Judged(
        groups,
        Verdicts(
            np.concatenate([one.verdicts.keep, other.verdicts.keep]),
            one.verdicts.reasons + other.verdicts.reasons,
            more=both("more", 0, wide=False), hold=both("hold", 0, wide=False), retire=both("retire", False, wide=False),
            trained=both("trained", True, wide=True), weights=both("weights", 1.0, wide=True),
        ),
    )  # fmt: skip


class Pending:
    """Decided groups of which the method has not learned yet, in the order of their tickets whatever order they came in.

    Methods forget between visits and remember the last of something, so for most of them the order of arrival would change
    what they come to believe. They learn at the selector's next decision, which is when it matters, from all that came
    between two decisions at once. Bounded by what is in flight.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Groups, Floats]] = []
        self._late: list[Groups] = []

    def __len__(self) -> int:
        """Groups that wait to be learned from."""
        return sum(len(groups) for _, groups, _ in self._parts) + sum(map(len, self._late))

    def copy(self) -> Pending:
        """As it is now; what it holds never changes."""
        other = Pending()
        other._parts, other._late = list(self._parts), list(self._late)
        return other

    def add(self, closed_by: Sequence[int], groups: Groups, premise: Floats) -> None:
        """Groups, the ticket by whose report each was decided, and (n, 3) entropy, mixed and pass rate of each."""
        if len(groups):
            self._parts.append((np.array(closed_by, dtype=np.int64), groups, premise))

    def add_late(self, groups: Groups) -> None:
        """Groups of expired tickets."""
        if len(groups):
            self._late.append(groups)

    def premise(self) -> Floats:
        """(n, 3) of all groups but late ones, whose entropy is no longer known."""
        if not self._parts:
            return np.empty((0, 3))
        return np.concatenate([premise for _, _, premise in self._parts])[self._order()]

    def lots(self) -> list[Groups]:
        """What `observe` is to be called with, one call each: distinct rows, at least one valid rollout a group.

        Late groups first, for they are the older ones, and apart from the others: their prompts may have been issued again.
        """
        lots: list[Groups] = []
        if self._late:
            late = _taught(outcomes.joined(self._late))
            late = late.select(np.argsort([ticket.seq for ticket in late.tickets], kind="stable"))
            lots += [late.select(index) for index in _apart(late.rows)]
        if self._parts:
            groups = outcomes.joined([groups for _, groups, _ in self._parts]) if len(self._parts) > 1 else self._parts[0][1]
            lots.append(_taught(groups.select(self._order())))
        return [outcomes.trimmed(groups) for groups in lots if len(groups)]

    def _order(self) -> Ints:
        return np.argsort(np.concatenate([closed_by for closed_by, _, _ in self._parts]), kind="stable")


def _taught(groups: Groups) -> Groups:
    """Those that teach something: one rollout at least has a reward."""
    return groups.select(np.flatnonzero(groups.valid.any(axis=1)))


def _apart(rows: Ints) -> list[Ints]:
    """Consecutive stretches of `rows` in which each row stands once, as indices."""
    stretches: list[list[int]] = [[]]
    seen: set[int] = set()
    for i, row in enumerate(rows.tolist()):
        if row in seen:
            stretches.append([])
            seen = set()
        seen.add(row)
        stretches[-1].append(i)
    return [np.array(stretch, dtype=np.int64) for stretch in stretches]
