"""How many samples each test prompt gets, so that most prompts are solved at least once: pass@k under a budget.

    one more sample after c of them solves a prompt of pass rate p for the first time with chance     D(c) = p (1-p)^c
    under a Beta belief                                                                               D(c) = E[p (1-p)^c]

D falls with c, so giving the next sample to the largest D is the exact optimum of the mean pass@k (`allocators.greedy`).
Source: the binning and the marginal rule are those of GPS, arXiv 2602.01970 (eq. 22, 23, after arXiv 2410.04707), as reported;
the rest is ours. Pure functions over n prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewise.allocators import greedy, hora
from edgewise.errors import ConfigError
from edgewise.prediction import Prediction
from edgewise.types import Floats, Ints


def pass_gains(rates: Floats, most: int) -> Floats:
    """(n, most) chance that sample c+1 is the first success: p(1-p)^c. rates: (n,) in [0, 1], taken for certain.

    >>> pass_gains(np.array([0.5, 1.0]), 3).tolist()
    [[0.5, 0.25, 0.125], [1.0, 0.0, 0.0]]
    """
    p = np.asarray(rates, dtype=np.float64)[:, None]
    return np.asarray(p * (1.0 - p) ** np.arange(most), dtype=np.float64)


def believed_gains(alpha: Floats, beta: Floats, most: int) -> Floats:
    """(n, most) the same under Beta(α, β) beliefs: E[p(1-p)^c]. An unsure prompt keeps its chances longer than a known one.

    >>> believed_gains(np.array([1.0]), np.array([1.0]), 3).round(6).tolist()
    [[0.5, 0.166667, 0.083333]]
    """
    return hora(Prediction.of_beta(alpha, beta), most)


@dataclass(frozen=True)
class Allocation:
    """samples: (n,) of each prompt.  solved: (n,) expected chance that at least one succeeds, in [0, 1]."""

    samples: Ints
    solved: Floats


def allocate(gains: Floats, budget: int, low: int, high: int) -> Allocation:
    """The samples that maximise the mean chance to solve, exactly.

    gains: (n, >= high), non-increasing along rows.  budget: samples in all.  low, high: fewest and most of one prompt.
    Raises ConfigError where the budget does not fit between n·low and n·high.

    >>> allocate(pass_gains(np.array([0.9, 0.5, 0.1, 0.02]), 12), budget=12, low=1, high=12).samples.tolist()
    [2, 4, 5, 1]
    """
    return spent(gains, greedy(gains[:, :high], budget, low, high))


def spent(gains: Floats, samples: Ints) -> Allocation:
    """What this many samples (n,) of each prompt come to."""
    within = np.arange(gains.shape[1]) < samples[:, None]
    return Allocation(samples, np.where(within, gains, 0.0).sum(axis=1))


def uniform(gains: Floats, budget: int, high: int) -> Allocation:
    """The same for every prompt; what does not divide goes one each to the first ones. At most `high` each."""
    count = len(gains)
    samples = np.full(count, budget // count, dtype=np.int64)
    samples[: budget - int(samples.sum())] += 1
    return spent(gains, np.minimum(samples, high))


def budget_to_match(gains: Floats, each: int, low: int, high: int) -> int:
    """The fewest samples in all whose best allocation solves as much as `each` samples of every prompt. At most n·each.

    Raises ConfigError unless low <= each <= high: outside, the uniform allocation is no candidate.
    """
    if not low <= each <= high:
        raise ConfigError(
            f"budget_to_match(each=...) must lie between the fewest and the most samples of a prompt ({low} and {high}), got "
            f"{each}."
        )
    goal = float(gains[:, :each].sum())
    base = float(gains[:, :low].sum())
    extra = np.sort(gains[:, low:high], axis=None)[::-1]
    reached = base + np.concatenate([[0.0], np.cumsum(extra)])
    needed = int(np.searchsorted(reached, goal - 1e-12 * max(goal, 1.0)))
    return len(gains) * low + min(needed, len(extra))
