"""Which angle to aim at next: the paced target of ARCUS. Pure functions. [arXiv 2609.38018, eq. 4, 5 and App. D]

    s = κ ŷ       κ = √(σ²/(σ²+P)) · e^(-(μ-ψ*)²/(2(σ²+P))),  σ = min(sin ψ*, cos ψ*)/√2
    π = min(1, c·s^(1/T)) with Σπ = M              chances that M draws without replacement roughly give
    Ŷ(ψ*) = Σ πŷ / M                                mixed groups per group asked for, were ψ* the target
    target = the smallest ψ* with Ŷ(ψ*) >= max Ŷ - 0.03

It aims as hard as it can without losing yield. κ is the mean of e^(-(ψ-ψ*)²/2σ²) under the belief: 1 for a sure hit.
"""

from __future__ import annotations

import math

import numpy as np

from edgewise.types import Floats


def target_grid(group_size: int, count: int = 41) -> Floats:
    """(count,) angles from arcsin(1/√(2G)) to its complement, rising. group_size: G >= 2."""
    least = math.asin(1.0 / math.sqrt(2.0 * group_size))
    return np.linspace(least, math.pi / 2.0 - least, count)


def closeness(mean: Floats, variance: Floats, target: float) -> Floats:
    """κ: how much of each belief lies near the target. mean, variance: (n,) μ and P.  target: ψ* in (0, π/2).

    Returns (n,) in [0, 1].

    >>> closeness(np.array([math.pi / 4]), np.array([math.pi**2 / 48]), math.pi / 4).round(10).tolist()
    [0.7407474403]
    """
    width = min(math.sin(target), math.cos(target)) ** 2 / 2.0
    total = width + variance
    return np.sqrt(width / total) * np.exp(-((mean - target) ** 2) / (2.0 * total))


def inclusion(weights: Floats, draws: int) -> Floats:
    """(n,) π = min(1, c·w) with Σπ = draws; 1 for every weight above 0 where there are no more of these than draws.

    The paper's bisection for c, solved exactly: with the k largest at 1, c = (draws - k) / Σ of the others; the smallest k for
    which that leaves nobody above 1 is right. weights: (n,) >= 0.  draws: M >= 1. Costs one partial sort of n.

    >>> inclusion(np.array([8.0, 1.0, 1.0, 0.0]), 2).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    positive = weights > 0.0
    if np.count_nonzero(positive) <= draws:
        return positive.astype(np.float64)
    split = np.partition(weights, len(weights) - draws)
    largest = np.sort(split[len(weights) - draws :])[::-1]
    rest = np.cumsum(largest[::-1])[::-1] + split[: len(weights) - draws].sum()  # Σ of all but the k largest, k = 0 … M-1
    scales = (draws - np.arange(draws)) / rest
    fits = scales * largest <= 1.0
    scale = scales[int(np.argmax(fits))] if fits.any() else scales[-1]
    return np.asarray(np.minimum(1.0, scale * weights), dtype=np.float64)


def expected_yield(mean: Floats, variance: Floats, mixed: Floats, target: float, draws: int, temperature: float) -> float:
    """Ŷ: mixed groups expected per group asked for, in [0, 1], when `draws` are drawn at that target.

    mean, variance: (n,) μ and P.  mixed: (n,) ŷ.  target: ψ*.  draws: M.  temperature: T > 0.
    """
    scores = closeness(mean, variance, target) * mixed
    weights = (scores / max(float(scores.max()), 1e-300)) ** (1.0 / temperature)  # of the best: at a low T all would be 0 else
    return float(inclusion(weights, draws) @ mixed) / draws


def paced_target(
    mean: Floats, variance: Floats, mixed: Floats, *, group_size: int, draws: int, temperature: float, slack: float
) -> float:
    """The smallest angle of the grid whose expected yield is within `slack` of the best. mean, variance, mixed: (n,)."""
    grid = target_grid(group_size)
    yields = np.array([expected_yield(mean, variance, mixed, target, draws, temperature) for target in grid.tolist()])
    return float(grid[int(np.argmax(yields >= yields.max() - slack))])
