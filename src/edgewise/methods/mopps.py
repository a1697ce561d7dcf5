"""MoPPS: draw a pass rate from each candidate's Beta belief, take those nearest to one half.

MoPPS: "Can Prompt Difficulty be Online Predicted for Accelerating RL Finetuning of Reasoning Models?", arXiv 2507.04632, and
its code (thu-rllab/MoPPS), by which the rules and settings below go.

    r_i ~ Beta(α_i, β_i)        score = -(r_i - 0.5)²        the B highest of the next 8·B prompts of the stream
    α <- λα + (1-λ)α₀ + k       β <- λβ + (1-λ)β₀ + n - k    for the prompts rolled out

Differs from the paper in: draws come from generators derived from (seed, step), not from numpy's global one; a group with one
scored rollout teaches like any other, where the released code sets both counts of a prompt to 8 if n = 1; k counts rollouts
that pass, so no reward can push a count below zero; equal scores fall by a random key; rollouts that failed to run count
neither way; a guess at each pass rate from before the run is a signal (`prior="signal"`), not a factor of 3 on offline counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.choosers.rank import TopK
from edgewise.methods import checks
from edgewise.methods.beta_counts import BetaCounts
from edgewise.methods.composed import Parts, ScoreFunction
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.scores import NearTarget
from edgewise.types import Floats


@dataclass(kw_only=True, eq=False)
class Mopps(BetaCounts):
    """MoPPS as on Countdown and Geometry3k, and as independent re-runs used it: λ = 0.5, 8 candidates a group."""

    name: ClassVar[str] = "mopps"

    strategy: Literal["topk", "threshold", "uniform"] = "topk"
    """topk: nearest to `target_rate`. threshold: at random within [low, high], then nearest to it. uniform: at random, the
    control. [code]"""
    target_rate: float = 0.5
    """The pass rate aimed at. [code]"""
    low: float = 0.3
    """Lower end of the band of `threshold`. [code]"""
    high: float = 0.7
    """Upper end of the band of `threshold`. [code]"""
    decay: float = 0.5
    """λ in [0, 1]: what a visit leaves of a prompt's earlier counts. [code: 0.5 on Countdown and Geometry3k, 1 on MATH]"""
    spread: float = 8.0
    """Candidates per group wanted. [code: 8 on Countdown and Geometry3k, 16 on MATH]"""
    thompson: bool = True
    """Score a draw from each belief; off: its mean. [code; InSight Table 4 finds the mean better]"""

    def __post_init__(self) -> None:
        checks.one_of(self, "strategy", ("topk", "threshold", "uniform"))
        for name in ("target_rate", "low", "high"):
            checks.number(self, name, low=0.0, high=1.0, advice="It is a pass rate.")
        checks.number(self, "low", low=0.0, high=self.high, advice="It must not exceed high.")
        super().__post_init__()

    def parts(self) -> Parts:
        scores: dict[str, ScoreFunction] = {
            "topk": NearTarget(target=self.target_rate),
            "threshold": self._near_band,
            "uniform": lambda prediction, _: np.zeros(len(prediction)),
        }
        return Parts(belief=self.counts, score=scores[self.strategy], chooser=TopK())

    def _near_band(self, prediction: Prediction, rollouts: int) -> Floats:
        """Minus the distance to [low, high]: 0 for all inside, among whom the random key decides."""
        del rollouts
        return -np.maximum(np.maximum(self.low - prediction.mean, prediction.mean - self.high), 0.0)


@dataclass(kw_only=True, eq=False)
class MoppsMath(Mopps):
    """MoPPS as its MATH script ran it: nothing is forgotten, 16 candidates a group.

    Differs from the paper in: as `Mopps`.
    """

    name: ClassVar[str] = "mopps-math"

    decay: float = 1.0
    spread: float = 16.0


@dataclass(kw_only=True, eq=False)
class MoppsMean(Mopps):
    """MoPPS with the mean of each belief in place of the draw: the ablation of InSight, arXiv 2603.01907, Table 4.

    Differs from the paper in: as `Mopps`. Without the draw the prompts never visited all tie at the prior mean, which is the
    target; while the candidates hold B of them, the choice among those is random.
    """

    name: ClassVar[str] = "mopps-mean"

    thompson: bool = False


_ROW = {
    "signal": "group outcomes",
    "keeps": "20 bytes: discounted passes and fails, visits",
    "extra_rollouts": "none; zero-variance groups are trained on unless a gate is set",
    "paper": "MoPPS, arXiv 2507.04632, and its code",
}

ENTRIES = {
    "mopps": Entry(
        factory=Mopps,
        summary="Draws each candidate's pass rate from its own counts, takes those nearest to one half.",
        cost="one Beta draw for 8 candidates per group trained",
        when="pools that are visited several times, small enough for most candidates to have counts",
        **_ROW,
    ),
    "mopps-math": Entry(
        factory=MoppsMath,
        summary="mopps as on MATH: counts are never forgotten, 16 candidates per group.",
        cost="one Beta draw for 16 candidates per group trained",
        when="to repeat the paper's MATH runs; counts go stale as the policy learns",
        **_ROW,
    ),
    "mopps-mean": Entry(
        factory=MoppsMean,
        summary="mopps by the mean of each belief in place of a draw.",
        cost="arithmetic on 8 candidates per group trained",
        when="against mopps, to see what the draw is worth",
        **_ROW,
    ),
}
