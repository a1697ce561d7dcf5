"""The shuffled stream of prompts: an endless order over the pool, given by (seed, epoch), resumed from one integer.

After an edit of the data set between two runs the order goes on from `Slots`: what is shuffled is slots, and a slot is where a
prompt stands. So a prompt keeps its turn wherever its row went, a removed prompt leaves an empty slot that is passed over, and
an added one gets a new slot behind the others. The pass under way keeps its order; later passes shuffle all prompts there are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgewise.types import Array, Bools, Ints


def derived_rng(seed: int, *where: int, purpose: str) -> np.random.Generator:
    """A generator that is a function of its arguments only, so it is never saved.

    >>> a = derived_rng(7, 3, 0, purpose="accept").random()
    >>> a == derived_rng(7, 3, 0, purpose="accept").random()
    True
    """
    return np.random.default_rng([seed, *where, zlib.crc32(purpose.encode())])


def _permutation(size: int, seed: int, epoch: int) -> Ints:
    """(size,) the order of one pass."""
    order: Ints = derived_rng(seed, epoch, purpose="stream").permutation(size)
    return order


def read_only(array: Array) -> Array:
    """The array, or a copy of a view, that raises on write: it is saved at every commit and need not be compared each time."""
    owned = array if array.base is None else array.copy()  # of a view the owner could still be written to
    owned.flags.writeable = False
    return owned


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Where each prompt stands in the stream since the data set was last edited; the default is a data set that never was.

    size: M >= 1 slots.  rows: (M,) the row in each slot, -1 where its prompt was removed; None: slot i holds row i.
    epoch: the pass in which the edit was made.  begun: position at which that pass began.
    shuffled: slots of that pass in shuffled order; the M - shuffled others follow as they are.  seed: of that order; -1: the
    run's.  counted, passed: offers and passes at the edit, from which `passes` counts on, for a pool of another size.
    """

    size: int
    rows: Array | None = None
    epoch: int = 0
    begun: int = 0
    shuffled: int = -1
    seed: int = -1
    counted: int = 0
    passed: float = 0.0

    @property
    def live(self) -> Ints:
        """(N,) rows of all prompts there are, by slot."""
        return np.arange(self.size, dtype=np.int64) if self.rows is None else self.rows[self.rows >= 0].astype(np.int64)

    @property
    def prompts(self) -> int:
        """N: prompts there are."""
        return self.size if self.rows is None else int(np.count_nonzero(self.rows >= 0))

    def order(self, seed: int, epoch: int) -> Ints:
        """The rows of one pass in their order; -1 for empty slots, which only the pass of the edit has. seed: the run's."""
        if self.rows is None:
            return _permutation(self.size, seed, epoch)
        if epoch > self.epoch:
            return self.live[_permutation(self.prompts, seed, epoch)]
        return np.asarray(self.rows[self._places(seed)], dtype=np.int64)

    def _places(self, seed: int) -> Ints:
        """(M,) slots in the order of the pass of the edit."""
        shuffled = self.size if self.shuffled < 0 else self.shuffled
        first = _permutation(shuffled, self.seed if self.seed >= 0 else seed, self.epoch)
        return np.concatenate([first, np.arange(shuffled, self.size, dtype=np.int64)])

    def where(self, position: int, prompts: int) -> tuple[int, int]:
        """(pass, place in it) of a position of the stream. prompts: N."""
        since = position - self.begun
        if since < self.size:
            return self.epoch, since
        later, place = divmod(since - self.size, prompts)
        return self.epoch + 1 + later, place

    def passes(self, offers: int, prompts: int) -> float:
        """Passes over the pool that so many offers make, of which `counted` were made before the edit. prompts: N."""
        return self.passed + (offers - self.counted) / prompts

    def edited(self, at: Ints, offered: Ints, *, position: int, offers: int, seeds: tuple[int, int]) -> Edited:
        """The slots after an edit.

        at: (N,) row that each prompt of the new pool had in the old one, -1 for added ones.
        offered: (N,) slot of an added prompt that was here earlier in this very pass and had its turn in it, else -1.
        position, offers: of the stream.  seeds: the run's so far, and from now on.
        """
        was, now = seeds
        prompts, rows = self.prompts, (np.arange(self.size) if self.rows is None else self.rows.astype(np.int64))
        epoch, place = self.where(position, prompts)
        same_pass = epoch == self.epoch and place > 0
        begun, seed, shuffled, numbered = position - place, was, prompts, rows >= 0
        if same_pass:  # slots keep their numbers while a pass is under way: they are what it goes by
            seed = self.seed if self.seed >= 0 else was
            shuffled, numbered = (self.size if self.shuffled < 0 else self.shuffled), np.ones(self.size, dtype=np.bool_)
        rows = rows[numbered]
        known, back = at >= 0, (offered >= 0) & same_pass & (at < 0)
        moved = np.full(prompts, -1, dtype=np.int64)
        moved[at[known]] = np.flatnonzero(known)
        slot_of = np.full(prompts, -1, dtype=np.int64)
        slot_of[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        after = np.where(rows >= 0, moved[rows], -1)
        if (after[offered[back]] >= 0).any():
            raise ValueError("a prompt that comes back finds another in its slot")
        after[offered[back]] = np.flatnonzero(back)
        added = derived_rng(now, epoch, len(after), purpose="added").permutation(np.flatnonzero(~known & ~back))
        had_turn = np.zeros(len(rows), dtype=np.bool_)
        if place == 0:  # nothing of this pass was drawn: it may as well shuffle everybody, by the new seed
            after, seed, shuffled = after[after >= 0], now, len(at)
        elif same_pass:
            had_turn[self._places(was)[:place]] = True
        else:
            had_turn[_permutation(prompts, was, epoch)[:place]] = True
        after = np.concatenate([after, added])
        counted, passed = self.counted, self.passed
        if len(at) != prompts:  # with as many prompts as before the count goes on to the last bit
            counted, passed = offers, self.passes(offers, prompts)
        slots = Slots(
            size=len(after), rows=read_only(after.astype(np.int32)), epoch=epoch, begun=begun, shuffled=shuffled,
            seed=-1 if seed == now else seed, counted=counted, passed=passed,
        )  # fmt: skip
        turns = np.where(had_turn[slot_of], slot_of, -1)
        return Edited(slots, turns, same_pass)

    def arrays(self) -> dict[str, Array]:
        """What a saved state keeps; nothing for a data set that was never edited. 4 bytes a slot."""
        if self.rows is None:
            return {}
        numbers = [self.epoch, self.begun, self.shuffled, self.seed, self.counted]
        return {
            "stream_slots": self.rows,
            "stream_edit": np.array(numbers, dtype=np.int64),
            "stream_passed": np.array([self.passed]),
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, Array], prompts: int, position: int) -> Slots:
        """The inverse, for a pool of `prompts`. Raises KeyError, or ValueError for what no stream writes."""
        if "stream_slots" not in arrays:
            return cls(prompts)
        rows, numbers, passed = (arrays[f"stream_{name}"] for name in ("slots", "edit", "passed"))
        if rows.ndim != 1 or rows.dtype != np.int32 or not np.array_equal(np.sort(rows[rows >= 0]), np.arange(prompts)):
            raise ValueError(f"the slots of the stream must hold each of {prompts} prompts once")
        if numbers.shape != (5,) or numbers.dtype != np.int64 or passed.shape != (1,) or passed.dtype != np.float64:
            raise ValueError("the numbers of the stream have another shape")
        epoch, begun, shuffled, seed, counted = numbers.tolist()
        if min(epoch, begun, shuffled, counted) < 0 or seed < -1 or begun > position or shuffled > len(rows):
            raise ValueError(f"the stream cannot be at position {position} after an edit at {numbers.tolist()}")
        if not 0.0 <= float(passed[0]) < 2.0**53:
            raise ValueError(f"there are no {passed[0]} passes over the pool")
        return cls(
            size=len(rows), rows=read_only(rows), epoch=epoch, begun=begun, shuffled=shuffled, seed=seed, counted=counted,
            passed=float(passed[0]),
        )  # fmt: skip


class Edited(NamedTuple):
    """Slots after an edit.

    turns: (old N,) slot of each prompt of the old pool that had its turn in the pass under way, else -1; for those that left.
    same_pass: whether slots that were kept of prompts that left before still hold.
    """

    slots: Slots
    turns: Ints
    same_pass: bool


class PromptStream:
    """Epoch after epoch of the pool, each in its own shuffled order. `position` is all that moves; `slots` stay between edits.

    The order of one epoch is a permutation drawn once an epoch (4 bytes a prompt); a draw touches only what it returns
    and the blocked rows it passes over.
    """

    def __init__(self, pool_size: int, seed: int) -> None:
        self.pool_size = pool_size
        self.seed = seed
        self.position = 0
        self._slots = Slots(pool_size)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int32)

    @property
    def slots(self) -> Slots:
        """Where each prompt stands."""
        return self._slots

    def become(self, position: int, slots: Slots) -> None:
        """Go on from a saved position."""
        self.position, self._slots, self._epoch = position, slots, -1

    @property
    def epoch(self) -> int:
        """Passes over the pool begun so far, minus one; from 0."""
        return self._slots.where(self.position, self.pool_size)[0]

    def passes(self, requested: int) -> float:
        """Passes over the pool so far: prompts offered, or `requested` where that is more, over its size."""
        return self._slots.passes(max(self.position, requested), self.pool_size)

    def draw(self, n: int, blocked: Bools) -> Ints:
        """The next `n` rows that are not blocked, and block them.

        blocked: (N,) live mask, written at the rows returned; the caller guarantees at least `n` unblocked rows.
        Rows passed over because they were blocked wait for the next epoch.
        """
        taken: list[Ints] = []
        missing = n
        while missing > 0:
            epoch, start = self._slots.where(self.position, self.pool_size)
            block = self._order_of(epoch)[start : start + missing].astype(np.int64)
            self.position += len(block)
            block = block[block >= 0]
            free = block[~blocked[block]]
            blocked[free] = True
            taken.append(free)
            missing -= len(free)
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._order = self._slots.order(self.seed, epoch).astype(np.int32)
            self._epoch = epoch
        return self._order
