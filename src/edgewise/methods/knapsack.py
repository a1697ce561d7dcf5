"""Knapsack RL: the prompts of the stream as they come; rollouts by what they are worth, under a fixed budget.

Knapsack RL: "Knapsack RL: Unlocking Exploration of LLMs via Optimizing Budget Allocation", arXiv 2509.25849, as reported, and
its code (liziniu/KnapsackRL), which was read.

    maximise  Σ V(n_i; p_i),  Σ n_i = B·G          V(n; p) = (1 - pⁿ - qⁿ) · p q²
    p  the success rate at the last visit          unknown prompts get G rollouts, those with p = 0 or 1 the floor

The surplus: a prompt needs about ln 0.1 / ln max(p, q) rollouts for a mixed group at 90 %. What the budget holds beyond the
needs of all prompts goes to those with p = 0, evenly.

Differs from the paper in: the optimum is exact, by gains, where the released dynamic program credits k > 0 extra rollouts with
the whole value V(floor + k) and 0 extra with none, which overrates the first one; the surplus goes to prompts that were seen
to fail, where the code counts unknown ones among them; if there are none, it stays with the open prompts, then goes to unknown
and last to solved ones, where the code divides by zero when every prompt is open; the cap holds for the surplus too; any group
with a scored rollout counts as a visit (`min_trials`); `belief="beta"` uses Beta(1, 1) means, never 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.allocators import greedy, knapsack, largest_remainder
from edgewise.beliefs.beta import BetaBelief
from edgewise.beliefs.last import LastRate
from edgewise.choosers.rank import InOrder
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.allocated import Allocated, alike
from edgewise.methods.composed import Parts
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.types import Bools, Floats, Ints


@dataclass(kw_only=True, eq=False)
class Knapsack(Allocated):
    """Knapsack RL. No gate, no choice of prompts: only the sizes of the groups differ from plain GRPO."""

    name: ClassVar[str] = "knapsack"

    belief: Literal["last", "beta"] = "last"
    """last: the pass rate of the last group. beta: the mean of all groups, from Beta(1, 1). [paper: last]"""
    decay: float = 1.0
    """λ in [0, 1] of the counts, with belief="beta". [choice]"""
    min_trials: int = 1
    """Groups with fewer scored rollouts teach nothing, with belief="last". [choice; code: 8]"""
    most: int = 128
    """Most rollouts of a group; group_size where that is more. [paper]"""
    confidence: float = 0.9
    """Chance of a mixed group that counts as enough, in (0, 0.999]. [code]"""
    candidates: Literal["stream", "random", "pool"] = "stream"
    spread: float = 1.0

    _last: LastRate = field(init=False, repr=False)
    _counts: BetaBelief = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.one_of(self, "belief", ("last", "beta"))
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        checks.whole(self, "min_trials", low=1)
        checks.whole(self, "most", low=2, advice="It caps the rollouts of one prompt.")
        checks.number(self, "confidence", low=0.0, high=0.999, above=True, advice="0.9 is the code's.")
        super().__post_init__()

    def parts(self) -> Parts:
        self._last = LastRate(min_trials=self.min_trials)
        self._counts = BetaBelief(decay=self.decay)
        return Parts(belief=self._last if self.belief == "last" else self._counts, score=alike, chooser=InOrder())

    @property
    def cap(self) -> int:
        return max(self.most, self.group_size)

    def share_out(self, rows: Ints, believed: Prediction, budget: int, step: StepView) -> Ints:
        known = self._last.known(rows) if self.belief == "last" else self._counts.seen(rows, step)
        low, high = self.bounds(believed.mean, known, budget)
        return greedy(knapsack(believed, self.cap), budget, low, high)

    def bounds(self, rates: Floats, known: Bools, budget: int) -> tuple[Ints, Ints]:
        """((m,), (m,)) fewest and most rollouts of each prompt, such that an allocation exists.

        Open prompts (0 < p < 1) may get anything from the floor to the cap. The others get a fixed number: the mean of the
        budget if unknown, else the floor, and their part of a surplus.

        rates: (m,) p in [0, 1].  known: (m,) whether p was observed.  budget: >= m times the floor, <= m times the cap.
        """
        open_ = known & (rates > 0.0) & (rates < 1.0)
        failed, solved = known & (rates <= 0.0), known & (rates >= 1.0)
        low = np.where(known, self.least, min(budget // len(rates), self.cap)).astype(np.int64)
        free = budget - int(low.sum())
        surplus = free - int(self.enough(rates[open_]).sum())
        for group in (failed, ~known, solved):
            extra = max(0, free - int(open_.sum()) * (self.cap - self.least))  # more than the open prompts can take
            if group is failed:
                extra = max(extra, surplus)
            given = _evenly(extra, self.cap - low[group])
            low[group] += given
            free -= int(given.sum())
        return low, np.where(open_, self.cap, low)

    def enough(self, rates: Floats) -> Ints:
        """(n,) rollouts for a mixed group with chance `confidence`, about: ln(1-c)/ln max(p, q), at most the cap. [code]

        rates: (n,) in (0, 1).
        """
        wanted = np.log(1.0 - self.confidence) / np.log(np.maximum(rates, 1.0 - rates))
        whole: Ints = np.minimum(wanted, float(self.cap)).astype(np.int64)
        return whole


def _evenly(amount: int, room: Ints) -> Ints:
    """The amount shared out evenly, at most `room` each; less if there is not so much room."""
    return largest_remainder(np.ones(len(room)), min(amount, int(room.sum())), 0, room)


ENTRIES = {
    "knapsack": Entry(
        factory=Knapsack,
        summary="Takes the stream as it is; gives hard but solvable prompts more rollouts, certain ones the floor.",
        signal="group outcomes",
        keeps="12 bytes: last pass rate, rollouts it comes from",
        extra_rollouts="none; zero-variance groups are trained on, as small as the floor where they were foreseen",
        cost="arithmetic on the batch",
        when="trainers that take groups of different sizes; several passes over the data; prompts must not be skipped",
        paper="Knapsack RL, arXiv 2509.25849",
    ),
}
