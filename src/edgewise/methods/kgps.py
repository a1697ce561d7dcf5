"""KGPS, Kalman-Guided Prompt Selection: a filter on each prompt's log-odds; most expected variance first. [arXiv 2607.27610]

    warm-up      one pass over the pool in stream order
    candidates   the whole pool
    belief       x = logit p by a Kalman filter whose state wanders (`beliefs.logit_kalman`)
    score        E[p(1-p)], by five-point Gauss-Hermite quadrature
    chooser      the B highest

Reconstructed: the paper could not be read beyond its abstract. The model and the coupling of the process noise to the policy
update are the abstract's; the uniform warm-up epoch, the quadrature and that exactly B prompts are asked for are as arXiv
2609.38018 (App. E) reports them of its baseline; every constant is ours.

Differs from the paper in: whatever its constants are; the process noise is the same at every step, because a selector is not
told how far an update moved the weights; candidates are the whole pool, where the paper may draw some.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgewise.beliefs.logit_kalman import LogitKalman
from edgewise.choosers.rank import TopK
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.composed import Composition, Parts
from edgewise.methods.entry import Entry
from edgewise.scores import ExpectedVariance
from edgewise.types import Ints


@dataclass(kw_only=True, eq=False)
class Kgps(Composition):
    """LogitKalman × E[p(1-p)] × top-k, after a pass over the pool."""

    name: ClassVar[str] = "kgps"

    candidates: Literal["stream", "random", "pool"] = "pool"
    """[choice]"""
    process_noise: float = 0.05
    """Q >= 0: variance that a step adds to log-odds nobody looked at. [choice]"""
    prior_variance: float = math.pi**2 / 3.0
    """Of the log-odds before any look. [choice: that of a uniform pass rate]"""
    warmup_epochs: float = 1.0
    """Passes over the pool in stream order before the belief chooses. [as reported: one]"""

    def __post_init__(self) -> None:
        checks.number(self, "process_noise", low=0.0)
        checks.number(self, "prior_variance", low=0.0, above=True)
        checks.number(self, "warmup_epochs", low=0.0)
        super().__post_init__()

    def parts(self) -> Parts:
        belief = LogitKalman(process_noise=self.process_noise, prior_variance=self.prior_variance)
        return Parts(belief, ExpectedVariance(), TopK())

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        if step.epoch < self.warmup_epochs:
            return step.draw(target)
        return super().candidate_rows(target, step)


ENTRIES = {
    "kgps": Entry(
        factory=Kgps,
        summary="Tracks each prompt's log-odds by a Kalman filter; takes the most expected variance, unsure prompts included.",
        signal="group outcomes",
        keeps="24 bytes: mean and variance of the log-odds, time of the last visit",
        extra_rollouts="none",
        cost="five logistic functions for every prompt of the pool",
        when="pools that are passed over several times, with a policy that moves: beliefs widen while nobody looks",
        paper="KGPS, arXiv 2607.27610, reconstructed from reports of it",
    ),
}
