"""A Kalman filter on the arcsine of each prompt's pass rate, with a drift learned as it goes: the belief of ARCUS. [2609.38018]

    ψ = arcsin √p ∈ [0, π/2], on which the noise of a pass rate is about 1/4n whatever the rate
    belief N(μ, P), prior N(π/4, π²/48): the moments of a ψ uniform on its range
    a step without a look:   μ <- clip(μ + v sin 2μ)                P <- P + Q
    m of n pass:             z = arcsin √((m+3/8)/(n+3/4)), R = 1/(4n+2)     where 0 < m < n
                             z = 0 or π/2,                  R = 1/(2n)       where m = 0 or m = n
                             K = P/(P+R)                   μ <- clip(μ + K(z-μ))             P <- (1-K)P

[eq. 2, 3] v > 0 is a policy that improves on everything at once: a gain δ of every prompt's log-odds moves ψ by δ/4 · sin 2ψ
[App. B.6]. Both v and Q come from how the groups of prompts seen before compare with what was expected of them, ν = z - μ, over
gaps of Δ steps and with S = P + R [App. D]:

    v <- v + β Σν / Σ Δ max(sin 2μ, 0.05)        Q <- max(1e-5, (1-β)Q + β[Q + mean(ν² - S)/mean Δ]₊)

A gap is caught up with when it is read, with today's v and Q [App. D]. Once 100 prompts have been seen, the others get the
empirical prior: the mean of all μ, and their variance plus the mean P [App. D].

The paper leaves out v and Q at the start; 0 and 1e-4 are our choice, as is the bound |v| <= 1/4, within which a step keeps the
order of prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.beliefs.clock import time_of
from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.prediction import Prediction, Visits
from edgewise.types import Array, Floats, Ints, MethodState, Setting

_HALF_PI = math.pi / 2.0
_STEPS = 256  # drifted one by one; beyond that the drift's differential equation is solved
_LEAST_SINE = 0.05
_LEAST_NOISE = 1e-5
_MOST_DRIFT = 0.25


def drifted(angles: Floats, rate: float, steps: Ints) -> Floats:
    """(n,) ψ after so many steps of ψ <- clip(ψ + v sin 2ψ, 0, π/2).

    Exact up to 256 steps; the rest of longer gaps follows dψ/dt = v sin 2ψ, that is tan ψ(t) = tan ψ(0) · e^(2vt). After 1,000
    steps, over a grid of 40,001 angles, the two are at most 5.3e-4 apart at v = 0.001, 0.011 at v = 0.004 and 2.6e-6 at
    v = 0.01, where nearly all is at the end of the range.
    angles: (n,) in [0, π/2].  rate: v.  steps: (n,) >= 0.

    >>> drifted(np.array([0.5]), 0.01, np.array([3])).round(10).tolist()
    [0.5255118405]
    """
    angles = angles.copy()
    if rate == 0.0:
        return angles
    few = np.minimum(steps, _STEPS)
    for k in range(int(few.max(initial=0))):
        on = np.flatnonzero(few > k)
        angles[on] = np.clip(angles[on] + rate * np.sin(2.0 * angles[on]), 0.0, _HALF_PI)
    far = np.flatnonzero(steps > _STEPS)
    exponent = np.clip(2.0 * rate * (steps[far] - _STEPS), -700.0, 700.0)
    angles[far] = np.arctan2(np.sin(angles[far]) * np.exp(exponent / 2.0), np.cos(angles[far]) * np.exp(-exponent / 2.0))
    return np.clip(angles, 0.0, _HALF_PI)


def measured(successes: Floats, trials: Ints) -> tuple[Floats, Floats]:
    """((n,), (n,)) z and R of k passes in n rollouts. successes: (n,) in [0, n].  trials: (n,) n >= 1.

    >>> measured(np.array([0.0, 4.0]), np.array([8, 8]))[1].tolist()
    [0.0625, 0.029411764705882353]
    """
    between = np.arcsin(np.sqrt((successes + 0.375) / (trials + 0.75)))
    none, every = successes <= 0.0, successes >= trials
    angle = np.where(none, 0.0, np.where(every, _HALF_PI, between))
    return angle, np.where(none | every, 1.0 / (2.0 * trials), 1.0 / (4.0 * trials + 2.0))


def mixed_bound(mean: Floats, variance: Floats, group_size: int) -> Floats:
    """ŷ = 1 - (e^(-Gμ²/a) + e^(-G(π/2-μ)²/a)) / √a, a = 1 + 2GP: a low estimate of the chance of a mixed group. [ARCUS eq. 4]

    It is E[1 - e^(-Gψ²) - e^(-G(π/2-ψ)²)], ψ ~ N(μ, P), and that integrand is at most 1 - cos^2G ψ - sin^2G ψ, the chance of a
    mixed group, for ψ in [0, π/2], because cos ψ <= e^(-ψ²/2). A lower bound for a belief within [0, π/2] [App. B.3]. A normal
    one reaches beyond: it still is one where p = sin² ψ for every ψ (tested for P <= 0.1, and at the prior), and is none where
    ψ is clipped.

    mean: (n,) μ.  variance: (n,) P >= 0.  group_size: G >= 1.  Returns (n,) in [0, 1).

    >>> mixed_bound(np.array([math.pi / 4]), np.array([math.pi**2 / 48]), 8).round(10).tolist()
    [0.6943515578]
    """
    a = 1.0 + 2.0 * group_size * variance
    fails, passes = np.exp(-group_size * mean**2 / a), np.exp(-group_size * (_HALF_PI - mean) ** 2 / a)
    return np.maximum(1.0 - (fails + passes) / np.sqrt(a), 0.0)


class Look(NamedTuple):
    """What finished groups do to a belief. All (n,), of the visited prompts."""

    mean: Floats
    variance: Floats
    surprise: Floats
    spread: Floats
    sine: Floats
    gaps: Ints


@dataclass(kw_only=True, eq=False)
class ArcsineKalman(Belief):
    """Mean and variance of each prompt's ψ. 24 bytes a prompt.

    v and Q move once for each batch: as soon as groups for at least half a batch have arrived since they last moved, by β times
    the share of a batch that these are, at most β. A training step of whole batches moves them once by β, as in the paper.

    Live arrays over the pool, written only by `observe` and `restore`:
      mean, variance (N,) μ and P after the last visit.  seen (N,) time of it, -1 = never.
    """

    name: ClassVar[str] = "arcsine_kalman"

    learning_rate: float = 0.1
    """β in [0, 1] of v and Q. [paper, App. D]"""
    drift: float = 0.0
    """v at the start, radians a step. [choice]"""
    process_noise: float = 1e-4
    """Q at the start, radians² a step. [choice]"""
    prior_after: int = 100
    """Prompts seen before the others get the empirical prior, >= 2. [paper, App. D]"""

    mean: Floats = field(init=False, repr=False)
    variance: Floats = field(init=False, repr=False)
    seen: Ints = field(init=False, repr=False)
    v: float = field(init=False, repr=False)
    q: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "learning_rate", low=0.0, high=1.0, advice="0 keeps drift and noise as they are given.")
        checks.number(self, "drift", low=-_MOST_DRIFT, high=_MOST_DRIFT)
        checks.number(self, "process_noise", low=0.0)
        if not isinstance(self.prior_after, int) or isinstance(self.prior_after, bool) or self.prior_after < 2:
            raise ConfigError(f"ArcsineKalman(prior_after=...) must be a whole number of at least 2, got {self.prior_after!r}.")

    def start(self, setting: Setting) -> None:
        self.mean = np.full(setting.pool_size, math.pi / 4.0)
        self.variance = np.full(setting.pool_size, math.pi**2 / 48.0)
        self.seen = np.full(setting.pool_size, -1, dtype=np.int64)
        self.v, self.q = float(self.drift), float(self.process_noise)
        self._group_size, self._batch = setting.group_size, setting.batch_size
        self._last = -1
        self._tally = np.zeros(6)  # groups; of those seen before: how many, Σν, ΣΔ max(sin 2μ, 0.05), Σ(ν² - S), ΣΔ
        self._prior: tuple[float, float] | None = None  # a cache of the empirical prior; None: work it out

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        """Mean and variance of sin²ψ, and ŷ, under N(μ, P)."""
        mean, variance = self.at(rows, time_of(step, self._last))
        first = np.exp(-2.0 * variance) * np.cos(2.0 * mean)  # E cos 2ψ = 1 - 2 E p
        second = (1.0 + np.exp(-8.0 * variance) * np.cos(4.0 * mean)) / 2.0  # E cos² 2ψ
        return Prediction(
            mean=np.clip((1.0 - first) / 2.0, 0.0, 1.0),
            variance=np.maximum(second - first**2, 0.0) / 4.0,
            mixed=mixed_bound(mean, variance, self._group_size),
        )

    def now(self, rows: Ints, step: StepView) -> tuple[Floats, Floats]:
        """((n,), (n,)) μ and P at the step under way."""
        return self.at(rows, time_of(step, self._last))

    def at(self, rows: Ints, time: int) -> tuple[Floats, Floats]:
        """((n,), (n,)) μ and P at that time."""
        new = self.seen[rows] < 0
        gaps = np.where(new, 0, np.maximum(time - self.seen[rows], 0))
        mean, variance = drifted(self.mean[rows], self.v, gaps), self.variance[rows] + self.q * gaps
        prior_mean, prior_variance = self.empirical_prior()
        return np.where(new, prior_mean, mean), np.where(new, prior_variance, variance)

    def empirical_prior(self) -> tuple[float, float]:
        """μ and P of a prompt never seen."""
        if self._prior is None:
            seen = np.flatnonzero(self.seen >= 0)
            mean, variance = self.mean[seen], self.variance[seen]
            enough = len(seen) >= self.prior_after
            self._prior = (
                (float(mean.mean()), float(mean.var() + variance.mean())) if enough else (math.pi / 4.0, math.pi**2 / 48.0)
            )
        return self._prior

    def look(self, visits: Visits, time: int) -> Look:
        """What these groups would make of the belief at that time. A read."""
        mean, variance = self.at(visits.rows, time)
        z, noise = measured(visits.successes, visits.trials)
        gain = variance / (variance + noise)
        return Look(
            mean=np.clip(mean + gain * (z - mean), 0.0, _HALF_PI),
            variance=(1.0 - gain) * variance,
            surprise=z - mean,
            spread=variance + noise,
            sine=np.maximum(np.sin(2.0 * mean), _LEAST_SINE),
            gaps=np.where(self.seen[visits.rows] < 0, 0, np.maximum(time - self.seen[visits.rows], 0)),
        )

    def posterior(self, visits: Visits, step: StepView) -> tuple[Floats, Floats]:
        """((n,), (n,)) μ and P that `observe` would write. A read."""
        look = self.look(visits, time_of(step, self._last))
        return look.mean, look.variance

    def observe(self, visits: Visits, step: StepView) -> None:
        self._last = time_of(step, self._last)
        look = self.look(visits, self._last)
        again = look.gaps > 0
        self._tally += [
            len(visits),
            again.sum(),
            look.surprise[again].sum(),
            (look.gaps * look.sine)[again].sum(),
            (look.surprise**2 - look.spread)[again].sum(),
            look.gaps[again].sum(),
        ]
        self.mean[visits.rows], self.variance[visits.rows] = look.mean, look.variance
        self.seen[visits.rows] = self._last
        self._prior = None
        if 2 * self._tally[0] >= self._batch:
            self._learn()
            step.gauge(drift=self.v, process_noise=self.q)

    def _learn(self) -> None:
        """Move v and Q by the tally, and start it anew."""
        groups, looks, surprise, reach, excess, gaps = self._tally.tolist()
        if looks:
            rate = self.learning_rate * min(1.0, groups / self._batch)
            self.v = float(np.clip(self.v + rate * surprise / reach, -_MOST_DRIFT, _MOST_DRIFT))
            implied = max(self.q + excess / gaps, 0.0)  # (Σ/looks) / (ΣΔ/looks)
            self.q = max(_LEAST_NOISE, (1.0 - rate) * self.q + rate * implied)
        self._tally = np.zeros(6)

    def state(self) -> MethodState:
        shared = {
            "time": np.array([self._last], dtype=np.int64), "drift": np.array([self.v, self.q]), "tally": self._tally,
        }  # fmt: skip
        return MethodState(prompts=self._arrays(), shared=shared)

    def restore(self, state: MethodState) -> None:
        time, drift, tally = checks.shared(self, state.shared, "time", "drift", "tally")
        checks.refill(self, self._arrays(), state.prompts)
        self._last = int(time[0])
        self.v, self.q = map(float, drift)
        self._tally = tally.astype(np.float64)
        self._prior = None

    def _arrays(self) -> dict[str, Array]:
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}
