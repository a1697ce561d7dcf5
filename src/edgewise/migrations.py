"""States of older formats, brought to the one that is written today: one function a number, each from its format to the next.

`FORMAT` of `state.py` says which one is written today. Whoever raises it adds a function here, and `tests/fixtures/` keeps
states of every format there has been, with what the code that wrote them did next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from edgewise.errors import StateError
from edgewise.tickets import packed
from edgewise.types import Array, Ints, Ticket

Header: TypeAlias = dict[str, Any]
Arrays: TypeAlias = dict[str, Array]

_SHOWN = 300
"""Characters of what was wrong that a message quotes: a hostile file has as many as it likes."""


def migrated(header: Mapping[str, Any], arrays: Mapping[str, Array], where: str) -> tuple[Header, Arrays]:
    """A decoded state of any older format as one of today's; a state of today's comes back as it is.

    header: with its `format`.  arrays: by name.  where: names the state in errors.
    Nothing that is given is changed; arrays that stay as they are, are shared. Raises StateError for what no selector wrote.
    """
    new_header, new_arrays = dict(header), dict(arrays)
    while (step := MIGRATIONS.get(new_header["format"])) is not None:
        number = new_header["format"]
        try:
            new_header, new_arrays = step(new_header, new_arrays)
        except Exception as error:  # whatever a broken or hostile file makes of it
            raise StateError(
                f"{where} has state format {number} and cannot be brought to format {number + 1}: it lacks something that a "
                f"selector keeps: {repr(error)[:_SHOWN]}. Use an older state."
            ) from error
    return new_header, new_arrays


def _from_1(header: Header, arrays: Arrays) -> tuple[Header, Arrays]:
    """Tickets move from the JSON header into tables of whole numbers, by the names in `tickets.COLUMNS`.

    Format 1 grew while it was in use; older writers left out what did not exist yet. The policy version is then that of the
    newest ticket in flight, as far as any is. The tickets that a group's rollouts came from (`parts`) are then known only
    where it has no rollouts but those of its first ticket; where it has more, nothing sound can be said. The prompts
    themselves (`pool/ids`, `pool/contents`) were never saved, so that this state fits only the very same data set.
    """
    gone = ("in_flight", "waiting", "writer", "format")
    kept = {name: value for name, value in header.items() if name not in gone}
    in_flight = [_ticket(entry) for entry in _list(header["in_flight"])]
    newest = max((ticket.policy_version for ticket in in_flight), default=0)
    tables = {"table/in_flight": _table(in_flight), "table/retired": _retired(arrays.get("selector/retired"))}
    tables |= {"table/expired": _table([]), "selector/last_take": np.empty(0, dtype=np.int64)}  # there were none then
    waiting, parts = _waiting(_list(header.get("waiting", [])), arrays)
    tables |= {"table/waiting": waiting, "table/waiting_parts": parts}
    left = {name: array for name, array in arrays.items() if name != "selector/retired"}
    policy_version = header.get("policy_version", newest)
    return {**kept, "policy_version": policy_version, "last_take": None, "format": 2}, left | tables


def _waiting(entries: list[Any], arrays: Arrays) -> tuple[Ints, Ints]:
    """The tables of groups that wait, (n, 12), and of the tickets that their rollouts came from, (m, 3)."""
    if entries and len(arrays["selector/waiting_asked"]) != len(entries):
        raise ValueError(f"{len(entries)} groups wait, there are rollouts of {len(arrays['selector/waiting_asked'])}")
    firsts, columns, all_parts = [], [], []
    for i, entry in enumerate(entries):
        first, rollouts = _ticket(entry["ticket"]), int(arrays["selector/waiting_asked"][i])
        firsts.append(first)
        parts = _list(entry.get("parts", [[first.seq, first.rollouts]]))
        all_parts += [(first.seq, _whole(seq, "part"), _whole(n, "part")) for seq, n in parts]
        if sum(n for _, n in parts) != rollouts:
            raise ValueError(f"a group that waits has {rollouts} rollouts, known are the tickets of {parts!r}")
        asked = -1 if entry["asked"] is None else _whole(entry["asked"], "asked")
        columns.append((_whole(entry["wanted"], "wanted"), _whole(entry["not_before"], "not_before"), asked, len(parts)))
    if any(later.seq <= earlier.seq for earlier, later in zip(firsts, firsts[1:], strict=False)):
        raise ValueError("groups that wait must come in the order of their tickets")  # their rollouts are rows of arrays
    numbers = np.array(columns, dtype=np.int64).reshape(-1, 4)
    return np.hstack([_table(firsts), numbers]), np.array(all_parts, dtype=np.int64).reshape(-1, 3)


def _retired(table: Array | None) -> Ints:
    """(n, 2) row and pass, by row: each row once."""
    if table is None:
        return np.empty((0, 2), dtype=np.int64)
    if table.dtype != np.int64 or table.ndim != 2 or table.shape[1] != 2 or len(np.unique(table[:, 0])) != len(table):
        raise ValueError(f"resting prompts must be (n, 2) of int64 and each row once, got {table.shape} of {table.dtype}")
    return np.ascontiguousarray(table[np.argsort(table[:, 0])])


def _table(tickets: list[Ticket]) -> Ints:
    """`packed`, unless two tickets have one number."""
    if len({ticket.seq for ticket in tickets}) != len(tickets):
        raise ValueError("a ticket stands there twice")
    return packed(tickets)


def _ticket(entry: Any) -> Ticket:
    """A ticket of a header. Raises TypeError or ValueError where a number is none: a table would round it in silence."""
    ticket = Ticket(**entry)
    for name in ("seq", "row", "step", "round", "policy_version", "rollouts"):
        _whole(getattr(ticket, name), name)
    if ticket.continues is not None and _whole(ticket.continues, "continues") < 0:
        raise ValueError(f"a ticket continues {ticket.continues}")
    predicted = ticket.predicted_pass_rate
    if predicted is not None and (type(predicted) not in (int, float) or not np.isfinite(predicted)):
        raise ValueError(f"a predicted pass rate is {predicted!r}")
    return ticket


def _whole(value: Any, name: str) -> int:
    """`value`, if JSON had a whole number there (a table would take 1.5 and true for 1)."""
    if type(value) is not int:
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    return value


def _list(value: Any) -> list[Any]:
    """`value`, if JSON had a list there."""
    if not isinstance(value, list):
        raise TypeError(f"a list was expected, got {type(value).__name__}")
    return value


MIGRATIONS: dict[int, Callable[[Header, Arrays], tuple[Header, Arrays]]] = {1: _from_1}
"""Format -> the function that brings a state of it to the next one. There is one for each number below `state.FORMAT`."""
