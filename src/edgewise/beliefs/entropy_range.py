"""H_min and H_max over all prompts that have a response entropy, kept at a cost that follows the batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_BINS = 4096
_BIN_NATS = 1.0 / 256.0  # 4096 bins reach 16 nats; a vocabulary of 250,000 has at most 12.5


class EntropyRange:
    """The range of a live array of entropies: its extremes, or the quantiles at `tail` and 1 - `tail`.

    A cache and nothing else: everything here is a function of the array, so it is never saved. Extremes are exact and move with
    each batch; the array is read as a whole only when an extreme value was itself replaced. Quantiles come from a histogram of
    4,096 bins and are true to 1/256 nat.

    entropies: (N,) live, NaN where never measured; the owner tells of every write.  tail: in [0, 0.5); 0 = extremes.
    """

    def __init__(self, entropies: npt.NDArray[np.float32], tail: float = 0.0) -> None:
        self._entropies = entropies
        self._tail = tail
        self._extremes: tuple[float, float] | None = None
        self._counts: npt.NDArray[np.int64] | None = None

    def forget(self) -> None:
        """The array changed as a whole (a restore)."""
        self._extremes = None
        self._counts = None

    def replaced(self, old: npt.NDArray[np.float32], new: npt.NDArray[np.float32]) -> None:
        """Entries went from `old` (n,) (NaN = not measured before) to `new` (n,) finite values."""
        measured = old[np.isfinite(old)]
        if self._counts is not None:
            self._counts -= _histogram(measured)
            self._counts += _histogram(new)
        if self._extremes is not None and len(new):
            low, high = self._extremes
            if np.any(measured <= low) or np.any(measured >= high):
                self._extremes = None
            else:
                self._extremes = min(low, float(new.min())), max(high, float(new.max()))

    def bounds(self) -> tuple[float, float] | None:
        """(low, high) in nats; None while no prompt has an entropy."""
        return self._quantiles() if self._tail > 0.0 else self._exact()

    def _exact(self) -> tuple[float, float] | None:
        if self._extremes is None:
            measured = self._entropies[np.isfinite(self._entropies)]
            if len(measured) == 0:
                return None
            self._extremes = float(measured.min()), float(measured.max())
        return self._extremes

    def _quantiles(self) -> tuple[float, float] | None:
        if self._counts is None:
            self._counts = _histogram(self._entropies[np.isfinite(self._entropies)])
        below = np.cumsum(self._counts)
        total = int(below[-1])
        if total == 0:
            return None
        ranks = np.array([self._tail, 1.0 - self._tail]) * (total - 1)
        low, high = (np.searchsorted(below, ranks, side="right") + 0.5) * _BIN_NATS
        return float(low), float(high)


def _histogram(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    bins = np.clip(values / _BIN_NATS, 0, _BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=_BINS)
