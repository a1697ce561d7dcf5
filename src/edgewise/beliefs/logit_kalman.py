"""A Kalman filter on the log-odds of each prompt's pass rate: the belief of KGPS. [arXiv 2607.27610, as reported]

    x = ln(p / (1-p)) ~ N(μ, P), prior N(0, π²/3)          a step without a look:  P <- P + Q
    k of n pass:  p̂ = k/n clipped to [1/2n, 1-1/2n]        z = ln(p̂ / (1-p̂))        R = 1 / (n p̂(1-p̂))
                  K = P / (P+R)                              μ <- μ + K(z-μ)          P <- (1-K)P

N(0, π²/3) has the mean and variance that the log-odds have where p is uniform. R is the delta-method variance of z.

The paper could not be read: the model and its being a zero-mean random walk are as its abstract and arXiv 2609.38018 report
them; the prior, the clipping and Q are our choice. Known weakness, reported there: z and R are poor where all or no rollouts
pass, for the log-odds are then not finite and what the clipping makes of them is arbitrary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.beliefs.clock import time_of
from edgewise.method import StepView
from edgewise.prediction import Prediction, Visits
from edgewise.types import Array, Floats, Ints, MethodState, Setting

_NODES, _WEIGHTS = np.polynomial.hermite.hermgauss(5)  # Σ w f(t) ≈ ∫ f(t) e^(-t²) dt, exact to degree 9


def moments(mean: Floats, variance: Floats) -> tuple[Floats, Floats]:
    """((n,), (n,)) E[p] and E[p²] of p = 1/(1+e^-x), x ~ N(μ, P), by five-point Gauss-Hermite quadrature. [KGPS]

    mean: (n,) μ.  variance: (n,) P >= 0.

    >>> first, second = moments(np.array([0.0, 0.0]), np.array([0.0, 1.0]))
    >>> (first - second).round(10).tolist()
    [0.25, 0.2068630368]
    """
    x = mean[:, None] + np.sqrt(2.0 * variance)[:, None] * _NODES
    rates = 0.5 * (1.0 + np.tanh(0.5 * x))  # the logistic function, without overflow
    weights = _WEIGHTS / math.sqrt(math.pi)
    return np.asarray(rates @ weights, dtype=np.float64), np.asarray(rates**2 @ weights, dtype=np.float64)


def measured(successes: Floats, trials: Ints) -> tuple[Floats, Floats]:
    """((n,), (n,)) z and R: the observed log-odds and their variance.

    successes: (n,) k in [0, n].  trials: (n,) n >= 1; a single rollout is clipped like one of two, to 1/4 and 3/4, else a pass
    and a fail would both say 1/2.
    """
    edge = 0.5 / np.maximum(trials, 2)
    rate = np.clip(successes / trials, edge, 1.0 - edge)
    return np.log(rate / (1.0 - rate)), 1.0 / (trials * rate * (1.0 - rate))


@dataclass(kw_only=True, eq=False)
class LogitKalman(Belief):
    """Mean and variance of each prompt's log-odds. 24 bytes a prompt.

    A prompt never visited stays at the prior: that its pass rate may be anything does not become truer by waiting.

    Live arrays over the pool, written only by `observe` and `restore`:
      mean, variance (N,) μ and P after the last visit.  seen (N,) time of it, -1 = never.
    """

    name: ClassVar[str] = "logit_kalman"

    process_noise: float = 0.05
    """Q >= 0 a step: how far log-odds wander, as a variance. The paper ties it to the size of the policy update, which a
    selector is not told. [choice]"""
    prior_variance: float = math.pi**2 / 3.0
    """Of the log-odds before any look, > 0. [choice: that of a uniform pass rate]"""

    mean: Floats = field(init=False, repr=False)
    variance: Floats = field(init=False, repr=False)
    seen: Ints = field(init=False, repr=False)
    _last: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "process_noise", low=0.0)
        checks.number(self, "prior_variance", low=0.0, above=True)

    def start(self, setting: Setting) -> None:
        self.mean = np.zeros(setting.pool_size)
        self.variance = np.full(setting.pool_size, float(self.prior_variance))
        self.seen = np.full(setting.pool_size, -1, dtype=np.int64)
        self._last = -1

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        first, second = moments(*self.at(rows, time_of(step, self._last)))
        return Prediction(mean=first, variance=np.maximum(second - first**2, 0.0))

    def at(self, rows: Ints, time: int) -> tuple[Floats, Floats]:
        """((n,), (n,)) μ and P at that time."""
        gaps = np.where(self.seen[rows] < 0, 0, np.maximum(time - self.seen[rows], 0))
        return self.mean[rows], self.variance[rows] + self.process_noise * gaps

    def observe(self, visits: Visits, step: StepView) -> None:
        self._last = time_of(step, self._last)
        mean, variance = self.at(visits.rows, self._last)
        z, noise = measured(visits.successes, visits.trials)
        gain = variance / (variance + noise)
        self.mean[visits.rows] = mean + gain * (z - mean)
        self.variance[visits.rows] = (1.0 - gain) * variance
        self.seen[visits.rows] = self._last

    def state(self) -> MethodState:
        return MethodState(prompts=self._arrays(), shared={"time": np.array([self._last], dtype=np.int64)})

    def restore(self, state: MethodState) -> None:
        (time,) = checks.shared(self, state.shared, "time")
        checks.refill(self, self._arrays(), state.prompts)
        self._last = int(time[0])

    def _arrays(self) -> dict[str, Array]:
        return {"mean": self.mean, "variance": self.variance, "seen": self.seen}
