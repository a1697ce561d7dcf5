"""VIP: the prompts of the stream as they come; rollouts where a Gaussian process foresees variance.

VIP: "Adaptive Rollout Allocation for Online Reinforcement Learning with Verifiable Rewards", arXiv 2602.01601. The paper could
not be read; this is reconstructed from public summaries and from its code (HieuNT91/VIP), which was read.

    belief     logit of the pass rate ~ Gaussian process over prompt embeddings       `beliefs/gaussian.py`
    minimise   Σ 4 p q / (n - 1),  Σ n = B·G                                          leave-one-out baseline (RLOO)

Differs from the paper in: the allocation is the exact whole-number optimum, where the paper relaxes n to real numbers and
rounds by a heuristic, and the code adds a term 0.0007·n·ln p to the objective that is left out here; only the leave-one-out
form is offered, for with the mean as baseline the objective is not convex below n = 3 and greedy would not be exact; logits
of groups are smoothed by half a count and carry their sampling noise, where the code clips rates at 1e-6, which puts a failed
group at a logit of -13.8, and takes them as exact; the prior variance of the logit is π²/3, where the code has 1; the influence
of a group on other prompts is remembered for the last `memory` groups, where the code updates the whole pool each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgewise.allocators import greedy, vip_loo
from edgewise.beliefs.gaussian import GaussianBelief
from edgewise.choosers.rank import InOrder
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.allocated import Allocated, alike
from edgewise.methods.composed import Parts
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.types import Ints


@dataclass(kw_only=True, eq=False)
class Vip(Allocated):
    """VIP, reconstructed. No gate, no choice of prompts: only the sizes of the groups differ from plain GRPO."""

    name: ClassVar[str] = "vip"
    scope = "batch"  # a round is one joint update

    floor_factor: float = 0.5
    """Fewest rollouts of a group, in group sizes, never below `floor`. [code: 4, with budgets of 8 a prompt]"""
    cap_factor: float = 4.0
    """Most rollouts of a group, in group sizes. [code: 32, with budgets of 8 a prompt]"""
    prior_logit: float = -1.0
    """Logit of the pass rate of a prompt that resembles none seen. [code]"""
    amplitude: float = 3.29
    """Prior variance of the logit: π²/3, as of a uniform pass rate. [choice; code: 1]"""
    bandwidth: float | None = None
    """Length scale of the kernel. None: the median distance. [paper, as reported; code: 0.4]"""
    memory: int = 4096
    """Groups whose influence on other prompts is remembered. [choice]"""
    candidates: Literal["stream", "random", "pool"] = "stream"
    spread: float = 1.0

    def __post_init__(self) -> None:
        checks.number(self, "floor_factor", low=0.0, high=1.0, advice="1 gives every prompt the same.")
        checks.number(self, "cap_factor", low=1.0, advice="1 gives every prompt the same.")
        super().__post_init__()

    def parts(self) -> Parts:
        belief = GaussianBelief(
            prior_logit=self.prior_logit, amplitude=self.amplitude, bandwidth=self.bandwidth, memory=self.memory
        )
        return Parts(belief=belief, score=alike, chooser=InOrder())

    @property
    def least(self) -> int:
        return min(max(self.floor, math.floor(self.floor_factor * self.group_size + 1e-9)), self.group_size)

    @property
    def cap(self) -> int:
        return math.floor(self.cap_factor * self.group_size + 1e-9)

    def share_out(self, rows: Ints, believed: Prediction, budget: int, step: StepView) -> Ints:
        del rows, step
        return greedy(vip_loo(believed, self.cap), budget, self.least, self.cap)


ENTRIES = {
    "vip": Entry(
        factory=Vip,
        summary="Takes the stream as it is; gives more rollouts where prompts that read alike came out mixed.",
        signal="group outcomes; embeddings of the prompts",
        keeps="16 bytes: a logit and when it was learned; 4096 groups in all",
        extra_rollouts="none; zero-variance groups are trained on",
        cost="one embedding of each prompt; 4096 kernel values for each prompt asked for",
        when="trainers that take groups of different sizes and the first pass over the data; prompts must not be skipped",
        paper="VIP, arXiv 2602.01601; reconstructed",
    ),
}
