"""What a few paired seeds allow to say: a ratio and an interval, with no distribution assumed."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate from `n` pairs with the limits of its interval; the limits are NaN for a single pair."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n < 2:
            return f"{self.estimate:.2f}"
        return f"{self.estimate:.2f} [{self.low:.2f}, {self.high:.2f}]"


def paired_ratio(numerator: npt.ArrayLike, denominator: npt.ArrayLike, *, level: float = 0.95, seed: int = 0) -> Interval:
    """Geometric mean of the ratios of pairs, with a percentile bootstrap interval over the pairs.

    Up to five pairs every resample is counted once, so the interval is exact; beyond that 10,000 are drawn from `seed`. With
    three pairs or fewer the interval is the range of the ratios: honest, but little more than the list itself.

    numerator, denominator: (n,) positive, pair by pair.

    >>> print(paired_ratio([1, 2, 4], [2, 2, 2]))
    1.00 [0.50, 2.00]
    """
    over, under = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    if over.ndim != 1 or over.shape != under.shape or not len(over):
        raise ValueError(f"paired_ratio takes two lists of one length >= 1, got shapes {over.shape} and {under.shape}.")
    if not (np.isfinite(over) & np.isfinite(under) & (over > 0) & (under > 0)).all():
        raise ValueError("paired_ratio takes positive finite numbers: a ratio of anything else has no logarithm.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"paired_ratio(level=...) must be in (0, 1), got {level}.")
    logs = np.log(over) - np.log(under)
    n = len(logs)
    estimate = float(np.exp(logs.mean()))
    if n == 1:
        return Interval(estimate, float("nan"), float("nan"), n)
    if n <= 5:
        draws = np.array(list(product(range(n), repeat=n)))
    else:
        draws = np.random.default_rng(seed).integers(0, n, size=(_RESAMPLES, n))
    means = logs[draws].mean(axis=1)
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail], method="inverted_cdf")
    return Interval(estimate, float(np.exp(low)), float(np.exp(high)), n)
