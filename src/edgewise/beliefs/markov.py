"""Three solving states and how a prompt moves between them: the belief of DPS. [arXiv 2603.10887; maoyixiu/DPS]

A group is all wrong (state 0), mixed (1) or all right (2). Each prompt has Dirichlet counts A[next, now] of transitions and ν,
the distribution of its state at the last training step; P is A with its columns normalised, and the next state is predicted
as π = Pν. One training step does, for every prompt of the pool,

    rolled out, state s:   ν' = onehot(s)    ξ = (ν' ⊗ ν) ∘ P, normalised to 1    A <- λA + (1-λ)A₀ + ξ    ν <- ν'
    not rolled out:        ν' = Pν                                                A <- λA + (1-λ)A₀        ν <- ν'

The second line is worked out when a prompt is read: after g such steps A is λ^g A + (1-λ^g)A₀, and ν has gone through the g
matrices on the way. Once λ^k < 1e-17 these are all A₀'s, whose power takes log₂ g products; so a read costs at most
ln(1e-17)/ln(λ) small products a prompt (57 at λ = 0.5), however long ago the last visit was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.beliefs.clock import time_of
from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.prediction import Prediction, Visits
from edgewise.types import Array, Floats, Ints, MethodState, Setting

_GONE = 1e-17  # what is left of a count that nobody can see any more: less than half a unit in the last place of A₀
_FLOOR = 1e-3  # of a prior count; at 0 a jump that the prior calls impossible divides 0 by 0

PRIORS: dict[str, list[list[float]]] = {
    "uniform": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]],
    "progress": [[1.0, 0.5, 0.5], [1.0, 1.0, 0.5], [1.0, 1.0, 1.0]],
    "stability": [[1.0, 0.5, 0.5], [0.5, 1.0, 0.5], [0.5, 0.5, 1.0]],
    "local": [[1.0, 1.0, _FLOOR], [1.0, 1.0, 1.0], [_FLOOR, 1.0, 1.0]],
}
"""Prior counts A₀[next, now] by name. [code]"""


def transitions(counts: Floats) -> Floats:
    """(..., 3, 3) expected transition probabilities P[next, now]: counts with columns normalised."""
    return np.asarray(counts / counts.sum(axis=-2, keepdims=True), dtype=np.float64)


@dataclass(kw_only=True, eq=False)
class Markov3(Belief):
    """Transition counts and state distribution of each prompt. 104 bytes a prompt.

    A group of one rollout teaches nothing here: it cannot be mixed. A prompt visited twice at the same time (streams only) has
    made no transition in between; its last group says in which state it is. For a prompt never visited the first step is no
    transition either: all start at the same state one step before they can have moved. [code]

    Live arrays over the pool, written only by `observe` and `restore`:
      counts (N, 3, 3) A[next, now] after the step of the last visit.  states (N, 3) ν, likewise.
      since (N,) the first time that these do not contain yet, -1 = never visited.
    """

    name: ClassVar[str] = "markov3"

    decay: float = 0.5
    """λ in [0, 1]: what a step leaves of the counts above the prior. [code: 0.5 Countdown and Geometry3k, 0.7 MATH]"""
    prior: Literal["uniform", "progress", "stability", "local"] = "uniform"
    """A₀. uniform: all alike; progress: downward moves count half; stability: any move counts half; local: no jump from all
    wrong to all right or back (1e-3 instead of the code's 0, which divides 0 by 0 at the first jump). [code]"""
    prior_count: float = 1.0
    """Scale of A₀, > 0. [code]"""

    counts: Floats = field(init=False, repr=False)
    states: Floats = field(init=False, repr=False)
    since: Ints = field(init=False, repr=False)
    _prior: Floats = field(init=False, repr=False)
    _last: int = field(default=-1, init=False, repr=False)
    _reach: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        checks.number(self, "prior_count", low=0.0, above=True)
        if self.prior not in PRIORS:
            raise ConfigError(f"Markov3(prior=...) must be one of {', '.join(map(repr, PRIORS))}, got {self.prior!r}.")
        self._prior = self.prior_count * np.array(PRIORS[self.prior])
        self._reach = 0 if self.decay == 1.0 else 1 if self.decay == 0.0 else math.ceil(math.log(_GONE) / math.log(self.decay))

    def start(self, setting: Setting) -> None:
        self.counts = np.tile(self._prior, (setting.pool_size, 1, 1))
        self.states = np.full((setting.pool_size, 3), 1.0 / 3.0)
        self.since = np.full(setting.pool_size, -1, dtype=np.int64)
        self._last = -1

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        """The chance of a mixed group is π[1], the mean π[2] + π[1]/2, the variance that of a pass rate which is 0, uniform on
        (0, 1) or 1 in the three states.
        """
        counts, states = self.at(rows, time_of(step, self._last))
        wrong, mixed, right = self._next(counts, states).T
        mean = right + mixed / 2.0
        variance = mixed / 12.0 + wrong * mean**2 + mixed * (0.5 - mean) ** 2 + right * (1.0 - mean) ** 2
        return Prediction(mean=mean, variance=variance, mixed=mixed)

    def at(self, rows: Ints, time: int) -> tuple[Floats, Floats]:
        """((n, 3, 3), (n, 3)) A and ν with every step before `time` in them: what an eager pool-wide loop would hold."""
        gaps = np.maximum(time - np.where(self.since[rows] < 0, 1, self.since[rows]), 0)
        counts, states = self.counts[rows], self.states[rows]
        excess, left = counts - self._prior, np.minimum(gaps, self._reach)
        for k in range(int(left.max(initial=0))):
            on = np.flatnonzero(left > k)
            states[on] = _times(transitions(self._prior + self.decay**k * excess[on]), states[on])
        counts = self._prior + (self.decay**left)[:, None, None] * excess
        far = np.flatnonzero(gaps > self._reach)
        if len(far):
            if self.decay < 1.0:
                counts[far] = self._prior
            states[far] = _power(transitions(counts[far]), states[far], gaps[far] - self._reach)
        return counts, states

    def observe(self, visits: Visits, step: StepView) -> None:
        self._last = time_of(step, self._last)
        enough = np.flatnonzero(visits.trials >= 2)
        rows, successes = visits.rows[enough], visits.successes[enough]
        state = np.where(successes <= 0.0, 0, np.where(successes >= visits.trials[enough], 2, 1))
        now = np.eye(3)[state]
        again = self.since[rows] > self._last
        counts, before = self.at(rows, self._last)
        moved = now[:, :, None] * before[:, None, :] * transitions(counts)
        moved /= moved.sum(axis=(1, 2), keepdims=True)
        learned = self.decay * counts + (1.0 - self.decay) * self._prior + moved
        self.counts[rows] = np.where(again[:, None, None], self.counts[rows], learned)
        self.states[rows] = now
        self.since[rows] = self._last + 1

    def state(self) -> MethodState:
        return MethodState(prompts=self._arrays(), shared={"time": np.array([self._last], dtype=np.int64)})

    def restore(self, state: MethodState) -> None:
        (time,) = checks.shared(self, state.shared, "time")
        checks.refill(self, self._arrays(), state.prompts)
        self._last = int(time[0])

    def _arrays(self) -> dict[str, Array]:
        return {"counts": self.counts, "states": self.states, "since": self.since}

    @staticmethod
    def _next(counts: Floats, states: Floats) -> Floats:
        """(n, 3) π = Pν, summing to 1."""
        following = _times(transitions(counts), states)
        return np.asarray(following / following.sum(axis=1, keepdims=True), dtype=np.float64)


def _times(matrices: Floats, states: Floats) -> Floats:
    """(n, 3) each matrix times its state."""
    return np.asarray((matrices * states[:, None, :]).sum(axis=2), dtype=np.float64)


def _power(matrices: Floats, states: Floats, powers: Ints) -> Floats:
    """(n, 3) P^k ν by repeated squaring. matrices: (n, 3, 3).  states: (n, 3).  powers: (n,) k >= 0."""
    while powers.any():
        states = np.where((powers & 1)[:, None] == 1, _times(matrices, states), states)
        matrices = matrices @ matrices
        powers = powers >> 1
    return states
