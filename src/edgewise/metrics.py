"""The numbers of one step, and the running check of the prompt-entropy premise."""

from __future__ import annotations

import math

import numpy as np

from edgewise.types import Array, Floats


class StepMetrics:
    """Counts (summed over all rounds of a step) and gauges (the last value wins). Never NaN: such values are left out."""

    def __init__(self) -> None:
        self._values: dict[str, float] = {}

    def add(self, **values: float) -> None:
        """Add to counts; a name seen first starts at 0."""
        for name, value in values.items():
            if math.isfinite(value):
                self._values[name] = self._values.get(name, 0.0) + float(value)

    def set(self, **values: float) -> None:
        """Set gauges; a value that is not finite leaves the name out."""
        for name, value in values.items():
            if math.isfinite(value):
                self._values[name] = float(value)

    def get(self, name: str) -> float:
        """The value of a name, 0.0 if it was never given."""
        return self._values.get(name, 0.0)

    def as_dict(self) -> dict[str, float]:
        """A copy, sorted by name; a sum that overflowed is left out."""
        return {name: value for name, value in sorted(self._values.items()) if math.isfinite(value)}


def rank_correlation(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation of two (n,) arrays, ties at their mean rank; NaN where either is constant or n < 3.

    >>> rank_correlation(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 9.0]))
    0.8
    """
    from scipy.stats import rankdata

    if len(a) < 3:
        return math.nan
    x, y = rankdata(a), rankdata(b)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale > 0 else math.nan


_MOST_SEEN = 1 << 53
"""Groups that a run could count: far more than any, and far from where 64 bits end."""


class EntropyPremise:
    """Does high prompt entropy mean "at the learning edge" in *this* run? HIVE's stage 2 rests on it, so it is measured.

    Keeps the last `window` groups whose prompt had an entropy when it was chosen, and correlates (Spearman) the entropy with
    "the group was mixed" and with its observed pass rate. The groups are those that were rolled out, hence after any
    selection: a restricted range. The laboratory also measures it on whole pools, where it knows the exact pass rates.
    """

    def __init__(self, window: int = 2048) -> None:
        self._rows = np.full((window, 3), np.nan)
        self._seen = 0

    def add(self, entropy: Floats, mixed: Floats, pass_rate: Floats) -> None:
        """Take in (k,) groups; rows that are not finite are left out."""
        rows = np.stack([entropy, mixed, pass_rate], axis=1)
        rows = rows[np.isfinite(rows).all(axis=1)][-len(self._rows) :]
        at = (self._seen + np.arange(len(rows))) % len(self._rows)
        self._rows[at] = rows
        self._seen += len(rows)

    def correlations(self) -> dict[str, float]:
        """`entropy_mixed_corr` and `entropy_pass_corr`; names are left out while undefined (constant, under 32 groups)."""
        rows = self._rows[: min(self._seen, len(self._rows))]
        if len(rows) < 32:
            return {}
        pairs = {
            "entropy_mixed_corr": rank_correlation(rows[:, 0], rows[:, 1]),
            "entropy_pass_corr": rank_correlation(rows[:, 0], rows[:, 2]),
        }
        return {name: value for name, value in pairs.items() if math.isfinite(value)}

    def arrays(self) -> dict[str, Array]:
        """What a saved state keeps: at most `window` rows."""
        return {"premise": self._rows[: min(self._seen, len(self._rows))].copy(), "premise_seen": np.array(self._seen)}

    def restore(self, arrays: dict[str, Array]) -> None:
        """The inverse of `arrays`. Raises KeyError, TypeError or ValueError for what `arrays` does not give."""
        saved, seen = arrays["premise"], arrays["premise_seen"]
        if seen.dtype.kind != "i" or not 0 <= int(seen) < _MOST_SEEN or saved.dtype.kind != "f":
            raise ValueError(f"the premise has {saved.dtype} of {seen} groups")
        if saved.shape != (min(int(seen), len(self._rows)), 3) or not np.isfinite(saved).all():
            raise ValueError(f"the premise has {saved.shape} of {seen} groups, or some that are not finite")
        self._rows[:] = np.nan
        self._rows[: len(saved)] = saved
        self._seen = int(seen)
