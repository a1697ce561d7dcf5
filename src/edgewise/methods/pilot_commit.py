"""Pilot-Commit: a pilot estimates the pass rate, prompts in a band get the rest of the rollouts, solved ones are evicted.

Kim, Yang, Yan and Liu, "Spend Your Rollouts Where It Counts: Rollout Allocation for Group-Based RL Post-Training",
arXiv 2605.26606, and its code (databricks/pilot-commit: recipe/pc).

    pilot:  lower <= p̂ <= 1 - upper  -> commit: wait for the next generation call and get the rest of group_size
            p̂ >= evict_at            -> evicted, for good
            else                     -> dropped; it comes again in the next pass
    a pilot that waited for more than 4 policy versions is dropped as "stale"

The next call is most often one of the same step: only what the batch has no place for waits for a later one.

Differs from the paper in: pilots wait in order of age, where the code draws from its buffer at random; group_size is pilot and
rest together (16 + 48 is 64), where the code counts the rest alone; the code can train on a part of the pilot (`n_effective`),
this trains on all of it; when nearly the whole pool is evicted, evicted prompts are asked for again rather than none; eviction
is on, where the released configuration leaves its threshold empty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgewise.errors import ConfigError, StateMismatchError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.entry import Entry
from edgewise.methods.rates import ROUNDING, pass_rates
from edgewise.methods.skipping import draw_wanted
from edgewise.methods.two_phase import TwoPhase
from edgewise.types import Bools, Groups, Ints, MethodState, Setting


@dataclass(kw_only=True, eq=False)
class PilotCommit(TwoPhase):
    """Two phases; a pilot passes if its pass rate lies in a band. Solved prompts are not asked for again."""

    name: ClassVar[str] = "pilot-commit"

    pilot: int | None = None
    """None: a quarter of the group [scripts: 16 of 64], at least 8 where the group holds 16 [code: 8], else half of it and at
    least 2 [choice]."""
    lower: float = 0.25
    """Least p̂ of a pilot that is continued. [code; .125 in scripts]"""
    upper: float = 0.25
    """1 - the greatest p̂ of a pilot that is continued. [code]"""
    evict_at: float | None = 1.0
    """p̂ from which a prompt is evicted: judged on its pilot, or on the whole group where it has one. None: never.
    [paper: "too easy"; the released configuration names no value]"""
    max_staleness: int | None = 4
    """Policy versions for which a pilot may wait. [code: buffer_max_off_steps]"""
    oversample: float = 1.0
    """Pilots per round and group trained. [code: gen_batch_size = train_batch_size]"""
    max_rounds: int = 10
    """Generation rounds a step may take. [code: max_num_gen_batches]"""

    _evicted: Bools = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "lower", low=0.0, high=1.0)
        checks.number(self, "upper", low=0.0, high=1.0)
        if self.lower > 1.0 - self.upper + ROUNDING:
            raise ConfigError(
                f"PilotCommit(lower=..., upper=...) must leave a band lower <= p <= 1 - upper, got {self.lower} and "
                f"{self.upper}. "
                "Lower one of them."
            )
        if self.evict_at is not None:
            checks.number(self, "evict_at", low=0.0, high=1.0, advice="None evicts no prompt.")
            if self.evict_at <= 1.0 - self.upper:
                raise ConfigError(
                    f"PilotCommit(evict_at=...) must be above the band that is trained, 1 - upper = {1.0 - self.upper:g}, got "
                    f"{self.evict_at}. Raise it, or set it to None, which evicts no prompt."
                )
        if self.max_staleness is not None:
            checks.whole(self, "max_staleness", low=0, advice="None sets no limit.")

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._evicted = np.zeros(setting.pool_size, dtype=np.bool_)

    def default_pilot(self, group_size: int) -> int:
        return max(2, group_size // 4, min(8, group_size // 2))

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        return draw_wanted(step, target, lambda rows: ~self._evicted[rows])

    def screen(self, groups: Groups) -> tuple[Bools, list[str]]:
        rates = pass_rates(groups, self.correct_at)
        too_hard = rates < self.lower - ROUNDING
        too_easy = rates > 1.0 - self.upper + ROUNDING
        reasons = np.select([too_hard, too_easy], ["too_hard", "too_easy"], default="")
        return ~(too_hard | too_easy), reasons.tolist()

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        if self.evict_at is not None:
            seen = groups.select(groups.valid.sum(axis=1) >= 2)
            self._evicted[seen.rows] = pass_rates(seen, self.correct_at) >= self.evict_at - ROUNDING

    def state(self) -> MethodState:
        return MethodState(prompts={"evicted": self._evicted}, shared=super().state().shared)

    def restore(self, state: MethodState) -> None:
        evicted = state.prompts.get("evicted")
        if evicted is None or len(evicted) != self.pool_size:
            raise StateMismatchError(
                f"PilotCommit.restore: the state must hold 'evicted' for {self.pool_size} prompts, it has "
                f"{sorted(state.prompts)}. Use a state that pilot-commit wrote for this pool."
            )
        super().restore(state)
        self._evicted = np.array(evicted, dtype=np.bool_)


ENTRIES = {
    "pilot-commit": Entry(
        factory=PilotCommit,
        summary="Pilots each prompt, completes the groups of those near one half, evicts those that are solved.",
        signal="outcomes of a pilot",
        keeps="1 byte: evicted or not; groups that wait for their second phase",
        extra_rollouts="the pilots of prompts outside the band, and those that waited too long",
        cost="none",
        when="groups of 32 and more, pools with many solved prompts; the trainer must accept rollouts of mixed age",
        paper="Pilot-Commit, arXiv 2605.26606, as its code runs",
    ),
}
