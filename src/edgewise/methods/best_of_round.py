"""Roll out more prompts than are trained, look at the whole round, and train on the best of it. Shared by LILO and LZE."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.choosers.rank import TopK
from edgewise.method import StepView
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.rates import ROUNDING
from edgewise.types import Floats, Groups, Ints, MethodState, Requests, Verdicts


@dataclass(kw_only=True, eq=False)
class BestOfRound(DynamicSampling):
    """Base: children say which prompts, what a finished group is worth and how many may stay."""

    scope = "batch"  # a rank needs everybody

    lost: ClassVar[str] = "less_worth"
    """Reason given for groups that were ranked too low."""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    """Also drop groups of zero variance, whatever they rank. Off, as in the papers."""
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1
    """One round: what is short after it stays short. [paper]"""

    _room: int = field(default=0, init=False, repr=False)

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        self._room = room
        if target == 0:
            return Requests.of([], self.group_size)
        rows = self.candidate_rows(target, step)
        if len(rows) == 0:
            return self.nothing_left(room, step)
        return Requests.of(rows, self.group_size)

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        """(n,) rows to roll out."""
        return step.draw(target)

    @abstractmethod
    def worth(self, groups: Groups, step: StepView) -> Floats:
        """(n,) what each finished group is worth, higher is better; NaN or -inf where it must not be trained on."""

    def places(self, finished: int, step: StepView) -> int:
        """How many groups of `finished` may stay: those that the batch lacks; streaming, the share that a round would keep."""
        return self.share_of(finished) if step.streaming else self._room

    def share_of(self, finished: int) -> int:
        """What a full round keeps, of `finished` groups; at least one."""
        return max(1, math.floor(finished / self.oversample + ROUNDING))

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        gated = super().judge(groups, step)
        worth = np.where(gated.keep, self.worth(groups, step), -np.inf)
        order = TopK()(worth, self.places(len(groups), step), step.rng("ties"))
        keep = np.zeros(len(groups), dtype=np.bool_)
        keep[order[worth[order] > -math.inf]] = True
        lost = ("" if kept else reason or self.lost for kept, reason in zip(keep, gated.reasons, strict=True))
        return Verdicts(keep, tuple(lost))

    def state(self) -> MethodState:
        return MethodState(shared={**super().state().shared, "room": np.array([self._room], dtype=np.int64)})

    def restore(self, state: MethodState) -> None:
        self._room = int(shared_array(state, "room", type(self).__name__)[0])
        super().restore(state)
