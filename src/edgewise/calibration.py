"""Do predicted pass rates come true? The calibration error, and bins that put wrong predictions right.

Pure functions over groups: predicted (n,) in [0, 1], successes (n,) k in [0, trials], trials (n,) scored rollouts >= 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.prediction import Visits
from edgewise.types import Floats, Groups

_MOST = 4096  # pairs kept where a stream reports without end in one step


def calibration_error(predicted: Floats, successes: Floats, trials: npt.NDArray[Any], bins: int = 10) -> float:
    """Expected calibration error in [0, 1]: mean over rollouts of |mean prediction - pass rate| of the bin, equal widths.

    >>> round(calibration_error(np.array([0.2, 0.9]), np.array([1.0, 4.0]), np.array([4, 4])), 6)
    0.075
    """
    number = np.minimum((predicted * bins).astype(np.int64), bins - 1)
    weight = np.bincount(number, trials, bins)
    gap = np.bincount(number, trials * predicted, bins) - np.bincount(number, successes, bins)
    return float(np.abs(gap).sum() / weight.sum())


class PredictionReport:
    """The gauge `predicted_ece` of one step, beside those that the selector keeps. For people: nothing is decided by it."""

    def __init__(self) -> None:
        self._step = -1
        self._pairs = np.empty((0, 3))

    def add(self, groups: Groups, correct_at: float, step: StepView) -> None:
        """Take in finished groups; those whose ticket carries no prediction are left out."""
        if step.number != self._step:
            self._step, self._pairs = step.number, np.empty((0, 3))
        self._pairs = np.concatenate([self._pairs, prediction_pairs(groups, correct_at)])[-_MOST:]
        if len(self._pairs):
            step.gauge(predicted_ece=calibration_error(*self._pairs.T))


def prediction_pairs(groups: Groups, correct_at: float) -> Floats:
    """(m, 3) predicted pass rate, successes and trials of the groups that have a prediction and a scored rollout."""
    scored = groups.select(np.flatnonzero(groups.valid.any(axis=1)))
    visits = Visits.of(scored, correct_at)
    given = [np.nan if t.predicted_pass_rate is None else t.predicted_pass_rate for t in scored.tickets]
    pairs = np.column_stack([np.array(given, dtype=np.float64), visits.successes, visits.trials]).reshape(-1, 3)
    return np.asarray(pairs[np.isfinite(pairs[:, 0])], dtype=np.float64)


@dataclass(frozen=True)
class Calibration:
    """Predicted pass rate -> measured pass rate, by bins that rise: a step function.

    edges: (b - 1,) rising boundaries; bin j holds predictions in [edges[j-1], edges[j]).  rates: (b,) non-decreasing in [0, 1].
    """

    edges: Floats
    rates: Floats

    @classmethod
    def fit(cls, predicted: Floats, successes: Floats, trials: npt.NDArray[Any], bins: int = 8) -> Calibration:
        """Quantile bins of the predictions, their pass rates made non-decreasing by isotonic regression over rollouts.

        Equal predictions share a bin, so there may be fewer bins than asked for. Raises ConfigError without any group.
        """
        if len(predicted) == 0:
            raise ConfigError("Calibration.fit needs at least one group with a prediction and a measured pass rate, got none.")
        edges = np.unique(np.quantile(predicted, np.arange(1, bins) / bins))
        number = np.searchsorted(edges, predicted, side="right")
        used = np.unique(number)  # bins that ties emptied go to the bin below
        edges = edges[used[1:] - 1] if len(used) > 1 else np.empty(0)
        number = np.searchsorted(used, number)
        weight = np.bincount(number, trials, len(used)).astype(np.float64)
        rates = np.bincount(number, successes, len(used)) / weight
        return cls(edges, isotonic(rates, weight))

    def __call__(self, predicted: Floats) -> Floats:
        """(n,) measured pass rates of the bins in which the predictions fall."""
        return np.asarray(self.rates[np.searchsorted(self.edges, predicted, side="right")], dtype=np.float64)


def isotonic(values: Floats, weights: Floats) -> Floats:
    """(b,) the non-decreasing sequence nearest to the values in weighted squares: pool adjacent violators.

    >>> isotonic(np.array([1.0, 3.0, 2.0, 4.0]), np.array([1.0, 1.0, 3.0, 1.0])).tolist()
    [1.0, 2.25, 2.25, 4.0]
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (m1, w1, n1), (m2, w2, n2) = pools[-2:]
            pools[-2:] = [((m1 * w1 + m2 * w2) / (w1 + w2), w1 + w2, n1 + n2)]
    return np.repeat([mean for mean, _, _ in pools], [count for _, _, count in pools])
