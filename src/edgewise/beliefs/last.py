"""The last pass rate and nothing else: what Knapsack RL believes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.prediction import Prediction, Visits
from edgewise.types import Array, Bools, Ints, MethodState, Setting

_UNKNOWN_VARIANCE = 1.0 / 12.0  # of a uniform pass rate


@dataclass(kw_only=True, eq=False)
class LastRate(Belief):
    """The success rate of the last group, taken for certain; 12 bytes a prompt. [Knapsack RL code]

    A prompt that is not `known` is predicted at 1/2 with the variance of a uniform pass rate.
    Live arrays over the pool: rate (N,) in [0, 1].  trials (N,) rollouts it comes from, 0 = unknown.
    """

    name: ClassVar[str] = "last"

    min_trials: int = 1
    """Groups with fewer scored rollouts leave what was known as it is. [Knapsack RL code: 8, with groups of 8 and more]"""

    rate: npt.NDArray[np.float64] = field(init=False, repr=False)
    trials: npt.NDArray[np.uint32] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.min_trials, int) or isinstance(self.min_trials, bool) or self.min_trials < 1:
            raise ConfigError(f"LastRate(min_trials=...) must be a whole number >= 1, got {self.min_trials!r}.")

    def start(self, setting: Setting) -> None:
        self.rate = np.zeros(setting.pool_size)
        self.trials = np.zeros(setting.pool_size, dtype=np.uint32)

    def known(self, rows: Ints) -> Bools:
        """(n,) True where a group was learned from."""
        return np.asarray(self.trials[rows] > 0)

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        del step
        known = self.known(rows)
        return Prediction(mean=np.where(known, self.rate[rows], 0.5), variance=np.where(known, 0.0, _UNKNOWN_VARIANCE))

    def observe(self, visits: Visits, step: StepView) -> None:
        del step
        enough = visits.trials >= self.min_trials
        rows = visits.rows[enough]
        self.rate[rows] = visits.successes[enough] / visits.trials[enough]
        self.trials[rows] = visits.trials[enough]

    def state(self) -> MethodState:
        return MethodState(prompts=self._arrays())

    def restore(self, state: MethodState) -> None:
        checks.refill(self, self._arrays(), state.prompts)

    def _arrays(self) -> dict[str, Array]:
        return {"rate": self.rate, "trials": self.trials}
