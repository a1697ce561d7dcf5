"""One number per candidate, higher is better: pure functions that read like the papers' equations, and the same as parts.

Symbols: p pass rate · Φ ~ Beta(α, β) the belief of it · n₀ = α + β evidence · m = α/n₀ mean · G or K rollouts of a prompt.

The classes at the end are the scores as compositions use them: `score(prediction, rollouts)`. Scores of the mean (`variance`,
`near_target`, ...) follow a Thompson draw, which stands in the place of the mean; scores that integrate over a Beta belief
(`expected_mixed`, `information`, `variance_reduction`) read α and β and do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np

from edgewise.errors import ConfigError
from edgewise.prediction import Prediction
from edgewise.types import Floats, Ints

GroupSize: TypeAlias = int | Ints
"""Rollouts a prompt: one number for all, or (n,)."""
Score: TypeAlias = Callable[[Prediction, int], Floats]


def prob_mixed(pass_rates: Floats, group_size: GroupSize) -> Floats:
    """Probability that a group holds a pass and a fail: 1 - p^G - (1-p)^G.

    pass_rates: (n,) in [0, 1].  group_size: rollouts per prompt, G >= 1, or (n,) of them.
    Returns (n,) in [0, 1): 0 at pass rates 0 and 1, largest at 0.5.

    >>> prob_mixed(np.array([0.0, 0.25, 0.5]), 2).tolist()
    [0.0, 0.375, 0.5]
    """
    all_pass = pass_rates**group_size
    all_fail = (1.0 - pass_rates) ** group_size
    return np.maximum(1.0 - all_pass - all_fail, 0.0)


def expected_prob_mixed(alpha: Floats, beta: Floats, group_size: GroupSize) -> Floats:
    """V_G = E[1 - p^G - (1-p)^G] under Beta(α, β), as a sum of positive terms: Σ_{g=1}^{G-1} Δ(g). [MaPP eq. 15]

    alpha, beta: (n,) > 0.  group_size: G >= 1, or (n,).
    Returns (n,) in [0, 1), at most `prob_mixed` at the mean. Raises ConfigError that names the position of a bad input.

    >>> expected_prob_mixed(np.ones(2), np.ones(2), np.array([5, 8])).round(12).tolist()
    [0.666666666667, 0.777777777778]
    """

    def total(a: Floats, b: Floats, size: int) -> Floats:
        return np.asarray(_mixed_gains(a, b, size - 1).sum(axis=0), dtype=np.float64)

    return _by_distinct(total, alpha, beta, group_size)


def mixed_gain(alpha: Floats, beta: Floats, group_size: GroupSize) -> Floats:
    """Δ(g) = V_{g+1} - V_g = E[p^g (1-p) + p (1-p)^g]: what one more rollout adds to the chance of a mixed group.

    alpha, beta: (n,) > 0.  group_size: rollouts so far, g >= 1, or (n,).
    Returns (n,) > 0, not growing with g, so that giving rollouts greedily is exact.

    >>> mixed_gain(np.array([1.0]), np.array([1.0]), 1).round(12).tolist()
    [0.333333333333]
    """
    return _by_distinct(lambda a, b, size: _mixed_gains(a, b, size)[-1], alpha, beta, group_size)


def mutual_information(alpha: Floats, beta: Floats, rollouts: GroupSize) -> Floats:
    """I_K: nats that the outcomes of K rollouts tell of a pass rate ~ Beta(α, β). [InSight eq. 13-15]

    The paper's difference of entropies cancels at large n₀, down to negative values; here the entropies are taken out first:
    I_K = K·[m δ(α) + (1-m) δ(β) - δ(n₀)] - Σ_s P(s) T(s), with δ(x) = ψ(x+1) - ln x, P(s) the beta-binomial chance of s
    passes and T(s) = Σ_{j<s} ln(1+j/α) + Σ_{j<K-s} ln(1+j/β) - Σ_{j<K} ln(1+j/n₀).

    alpha, beta: (n,) > 0.  rollouts: K >= 1, or (n,).
    Returns (n,) in (0, ln(K+1)]; bit-equal for equal beliefs. Raises ConfigError that names the position of a bad input.
    Not monotone in the evidence: at m = 0.5 and K = 8 it is largest near n₀ = 0.38.

    >>> mutual_information(np.array([1.0]), np.array([1.0]), 1).round(12).tolist()  # ln 2 - 1/2
    [0.19314718056]
    """
    return _by_distinct(_information, alpha, beta, rollouts)


def expected_variance_reduction(alpha: Floats, beta: Floats, rollouts: GroupSize) -> Floats:
    """m(1-m)/(n₀+1) · K/(n₀+K): by how much K outcomes lower the variance of Beta(α, β) in expectation. [InSight eq. 8, K = 1]

    alpha, beta: (n,) > 0.  rollouts: K >= 1, or (n,).  Returns (n,) in (0, 1/4).

    >>> expected_variance_reduction(np.array([1.0]), np.array([1.0]), 8).round(12).tolist()
    [0.066666666667]
    """
    evidence = alpha + beta
    mean = alpha / evidence
    variance = mean * (beta / evidence) / (evidence + 1.0)
    return np.asarray(variance * rollouts / (evidence + rollouts), dtype=np.float64)


def information_weight(mean: Floats, eta: float, mu: float) -> Floats:
    """w = m(1-m)·exp(-η(m-μ)²): prefers prompts that teach, around the pass rate μ. [InSight eq. 16]

    mean: (n,) in [0, 1].  eta: η >= 0, how narrow.  mu: μ, the preferred pass rate.  Returns (n,) in [0, 1/4].
    """
    return np.asarray(mean * (1.0 - mean) * np.exp(-eta * (mean - mu) ** 2), dtype=np.float64)


def near_target(mean: Floats, target: float) -> Floats:
    """-(p - target)²: nearest to the target first. [MoPPS]

    >>> near_target(np.array([0.5, 0.0]), 0.5).tolist()
    [-0.0, -0.25]
    """
    return np.asarray(-((mean - target) ** 2), dtype=np.float64)


def _mixed_gains(alpha: Floats, beta: Floats, most: int) -> Floats:
    """(most, n): row g-1 is Δ(g). B(α+g, β+1)/B(α, β) = Π_{j<g} (α+j)/(n₀+j) · β/(n₀+g), and its mirror image."""
    g = np.arange(1, most + 1)[:, None]
    evidence = alpha + beta
    all_pass = np.cumprod((alpha + g - 1) / (evidence + g - 1), axis=0)
    all_fail = np.cumprod((beta + g - 1) / (evidence + g - 1), axis=0)
    return np.asarray((all_pass * beta + all_fail * alpha) / (evidence + g), dtype=np.float64)


def _information(alpha: Floats, beta: Floats, rollouts: int) -> Floats:
    evidence = alpha + beta
    mean, other = alpha / evidence, beta / evidence
    passes = np.arange(rollouts + 1)[:, None]
    fails = rollouts - passes
    factorials = np.array([[math.lgamma(s + 1.0)] for s in range(rollouts + 1)])
    ways = factorials[-1] - factorials - factorials[::-1]
    excess = _log_rising(alpha, rollouts) + _log_rising(beta, rollouts)[::-1] - _log_rising(evidence, rollouts)[-1]
    chance = np.exp(ways + passes * np.log(mean) + fails * np.log(other) + excess)
    start = mean * _digamma_excess(alpha) + other * _digamma_excess(beta) - _digamma_excess(evidence)
    return np.asarray(rollouts * start - (chance * excess).sum(axis=0), dtype=np.float64)


def _log_rising(x: Floats, most: int) -> Floats:
    """(most+1, n): row s is Σ_{j<s} ln(1 + j/x)."""
    steps = np.log1p(np.arange(most)[:, None] / x)
    return np.concatenate([np.zeros((1, len(x))), np.cumsum(steps, axis=0)])


def _digamma_excess(x: Floats) -> Floats:
    """δ(x) = ψ(x+1) - ln x, by its asymptotic series where the difference would cancel."""
    from scipy.special import digamma

    near = digamma(np.minimum(x, 50.0) + 1.0) - np.log(np.minimum(x, 50.0))
    i = 1.0 / np.maximum(x, 50.0)
    q = i * i
    far = i / 2 - q * (1 / 12 - q * (1 / 120 - q * (1 / 252 - q * (1 / 240 - q / 132))))
    return np.where(x > 50.0, far, near)


def _by_distinct(
    formula: Callable[[Floats, Floats, int], Floats], alpha: Floats, beta: Floats, group_size: GroupSize
) -> Floats:
    """The formula, once for each distinct (α, β, G): beliefs repeat, and equal ones then get bit-equal scores."""
    sizes = np.broadcast_to(group_size, np.shape(alpha))
    _require("alpha", alpha, np.isfinite(alpha) & (np.asarray(alpha) > 0.0), "finite and above 0")
    _require("beta", beta, np.isfinite(beta) & (np.asarray(beta) > 0.0), "finite and above 0")
    _require("rollouts", sizes, sizes >= 1, "at least 1")
    scores = np.empty(len(sizes))
    for size in np.unique(sizes):
        at = np.flatnonzero(sizes == size)
        pairs, which = np.unique(alpha[at] + 1j * beta[at], return_inverse=True)
        scores[at] = formula(pairs.real, pairs.imag, int(size))[which]
    return scores


def _require(name: str, values: Floats | Ints, good: np.ndarray[tuple[int, ...], np.dtype[np.bool_]], rule: str) -> None:
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        raise ConfigError(f"{name} at position {first} must be {rule}, got {values[first]}.")


# -- parts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ProbMixed:
    """Chance of a mixed group: the belief's own where it models it (DPS, ARCUS), else that at the mean."""

    name: ClassVar[str] = "prob_mixed"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        return prediction.mixed if prediction.mixed is not None else prob_mixed(prediction.mean, rollouts)


@dataclass(frozen=True, kw_only=True)
class ExpectedMixed:
    """Chance of a mixed group over the whole belief, V_G [MaPP eq. 15]; the belief's own where it models it."""

    name: ClassVar[str] = "expected_mixed"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        return prediction.mixed if prediction.mixed is not None else expected_prob_mixed(*prediction.as_beta(), rollouts)


@dataclass(frozen=True, kw_only=True)
class Information:
    """What the group would tell of the prompt, I_K in nats. [InSight eq. 13]"""

    name: ClassVar[str] = "information"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        return mutual_information(*prediction.as_beta(), rollouts)


@dataclass(frozen=True, kw_only=True)
class WeightedInformation:
    """w(m)·I_K: information about prompts that also teach. [InSight eq. 16-17]"""

    name: ClassVar[str] = "weighted_information"

    eta: float = 3.0
    """η: how narrow the preference is. [InSight App. D]"""
    mu: float = 0.3
    """μ: the preferred pass rate. [InSight Table 5; its App. D prints 3.0]"""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta >= 0.0 and math.isfinite(self.mu)):
            raise ConfigError(
                f"WeightedInformation(eta=..., mu=...) must be finite, eta >= 0, got {self.eta!r}, {self.mu!r}. "
                "eta=0 takes the preference off."
            )

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        return information_weight(prediction.mean, self.eta, self.mu) * mutual_information(*prediction.as_beta(), rollouts)


@dataclass(frozen=True, kw_only=True)
class VarianceReduction:
    """By how much the group would lower the variance of the belief: the cheap relative of `information`."""

    name: ClassVar[str] = "variance_reduction"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        return expected_variance_reduction(*prediction.as_beta(), rollouts)


@dataclass(frozen=True, kw_only=True)
class NearTarget:
    """Nearest to a pass rate. [MoPPS, PCL]"""

    name: ClassVar[str] = "near_target"

    target: float = 0.5
    """The pass rate aimed at, in [0, 1]. [MoPPS code]"""

    def __post_init__(self) -> None:
        if not 0.0 <= self.target <= 1.0:
            raise ConfigError(
                f"NearTarget(target=...) must be in [0, 1], got {self.target!r}. It is a pass rate; 0.5 is common."
            )

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        del rollouts
        return near_target(prediction.mean, self.target)


@dataclass(frozen=True, kw_only=True)
class Variance:
    """p(1-p) at the mean: the variance of one outcome. [LILO]"""

    name: ClassVar[str] = "variance"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        del rollouts
        return prediction.mean * (1.0 - prediction.mean)


@dataclass(frozen=True, kw_only=True)
class ExpectedVariance:
    """E[p(1-p)] = m(1-m) - var: the variance of one outcome over the whole belief. [KGPS]"""

    name: ClassVar[str] = "expected_variance"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        del rollouts
        return np.maximum(prediction.mean * (1.0 - prediction.mean) - prediction.variance, 0.0)


@dataclass(frozen=True, kw_only=True)
class SqrtVariance:
    """√(p(1-p)): the standard deviation of one outcome. [CurES]"""

    name: ClassVar[str] = "sqrt_variance"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        del rollouts
        return np.asarray(np.sqrt(prediction.mean * (1.0 - prediction.mean)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class HardVariance:
    """p(1-p)²: variance that leans towards hard prompts; largest at p = 1/3. [VADE, Knapsack RL]"""

    name: ClassVar[str] = "hard_variance"

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        del rollouts
        return prediction.mean * (1.0 - prediction.mean) ** 2


SCORES: dict[str, Callable[..., Score]] = {
    part.name: part
    for part in (
        ProbMixed, ExpectedMixed, Information, WeightedInformation, VarianceReduction, NearTarget, Variance, ExpectedVariance,
        SqrtVariance, HardVariance,
    )
}  # fmt: skip
"""Every score by the name that compositions use."""
