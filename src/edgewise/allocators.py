"""How many rollouts each chosen prompt gets: the exact optimum of a concave objective under a budget.

    maximise  Σ_i V_i(n_i)    where  Σ_i n_i = R  and  L_i <= n_i <= U_i

If the gain of one more rollout, Δ_i(n) = V_i(n+1) - V_i(n), never rises with n, then handing out rollouts one at a time, each
to the largest gain, is optimal: were a rollout better placed elsewhere, exchanging the two would lose nothing. That is the same
as taking the R - ΣL largest entries of the table of gains, which needs no loop.

    objective        V(n)                                      Δ(n)                               non-increasing from
    mixed_at_rate    1 - pⁿ - qⁿ                               pⁿq + qⁿp                          0
    knapsack         (1 - pⁿ - qⁿ) · pq²                       pq² (pⁿq + qⁿp)                    0
    expected_mixed   E[1 - pⁿ - qⁿ], p ~ Beta(α, β)            E[pⁿq] + E[qⁿp]                    0
    information      I(n outcomes; p), p ~ Beta(α, β), nats    Σ_s P_n(s) I_1(α+s, β+n-s)         0
    hora             P(at least one success), p ~ Beta(α, β)   E[qⁿp]                             0
    vip_loo          -4pq / (n-1)                              4pq / (n(n-1))                     2
    cures            -pq / n                                   pq / (n(n+1))                      1

Sources: mixed_at_rate is the common yardstick; knapsack arXiv 2509.25849; expected_mixed is MaPP's V_G, arXiv 2609.34990;
information is InSight's, arXiv 2603.01907; hora arXiv 2605.07114; vip_loo arXiv 2602.01601 with a leave-one-out baseline;
cures arXiv 2510.01037 at equal gradient norms. VIP with the mean as baseline is not concave below n = 3 and not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgewise.errors import ConfigError, nearest
from edgewise.prediction import Prediction
from edgewise.types import Floats, Ints

_RISE = 1e-9
"""A gain may rise by this share of itself from one rollout to the next: rounding, flattened before use."""


# -- the optimum -------------------------------------------------------------------------------------------------------


def greedy(gains: Floats, budget: int, low: int | Ints, high: int | Ints) -> Ints:
    """The rollouts that maximise the sum of gains under the budget. Exact; costs O(cells) and no loop.

    Equal gains go to the prompt with fewer rollouts, then to the earlier row: hand rows over in an order that means nothing, or
    best first.

    gains: (n, width), column c = gain of one more rollout for a prompt that has c; non-increasing over [low, high) of its row.
    budget: R.  low, high: (n,) or one number, 0 <= low <= high <= width.
    Returns (n,) whole numbers in [low, high] that sum to the budget.
    Raises ConfigError: gains that rise or are NaN (names the row), bounds out of order, or Σlow > R or Σhigh < R (names both).

    >>> greedy(np.array([[9.0, 5.0, 1.0], [8.0, 2.0, 1.0]]), budget=4, low=1, high=3).tolist()
    [2, 2]
    """
    count, width = gains.shape
    least, most = _bounds(count, budget, low, high)
    if count and int(most.max()) > width:
        raise ConfigError(f"greedy(gains=...) must have a column for every rollout below high, got {width} for {most.max()}.")
    columns = np.arange(width)
    open_ = (least[:, None] <= columns) & (columns < most[:, None])
    steady = _non_increasing(gains, open_)
    extra = budget - int(least.sum())
    if extra == 0:
        return least
    cells = open_.T  # by column, then row: the order in which ties are settled
    rows = np.broadcast_to(np.arange(count), cells.shape)[cells]
    values = steady.T[cells]
    last = np.partition(values, len(values) - extra)[len(values) - extra]  # the smallest gain that is still taken
    taken = values > last
    tied = np.flatnonzero(values == last)
    taken[tied[: extra - int(taken.sum())]] = True
    return least + np.bincount(rows[taken], minlength=count)


def largest_remainder(shares: Floats, budget: int, low: int | Ints, high: int | Ints) -> Ints:
    """Rollouts as proportional to the shares as bounds and whole numbers allow: for shares without an objective.

    The real solution clip(c · share, low, high) with the c that meets the budget, rounded down; what is left goes one each to
    the largest fractions, the earlier row first. Rows of share 0 get more than `low` only when all others are full.

    shares: (n,) finite, >= 0.  budget, low, high: as in `greedy`.
    Returns (n,) whole numbers in [low, high] that sum to the budget. Raises ConfigError as `greedy`, and for a bad share.

    >>> largest_remainder(np.array([1.0, 1.0, 2.0]), budget=9, low=1, high=9).tolist()
    [2, 2, 5]
    """
    least, most = _bounds(len(shares), budget, low, high)
    wrong = np.flatnonzero(~(np.isfinite(shares) & (shares >= 0.0)))
    if len(wrong):
        raise ConfigError(
            f"largest_remainder(shares=...) must be finite and at least 0, got {shares[wrong[0]]} in row {wrong[0]} "
            f"({len(wrong)} of {len(shares)} rows). Use 0 for a prompt that should get no more than its floor."
        )
    if len(shares) == 0:
        return least
    top = float(shares.max())
    relative = np.maximum(shares / top, 1e-12) if top > 0.0 else np.ones(len(shares))
    exact = np.clip(_level(relative, float(budget), least, most) * relative, least, most)
    whole = np.floor(exact + 1e-9).astype(np.int64)  # 2.9999999999 is 3
    rest = budget - int(whole.sum())
    fractions = np.where(whole < most, exact - whole, -1.0)
    whole[np.argsort(-fractions, kind="stable")[: max(rest, 0)]] += 1
    return whole


def _level(shares: Floats, budget: float, low: Ints, high: Ints) -> float:
    """The c at which Σ clip(c · share, low, high) = budget: found between the two kinks around it, where the sum is linear."""
    kinks = np.unique(np.concatenate([low / shares, high / shares]))
    sums = np.clip(kinks[:, None] * shares, low, high).sum(axis=1)
    return float(np.interp(budget, sums, kinks))


def _bounds(count: int, budget: int, low: int | Ints, high: int | Ints) -> tuple[Ints, Ints]:
    """(n,) lower and (n,) upper bounds, checked. Raises ConfigError."""
    least = np.array(np.broadcast_to(low, (count,)), dtype=np.int64)
    most = np.array(np.broadcast_to(high, (count,)), dtype=np.int64)
    wrong = np.flatnonzero((least < 0) | (most < least))
    if len(wrong):
        i = wrong[0]
        raise ConfigError(f"allocators: bounds must obey 0 <= low <= high, got low {least[i]} and high {most[i]} in row {i}.")
    floors, caps = int(least.sum()), int(most.sum())
    if not floors <= budget <= caps:
        raise ConfigError(
            f"allocators: the budget must lie between the sum of the floors and the sum of the caps, got a budget of {budget} "
            f"for floors that sum to {floors} and caps that sum to {caps} ({count} prompts). Lower the floor or raise the cap."
        )
    return least, most


def _non_increasing(gains: Floats, open_: npt.NDArray[np.bool_]) -> Floats:
    """The gains with rounding flattened, inf outside [low, high). Raises ConfigError for a row that rises or holds NaN."""
    seen = np.where(open_, gains, np.inf)
    flat: Floats = np.minimum.accumulate(seen, axis=1) if seen.size else seen
    with np.errstate(invalid="ignore"):  # inf - inf is no rise
        rises = open_ & (np.isnan(gains) | (gains - flat > _RISE * np.abs(flat)))
    wrong = np.flatnonzero(rises.any(axis=1))
    if len(wrong):
        row = int(wrong[0])
        column = int(np.flatnonzero(rises[row])[0])
        raise ConfigError(
            f"greedy(gains=...) must not rise with the number of rollouts, or the greedy choice is not the best; row {row} has "
            f"{gains[row, column]} after {flat[row, max(column - 1, 0)]} at {column} rollouts ({len(wrong)} of {len(gains)}). "
            "Raise the floor to where the objective is concave."
        )
    return flat


# -- objectives: (n,) beliefs -> (n, most) gains, column c = V(c+1) - V(c) -----------------------------------------------


def mixed_at_rate(believed: Prediction, most: int) -> Floats:
    """Gains in P(mixed group) at the mean pass rate: pⁿq + qⁿp. In [0, 1], and 1 at n = 0, where V jumps from -1 to 0."""
    p, n = believed.mean[:, None], np.arange(most)
    q = 1.0 - p
    return np.asarray(p**n * q + q**n * p)


def knapsack(believed: Prediction, most: int) -> Floats:
    """Gains in P(mixed group) · pq², the value of Knapsack RL: pq² (pⁿq + qⁿp). 0 at pass rates 0 and 1. In [0, 4/27]."""
    p = believed.mean[:, None]
    return p * (1.0 - p) ** 2 * mixed_at_rate(believed, most)


def expected_mixed(believed: Prediction, most: int) -> Floats:
    """Gains in the expected P(mixed group) under the Beta belief: E[pⁿq] + E[qⁿp]. In [0, 1]; all terms positive."""
    alpha, beta = believed.as_beta()
    return _then_other(alpha, beta, most) + _then_other(beta, alpha, most)


def hora(believed: Prediction, most: int) -> Floats:
    """Gains in P(at least one success in n) under the Beta belief: E[qⁿp] = B(α, β+n)/B(α, β) · α/(α+β+n). In [0, 1]."""
    alpha, beta = believed.as_beta()
    return _then_other(beta, alpha, most)


def _then_other(alpha: Floats, beta: Floats, most: int) -> Floats:
    """(n, most) probability of c successes in a row, then a failure, c = 0 … most-1, under Beta(α, β)."""
    c = np.arange(most)
    a, b, seen = alpha[:, None], beta[:, None], (alpha + beta)[:, None] + c
    run = np.ones((len(alpha), most))
    run[:, 1:] = np.cumprod((a + c[:-1]) / seen[:, :-1], axis=1)  # E[pᶜ] = Π_{j<c} (α+j)/(n₀+j)
    return np.asarray(run * b / seen)


def information(believed: Prediction, most: int) -> Floats:
    """Gains in mutual information, nats, of n outcomes with the Beta belief: I_{n+1} - I_n = Σ_s P_n(s) I_1(α+s, β+n-s).

    By the chain rule instead of a difference of two nearly equal numbers: every term is positive. Costs O(n · most²).
    """
    alpha, beta = believed.as_beta()
    gains = np.empty((len(alpha), most))
    a, b = alpha[:, None], beta[:, None]
    chances = np.ones((len(alpha), 1))  # P_n(s), s = 0 … n
    for n in range(most):
        s = np.arange(n + 1)
        gains[:, n] = (chances * _coin_information(a + s, b + (n - s))).sum(axis=1)
        up = chances * (a + s) / (a + b + n)
        down = chances * (b + (n - s)) / (a + b + n)
        chances = np.pad(up, ((0, 0), (1, 0))) + np.pad(down, ((0, 0), (0, 1)))
    return gains


def _coin_information(alpha: Floats, beta: Floats) -> Floats:
    """I_1 in nats: what one outcome tells of p ~ Beta(α, β): mδ(α) + (1-m)δ(β) - δ(n₀), δ(x) = ψ(x+1) - ln x."""
    evidence = alpha + beta
    mean = alpha / evidence
    return np.asarray(mean * _digamma_excess(alpha) + beta / evidence * _digamma_excess(beta) - _digamma_excess(evidence))


def _digamma_excess(x: Floats) -> Floats:
    """δ(x) = ψ(x+1) - ln x, x > 0: by its series where the difference would cancel."""
    from scipy.special import digamma

    small = np.minimum(x, 50.0)
    y = 1.0 / np.maximum(x, 50.0)
    series = y / 2 - y**2 / 12 + y**4 / 120 - y**6 / 252 + y**8 / 240
    return np.where(x > 50.0, series, digamma(small + 1.0) - np.log(small))


def vip_loo(believed: Prediction, most: int) -> Floats:
    """Gains in minus the gradient variance with a leave-one-out baseline, 4pq/(n-1): 4pq/(n(n-1)). inf below n = 2."""
    n = np.arange(most, dtype=np.float64)
    return _over(4.0 * believed.mean * (1.0 - believed.mean), n * (n - 1.0))


def cures(believed: Prediction, most: int) -> Floats:
    """Gains in minus the gradient variance, pq/n, at equal gradient norms: pq/(n(n+1)). inf at n = 0."""
    return variance_gains(believed.mean * (1.0 - believed.mean), most)


def variance_gains(variances: Floats, most: int) -> Floats:
    """(n, most) gains σ²/(n(n+1)) in minus σ²/n, for any variance per rollout (n,) >= 0. inf at n = 0 where σ > 0."""
    n = np.arange(most, dtype=np.float64)
    return _over(variances, n * (n + 1.0))


def _over(scale: Floats, divisor: Floats) -> Floats:
    """(n, most) scale / divisor; where the divisor is 0, inf, or 0 for a scale of 0."""
    lacking = np.where(scale[:, None] > 0.0, np.inf, 0.0)
    return np.where(divisor > 0.0, scale[:, None] / np.where(divisor > 0.0, divisor, 1.0), lacking)


Objective = Callable[[Prediction, int], Floats]

OBJECTIVES: dict[str, Objective] = {
    f.__name__: f for f in (mixed_at_rate, knapsack, expected_mixed, information, hora, vip_loo, cures)
}
"""Every objective by name."""


# -- allocators: (beliefs, budget, group_size) -> rollouts ---------------------------------------------------------------


@dataclass(frozen=True)
class Uniform:
    """The same for every prompt; what does not divide goes one each to the first ones."""

    name: ClassVar[str] = "uniform"

    def __call__(self, believed: Prediction, budget: int, group_size: int) -> Ints:
        """(m,) rollouts that sum to the budget."""
        del group_size
        count = len(believed)
        return largest_remainder(np.ones(count), budget, 0, max(budget, 0))


@dataclass(frozen=True)
class Greedy:
    """The exact optimum of an objective, between a floor and a cap."""

    name: ClassVar[str] = "greedy"

    objective: str
    """A name of `OBJECTIVES`."""
    floor: int = 2
    """Fewest rollouts of a prompt: a group of one has no baseline. At most group_size is used. [choice]"""
    cap_factor: float = 4.0
    """Most rollouts of a prompt, in group sizes, >= 1. [choice]"""

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            hint = nearest(self.objective, OBJECTIVES) if isinstance(self.objective, str) else ""
            raise ConfigError(
                f"Greedy(objective=...) must be one of {', '.join(map(repr, OBJECTIVES))}, got {self.objective!r}.{hint}"
            )
        if not isinstance(self.floor, int) or isinstance(self.floor, bool) or self.floor < 2:
            raise ConfigError(
                f"Greedy(floor=...) must be a whole number of at least 2, got {self.floor!r}. 2 is the least group."
            )
        factor = self.cap_factor
        if not isinstance(factor, (int, float)) or isinstance(factor, bool) or not math.isfinite(factor) or factor < 1.0:
            raise ConfigError(f"Greedy(cap_factor=...) must be a number of at least 1, got {factor!r}. 1 allocates uniformly.")

    def __call__(self, believed: Prediction, budget: int, group_size: int) -> Ints:
        """(m,) rollouts in [floor, cap] that sum to the budget. Raises ConfigError where no allocation does."""
        cap = math.floor(self.cap_factor * group_size + 1e-9)
        return greedy(OBJECTIVES[self.objective](believed, cap), budget, min(self.floor, group_size), cap)


Allocator = Callable[[Prediction, int, int], Ints]

ALLOCATORS: dict[str, Callable[..., Allocator]] = {a.name: a for a in (Uniform, Greedy)}
"""Every allocator by the name that compositions write."""
