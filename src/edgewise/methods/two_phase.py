"""Two phases: a small pilot of many prompts, then the rest of the group for those that look worth it. SPEED-RL, Pilot-Commit.

    round r      pilots of fresh prompts, and in the same generation call the rest of earlier prompts that passed
    judge        pilot: passed -> `more`, else dropped        whole group: kept where its rewards vary

A group's rollouts asked for so far tell its phase, so pilot and rest may be of equal size. Passed groups that the batch has no
place for wait for the next step; they were begun by older weights, and `Groups.policy_versions` says so for each rollout.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.types import Bools, Groups, Ints, Requests, Setting, Verdicts


@dataclass(kw_only=True, eq=False)
class TwoPhase(DynamicSampling):
    """Base: children say how large a pilot is by default and which pilots pass."""

    pilot: int | None = None
    """Rollouts of the pilot, at least 2 and at most group_size; they are part of the group. None: by the group's size."""
    gate: Literal["reward", "correct", "off"] | bool = "correct"
    """Whole groups of zero variance are dropped: by `correct` where it is known for all of the group, else by reward."""
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "fixed"
    """Every round with room asks for a full set of pilots. [code]"""

    pilot_size: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pilot is not None:
            checks.whole(self, "pilot", low=2, advice="A pilot of one can be neither mixed nor near one half.")

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self.pilot_size = self.default_pilot(setting.group_size) if self.pilot is None else self.pilot
        if self.pilot_size > setting.group_size:
            raise ConfigError(
                f"{type(self).__name__}(pilot=...) must be at most group_size = {setting.group_size}, got {self.pilot}. The "
                "pilot is a part of the group: group_size is pilot and rest together."
            )

    @abstractmethod
    def default_pilot(self, group_size: int) -> int:
        """Rollouts of the pilot, in [2, group_size]."""

    @abstractmethod
    def screen(self, groups: Groups) -> tuple[Bools, list[str]]:
        """((n,) which pilots pass, n reasons where they do not). All have two valid rollouts or more."""

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.pilot_size)
        rows = self.candidate_rows(target, step)
        return Requests.of(rows, self.pilot_size) if len(rows) else self.nothing_left(room, step)

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        """(n,) rows to pilot."""
        return step.draw(target)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        piloted = groups.asked <= self.pilot_size
        keep = np.zeros(len(groups), dtype=np.bool_)
        reasons = np.full(len(groups), "incomplete", dtype=object)
        seen = groups.valid.sum(axis=1) >= 2

        pilots = np.flatnonzero(piloted & seen)
        passed, why = self.screen(groups.select(pilots))
        keep[pilots] = passed
        reasons[pilots] = why
        step.log(pilots=int(piloted.sum()), passed_pilots=int(passed.sum()))

        whole = np.flatnonzero(~piloted)
        if len(whole):
            verdicts = super().judge(groups.select(whole), step)
            keep[whole] = verdicts.keep
            reasons[whole] = verdicts.reasons

        reasons[keep] = ""
        more = np.where(piloted & keep, self.group_size - groups.asked, 0)
        return Verdicts(keep, tuple(reasons.tolist()), more=np.maximum(more, 0))
