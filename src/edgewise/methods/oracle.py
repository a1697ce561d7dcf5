"""The oracle: what selection could reach at best. A laboratory method, for it reads the exact pass probability.

Score = probability of a mixed group, 1 - p^G - (1-p)^G, over the whole pool. Prompts are chosen without replacement, with
chances proportional to the score. Gate and top-up are those of HIVE, so that its training batches compare with those of
dapo, greso and hive; it asks for exactly the groups it needs (oversample 1), having no reason to hedge. Cost a step: one
signal over the pool.

Differs from the paper in: there is none; the score is the common yardstick of the prompt-selection papers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgewise.choosers.rank import Proportional
from edgewise.errors import SignalError
from edgewise.method import StepView
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Entry
from edgewise.scores import prob_mixed
from edgewise.types import PASS_RATE, Floats, Ints, Requests


@dataclass(kw_only=True, eq=False)
class Oracle(DynamicSampling):
    """Chooses by the exact probability of a mixed group."""

    name: ClassVar[str] = "oracle"

    oversample: float = 1.0
    """C / B: exactly the batch."""
    min_round: int | None = 1
    """b_min: no floor under a top-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.needs = frozenset({PASS_RATE})

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        pool = np.arange(self.pool_size, dtype=np.int64)
        rows = pool[step.eligible(pool)]
        scores = prob_mixed(self._pass_rates(rows, step), self.group_size)
        chosen = Proportional()(scores, target, step.rng("oracle"))
        if self.gate != "off":  # a score of 0 is known to be dropped: asking for it would only burn rollouts
            chosen = chosen[scores[chosen] > 0.0]
        if len(chosen) == 0:
            return self.nothing_left(room, step)
        return Requests.of(rows[chosen], self.group_size)

    def _pass_rates(self, rows: Ints, step: StepView) -> Floats:
        """(n,) in [0, 1]; a value that is no probability is reported and counts as 0."""
        if len(rows) == 0:
            return np.empty(0)
        rates = step.signal(PASS_RATE, rows)
        good = (rates >= 0.0) & (rates <= 1.0)
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            step.problem(
                SignalError(
                    f"signal({PASS_RATE!r}) of prompt row {int(rows[first])} must be in [0, 1], got {rates[first]} "
                    f"({int((~good).sum())} of {len(rows)} prompts). The oracle takes it for 0."
                )
            )
        return np.where(good, rates, 0.0)


ENTRIES = {
    "oracle": Entry(
        factory=Oracle,
        summary="Chooses in proportion to the exact probability of a mixed group. The ceiling, for the laboratory only.",
        signal="the exact pass probability, which no real run has",
        keeps="nothing",
        extra_rollouts="zero-variance groups that chance produces, and a small surplus of top-ups",
        cost="one exact pass rate for every prompt of the pool",
        when="to see how much any selection could save on a task",
        paper="common yardstick",
    ),
}
