"""The Beta belief of BOTS: every prompt learns from every batch, those rolled out and, through two reference models, the rest.

At each update, with m rollouts a prompt, anchors f0, f1 = the pass rates of a weaker and a stronger reference model:

    cap <- EMA of (p̄ - f̄0) / (f̄1 - f̄0 + 1e-6) over the batch        where the policy stands between the references
    p̃   = clip(f0 + (f1-f0)·cap, 0, 1)                               what that implies for a prompt
    α <- (1-λ)α + λ + (1-ρ)s + ρmp̃                                   β <- (1-λ)β + λ + (1-ρ)f + ρm(1-p̃)

with s, f the passes and fails of a prompt that was rolled out (and p̃ its observed rate, so that the two terms add up to s and
f), 0 for all others. [code: modelscope/Trinity-RFT: diff_estimator.py]

The prompts that were not rolled out are brought up to date when they are read. With d = 1-λ, g updates to catch up with and
w_k = d^(age of update k),

    α = d^g α + (1 - d^g) + Σ_k w_k ρ_k m p̃_k

and while cap_k is in [0, 1] no p̃ is clipped, so that the sum is f0·Σw_kρ_k m(1-cap_k) + f1·Σw_kρ_k m cap_k: running sums over
the history of updates, one look-up a prompt. Updates with a cap outside are added one by one. The history is one cap and one ρ
an update; what is older than (1-λ)^k < 1e-17 is dropped, for then its whole weight is less than half a unit in the last place
of α + β >= 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.beliefs.clock import time_of
from edgewise.errors import ConfigError, SignalError
from edgewise.method import StepView, renumbered
from edgewise.prediction import Prediction, Visits
from edgewise.types import ANCHOR_RATES, Array, Bools, Floats, Ints, MethodState, Setting

_GONE = 1e-17
_EPSILON = 1e-6  # of the code's denominator
_CLOSE = 1e-2  # batch means of the anchors nearer than this do not say where the policy stands
_MOST_BATCHES = 8  # groups of an update in a stream whose policy version does not move
_TOO_WRONG = 0.25  # mean error of p̃ from which adaptive_rho halves ρ [code]


@dataclass(kw_only=True, eq=False)
class AnchoredBeta(Belief):
    """Discounted Beta counts with implied evidence. 24 bytes a prompt, and 17 for the anchors, which are not saved.

    An update is closed when time moves on (`clock`) and at least half a batch has arrived: the paper's one update a training
    step, and about one for each batch of a stream. A prompt visited twice within one update is discounted once.

    Live arrays over the pool, written only by `observe` and `restore`:
      alpha, beta (N,) with every update before `since` in them.  since (N,) number of updates.
    """

    name: ClassVar[str] = "anchored_beta"

    decay: float = 0.1
    """λ in [0, 1]: share of the counts that an update forgets. [code: bots.yaml; class default 0.2]"""
    rho: float = 0.1
    """ρ in [0, 1]: weight of implied evidence; 0 needs no anchors. [code: bots.yaml; class default 0.2]"""
    rollouts: int | None = None
    """m: rollouts that implied evidence counts as. None: the group size. [code: repeat_times]"""
    momentum: float = 0.9
    """Of cap's moving average, in [0, 1). [code]"""
    adaptive_rho: bool = False
    """Halve ρ, for good, at every update whose p̃ is wrong by 0.25 or more on average. [code]"""

    alpha: Floats = field(init=False, repr=False)
    beta: Floats = field(init=False, repr=False)
    since: Ints = field(init=False, repr=False)
    _anchors: Floats = field(init=False, repr=False)
    _asked: npt.NDArray[np.bool_] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "rho", low=0.0, high=1.0, advice="0 needs no reference models.")
        least = 1e-3 if self.rho > 0.0 else 0.0  # what is never forgotten would have to be kept for ever
        checks.number(self, "decay", low=least, high=1.0, advice="With rho > 0 something must be forgotten: at least 0.001.")
        checks.number(self, "momentum", low=0.0, high=1.0 - 1e-9)
        whole = isinstance(self.rollouts, int) and not isinstance(self.rollouts, bool) and self.rollouts >= 1
        if self.rollouts is not None and not whole:
            raise ConfigError(
                f"AnchoredBeta(rollouts=...) must be a whole number of at least 1, got {self.rollouts!r}. None: the group size."
            )
        if not isinstance(self.adaptive_rho, bool):
            raise ConfigError(f"AnchoredBeta(adaptive_rho=...) must be True or False, got {self.adaptive_rho!r}.")
        self.needs = frozenset({ANCHOR_RATES}) if self.rho > 0.0 else frozenset()

    def start(self, setting: Setting) -> None:
        size = setting.pool_size
        self.alpha, self.beta = np.ones(size), np.ones(size)
        self.since = np.zeros(size, dtype=np.int64)
        self._anchors = np.full((size, 2), np.nan)
        self._asked = np.zeros(size, dtype=np.bool_)
        self._implied = float(self.rollouts or setting.group_size)
        self._batch = setting.batch_size
        self._last = -1  # latest time learned at
        self._updates = 0  # closed so far
        self._rho = float(self.rho)
        self._cap = math.nan  # after the last closed update; NaN before the first
        length = self._reach if self.rho > 0.0 else 0
        self._caps, self._rhos = np.full(length, np.nan), np.zeros(length)  # of the latest updates, oldest first
        self._open_rows, self._open_rates = np.empty(0, dtype=np.int64), np.empty(0)  # groups of the open update

    # -- reading -------------------------------------------------------------------------------------------------------

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        updates, caps, rhos = self._updates, self._caps, self._rhos
        if self._due(time_of(step, self._last)):
            cap, rho = self._closing(step)
            updates, caps, rhos = updates + 1, _shifted(caps, cap), _shifted(rhos, rho)
        return Prediction.of_beta(*self._at(rows, updates, caps, rhos, step))

    def _at(self, rows: Ints, updates: int, caps: Floats, rhos: Floats, step: StepView) -> tuple[Floats, Floats]:
        """((n,), (n,)) α and β after that many updates. caps, rhos: of the latest of them, oldest first; NaN for none."""
        gaps = np.maximum(updates - self.since[rows], 0)
        kept = (1.0 - self.decay) ** gaps
        alpha = kept * self.alpha[rows] + (1.0 - kept)
        beta = kept * self.beta[rows] + (1.0 - kept)
        if self.rho > 0.0 and updates and len(rows):
            passes, fails = self._implied_counts(self._anchors_of(rows, step), gaps, caps[::-1], rhos[::-1])
            alpha, beta = alpha + passes, beta + fails
        return alpha, beta

    def _implied_counts(self, anchors: Floats, gaps: Ints, caps: Floats, rhos: Floats) -> tuple[Floats, Floats]:
        """((n,), (n,)) Σ_k w_k ρ_k m p̃_k and the same of 1 - p̃_k, over the last `gaps` updates. caps, rhos: newest first."""
        low, high = anchors.T
        weights = (1.0 - self.decay) ** np.arange(len(caps)) * rhos * self._implied
        weights = np.where(np.isnan(caps), 0.0, weights)
        between = (caps >= 0.0) & (caps <= 1.0)
        reached = np.minimum(gaps, len(caps))
        passes = low * _sums(np.where(between, weights * (1.0 - caps), 0.0))[reached]
        passes += high * _sums(np.where(between, weights * caps, 0.0))[reached]
        for k in np.flatnonzero(~between & (weights > 0.0)):
            passes += np.where(reached > k, weights[k] * implied_rate(anchors, caps[k]), 0.0)
        known: Bools = np.isfinite(low)
        fails = np.maximum(_sums(weights)[reached] - passes, 0.0)
        return np.where(known, passes, 0.0), np.where(known, fails, 0.0)

    def _anchors_of(self, rows: Ints, step: StepView) -> Floats:
        """(n, 2) f0 and f1; NaN where the host gave no probabilities, which is reported. Asked for once a prompt."""
        new = np.unique(rows[~self._asked[rows]])
        if len(new):
            served = step.signal(ANCHOR_RATES, new)
            if served.shape != (len(new), 2):
                raise SignalError(f"signal({ANCHOR_RATES!r}) must be two pass rates a prompt, (n, 2), got {served.shape}.")
            good = np.asarray(((served >= 0.0) & (served <= 1.0)).all(axis=1))
            self._asked[new] = True
            self._anchors[new] = np.where(good[:, None], served, np.nan)
            if not good.all():
                first = int(np.flatnonzero(~good)[0])
                step.problem(
                    SignalError(
                        f"signal({ANCHOR_RATES!r}) of prompt row {int(new[first])} must be two numbers in [0, 1], got "
                        f"{served[first].tolist()} ({int((~good).sum())} of {len(new)} prompts). They get no implied evidence."
                    )
                )
        return np.asarray(self._anchors[rows], dtype=np.float64)

    # -- learning ------------------------------------------------------------------------------------------------------

    def observe(self, visits: Visits, step: StepView) -> None:
        time = time_of(step, self._last)
        if self._due(time):
            self._close(step)
        self._last = time
        rows = visits.rows
        fresh = self.since[rows] <= self._updates  # not visited in this update before: forget once
        alpha, beta = self._at(rows, self._updates, self._caps, self._rhos, step)
        kept = np.where(fresh, 1.0 - self.decay, 1.0)
        self.alpha[rows] = kept * alpha + (1.0 - kept) + visits.successes
        self.beta[rows] = kept * beta + (1.0 - kept) + (visits.trials - visits.successes)
        self.since[rows] = self._updates + 1
        self._open_rows = np.concatenate([self._open_rows, rows])
        self._open_rates = np.concatenate([self._open_rates, visits.successes / visits.trials])

    def _due(self, time: int) -> bool:
        """Whether the open update is complete. A stream whose policy version stands still is not waited for for ever."""
        arrived = len(self._open_rows)
        return (time > self._last and 2 * arrived >= self._batch) or arrived >= _MOST_BATCHES * self._batch

    def _closing(self, step: StepView) -> tuple[float, float]:
        """cap and ρ of the open update, were it closed now."""
        if self.rho == 0.0:
            return math.nan, 0.0
        anchors = self._anchors_of(self._open_rows, step)
        known = np.flatnonzero(np.isfinite(anchors[:, 0]))
        anchors, rates = anchors[known], self._open_rates[known]
        cap = moved_cap(self._cap, anchors, rates, self.momentum)
        wrong = 0.0 if math.isnan(cap) else float(np.abs(implied_rate(anchors, cap) - rates).mean()) if len(rates) else 0.0
        return cap, self._rho / 2.0 if self.adaptive_rho and wrong >= _TOO_WRONG else self._rho

    def _close(self, step: StepView) -> None:
        self._cap, self._rho = self._closing(step)
        self._updates += 1
        self._open_rows, self._open_rates = self._open_rows[:0], self._open_rates[:0]
        if self.rho > 0.0:
            self._caps, self._rhos = _shifted(self._caps, self._cap), _shifted(self._rhos, self._rho)
            if not math.isnan(self._cap):
                step.gauge(cap=self._cap, rho=self._rho)

    @property
    def _reach(self) -> int:
        """Updates after which nothing is left of a count: (1-λ)^reach < 1e-17."""
        return 1 if self.decay == 1.0 else math.ceil(math.log(_GONE) / math.log1p(-self.decay))

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        shared = {
            "clock": np.array([self._last, self._updates], dtype=np.int64), "level": np.array([self._cap, self._rho]),
            "caps": self._caps, "rhos": self._rhos, "open_rows": self._open_rows, "open_rates": self._open_rates,
        }  # fmt: skip
        return MethodState(prompts=self._arrays(), shared=shared)

    def restore(self, state: MethodState) -> None:
        names = ("clock", "level", "caps", "rhos", "open_rows", "open_rates")
        clock, level, caps, rhos, rows, rates = checks.shared(self, state.shared, *names)
        checks.refill(self, self._arrays(), state.prompts)
        self._last, self._updates = map(int, clock)
        self._cap, self._rho = map(float, level)
        self._caps, self._rhos = caps.astype(np.float64), rhos.astype(np.float64)
        self._open_rows, self._open_rates = rows.astype(np.int64), rates.astype(np.float64)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """Added prompts get the implied evidence of all updates so far, as if they had always been there. With another decay
        the history is cut to what is still of weight, or lacks what was dropped before."""
        held, open_rows = super().adapt(state, rows), renumbered(state.shared["open_rows"], rows)
        own = {"open_rows": open_rows[open_rows >= 0], "open_rates": state.shared["open_rates"][open_rows >= 0]}
        for name, blank in (("caps", self._caps), ("rhos", self._rhos)):
            latest = state.shared[name][max(0, len(state.shared[name]) - len(blank)) :]
            own[name] = np.concatenate([blank[: len(blank) - len(latest)], latest])
        return MethodState(held.prompts, {**held.shared, **own})

    def _arrays(self) -> dict[str, Array]:
        return {"alpha": self.alpha, "beta": self.beta, "since": self.since}


def implied_rate(anchors: Floats, cap: float) -> Floats:
    """(n,) p̃ = clip(f0 + (f1-f0)·cap, 0, 1). anchors: (n, 2) f0 and f1.

    >>> implied_rate(np.array([[0.1, 0.5], [0.6, 0.9]]), 0.5).round(12).tolist()
    [0.3, 0.75]
    """
    low, high = anchors.T
    return np.asarray(np.clip(low + (high - low) * cap, 0.0, 1.0), dtype=np.float64)


def moved_cap(cap: float, anchors: Floats, rates: Floats, momentum: float) -> float:
    """cap after a batch: its moving average with (p̄ - f̄0)/(f̄1 - f̄0 + 1e-6). Unchanged by an empty batch and by one whose
    anchors have the same mean to 0.01: the ratio would say nothing, loudly, and stay in the average for tens of updates.

    cap: so far, NaN for none.  anchors: (n, 2) f0 and f1.  rates: (n,) observed.  momentum: of the average.
    """
    if len(rates) == 0:
        return cap
    low, high = (float(mean) for mean in anchors.mean(axis=0))
    if abs(high - low) < _CLOSE:
        return cap
    estimate = (float(rates.mean()) - low) / (high - low + _EPSILON)
    return estimate if math.isnan(cap) else momentum * cap + (1.0 - momentum) * estimate


def _shifted(values: Floats, new: float) -> Floats:
    """The values with `new` behind the last and without the first; of none, none."""
    return np.append(values, new)[1:]


def _sums(values: Floats) -> Floats:
    """(n+1,) running sums, the first of them 0."""
    return np.concatenate([[0.0], np.cumsum(values)])
