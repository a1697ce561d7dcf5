"""AdaRFT, arXiv 2504.05520: the prompts whose offline difficulty is nearest a target that follows the mean reward.

T <- clip(T + η·tanh(α(R̄ - β)), d_min, d_max) once a training batch; the next batch is the B prompts of smallest |d - T|.
(Algorithm 1 of the paper.) With its constants a batch that fails whole moves T by -38.08, one that passes whole by 38.08.

Differs from the paper in: ties of |d - T| are broken at random; `rest` keeps prompts out for some steps (0, the default, is the
paper: while T stands still, as it does at d_min until half of the easiest prompts pass, the same prompts come again); R̄ is the
mean over the rollouts that have a reward. The batch of an asynchronous host is what was reported before a new policy version
first asks. Prompts without a usable difficulty come last. The rule was read in the paper's abstract and reviews, its constants
in verl's recipe for it; the authors' own code was not there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.clock import time_of
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.entry import Entry
from edgewise.types import DIFFICULTY, Bools, Floats, Groups, Ints, MethodState, Requests, Setting

_NARROW = 0.02  # difficulties that span less of the scale than this are on another scale


def moved_target(
    target: float, reward: float, *, step: float, sensitivity: float, goal: float, low: float, high: float
) -> float:
    """T + η·tanh(α(R̄ - β)), clipped to the scale. [paper, Algorithm 1]

    target: T.  reward: R̄.  step: η.  sensitivity: α.  goal: β.  low, high: ends of the difficulty scale.

    >>> round(moved_target(50.0, 0.25, step=50.0, sensitivity=2.0, goal=0.5, low=0.0, high=100.0), 4)
    26.8941
    """
    return min(max(target + step * math.tanh(sensitivity * (reward - goal)), low), high)


@dataclass(kw_only=True, eq=False)
class AdaRft(DynamicSampling):
    """Asks for the prompts nearest a target difficulty, which rises while rewards are high and falls while they are low."""

    name: ClassVar[str] = "adarft"

    goal_reward: float = 0.5
    """β: mean reward at which the target stands still, for rewards in [0, 1]. [paper]"""
    sensitivity: float = 2.0
    """α. [paper]"""
    step_size: float = 50.0
    """η: the target moves by less than this, in units of difficulty. [paper]"""
    easiest: float = 0.0
    """d_min: the least target. [paper]"""
    hardest: float = 100.0
    """d_max: the largest target; difficulty is 100 · (1 - pass rate) in the paper. [paper]"""
    first_target: float | None = None
    """T at the start. None: `easiest`, 0 on the paper's scale. [paper]"""
    rest: int = 0
    """Steps (policy versions of a stream) for which a prompt that was rolled out comes after all others; 0 for none. [paper:
    none]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    _difficulty: Floats | None = field(default=None, init=False, repr=False)
    _target: float = field(default=0.0, init=False, repr=False)
    _rewards: float = field(default=0.0, init=False, repr=False)
    _rollouts: int = field(default=0, init=False, repr=False)
    _version: int = field(default=-1, init=False, repr=False)
    _last_step: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "goal_reward", low=-math.inf)
        checks.number(self, "sensitivity", low=0.0, above=True)
        checks.number(self, "step_size", low=0.0, above=True)
        checks.number(self, "easiest", low=-math.inf)
        checks.number(self, "hardest", low=self.easiest, above=True, advice="It must lie above `easiest`.")
        checks.whole(self, "rest", low=0)
        if self.first_target is not None:
            checks.number(self, "first_target", low=self.easiest, high=self.hardest)
        self.needs = frozenset({DIFFICULTY})

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._difficulty = None
        self._target = self.easiest if self.first_target is None else float(self.first_target)
        self._rewards, self._rollouts, self._version = 0.0, 0, -1
        self._last_step = np.full(setting.pool_size if self.rest else 0, -1, dtype=np.int64)

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        self._follow(step.policy_version)
        pool = np.arange(self.pool_size, dtype=np.int64)
        rows = pool[step.eligible(pool)]
        away = np.abs(self._difficulties(step)[rows] - self._target)
        resting, rng = self._resting(rows, step), step.rng("ties")
        fresh = _nearest(np.flatnonzero(~resting), away, target, rng)
        others = _nearest(np.flatnonzero(resting), away, target - len(fresh), rng)
        chosen = rows[np.concatenate([fresh, others])]
        if len(chosen) == 0:
            return self.nothing_left(room, step)
        gap = np.abs(self._difficulties(step)[chosen] - self._target)
        step.gauge(target_difficulty=self._target)
        if np.isfinite(gap).any():
            step.gauge(difficulty_gap=float(gap[np.isfinite(gap)].mean()))
        return Requests.of(chosen, self.group_size)

    def _follow(self, policy_version: int) -> None:
        """Move the target by the rewards heard since the last policy version; with none it waits."""
        if policy_version == self._version:
            return
        self._version = policy_version
        if self._rollouts:
            self._target = moved_target(
                self._target,
                self._rewards / self._rollouts,
                step=self.step_size,
                sensitivity=self.sensitivity,
                goal=self.goal_reward,
                low=self.easiest,
                high=self.hardest,
            )
        self._rewards, self._rollouts = 0.0, 0

    def _resting(self, rows: Ints, step: StepView) -> Bools:
        """(n,) True where a prompt was rolled out in one of the last `rest` steps."""
        if self.rest == 0:
            return np.zeros(len(rows), dtype=np.bool_)
        last = self._last_step[rows]
        return np.asarray((last >= 0) & (time_of(step, 0) - last <= self.rest))

    def _difficulties(self, step: StepView) -> Floats:
        """(N,) difficulty of every prompt, infinite where the host gave none. Asked for once a process."""
        if self._difficulty is None:
            served = step.signal(DIFFICULTY, np.arange(self.pool_size, dtype=np.int64))
            good = np.isfinite(served)
            if not good.all():
                first = int(np.flatnonzero(~good)[0])
                step.problem(
                    SignalError(
                        f"signal({DIFFICULTY!r}) of prompt row {first} must be finite, got {served[first]} "
                        f"({int((~good).sum())} of {len(served)} prompts). These prompts come last."
                    )
                )
            self._difficulty = np.where(good, served, np.inf)
            self._check_scale(served[good], step)
        return self._difficulty

    def _check_scale(self, known: Floats, step: StepView) -> None:
        """A target that moves by tens over difficulties between 0 and 1 would only ever choose an end of the pool."""
        span = float(known.max() - known.min()) if len(known) else 0.0
        if 0.0 < span < _NARROW * (self.hardest - self.easiest):
            step.problem(
                ConfigError(
                    f"AdaRft(easiest={self.easiest:g}, hardest={self.hardest:g}): the difficulties of the pool span "
                    f"{span:g} of that scale, from {known.min():g} to {known.max():g}. Serve 100 · (1 - pass rate), or set "
                    "easiest, hardest and step_size to the scale that is served."
                )
            )

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        self._rewards += float(groups.rewards[groups.valid].sum())
        self._rollouts += int(groups.valid.sum())
        if self.rest:
            self._last_step[groups.rows] = time_of(step, 0)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        shared = {
            **super().state().shared,
            "target": np.array([self._target, self._rewards]),
            "tally": np.array([self._rollouts, self._version], dtype=np.int64),
        }
        return MethodState(prompts={"last_step": self._last_step} if self.rest else {}, shared=shared)

    def restore(self, state: MethodState) -> None:
        target, tally = shared_array(state, "target", "AdaRft"), shared_array(state, "tally", "AdaRft")
        if self.rest:
            last = state.prompts.get("last_step")
            if last is None or last.shape != self._last_step.shape:
                raise StateMismatchError(
                    f"AdaRft.restore: with rest={self.rest} the state must hold last_step {self._last_step.shape}, it has "
                    f"{sorted(state.prompts)}. Use a state that AdaRft wrote with rest above 0."
                )
            self._last_step = np.array(last, dtype=np.int64)
        self._target, self._rewards = map(float, target)
        self._rollouts, self._version = map(int, tally)
        super().restore(state)


def _nearest(positions: Ints, away: Floats, most: int, rng: np.random.Generator) -> Ints:
    """At most `most` of the positions, the least distance first, ties at random. Sorts no more than it must."""
    if most < len(positions):
        last = np.partition(away[positions], most - 1)[most - 1] if most > 0 else -np.inf
        positions = positions[away[positions] <= last]
    order = np.lexsort((rng.random(len(positions)), away[positions]))
    return positions[order[:most]]


ENTRIES = {
    "adarft": Entry(
        factory=AdaRft,
        summary="The prompts nearest a target difficulty, which rises with the mean reward.",
        signal="the mean reward of a batch",
        keeps="nothing; 8 bytes with rest",
        extra_rollouts="zero-variance groups, as in plain GRPO",
        cost="one look over the pool: some 30 ms with a million prompts",
        when="a difficulty measured beforehand, on a scale of 0 to 100, and a policy that starts weak; set rest on small pools",
        paper="AdaRFT, arXiv 2504.05520",
    ),
}
