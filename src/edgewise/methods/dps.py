"""DPS, Dynamics-Predictive Sampling: ask for the prompts most likely to be partially solved now. [arXiv 2603.10887]

    candidates   the next 8 B (MATH: 32 B) prompts of the stream
    belief       a hidden Markov model of each prompt's state: all wrong, mixed, all right (`beliefs.markov`)
    score        π[1], the chance that the next group is mixed, + w · entropy of π
    chooser      the B highest

`entropy_weight` is w, `decay` λ, `prior` A₀. Defaults are the released scripts': `dps` as for Countdown and Geometry3k,
`dps-math` as for MATH.

Differs from the paper in: only the candidates are ranked, as the code does, where the paper speaks of all prompts; ties, of
which there are many while prompts are unseen, are broken at random and not by position; every prompt of the pool ages from the
first step on, not only those that were candidates once (with the uniform prior an unseen prompt does not change, so this is the
same); ageing is worked out when it is read, which agrees with the code's pool-wide loop to 4e-16 over 200 steps; the prior
"local" has 1e-3 where the code has 0, with which an observed jump between all wrong and all right divides 0 by 0; groups of a
single rollout teach nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.markov import PRIORS, Markov3
from edgewise.choosers.rank import TopK
from edgewise.methods import checks
from edgewise.methods.composed import Composition, Parts
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.types import Floats


@dataclass(frozen=True, kw_only=True)
class MixedAndUnsure:
    """π[1] + w·H(π), H in nats: most likely mixed, and with w > 0 also the least predictable. [code: topk, topk+entropy]"""

    entropy_weight: float = 0.0

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        """(n,) scores. prediction: of `Markov3`, from whose mean and chance of a mixed group π follows."""
        del rollouts
        mixed = prediction.mixed
        assert mixed is not None
        if self.entropy_weight == 0.0:
            return mixed
        right = prediction.mean - mixed / 2.0
        states = np.maximum([1.0 - mixed - right, mixed, right], 0.0)
        entropy = -(states * np.log(states, out=np.zeros_like(states), where=states > 0.0)).sum(axis=0)
        return np.asarray(mixed + self.entropy_weight * entropy, dtype=np.float64)


@dataclass(kw_only=True, eq=False)
class Dps(Composition):
    """Markov3 × π[1] × top-k, as the scripts for Countdown and Geometry3k run it."""

    name: ClassVar[str] = "dps"

    spread: float = 8.0
    """Candidates per group wanted. [code: 8 Countdown and Geometry3k, 32 MATH]"""
    decay: float = 0.5
    """λ in [0, 1]: what a step leaves of the transition counts. [code: 0.5 Countdown and Geometry3k, 0.7 MATH]"""
    prior: Literal["uniform", "progress", "stability", "local"] = "uniform"
    """A₀ of the transition counts. [code: uniform in every script]"""
    prior_count: float = 1.0
    """Scale of A₀. [code]"""
    entropy_weight: float = 0.0
    """w >= 0. [code: 0 in every script]"""

    def __post_init__(self) -> None:
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        checks.one_of(self, "prior", tuple(PRIORS))
        checks.number(self, "prior_count", low=0.0, above=True)
        checks.number(self, "entropy_weight", low=0.0)
        super().__post_init__()

    def parts(self) -> Parts:
        belief = Markov3(decay=self.decay, prior=self.prior, prior_count=self.prior_count)
        return Parts(belief, MixedAndUnsure(entropy_weight=self.entropy_weight), TopK())


@dataclass(kw_only=True, eq=False)
class DpsMath(Dps):
    """DPS as the scripts for MATH run it: slower forgetting, more candidates.

    Differs from the paper in: what `dps` differs in.
    """

    name: ClassVar[str] = "dps-math"

    spread: float = 32.0
    decay: float = 0.7


_KEEPS = "104 bytes: nine transition counts, three state chances, the step of the last visit"

ENTRIES = {
    "dps": Entry(
        factory=Dps,
        summary="Predicts each prompt's state (all wrong, mixed, all right) by a Markov chain; takes the likeliest mixed.",
        signal="group outcomes",
        keeps=_KEEPS,
        extra_rollouts="none",
        cost="small matrix products for 8 candidates per group trained",
        when="small pools that are passed over many times, such as Countdown",
        paper="DPS, arXiv 2603.10887, as its code runs",
    ),
    "dps-math": Entry(
        factory=DpsMath,
        summary="DPS with slower forgetting and four times the candidates.",
        signal="group outcomes",
        keeps=_KEEPS,
        extra_rollouts="none",
        cost="small matrix products for 32 candidates per group trained",
        when="pools of several thousand prompts, such as MATH",
        paper="DPS, arXiv 2603.10887, as its code runs on MATH",
    ),
}
