"""ARCUS: an arcsine Kalman filter, and a target that gets as hard as the yield of mixed groups allows. [arXiv 2609.38018]

    candidates   the whole pool
    belief       ψ = arcsin √p by a Kalman filter with a learned drift (`beliefs.arcsine_kalman`)
    score        s = κŷ: near the target, and mixed (`methods.pacing`)
    chooser      M = ⌈1.25 B⌉ without replacement, chances by s^(1/T), T = 0.3 (the M largest of ln s/T + Gumbel)
    target       π/4 for the first ⌈N/M⌉ steps; then towards the paced target, by at most 0.005 a step
    judge        mixed groups, at most B of them, by s after the outcome

Equations 2 to 5, algorithms 1 and 2, appendix D. The preprint was read in a stored copy; who wrote it could not be confirmed
and no code of theirs was found, so that what it says of results counts as reported, not as known. `temperature` is T,
`yield_slack` ε, `pace` Δ, `oversample` 1 + ρ.

Differs from the paper in: drift and noise start at 0 and 1e-4, and the belief says what else is chosen there; the warm-up is
the first pass over the pool, counted in prompts asked for, which is ⌈N/M⌉ steps of M; where groups come in a stream, a step is
a policy version, and every mixed group is kept, for nobody knows which others will come; c is solved for exactly, not bisected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs import checks as belief_checks
from edgewise.beliefs.arcsine_kalman import ArcsineKalman, mixed_bound
from edgewise.beliefs.clock import time_of
from edgewise.choosers.rank import Proportional, TopK
from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.composed import Composition, Parts
from edgewise.methods.entry import Entry
from edgewise.methods.pacing import closeness, paced_target
from edgewise.prediction import Prediction, Visits
from edgewise.scores import ProbMixed
from edgewise.types import Floats, Groups, Ints, MethodState, Requests, Setting, Verdicts


@dataclass(kw_only=True, eq=False)
class Arcus(Composition):
    """ArcsineKalman × κŷ at a paced target × Gumbel top-M, and the best B mixed groups."""

    name: ClassVar[str] = "arcus"

    candidates: Literal["stream", "random", "pool"] = "pool"
    """[paper]"""
    temperature: float = 0.3
    """T > 0 of the draw. [paper]"""
    yield_slack: float = 0.03
    """How much of the best expected yield the target may cost, in [0, 1]. [paper]"""
    pace: float = 0.005
    """Radians that the target may move in a step, >= 0. [paper]"""
    warmup_epochs: float = 1.0
    """Passes over the pool, by prompts asked for, with the target at π/4. [paper: ⌈N/M⌉ steps]"""
    learning_rate: float = 0.1
    """β of drift and process noise. [paper]"""
    drift: float = 0.0
    """v at the start. [choice]"""
    process_noise: float = 1e-4
    """Q at the start. [choice]"""
    prior_after: int = 100
    """Prompts seen before the others get the empirical prior. [paper]"""

    gate: Literal["reward", "correct", "off"] | bool = "reward"
    oversample: float = 1.25
    """M / B. [paper]"""

    _belief: ArcsineKalman = field(init=False, repr=False)
    _target: float = field(default=math.pi / 4.0, init=False, repr=False)
    _paced_at: int = field(default=-1, init=False, repr=False)
    _room: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "temperature", low=0.0, above=True)
        checks.number(self, "yield_slack", low=0.0, high=1.0)
        checks.number(self, "pace", low=0.0, advice="0 keeps the target at π/4.")
        checks.number(self, "warmup_epochs", low=0.0)
        checks.number(self, "learning_rate", low=0.0, high=1.0, advice="0 keeps drift and noise as they are given.")
        checks.number(self, "drift", low=-0.25, high=0.25)
        checks.number(self, "process_noise", low=0.0)
        checks.whole(self, "prior_after", low=2)
        if self.thompson:
            raise ConfigError("Arcus(thompson=...) must be False, got True. Its score integrates over the belief already.")
        super().__post_init__()
        self.scope = "batch"

    def parts(self) -> Parts:
        self._belief = ArcsineKalman(
            learning_rate=self.learning_rate, drift=self.drift, process_noise=self.process_noise, prior_after=self.prior_after
        )
        return Parts(self._belief, ProbMixed(), Proportional(self.temperature))

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._target, self._paced_at, self._room = math.pi / 4.0, -1, setting.batch_size

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        self._room = room
        return super().propose(room, step)

    def scores(self, rows: Ints, prediction: Prediction, step: StepView) -> Floats:
        """(n,) s = κŷ at the target, which is moved first."""
        del prediction
        mean, variance = self._belief.now(rows, step)
        self._move_target(mean, variance, step)
        return self.utility(mean, variance)

    def utility(self, mean: Floats, variance: Floats) -> Floats:
        """(n,) s = κŷ in [0, 1] at the target. mean, variance: (n,) μ and P."""
        return closeness(mean, variance, self._target) * mixed_bound(mean, variance, self.group_size)

    def _move_target(self, mean: Floats, variance: Floats, step: StepView) -> None:
        """Once for each new step, or policy version of a stream, and not before the warm-up is over."""
        time = time_of(step, self._paced_at)
        if time > self._paced_at and step.epoch >= self.warmup_epochs:
            wanted = paced_target(
                mean, variance, mixed_bound(mean, variance, self.group_size),
                group_size=self.group_size, draws=self._most, temperature=self.temperature, slack=self.yield_slack,
            )  # fmt: skip
            self._target += float(np.clip(wanted - self._target, -self.pace, self.pace))
            self._paced_at = time
        step.gauge(target_angle=self._target, target_rate=math.sin(self._target) ** 2)

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        """Mixed groups; of more than are missing, those with the highest s after their outcome. A read."""
        verdicts = super().judge(groups, step)
        keep = np.flatnonzero(verdicts.keep)
        if step.streaming or len(keep) <= self._room:
            return verdicts
        kept = groups.select(keep)
        updated = self.utility(*self._belief.posterior(Visits.of(kept, self.correct_at), step))
        best = keep[TopK()(updated, self._room, step.rng("outrank"))]
        within = np.zeros(len(groups), dtype=np.bool_)
        within[best] = True
        reasons = np.where(verdicts.keep & ~within, "outranked", verdicts.reasons)
        return replace(verdicts, keep=within, reasons=tuple(reasons.tolist()))

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        held = super().state()
        return MethodState(held.prompts, {**held.shared, "target": np.array([self._target, self._paced_at])})

    def restore(self, state: MethodState) -> None:
        (target,) = belief_checks.shared(self, state.shared, "target")
        super().restore(state)
        self._target, self._paced_at = float(target[0]), int(target[1])


ENTRIES = {
    "arcus": Entry(
        factory=Arcus,
        summary="Tracks each prompt's pass rate as it drifts, aims as hard as the yield allows, keeps the best mixed groups.",
        signal="group outcomes",
        keeps="24 bytes: mean and variance of the angle, time of the last visit",
        extra_rollouts="1.25 groups asked for per group trained; no top-ups",
        cost="41 passes over the pool's beliefs",
        when="pools that are passed over several times, where beliefs would go stale towards too easy",
        paper="ARCUS, arXiv 2609.38018; a preprint of unconfirmed origin, its results as reported",
    ),
}
