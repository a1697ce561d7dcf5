"""The Beta belief of MoPPS, InSight, MaPP and their kin: passes and fails of each prompt, forgotten visit by visit.

    α <- λα + (1-λ)α₀ + k        β <- λβ + (1-λ)β₀ + (n-k)        only for prompts rolled out   [MoPPS; InSight eq. 6]

Kept as what came on top of the prior, a = α - α₀ <- λa + k, which is the same rule: a prompt never visited is then the prior
itself, and the prior may come from outside at the time of reading. Forgetting acts per visit: a belief that nobody visits
never ages. At a constant group size n the evidence α + β tends to α₀ + β₀ + n/(1-λ).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.beliefs.clock import time_of
from edgewise.errors import ConfigError, SignalError
from edgewise.method import StepView
from edgewise.prediction import Prediction, Visits
from edgewise.types import Array, Bools, Floats, Ints, MethodState, Setting, Signal

PASS_RATE_PRIOR: Signal = "pass_rate_prior"
"""(n,) in [0, 1]: a guess at each prompt's pass rate from before the run: offline rollouts, another model, a predictor. It
must not change during a run."""

_SUREST = 0.02  # no guess from outside is trusted to be 0 or 1 [choice]


@dataclass(kw_only=True, eq=False)
class BetaBelief(Belief):
    """Discounted Beta counts. 20 bytes a prompt, 24 with `reset_every`.

    Fractional successes are allowed. Live arrays over the pool, written only by `observe` and `restore`:
      passed, failed (N,) discounted counts.  visits (N,) groups learned from.
      period (N,) of the last visit, where counts start anew every `reset_every` steps.
    """

    name: ClassVar[str] = "beta"

    decay: float = 1.0
    """λ in [0, 1]: what a visit leaves of the earlier counts; 1 forgets nothing, 0 remembers one group. [MoPPS, InSight]"""
    prior_alpha: float = 1.0
    """α₀ > 0. [MoPPS, InSight]"""
    prior_beta: float = 1.0
    """β₀ > 0. [MoPPS, InSight]"""
    prior: Literal["flat", "signal"] = "flat"
    """flat: every prompt starts at Beta(α₀, β₀). signal: at Beta(κg, κ(1-g)), g the signal `pass_rate_prior` clipped to
    [0.02, 0.98]. [choice]"""
    prior_strength: float = 2.0
    """κ > 0: how many rollouts a guess from outside is worth; 2 is the evidence of the flat prior. [choice]"""
    reset_every: int | None = None
    """Forget everything each so many steps (policy versions of a stream). None: never. [CurES]"""

    passed: Floats = field(init=False, repr=False)
    failed: Floats = field(init=False, repr=False)
    visits: npt.NDArray[np.uint32] = field(init=False, repr=False)
    period: npt.NDArray[np.uint32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        for name in ("prior_alpha", "prior_beta", "prior_strength"):
            checks.number(self, name, low=0.0, above=True, advice="Beta(1, 1) is uniform.")
        if self.prior not in ("flat", "signal"):
            raise ConfigError(f"BetaBelief(prior=...) must be 'flat' or 'signal', got {self.prior!r}.")
        whole = isinstance(self.reset_every, int) and not isinstance(self.reset_every, bool) and self.reset_every >= 1
        if self.reset_every is not None and not whole:
            raise ConfigError(
                f"BetaBelief(reset_every=...) must be a whole number >= 1, got {self.reset_every!r}. None never resets."
            )
        self.needs = frozenset({PASS_RATE_PRIOR}) if self.prior == "signal" else frozenset()

    def start(self, setting: Setting) -> None:
        self.passed = np.zeros(setting.pool_size)
        self.failed = np.zeros(setting.pool_size)
        self.visits = np.zeros(setting.pool_size, dtype=np.uint32)
        self.period = np.zeros(setting.pool_size, dtype=np.uint32)

    def seen(self, rows: Ints, step: StepView) -> Bools:
        """(n,) True where a prompt was visited since the last reset: where the belief is more than its prior."""
        return np.asarray((self.visits[rows] > 0) & self._current(rows, step))

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        prior_alpha, prior_beta = self.priors(rows, step)
        current = self._current(rows, step)
        return Prediction.of_beta(
            prior_alpha + np.where(current, self.passed[rows], 0.0), prior_beta + np.where(current, self.failed[rows], 0.0)
        )

    def priors(self, rows: Ints, step: StepView) -> tuple[Floats, Floats]:
        """((n,), (n,)) α₀ and β₀. A signal that is no probability is reported; such prompts start at the flat prior's mean."""
        if self.prior == "flat" or len(rows) == 0:
            return np.full(len(rows), float(self.prior_alpha)), np.full(len(rows), float(self.prior_beta))
        guess = step.signal(PASS_RATE_PRIOR, rows)
        good = (guess >= 0.0) & (guess <= 1.0)
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            step.problem(
                SignalError(
                    f"signal({PASS_RATE_PRIOR!r}) of prompt row {int(rows[first])} must be in [0, 1], got {guess[first]} "
                    f"({int((~good).sum())} of {len(rows)} prompts). They start at the mean of the flat prior."
                )
            )
        guess = np.where(good, np.clip(guess, _SUREST, 1.0 - _SUREST), self.prior_alpha / (self.prior_alpha + self.prior_beta))
        return self.prior_strength * guess, self.prior_strength * (1.0 - guess)

    def observe(self, visits: Visits, step: StepView) -> None:
        rows = visits.rows
        kept = np.where(self._current(rows, step), self.decay, 0.0)
        self.passed[rows] = kept * self.passed[rows] + visits.successes
        self.failed[rows] = kept * self.failed[rows] + (visits.trials - visits.successes)
        self.visits[rows] += 1
        self.period[rows] = self._period_of(step)

    def _period_of(self, step: StepView) -> int:
        return 0 if self.reset_every is None else time_of(step, 0) // self.reset_every

    def _current(self, rows: Ints, step: StepView) -> Bools:
        return np.asarray(self.period[rows] == self._period_of(step))

    def state(self) -> MethodState:
        return MethodState(prompts=self._arrays())

    def restore(self, state: MethodState) -> None:
        checks.refill(self, self._arrays(), state.prompts)

    def _arrays(self) -> dict[str, Array]:
        arrays: dict[str, Array] = {"passed": self.passed, "failed": self.failed, "visits": self.visits}
        return arrays if self.reset_every is None else {**arrays, "period": self.period}
