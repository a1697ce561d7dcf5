"""What a finished group turned out to be: mixed, easy or hard; and whether its rewards vary at all.

Pure functions. The kind (was it solved?) moves beliefs; zero variance (is there anything to train on?) is the gate's business.
The two differ on purpose: rewards 0 and 0.1 without one correct answer vary, and are still hard.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgewise.types import Bools, Floats

Kinds = npt.NDArray[np.int8]

MIXED = 0
"""Some rollouts passed and some failed: the only kind that teaches by its outcome."""
EASY = 1
"""Every rollout passed."""
HARD = 2
"""No rollout passed."""


def zero_variance(values: Floats, valid: Bools, tolerance: float = 0.0) -> Bools:
    """Groups whose valid values are all the same: max - min <= tolerance.

    Never by a standard deviation: in floating point that of three rewards 0.1 is 1.4e-17, not 0.

    values: (n, G) rewards, or correct as 1/0.  valid: (n, G) which entries count.  tolerance: >= 0; 1e-8 for computed rewards.
    Returns (n,): False where no entry is valid, for nothing is known there; True where exactly one is.

    >>> zero_variance(np.array([[0.1, 0.1, 0.1], [1.0, 0.0, 1.0]]), np.ones((2, 3), dtype=bool)).tolist()
    [True, False]
    """
    low, high = _extremes(values, valid)
    constant: Bools = np.less_equal(high - low, tolerance)
    return constant


def verdict_known(valid: Bools, correct: Floats) -> Bools:
    """(n,) groups in which the verifier judged every valid rollout. A partial verdict could call a mixed group easy."""
    unjudged = valid & np.isnan(correct)
    known: Bools = np.logical_and(valid.any(axis=1), ~unjudged.any(axis=1))
    return known


def group_kinds(rewards: Floats, valid: Bools, correct: Floats, *, correct_at: float = 0.5, tolerance: float = 0.0) -> Kinds:
    """Kind of each group, over its valid rollouts: by `correct` where it is known for all of them, else by reward.

    By correct: all = easy, none = hard, else mixed. By reward: not constant = mixed; constant at `correct_at` or above = easy;
    constant below = hard.

    rewards, correct: (n, G), NaN where unknown.  valid: (n, G).
    Returns (n,) of MIXED, EASY, HARD; MIXED where no rollout is valid, so mask groups with fewer than two valid rollouts.

    >>> every = np.ones((3, 2), dtype=bool)
    >>> group_kinds(np.array([[1.0, 1.0], [0.1, 0.1], [0.0, 1.0]]), every, np.full((3, 2), np.nan)).tolist()
    [1, 2, 0]
    """
    by_verdict = verdict_known(valid, correct)
    low, high = _extremes(np.where(by_verdict[:, None], correct, rewards), valid)
    constant = high - low <= np.where(by_verdict, 0.0, tolerance)
    passed = high >= np.where(by_verdict, 0.5, correct_at)
    return np.where(constant, np.where(passed, EASY, HARD), MIXED).astype(np.int8)


def _extremes(values: Floats, valid: Bools) -> tuple[Floats, Floats]:
    """(n,) lowest and (n,) highest valid value; (NaN, NaN) where there is none, so that every comparison is False."""
    known = valid.any(axis=1)
    low = np.where(valid, values, np.inf).min(axis=1, initial=np.inf)
    high = np.where(valid, values, -np.inf).max(axis=1, initial=-np.inf)
    return np.where(known, low, np.nan), np.where(known, high, np.nan)
