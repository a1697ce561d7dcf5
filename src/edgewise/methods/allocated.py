"""What CurES, Knapsack RL, VIP and users' allocations share: groups differ in size, the training batch holds as much as ever.

A batch holds batch_size · group_size rollouts. Where groups are lost (a failed rollout, a gate) and later rounds make up for
them, those rounds share out what the batch still lacks, so that it fills up to exactly that number again.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field

import numpy as np

from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.composed import Composition
from edgewise.methods.dynamic import shared_array
from edgewise.prediction import Prediction
from edgewise.types import Floats, Groups, Ints, MethodState, Requests


@dataclass(kw_only=True, eq=False)
class SharedBudget(Composition):
    """Base of the compositions whose groups may differ in size: counts what the step has kept so far."""

    _kept_groups: int = field(default=0, init=False, repr=False)
    _kept_rollouts: int = field(default=0, init=False, repr=False)

    def propose(self, room: int, step: StepView) -> Requests:
        if step.round == 0 or step.streaming:
            self._kept_groups = self._kept_rollouts = 0
        return super().propose(room, step)

    def budget(self, count: int, step: StepView, *, least: int, most: int) -> int:
        """Rollouts for the next `count` >= 1 groups: group_size each; in later rounds their part of what the batch lacks.

        least, most: rollouts of one group.
        """
        fair = count * self.group_size
        room = self.batch_size - self._kept_groups
        if step.streaming or step.round == 0 or room < 1:
            return fair
        lacking = self.batch_size * self.group_size - self._kept_rollouts
        return min(max(math.ceil(lacking * count / room), count * least), count * most)

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        self._kept_groups += int(groups.trained.any(axis=1).sum())
        self._kept_rollouts += int(groups.trained.sum())

    def state(self) -> MethodState:
        state = super().state()
        state.shared["batch_so_far"] = np.array([self._kept_groups, self._kept_rollouts], dtype=np.int64)
        return state

    def restore(self, state: MethodState) -> None:
        self._kept_groups, self._kept_rollouts = map(int, shared_array(state, "batch_so_far", type(self).__name__))
        super().restore(state)


@dataclass(kw_only=True, eq=False)
class Allocated(SharedBudget):
    """Base of the methods whose groups differ in size. Children say how a budget is shared out; this says how large it is."""

    floor: int = 2
    """Fewest rollouts of a group, at most group_size: a group of one has no baseline."""

    def __post_init__(self) -> None:
        checks.whole(self, "floor", low=2, advice="A group of one has no baseline.")
        super().__post_init__()

    @property
    @abstractmethod
    def cap(self) -> int:
        """Most rollouts of a group, >= group_size."""

    @abstractmethod
    def share_out(self, rows: Ints, believed: Prediction, budget: int, step: StepView) -> Ints:
        """(m,) rollouts of the chosen prompts in [least, cap], m >= 1, that sum to the budget."""

    @property
    def least(self) -> int:
        """Fewest rollouts of a group in this run."""
        return min(self.floor, self.group_size)

    def rollouts(self, rows: Ints, believed: Prediction, step: StepView) -> Ints:
        if len(rows) == 0:
            return np.empty(0, dtype=np.int64)
        budget = self.budget(len(rows), step, least=self.least, most=self.cap)
        shares = self.share_out(rows, believed, budget, step)
        step.gauge(rollouts_least=float(shares.min()), rollouts_most=float(shares.max()))
        return shares


def alike(prediction: Prediction, rollouts: int) -> Floats:
    """The score of methods that take the stream as it is: 0 for every prompt."""
    del rollouts
    return np.zeros(len(prediction))
