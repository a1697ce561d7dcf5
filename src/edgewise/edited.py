"""A saved state of one pool made into one of another: the data set was edited between two runs, or settings were.

Prompts are known again by their ids, whatever row they are in now. One that is still there with the same content keeps all that
was learned of it, one that is new or changed starts from the prior, one that is gone is *parked*: what was learned of it stays
in the state, and comes back when the prompt does. Everything here works on decoded states; nothing that lives is changed.

    parked/ids, parked/contents (P,)    the keys of prompts that are gone, oldest first (`PromptPool.keys`)
    parked/slots (P,)                   their slot in the stream if they had their turn in the pass under way, else -1
    parked/method/prompts/* (P, ...)    what was learned of them
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgewise.errors import StateMismatchError
from edgewise.method import Method, renumbered
from edgewise.pool import PromptPool
from edgewise.stream import Slots, read_only
from edgewise.types import Array, Ints, MethodState

MOST_PARKED = 65_536
"""Prompts that stay parked; more where the pool itself holds more. The newest are kept."""

_NAMED = 3
_PROMPTS, _SHARED, _PARKED = "method/prompts/", "method/shared/", "parked/"
_TICKETS = ("table/in_flight", "table/expired")
_ROW, _CONTINUES = 1, 7  # columns of the tables of tickets


@dataclass(frozen=True, slots=True, eq=False)
class Edit:
    """What became of the prompts of a saved state.

    rows: (N,) the saved row of each live prompt whose content is the same, -1 for added and changed ones.
    places: (N,) the same of each live prompt with a known id, whatever its content.  saved: prompts then.
    added, removed, changed, moved: counts; moved are those that stand elsewhere among the prompts of both pools.
    added_ids, changed_ids: the first few, by name.
    """

    rows: Ints
    places: Ints
    saved: int
    added: int
    removed: int
    changed: int
    moved: int
    added_ids: tuple[str, ...]
    changed_ids: tuple[str, ...]

    @property
    def kept(self) -> int:
        """Saved prompts that are still there with the same content."""
        return self.saved - self.removed - self.changed

    def __bool__(self) -> bool:
        """Whether anything is another."""
        return bool(self.added or self.removed or self.changed or self.moved)

    def require_half(self, where: str) -> None:
        """Raise StateMismatchError unless at least half of the saved prompts are still there: it may be another data set."""
        if 2 * self.kept >= self.saved:
            return
        names = ", ".join(repr(name)[:60] for name in self.added_ids)
        example = f" (e.g. {names})" if names else ""
        raise StateMismatchError(
            f"{where} knows {self.saved:,} prompts, and of these only {self.kept:,} are in this data set with the same "
            f"content: {self.removed:,} are gone, {self.changed:,} have another content, {self.added:,} are new{example}. "
            "Nothing was loaded. Check that this is the data set of that run and that ids come from the same column; to go on "
            "with what is known of the others pass resume='adapt', to start from priors resume='fresh'."
        )

    def text(self, step: int, came_back: int = 0) -> str:
        """One line for people. step: of the saved state.  came_back: added prompts that were parked."""
        again = f" ({came_back:,} of them {'comes' if came_back == 1 else 'come'} back with what was learned)" * bool(came_back)
        parts = [
            f"{self.added:,} {_prompts(self.added)} added{again}" if self.added else "",
            f"{self.removed:,} removed (parked)" if self.removed else "",
            f"{self.changed:,} changed (their beliefs start anew)" if self.changed else "",
            f"{self.moved:,} moved" if self.moved else "",
        ]
        said = ", ".join(part for part in parts if part)
        return f"the data set changed since step {step}: {said or 'nothing that matters'}"


def compare(saved_ids: Array, saved_contents: Array, pool: PromptPool) -> Edit:
    """What became of the prompts of a saved state in this pool. saved_ids, saved_contents: (M,) uint64, see `PromptPool.keys`.

    A content that one side does not know counts as the same. Raises ValueError for keys that no pool has.
    """
    _require_keys(saved_ids, saved_contents)
    ids, contents = pool.keys
    places = _find(ids, saved_ids)
    known = places >= 0
    there = np.where(known, saved_contents[places], 0)
    changed = known & (there != contents) & (there != 0) & (contents != 0)
    stayed = places[known]
    in_order = np.arange(len(stayed))
    rank = np.empty(len(stayed), dtype=np.int64)
    rank[np.argsort(stayed, kind="stable")] = in_order
    return Edit(
        rows=np.where(changed, -1, places), places=places, saved=len(saved_ids), added=int((~known).sum()),
        removed=len(saved_ids) - len(stayed), changed=int(changed.sum()), moved=int((rank != in_order).sum()),
        added_ids=tuple(pool.ids[row] for row in np.flatnonzero(~known)[:_NAMED]),
        changed_ids=tuple(pool.ids[row] for row in np.flatnonzero(changed)[:_NAMED]),
    )  # fmt: skip


class Refit(NamedTuple):
    """A state of the live pool. notes: what to tell the user, one line each.

    fresh: shared arrays of a method just started, where hyper-parameters are others, and it may refuse what was saved.
    """

    header: dict[str, Any]
    arrays: dict[str, Array]
    notes: tuple[str, ...]
    fresh: dict[str, Array] | None


def refit(
    header: Mapping[str, Any],
    arrays: Mapping[str, Array],
    edit: Edit,
    pool: PromptPool,
    method: Method,
    identity: Mapping[str, Any],
) -> Refit:
    """A decoded state (format 2) as the live selector can take it up. Nothing given is changed.

    method: the live one, right after `start`.  identity: what the live selector would save; seed, group_size and parameters may
    be others than those of the state. Raises KeyError, ValueError, TypeError or IndexError for a state that no selector writes,
    StateMismatchError for a seed that cannot be kept.
    """
    was, learned = header["identity"], _below(_PROMPTS, arrays)
    if any(array.shape[:1] != (edit.saved,) for array in learned.values()):
        raise ValueError(f"what is kept of each prompt must have {edit.saved} entries")
    seeds = int(was["seed"]), int(identity["seed"])
    parked, back = _parked(arrays, edit, pool)
    position, offers = int(header["position"]), max(int(header["position"]), int(header["next_seq"]))
    slots = Slots.restored(_below("selector/", arrays), edit.saved, position)
    if seeds[0] != seeds[1] and seeds[0] >= 2**63:
        raise StateMismatchError(
            f"The seed of a run can only be changed from one below 2^63, not from {seeds[0]}. Keep it, or pass resume='fresh'."
        )
    offered = np.full(len(pool), -1, dtype=np.int64)
    offered[back.rows] = parked["slots"][back.at]
    after = slots.edited(edit.places, offered, position=position, offers=offers, seeds=seeds)

    blank = method.state()
    held = method.adapt(MethodState(learned, _below(_SHARED, arrays)), edit.rows)
    prompts = {name: np.array(array) for name, array in held.prompts.items()}
    for name, array in prompts.items():
        was_parked = parked.get(f"{_PROMPTS}{name}")
        if was_parked is not None and was_parked.dtype == array.dtype and was_parked.shape[1:] == array.shape[1:]:
            array[back.rows[back.same]] = was_parked[back.at[back.same]]

    ids, contents = pool.keys
    found = {name: array for name, array in arrays.items() if not name.startswith(("selector/stream_", _PARKED))}
    for name in [name for name in found if name.startswith((_PROMPTS, _SHARED))]:
        del found[name]
    found |= {f"{_PROMPTS}{name}": array for name, array in prompts.items()}
    found |= {f"{_SHARED}{name}": array for name, array in held.shared.items()}
    found |= {f"selector/{name}": array for name, array in after.slots.arrays().items()}
    found |= {"pool/ids": ids, "pool/contents": contents}
    if not after.same_pass:
        parked["slots"] = np.full_like(parked["slots"], -1)
    found |= _park(parked, back.at, arrays, edit, after.turns, len(pool))
    regrouped = was["group_size"] != identity["group_size"]
    given_up = _renumber(found, edit, give_up_waiting=regrouped)

    notes = [edit.text(int(header["step"]), int(back.same.sum())) + given_up] if edit else []
    notes += _settings(was, identity, given_up if regrouped and not edit else "")
    fresh = None if was["parameters"] == identity["parameters"] else {k: np.array(v) for k, v in blank.shared.items()}
    return Refit({**header, "identity": dict(identity)}, found, tuple(notes), fresh)


def with_shared(arrays: Mapping[str, Array], fresh: Mapping[str, Array]) -> dict[str, Array]:
    """The state with the shared arrays of a method just started, for one that cannot go on from those that were saved."""
    return {k: v for k, v in arrays.items() if not k.startswith(_SHARED)} | {f"{_SHARED}{k}": v for k, v in fresh.items()}


# ------------------------------------------------------------------------------------------------------ parked prompts


def sound_parked(parked: Mapping[str, Array]) -> dict[str, Array]:
    """What is parked in a saved state, by name without "parked/", read-only. Raises KeyError or ValueError for what is not."""
    if not parked:
        return {}
    _require_keys(parked["ids"], parked["contents"])
    turns = np.sort(parked["slots"][parked["slots"] >= 0])
    if parked["slots"].dtype != np.int32 or (turns[1:] == turns[:-1]).any():
        raise ValueError("two parked prompts had the same turn")
    if any(array.shape[:1] != parked["ids"].shape for array in parked.values()):
        raise ValueError("arrays of parked prompts differ in length")
    return {name: read_only(array) for name, array in parked.items()}


class _Back(NamedTuple):
    """Parked prompts that are in the live pool again. rows, at: (k,) their rows there, and their places among the parked.
    same: (k,) whether their content is the same.
    """

    rows: Ints
    at: Ints
    same: Array


def _parked(arrays: Mapping[str, Array], edit: Edit, pool: PromptPool) -> tuple[dict[str, Array], _Back]:
    """What is parked in a saved state, by name without "parked/", and which of it comes back."""
    parked = sound_parked(_below(_PARKED, arrays))
    if not parked:
        parked = {"ids": np.empty(0, np.uint64), "contents": np.empty(0, np.uint64), "slots": np.empty(0, np.int32)}
    rows = np.flatnonzero(edit.places < 0)
    ids, contents = pool.keys
    at = _find(ids[rows], parked["ids"])
    rows, at = rows[at >= 0], at[at >= 0]
    before, now = parked["contents"][at], contents[rows]
    return parked, _Back(rows, at, (before == now) | (before == 0) | (now == 0))


def _park(
    parked: Mapping[str, Array], back: Ints, arrays: Mapping[str, Array], edit: Edit, turns: Ints, pool_size: int
) -> dict[str, Array]:
    """The parked arrays after an edit: without prompts that came back, with those that left, the newest at the end."""
    gone = _others(edit.saved, edit.places[edit.places >= 0])
    leave = {"ids": arrays["pool/ids"][gone], "contents": arrays["pool/contents"][gone], "slots": turns[gone].astype(np.int32)}
    leave |= {f"{_PROMPTS}{name}": array[gone] for name, array in _below(_PROMPTS, arrays).items()}
    stay = _others(len(parked["ids"]), back)
    stays = {name: array[stay] for name, array in parked.items()}
    if len(stay) == 0:
        both = leave
    elif {n: (a.dtype, a.shape[1:]) for n, a in stays.items()} == {n: (a.dtype, a.shape[1:]) for n, a in leave.items()}:
        both = {name: np.concatenate([array, leave[name]]) for name, array in stays.items()}
    else:  # the method keeps other arrays now: what it once knew of them no longer fits
        both = leave if len(gone) else stays
    most = max(MOST_PARKED, pool_size)
    return {f"{_PARKED}{name}": array[-most:] for name, array in both.items()} if len(both["ids"]) else {}


# --------------------------------------------------------------------------------------------------- tickets and groups


def _renumber(found: dict[str, Array], edit: Edit, *, give_up_waiting: bool) -> str:
    """Give tickets, groups that wait and retired prompts their rows in the live pool; returns what had to be given up."""
    waiting = found["table/waiting"]
    row = renumbered(waiting[:, _ROW], edit.rows)
    kept = np.flatnonzero((row >= 0) & (not give_up_waiting))
    parts = found["table/waiting_parts"]
    found["table/waiting"] = _with_rows(waiting, row, kept)
    found["table/waiting_parts"] = parts[np.isin(parts[:, 0], waiting[kept, 0])]
    for name in [name for name in found if name.startswith("selector/waiting_")]:
        found[name] = row[kept] if name == "selector/waiting_rows" else found[name][kept]
        if len(kept) == 0:
            del found[name]
    counts = {("group that waited", "groups that waited"): len(waiting) - len(kept)}
    begun = set(found["table/waiting"][:, 0].tolist())
    tickets = (("ticket in flight", "tickets in flight"), ("expired ticket", "expired tickets"))
    for name, what in zip(_TICKETS, tickets, strict=True):
        if name in found:
            table = found[name]
            row = renumbered(table[:, _ROW], edit.rows)
            goes_on = np.array([first < 0 or first in begun for first in table[:, _CONTINUES].tolist()], dtype=np.bool_)
            kept = np.flatnonzero((row >= 0) & goes_on)
            found[name] = _with_rows(table, row, kept)
            counts[what] = len(table) - len(kept)
    retired = found["table/retired"]
    row = renumbered(retired[:, 0], edit.rows)
    kept = np.flatnonzero(row >= 0)
    found["table/retired"] = np.stack([row, retired[:, 1]], axis=1)[kept[np.argsort(row[kept])]]
    said = ", ".join(f"{count:,} {one if count == 1 else more}" for (one, more), count in counts.items() if count)
    return f"; given up: {said}" if said else ""


def _with_rows(table: Array, row: Ints, kept: Ints) -> Array:
    """The `kept` lines of a table of tickets, with other rows."""
    after = table.copy()
    after[:, _ROW] = row
    return np.ascontiguousarray(after[kept])


def _settings(was: Mapping[str, Any], now: Mapping[str, Any], given_up: str) -> list[str]:
    """What to say of settings that are others now."""
    notes = []
    if was["group_size"] != now["group_size"]:
        notes.append(
            f"group_size was {was['group_size']} and is {now['group_size']} now: tickets in flight keep their own number of "
            f"rollouts, groups that waited for more are given up{given_up}"
        )
    if was["seed"] != now["seed"]:
        notes.append(f"seed was {was['seed']} and is {now['seed']} now: the pass under way keeps its order, later ones do not")
    before, after = was["parameters"], now["parameters"]
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    if names:
        listed = ", ".join(f"{name} was {before.get(name)!r} and is {after.get(name)!r} now" for name in names)
        notes.append(f"hyper-parameters of {now['method']}: {listed}")
    return notes


# -------------------------------------------------------------------------------------------------------------- keys


def _require_keys(ids: Array, contents: Array) -> None:
    if ids.dtype != np.uint64 or contents.dtype != np.uint64 or ids.ndim != 1 or ids.shape != contents.shape:
        raise ValueError(f"keys must be uint64, got {ids.shape} of {ids.dtype} and {contents.shape} of {contents.dtype}")
    ordered = np.sort(ids)
    if (ordered[1:] == ordered[:-1]).any():
        raise ValueError("a prompt is saved twice")


def _find(wanted: Array, among: Array) -> Ints:
    """(n,) where each of `wanted` (n,) stands in `among`; -1 where it does not. The keys of each are distinct."""
    both = np.concatenate([among, wanted])
    order = np.argsort(both)  # one sort of both: looking a million keys up one by one takes several times as long
    same = np.flatnonzero(both[order[:-1]] == both[order[1:]])
    pairs = np.sort(np.stack([order[same], order[same + 1]]), axis=0)
    found = np.full(len(wanted), -1, dtype=np.int64)
    found[pairs[1] - len(among)] = pairs[0]
    return found


def _others(size: int, at: Ints) -> Ints:
    """The places below `size` that are not `at`, rising."""
    other = np.ones(size, dtype=np.bool_)
    other[at] = False
    return np.flatnonzero(other)


def _prompts(count: int) -> str:
    return "prompt" if count == 1 else "prompts"


def _below(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays whose name begins with `prefix`, named without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
