"""BOTS, Bayesian Online Task Selection: explicit evidence from rollouts, implied evidence for all other prompts. [2510.26374]

    candidates   the whole pool
    belief       Beta counts; those not rolled out learn from where the policy stands between two reference models
                 (`beliefs.anchored`)
    score        -|target - draw|, one Thompson draw a prompt
    chooser      τ = 0: the highest; τ > 0: softmax without replacement

`decay` is λ, `rho` ρ, `target_rate` p*, `temperature` τ. Defaults are the released example's (bots.yaml); the class defaults
there are λ = ρ = 0.2. The signal `anchor_rates` holds the offline pass rates of the two references.

Differs from the paper in: m is the group size where no number is given; a prompt that was rolled out counts the rollouts it
has, not m; an update is one training step, or about one batch where groups come in a stream; a batch in which the two
references are equally good on average leaves cap as it is, where the code divides by 1e-6; ties are broken at random; counts,
cap and ρ survive a resume (the code saves none of them).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.anchored import AnchoredBeta
from edgewise.choosers.rank import Softmax, TopK
from edgewise.methods import checks
from edgewise.methods.composed import Composition, Parts
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.types import Floats


@dataclass(frozen=True, kw_only=True)
class Closeness:
    """-|target - p|: not squared, which softmax would notice. [code]"""

    target: float = 0.5

    def __call__(self, prediction: Prediction, rollouts: int) -> Floats:
        del rollouts
        return -np.abs(self.target - prediction.mean)


@dataclass(kw_only=True, eq=False)
class Bots(Composition):
    """AnchoredBeta × -|target - draw| × top-k, over the whole pool."""

    name: ClassVar[str] = "bots"

    candidates: Literal["stream", "random", "pool"] = "pool"
    """The released selector ranks every prompt. [code]"""
    thompson: bool = True
    """[code: do_sample]"""
    decay: float = 0.1
    """λ in [0, 1]: share of the counts that a step forgets. [code: bots.yaml]"""
    rho: float = 0.1
    """ρ in [0, 1]: weight of implied evidence. 0 needs no reference models and leaves Beta counts that every step discounts,
    visited or not. [code: bots.yaml]"""
    implied_rollouts: int | None = None
    """m: rollouts that implied evidence counts as. None: the group size. [code: repeat_times, 16]"""
    momentum: float = 0.9
    """Of cap's moving average. [code]"""
    adaptive_rho: bool = False
    """Halve ρ at every update whose implied rates are wrong by 0.25 or more on average. [code: off]"""
    target_rate: float = 0.5
    """p*: the pass rate aimed at. [paper]"""
    temperature: float = 0.0
    """τ >= 0. [code: bots.yaml]"""

    def __post_init__(self) -> None:
        checks.number(self, "rho", low=0.0, high=1.0, advice="0 needs no reference models.")
        least = 1e-3 if self.rho > 0.0 else 0.0
        checks.number(self, "decay", low=least, high=1.0, advice="With rho > 0 something must be forgotten: at least 0.001.")
        if self.implied_rollouts is not None:
            checks.whole(self, "implied_rollouts", low=1, advice="None is the group size.")
        checks.number(self, "momentum", low=0.0, high=1.0 - 1e-9)
        checks.switch(self, "adaptive_rho")
        checks.number(self, "target_rate", low=0.0, high=1.0)
        checks.number(self, "temperature", low=0.0)
        super().__post_init__()

    def parts(self) -> Parts:
        belief = AnchoredBeta(
            decay=self.decay, rho=self.rho, rollouts=self.implied_rollouts, momentum=self.momentum,
            adaptive_rho=self.adaptive_rho,
        )  # fmt: skip
        chooser = Softmax(self.temperature) if self.temperature > 0.0 else TopK()
        return Parts(belief, Closeness(target=self.target_rate), chooser)


@dataclass(kw_only=True, eq=False)
class BotsNoAnchors(Bots):
    """BOTS without reference models, ρ = 0: the paper's ablation with explicit evidence only. Runs on every host.

    As reported, early in training it is hardly better than random: most prompts were never looked at.
    Differs from the paper in: what `bots` differs in.
    """

    name: ClassVar[str] = "bots-no-anchors"

    rho: float = 0.0


_KEEPS = "24 bytes: two counts and the number of updates in them; and one cap a step for 372 steps, shared"

ENTRIES = {
    "bots": Entry(
        factory=Bots,
        summary="Takes draws of Beta beliefs nearest to 1/2; two reference models' pass rates inform prompts not rolled out.",
        signal="group outcomes; offline pass rates of a weaker and a stronger model on every prompt",
        keeps=_KEEPS,
        extra_rollouts="none",
        cost="one draw for every prompt of the pool",
        when="data sets that come with pass rates of two models",
        paper="BOTS, arXiv 2510.26374, as its example runs",
    ),
    "bots-no-anchors": Entry(
        factory=BotsNoAnchors,
        summary="BOTS without reference models: draws of Beta beliefs that every step discounts, nearest to 1/2.",
        signal="group outcomes",
        keeps=_KEEPS,
        extra_rollouts="none",
        cost="one draw for every prompt of the pool",
        when="to see what the implied evidence of bots adds; like mopps, but beliefs also fade while nobody looks",
        paper="BOTS, arXiv 2510.26374, with ρ = 0",
    ),
}
