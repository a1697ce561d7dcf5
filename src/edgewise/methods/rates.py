"""Pass rates of the groups that a method is asked to judge."""

from __future__ import annotations

import numpy as np

from edgewise.prediction import Visits
from edgewise.types import Floats, Groups

ROUNDING = 1e-9
"""Pass rates are compared with thresholds meant as decimals: 3/10 is not below 0.3 because 0.1 · 3 is not 0.3."""


def pass_rates(groups: Groups, correct_at: float) -> Floats:
    """(n,) share of the scored rollouts that passed, in [0, 1]; NaN where none was scored. Counts as `Visits.of` does."""
    visits = Visits.of(groups, correct_at)
    rates = np.full(len(groups), np.nan)
    rates[groups.valid.any(axis=1)] = visits.successes / visits.trials
    return rates
