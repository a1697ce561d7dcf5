"""HORA: after a pilot, spend what is left of the budget where it is likeliest to show a first success.

Wang and others, "Where to Spend Rollouts: Hit-Utility Optimal Rollout Allocation for Group-Based RLVR", arXiv 2605.07114.

    pilot of m rollouts with k passes:   p ~ Beta(1 + k, 1 + m - k)
    hit utility of n more                U(n) = P(at least one passes) = 1 - B(α, β + n) / B(α, β)
    maximise Σ U_i(n_i)                  under Σ (pilot + n_i) = group_size · prompts, by greedy, which is exact: U is concave

The gain of the next rollout is E[q^n p]: large at first and soon nothing where p is known to be high, small and lasting where
no success was seen. So solved prompts get short groups, hard ones long ones, but for those that look hopeless. Reported: Pass@1
as GRPO's, Pass@K higher in ten of twelve settings. Take it for Pass@K.

Differs from the paper in: the size of the pilot is ours (half of the group), for the summary at hand names none; rollouts that
did not come back are not counted as failures; a prompt with fewer than two outcomes is dropped and its budget goes with it;
equal gains go to the smaller group, then by a random order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.allocators import greedy
from edgewise.allocators import hora as gains_in_hits
from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction, Visits
from edgewise.types import Groups, Ints, Requests, Setting, Verdicts


@dataclass(kw_only=True, eq=False)
class Hora(DynamicSampling):
    """A pilot of the batch, then the exact allocation of the rest. Keeps no state of prompts."""

    name: ClassVar[str] = "hora"
    scope = "batch"  # the budget is shared by the round
    arrival_order_matters = "a stream's budget is shared by the pilots that are reported in one call"

    pilot: int | None = None
    """Rollouts of the pilot, in [2, group_size]. None: half of the group, at least 2. [choice]"""
    most: float = 8.0
    """Rollouts of the largest group, in group sizes, >= 1: a bound on the longest generation. [choice]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    """Also drop finished groups of zero variance. Off, as in the paper."""
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    pilot_size: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pilot is not None:
            checks.whole(self, "pilot", low=2, advice="A group of one has no baseline.")
        checks.number(self, "most", low=1.0, advice="1 gives every prompt the same.")

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self.pilot_size = max(2, setting.group_size // 2) if self.pilot is None else self.pilot
        if self.pilot_size > setting.group_size:
            raise ConfigError(
                f"Hora(pilot=...) must be at most group_size = {setting.group_size}, got {self.pilot}. The pilots come out "
                "of the budget of group_size a prompt."
            )

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.pilot_size)
        rows = step.draw(target)
        return Requests.of(rows, self.pilot_size) if len(rows) else self.nothing_left(room, step)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        """Pilots share the budget among them; groups that got theirs are kept."""
        verdicts = super().judge(groups, step)
        pilots = np.flatnonzero((groups.asked <= self.pilot_size) & (groups.valid.sum(axis=1) >= 2))
        more = np.zeros(len(groups), dtype=np.int64)
        if len(pilots):
            pilots = pilots[step.rng("ties").permutation(len(pilots))]
            more[pilots] = self.allocate(groups.select(pilots))
        return Verdicts(verdicts.keep, verdicts.reasons, more=more)

    def allocate(self, pilots: Groups) -> Ints:
        """(n,) further rollouts of each pilot: with what was asked for, group_size a prompt in all."""
        visits = Visits.of(pilots, self.correct_at)
        believed = Prediction.of_beta(1.0 + visits.successes, 1.0 + visits.trials - visits.successes)
        budget = self.group_size * len(pilots) - int(pilots.asked.sum())
        highest = round(self.most * self.group_size) - pilots.asked
        return greedy(gains_in_hits(believed, int(highest.max())), budget, 0, highest)


ENTRIES = {
    "hora": Entry(
        factory=Hora,
        summary="Pilots the batch, then gives the rest of the rollouts to prompts likeliest to show a first success.",
        signal="outcomes of a pilot",
        keeps="nothing",
        extra_rollouts="none: batch_size · group_size are rolled out and trained",
        cost="a table of gains of the batch; two generation calls a step",
        when="Pass@K is the goal and group sizes may differ",
        paper="HORA, arXiv 2605.07114",
    ),
}
