"""Groups that were begun and wait for more rollouts (`Verdicts.more`, `hold`), and prompts retired for this pass."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgewise import outcomes
from edgewise.tickets import packed, unpacked
from edgewise.types import GROUP_ARRAYS, Array, Groups, Ints, Ticket


@dataclass(frozen=True, slots=True)
class Begun:
    """One group so far.

    group: its rollouts, as `Groups` of one.  parts: (ticket, rollouts) that they came from, in order.  wanted: rollouts to add,
    >= 1.  not_before: first selector step that may ask.  asked: the ticket that asks for them, once it was issued.
    """

    group: Groups
    parts: tuple[tuple[int, int], ...]
    wanted: int
    not_before: int
    asked: int | None = None

    @property
    def first(self) -> Ticket:
        """The ticket that began the group."""
        return self.group.tickets[0]


class Waiting:
    """All groups that wait, by the `seq` of their first ticket; oldest first."""

    def __init__(self) -> None:
        self._begun: dict[int, Begun] = {}

    def __len__(self) -> int:
        return len(self._begun)

    def __contains__(self, seq: int) -> bool:
        return seq in self._begun

    def __getitem__(self, seq: int) -> Begun:
        return self._begun[seq]

    @property
    def rows(self) -> Ints:
        """(n,) pool rows whose group waits: they are not to be offered."""
        return np.array([begun.first.row for begun in self._begun.values()], dtype=np.int64)

    @property
    def seqs(self) -> list[int]:
        """First tickets of all groups that wait."""
        return sorted(self._begun)

    def copy(self) -> Waiting:
        """As it is now; what it holds never changes."""
        other = Waiting()
        other._begun = dict(self._begun)
        return other

    def add(self, group: Groups, wanted: int, not_before: int) -> None:
        """Let a group (of one) wait for `wanted` more rollouts, from step `not_before` on."""
        first = group.tickets[0]
        before = self._begun.get(first.seq)
        parts: tuple[tuple[int, int], ...] = ((first.seq, first.rollouts),)
        if before is not None and before.asked is not None:
            parts = (*before.parts, (before.asked, before.wanted))
        self._begun[first.seq] = Begun(group, parts, wanted, not_before)

    def ready(self, step: int, most: int) -> list[Begun]:
        """At most `most` groups that may be continued in `step` and were not asked for yet, oldest first."""
        ready = [self._begun[seq] for seq in sorted(self._begun)]
        return [begun for begun in ready if begun.asked is None and begun.not_before <= step][:most]

    def stale(self, policy_version: int, limit: int) -> list[Begun]:
        """Groups begun more than `limit` policy versions ago and not asked for."""
        begun = [self._begun[seq] for seq in sorted(self._begun)]
        return [b for b in begun if b.asked is None and policy_version - b.first.policy_version > limit]

    def ask(self, first: int, seq: int) -> None:
        """Note that ticket `seq` asks for the rest of the group that ticket `first` began."""
        self._begun[first] = replace(self._begun[first], asked=seq)

    def forget_asked(self, void: Container[int]) -> None:
        """These tickets are void (a step was cut off): the groups for which they asked wait again."""
        self._begun = {first: replace(b, asked=None) if b.asked in void else b for first, b in self._begun.items()}

    def remove(self, first: int) -> None:
        """The group is whole, or given up."""
        self._begun.pop(first, None)

    def whole(self, groups: Groups) -> Groups:
        """Reported groups, with those that continue one put together with what was there before. Changes nothing."""
        if all(ticket.continues is None for ticket in groups.tickets):
            return groups
        parts = []
        for i, ticket in enumerate(groups.tickets):
            part = groups.select(np.array([i]))
            parts.append(part if ticket.continues is None else outcomes.continued(self._begun[ticket.continues].group, part))
        return outcomes.joined(parts)

    # -- saved -----------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Array]:
        """What a saved state keeps: two tables, and the rollouts so far where a group waits."""
        held = [self._begun[seq] for seq in self.seqs]
        more = [(b.wanted, b.not_before, -1 if b.asked is None else b.asked, len(b.parts)) for b in held]
        parts = [(b.first.seq, seq, rollouts) for b in held for seq, rollouts in b.parts]
        arrays = {
            "table/waiting": np.hstack([packed(b.first for b in held), np.array(more, dtype=np.int64).reshape(-1, 4)]),
            "table/waiting_parts": np.array(parts, dtype=np.int64).reshape(-1, 3),
        }
        if held:
            groups = outcomes.joined([b.group for b in held])
            arrays |= {f"selector/waiting_{name}": getattr(groups, name) for name in GROUP_ARRAYS}
        return arrays

    @classmethod
    def restored(cls, arrays: Mapping[str, Array], ids: Sequence[str]) -> Waiting:
        """The inverse, for a pool of these `ids`. Raises KeyError, TypeError, ValueError, IndexError for what does not fit."""
        waiting = cls()
        table, all_parts = arrays["table/waiting"], arrays["table/waiting_parts"]
        tickets = tuple(unpacked(np.ascontiguousarray(table[:, :8]), ids))
        if all_parts.ndim != 2 or all_parts.shape[1] != 3 or table.shape[1] != 12 or all_parts.dtype != np.int64:
            raise ValueError("the tables of groups that wait have another shape")
        if table[:, 11].sum() != len(all_parts) or (len(table) and table[:, 11].min() < 1):
            raise ValueError("the groups that wait and their parts do not agree")
        if not tickets:
            return waiting
        columns = {name: np.array(arrays[f"selector/waiting_{name}"]) for name in GROUP_ARRAYS}
        groups = Groups(tickets=tickets, **columns)
        _require_sound(groups)
        at = 0
        for i, (wanted, not_before, asked, n) in enumerate(table[:, 8:].tolist()):
            mine, at = all_parts[at : at + n].tolist(), at + n
            parts = tuple((seq, rollouts) for _, seq, rollouts in mine)
            begun = Begun(groups.select(np.array([i])), parts, wanted, not_before, None if asked < 0 else asked)
            rollouts = [n for _, n in parts]
            if any(first != begun.first.seq for first, _, _ in mine):
                raise ValueError("a part belongs to no group that waits")
            if min(rollouts) < 1 or sum(rollouts) != groups.asked[i] or parts[0] != (begun.first.seq, begun.first.rollouts):
                raise ValueError(f"a group that waits has {groups.asked[i]} rollouts, its parts are {parts}")
            if begun.wanted < 1:
                raise ValueError(f"a group waits for {begun.wanted} rollouts")
            waiting._begun[begun.first.seq] = begun
        return waiting


def _require_sound(groups: Groups) -> None:
    """Raise ValueError unless the arrays fit each other and the tickets, in shape, type and range."""
    shape, like = groups.rewards.shape, outcomes.stack([], lambda error: None)
    for name, fill in GROUP_ARRAYS.items():
        array, wanted = getattr(groups, name), (len(groups.tickets),) if fill is None else shape
        if array.shape != wanted or array.dtype != getattr(like, name).dtype or len(shape) != 2:
            raise ValueError(f"waiting_{name} has shape {array.shape} and type {array.dtype}")
    if groups.rows.tolist() != [ticket.row for ticket in groups.tickets]:
        raise ValueError("waiting_rows are not those of the tickets")
    if groups.asked.min() < 1 or groups.asked.max() > shape[1]:
        raise ValueError(f"waiting_asked must lie in [1, {shape[1]}]")
    inside = np.arange(shape[1]) < groups.asked[:, None]
    if (groups.valid != (np.isfinite(groups.rewards) & inside)).any() or np.isinf(groups.rewards).any():
        raise ValueError("waiting_valid must say where waiting_rewards are finite")
    if min(groups.truncated.min(), groups.response_tokens.min()) < 0:
        raise ValueError("counts of groups that wait must not be negative")


class Retired:
    """Prompts that are not offered again in this pass over the pool: row -> the pass in which it may be offered again."""

    def __init__(self, until: dict[int, int] | None = None) -> None:
        self._until = dict(until or {})

    def __len__(self) -> int:
        return len(self._until)

    @property
    def rows(self) -> Ints:
        """(n,) pool rows."""
        return np.array(list(self._until), dtype=np.int64)

    @property
    def latest(self) -> int:
        """The last pass for which one of them waits; 0 where there are none."""
        return max(self._until.values(), default=0)

    def copy(self) -> Retired:
        """As it is now."""
        return Retired(self._until)

    def add(self, rows: Ints, epoch: float) -> None:
        """Retire `rows` for the rest of the pass that `epoch` is in."""
        self._until |= dict.fromkeys(rows.tolist(), int(epoch) + 1)

    def remove(self, rows: Ints) -> None:
        """These may be offered again."""
        for row in rows.tolist():
            self._until.pop(row, None)

    def back(self, epoch: float) -> Ints:
        """(n,) rows whose pass is over."""
        return np.array([row for row, until in self._until.items() if until <= epoch], dtype=np.int64)

    def arrays(self) -> dict[str, Array]:
        """What a saved state keeps: (row, pass), by row."""
        return {"table/retired": np.array(sorted(self._until.items()), dtype=np.int64).reshape(-1, 2)}

    @classmethod
    def restored(cls, arrays: Mapping[str, Array]) -> Retired:
        """The inverse. Raises KeyError or ValueError for what does not fit."""
        table = arrays["table/retired"]
        if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 2 or (np.diff(table[:, 0]) <= 0).any():
            raise ValueError("retired prompts must be a sorted table (n, 2) of int64")
        return cls(dict(table.tolist()))
