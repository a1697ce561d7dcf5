"""LILO: roll out four times the batch, train on the groups of highest learnability p̂(1 - p̂).

"Learning to Reason at the Frontier of Learnability", arXiv 2502.12272. Learnability is the variance of a prompt's outcome; the
paper samples candidates uniformly, estimates p̂ from a full group each and trains on the best quarter.

It buys fewer training *steps* (1.5 to 3.3 times, reported) with four times the sampling: compare it at equal rollouts.

Differs from the paper in: p̂ is the share of the rollouts that really came back; equal learnability, which is common (every
k and G - k tie), is decided by a derived random key; candidates follow the shuffled stream, so that a pass offers each prompt
once; a stream ranks among the groups that are reported together and keeps a quarter of them, at least one, so that of groups
reported one by one it keeps all. The paper was read through the project's summary of it, not line by line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgewise.method import StepView
from edgewise.methods.best_of_round import BestOfRound
from edgewise.methods.entry import Entry
from edgewise.methods.rates import pass_rates
from edgewise.types import Floats, Groups


@dataclass(kw_only=True, eq=False)
class Lilo(BestOfRound):
    """Trains on the most learnable quarter of what it rolls out."""

    name: ClassVar[str] = "lilo"
    lost: ClassVar[str] = "less_learnable"

    oversample: float = 4.0
    """C / B: candidates per group trained. [paper]"""

    def worth(self, groups: Groups, step: StepView) -> Floats:
        del step
        rates = pass_rates(groups, self.correct_at)
        return rates * (1.0 - rates)


ENTRIES = {
    "lilo": Entry(
        factory=Lilo,
        summary="Rolls out four times the batch and trains on the groups nearest to a pass rate of one half.",
        signal="group outcomes of the round",
        keeps="nothing",
        extra_rollouts="three groups dropped per group trained",
        cost="a sort of the round",
        when="rollouts are cheap and training steps are what counts; judge it at equal rollouts",
        paper="LILO, arXiv 2502.12272",
    ),
}
