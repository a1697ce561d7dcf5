"""The streak belief of GRESO and HIVE: how often in a row a prompt's groups came out all right or all wrong.

19 bytes a prompt. The papers keep each prompt's whole trace, but only its trailing run enters any formula [HIVE B.3], so
(streak, kind) is sufficient.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from edgewise.beliefs.entropy_range import EntropyRange
from edgewise.errors import StateMismatchError
from edgewise.kinds import EASY, HARD, MIXED, Kinds
from edgewise.types import Array, Bools, Floats, Ints

_FLAT_NATS = 1e-6  # a range narrower than this ranks nobody
_ENTROPY_EPSILON = 1e-8  # ε of s_ent; the paper names no value


def streak_score(streaks: npt.NDArray[np.integer], kinds: Kinds, p_easy: float, p_hard: float, floor: float) -> Floats:
    """s_rew = max(p_kind ** streak, floor): the chance that a prompt with such a run is worth another look. [HIVE §3, B.3]

    streaks: (n,) >= 0.  kinds: (n,).  p_easy, p_hard: in (0, 1].  floor: ε_p in [0, 1].
    Returns (n,) in [floor, 1]: 1 for a prompt without a run.

    >>> streak_score(np.array([0, 1, 3, 7]), np.array([0, 1, 1, 2], dtype=np.int8), 0.5, 0.5, 0.01).tolist()
    [1.0, 0.5, 0.125, 0.01]
    """
    base = np.where(kinds == EASY, p_easy, np.where(kinds == HARD, p_hard, 1.0))
    return np.asarray(np.maximum(base ** streaks.astype(np.float64), floor), dtype=np.float64)


class StreakBelief:
    """Visits, current run and last response entropy of each prompt.

    Live arrays over the pool; write only through `observe` and `restore`.
      visits (N,) groups learned from.  streak (N,) length of the trailing run of one kind.  kind (N,) its kind; MIXED = none.
      entropy (N,) last response entropy in nats, NaN if never measured.  version (N,) policy version of the last visit, or -1.
    """

    def __init__(self, size: int, *, entropy_tail: float = 0.0) -> None:
        self.visits = np.zeros(size, dtype=np.uint32)
        self.streak = np.zeros(size, dtype=np.uint16)
        self.kind: Kinds = np.zeros(size, dtype=np.int8)
        self.entropy = np.full(size, np.nan, dtype=np.float32)
        self.version = np.full(size, -1, dtype=np.int64)
        self._visited = 0
        self._range = EntropyRange(self.entropy, entropy_tail)

    @property
    def never_visited(self) -> int:
        """Prompts without a single learned group."""
        return len(self.visits) - self._visited

    def seen(self, rows: Ints) -> Bools:
        """(n,) True where a group was learned from before."""
        return np.asarray(self.visits[rows] > 0)

    def observe(self, rows: Ints, kinds: Kinds, entropies: Floats, versions: Ints) -> None:
        """Learn the kind of finished groups: mixed ends a run, the same kind lengthens it, the other kind starts one.

        rows: (n,); a row that comes twice counts twice, in order.  kinds: (n,).
        entropies: (n,) nats; NaN or negative = not measured, the last known value stays.
        versions: (n,) policy versions that generated them.
        """
        for part in _distinct(rows):
            self._observe_distinct(rows[part], kinds[part], entropies[part], versions[part])

    def _observe_distinct(self, rows: Ints, kinds: Kinds, entropies: Floats, versions: Ints) -> None:
        run = self.streak[rows]
        longer = np.minimum(run, np.iinfo(np.uint16).max - 1) + 1
        same = kinds == self.kind[rows]
        self.streak[rows] = np.where(kinds == MIXED, 0, np.where(same, longer, 1))
        self.kind[rows] = kinds
        self._visited += int((self.visits[rows] == 0).sum())
        self.visits[rows] += 1
        self.version[rows] = versions
        measured = np.isfinite(entropies) & (entropies >= 0.0)
        where, new = rows[measured], entropies[measured].astype(np.float32)
        self._range.replaced(self.entropy[where], new)
        self.entropy[where] = new

    def entropy_score(self, rows: Ints) -> Floats:
        """s_ent = (H - H_min) / (H_max - H_min): where in the pool's range a prompt's last response entropy lies. [HIVE §3]

        Returns (n,) in [0, 1], NaN where never measured; 1 while the range is flat, for then it ranks nobody.
        """
        entropy = self.entropy[rows].astype(np.float64)
        bounds = self._range.bounds()
        if bounds is None:
            return entropy
        low, high = bounds
        if high - low < _FLAT_NATS:
            return np.where(np.isnan(entropy), np.nan, 1.0)
        return np.clip((entropy - low) / (high - low + _ENTROPY_EPSILON), 0.0, 1.0)

    def acceptance(self, rows: Ints, *, p_easy: float, p_hard: float, floor: float, reward_weight: float = 1.0) -> Floats:
        """P = λ·s_rew + (1-λ)·s_ent, the chance that stage 1 lets each prompt pass. A read. [HIVE §3]

        reward_weight: λ in [0, 1]. Below 1 the floor holds for P itself, so that no prompt is lost for ever; a prompt that was
        never visited has P = 1, one without an entropy P = s_rew.
        Returns (n,) in [floor, 1].
        """
        by_reward = streak_score(self.streak[rows], self.kind[rows], p_easy, p_hard, floor)
        if reward_weight == 1.0:
            return by_reward
        by_entropy = self.entropy_score(rows)
        blended = np.maximum(reward_weight * by_reward + (1.0 - reward_weight) * by_entropy, floor)
        return np.where(self.seen(rows), np.where(np.isnan(by_entropy), by_reward, blended), 1.0)

    def state(self) -> dict[str, Array]:
        """The live arrays by name."""
        return {
            "visits": self.visits, "streak": self.streak, "kind": self.kind, "entropy": self.entropy, "version": self.version,
        }  # fmt: skip

    def restore(self, arrays: dict[str, Array]) -> None:
        """Become what gave `arrays`. Raises StateMismatchError, changing nothing, if one is missing or has another shape."""
        live = self.state()
        for name, array in live.items():
            got = arrays[name].shape if name in arrays else "nothing"
            if got != array.shape:
                raise StateMismatchError(
                    f"StreakBelief.restore: {name!r} must have shape {array.shape}, got {got}. Use a state of this pool."
                )
        for name, array in live.items():
            array[...] = arrays[name]
        self._visited = int(np.count_nonzero(self.visits))
        self._range.forget()


def _distinct(rows: Ints) -> Iterator[Ints]:
    """Positions of `rows`, in parts within which every row is distinct: all first appearances, all second ones, and so on."""
    count = len(rows)
    order = np.argsort(rows, kind="stable")
    place = np.arange(count)
    first = np.ones(count, dtype=np.bool_)
    first[1:] = rows[order][1:] != rows[order][:-1]
    nth = np.empty(count, dtype=np.int64)
    nth[order] = place - np.maximum.accumulate(np.where(first, place, 0))
    for n in range(int(nth.max(initial=-1)) + 1):
        yield np.flatnonzero(nth == n)
