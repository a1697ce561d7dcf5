"""What changed between two saved states, and putting it back: how a commit writes what a batch touched and not the pool.

Per-prompt arrays (`method/prompts/`) travel at the rows that were touched, tables (`table/`) as rows gone and rows put, other
arrays as the entries along their first axis that differ. All of it exact, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgewise.types import Array, Ints

PER_PROMPT = "method/prompts/"
TABLE = "table/"
_MOST_PART = 2
"""Changed entries travel one by one while they are fewer than one in so many."""


class Base:
    """What was written last, as far as a difference from it needs it: per-prompt arrays are not copied."""

    def __init__(self, header: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
        self.header = dict(header)
        self._kept = {
            name: array if _constant(array) else np.array(array)  # what nobody writes need not be copied
            for name, array in arrays.items()
            if not name.startswith(PER_PROMPT)
        }
        self._spec = {name: (array.dtype, array.shape) for name, array in arrays.items()}

    def difference(
        self, header: Mapping[str, Any], arrays: Mapping[str, Array], rows: Ints
    ) -> tuple[dict[str, Any], dict[str, Array]]:
        """(header, arrays) of a change that `applied` turns the base into this state with.

        rows: (k,) distinct rows, all at which a per-prompt array of unchanged shape may differ.
        """
        change: dict[str, Any] = {
            "set": {name: value for name, value in header.items() if name not in self.header or self.header[name] != value},
            "drop": sorted(self.header.keys() - header.keys()),
            "without": sorted(self._spec.keys() - arrays.keys()),
        }
        parts: dict[str, Array] = {}
        for name, array in arrays.items():
            if self._spec.get(name) != (array.dtype, array.shape) and not _grown(self._kept.get(name), array):
                parts[f"whole/{name}"] = array
            elif name.startswith(PER_PROMPT):
                if len(rows):
                    parts["rows"], parts[f"at/{name}"] = _small(rows), array[rows]
            elif self._kept[name] is not array:
                parts |= (
                    _table(name, self._kept[name], array) if name.startswith(TABLE) else _some(name, self._kept[name], array)
                )
        return change, parts


def _constant(array: Array) -> bool:
    """Whether nobody writes to the memory behind it: a read-only view shows what its owner writes."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        owner = owner.base
    return owner is None or isinstance(owner, bytes)


def _grown(old: Array | None, new: Array) -> bool:
    """Whether two arrays differ in the length of their first axis only."""
    return old is not None and old.dtype == new.dtype and old.ndim == new.ndim > 0 and old.shape[1:] == new.shape[1:]


def _table(name: str, old: Array, new: Array) -> dict[str, Array]:
    """Rows gone and rows new or changed, by key: the first column. Rows of one key (parts of a group) travel together."""
    mine, theirs = np.ascontiguousarray(new[:, 0]), np.ascontiguousarray(old[:, 0])
    if (mine[1:] > mine[:-1]).all() and (theirs[1:] > theirs[:-1]).all():  # tickets: one row a key, and many of them
        place = np.searchsorted(theirs, mine)
        there = np.flatnonzero(place < len(old))
        there = there[theirs[place[there]] == mine[there]]
        stays = np.zeros(len(old), dtype=np.bool_)
        stays[place[there]] = True
        put = np.ones(len(new), dtype=np.bool_)
        put[there] = (old[place[there]] != new[there]).any(axis=1)
        found = {} if stays.all() else {f"gone/{name}": theirs[~stays]}
        return found | {f"put/{name}": new[put]} if put.any() else found
    gone = np.setdiff1d(theirs, mine)
    start, own = np.searchsorted(theirs, mine), np.searchsorted(mine, mine)
    place = start + np.arange(len(new)) - own  # the row that is the same manieth of its key
    known = place < len(old)
    known[known] = (old[place[known]] == new[known]).all(axis=1)
    known &= np.searchsorted(theirs, mine, side="right") - start == np.searchsorted(mine, mine, side="right") - own
    found = {f"gone/{name}": gone} if len(gone) else {}
    return found if known.all() else found | {f"put/{name}": new[np.isin(mine, mine[~known])]}


def _some(name: str, old: Array, new: Array) -> dict[str, Array]:
    """The entries that differ along the first axis, with those by which the array grew; or all of it."""
    if new.ndim == 0 or len(new) < len(old) or new[:1].size == 0:
        return {} if new.tobytes() == old.tobytes() and new.shape == old.shape else {f"whole/{name}": new}
    shared = new[: len(old)]
    differs = (_bytes(shared) != _bytes(old)).any(axis=1) if len(old) else np.zeros(0, dtype=np.bool_)
    index = np.concatenate([np.flatnonzero(differs), np.arange(len(old), len(new))])
    if len(index) == 0:
        return {}
    if _MOST_PART * len(index) >= len(new):
        return {f"whole/{name}": new}
    return {f"index/{name}": _small(index), f"some/{name}": new[index]}


def _small(index: Ints) -> Array:
    """Row numbers in half the bytes, where they fit."""
    return index.astype(np.uint32) if index.max() < 1 << 32 else index


def _bytes(array: Array) -> Array:
    """(n, bytes of an entry): compared as bytes, a NaN is equal to itself and -0.0 differs from 0.0."""
    return np.ascontiguousarray(array).reshape(len(array), -1).view(np.uint8)


def applied(
    header: Mapping[str, Any], arrays: Mapping[str, Array], change: Mapping[str, Any], parts: Mapping[str, Array]
) -> tuple[dict[str, Any], dict[str, Array]]:
    """(header, arrays) after the change. Writable arrays are changed in place.

    Raises KeyError, ValueError, TypeError or IndexError for a change that does not fit.
    """
    after = {name: value for name, value in header.items() if name not in change["drop"]} | change["set"]
    found = {name: array for name, array in arrays.items() if name not in change["without"]}
    for key, part in parts.items():
        kind, _, name = key.partition("/")
        if kind == "whole":
            found[name] = part
        elif kind == "at":
            _require_entries(name, found[name], parts["rows"], part)
            found[name][parts["rows"]] = part
        elif kind == "gone":
            found[name] = found[name][~np.isin(found[name][:, 0], part)]
    for key, part in parts.items():  # after what is gone
        kind, _, name = key.partition("/")
        if kind == "put":
            _require_entries(name, found[name], np.arange(len(part)), part)
            table = found[name][~np.isin(found[name][:, 0], part[:, 0])]
            table = np.concatenate([table, part])
            found[name] = table[np.argsort(table[:, 0], kind="stable")]
        elif kind == "some":
            index, old = parts[f"index/{name}"], found[name]
            _require_entries(name, old, index, part)
            length = max(len(old), int(index.max()) + 1)
            if length > len(old) + len(index):
                raise ValueError(f"{name} would grow by more entries than there are")
            grown = np.zeros((length, *old.shape[1:]), dtype=old.dtype)
            grown[: len(old)] = old
            grown[index] = part
            found[name] = grown
    return after, found


def _require_entries(name: str, old: Array, index: Array, part: Array) -> None:
    """Raise ValueError unless `part` holds one entry of `old` for each place in `index`: a smaller one would be repeated until
    it fits, be it into gigabytes, and one of another type rounded.
    """
    if index.dtype.kind not in "ui" or index.ndim != 1 or (len(index) and int(index.min()) < 0):
        raise ValueError(f"the places in {name} are no row numbers")
    if old.ndim == 0 or part.dtype != old.dtype or part.shape != (len(index), *old.shape[1:]):
        raise ValueError(f"{name} would take {part.dtype} {part.shape} at {len(index)} places of {old.dtype} {old.shape}")
