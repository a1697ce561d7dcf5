"""Tickets as a table of whole numbers, the form in which they are saved: bounded, quick, and free of text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgewise.types import MOST_ROLLOUTS, Array, Ints, Ticket

COLUMNS = ("seq", "row", "step", "round", "policy_version", "rollouts", "predicted_pass_rate", "continues")
"""Columns of the table. A predicted pass rate stands there by the bits of its float64; -1 says "none", as in `continues`."""

_NONE = -1.0


def packed(tickets: Iterable[Ticket]) -> Ints:
    """(n, 8) int64, sorted by `seq`. `prompt_id` is left out: it is the name of the row.

    Raises OverflowError for a number beyond 64 bits.
    """
    rows = []
    for t in sorted(tickets, key=lambda t: t.seq):
        predicted = _NONE if t.predicted_pass_rate is None else float(t.predicted_pass_rate)
        bits = int(np.float64(predicted).view(np.int64))
        continues = -1 if t.continues is None else t.continues
        rows.append((t.seq, t.row, t.step, t.round, t.policy_version, t.rollouts, bits, continues))
    return np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))


class Packed:
    """`packed` of tickets of which most stay from one commit to the next: only those that are new are packed.

    A `seq` names one ticket for good: take another of these when it begins to name others, after a restore.
    """

    def __init__(self) -> None:
        self._table = packed([])

    def of(self, tickets: Mapping[int, Ticket]) -> Ints:
        """(n, 8) int64, read-only: `packed` of tickets by `seq`; the very array of the last call where nothing changed."""
        seqs = np.fromiter(tickets, dtype=np.int64, count=len(tickets))
        if (seqs[1:] < seqs[:-1]).any():
            seqs.sort()
        last = self._table
        before = np.ascontiguousarray(last[:, 0])
        if not np.array_equal(seqs, before):
            place = np.searchsorted(before, seqs)
            known = place < len(before)
            known[known] = before[place[known]] == seqs[known]
            table = np.empty((len(seqs), len(COLUMNS)), dtype=np.int64)
            table[known] = last[place[known]]
            table[~known] = packed([tickets[seq] for seq in seqs[~known].tolist()])
            table.flags.writeable = False
            self._table = table
        return self._table


def unpacked(table: Array, ids: Sequence[str]) -> list[Ticket]:
    """The inverse, with the names of a pool; by `seq`.

    Raises ValueError for a table that no selector writes: another shape or type, a row outside the pool, a number out of range.
    """
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != len(COLUMNS):
        raise ValueError(f"tickets must be a table (n, {len(COLUMNS)}) of int64, got {table.shape} of {table.dtype}")
    if len(table) == 0:
        return []
    seq, row, step, round_, _, rollouts, _, continues = table.T
    if (np.diff(seq) <= 0).any():
        raise ValueError("tickets must be sorted, each once")
    if min(seq.min(), row.min(), step.min(), round_.min()) < 0 or continues.min() < -1:
        raise ValueError("a ticket has a negative number")
    if row.max() >= len(ids) or rollouts.min() < 1 or rollouts.max() > MOST_ROLLOUTS:
        raise ValueError(f"a ticket's row must lie in [0, {len(ids)}), its rollouts in [1, {MOST_ROLLOUTS}]")
    predicted = np.ascontiguousarray(table[:, 6]).view(np.float64)
    if not np.isfinite(predicted).all():
        raise ValueError("a ticket's predicted pass rate must be finite")
    return [
        Ticket(
            seq=t[0], row=t[1], prompt_id=ids[t[1]], step=t[2], round=t[3], policy_version=t[4], rollouts=t[5],
            predicted_pass_rate=None if p == _NONE else p, continues=None if t[7] < 0 else t[7],
        )
        for t, p in zip(table.tolist(), predicted.tolist(), strict=True)
    ]  # fmt: skip
