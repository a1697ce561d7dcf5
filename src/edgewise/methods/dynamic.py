"""Dynamic sampling: roll out, drop groups without variance, top up the deficit. What DAPO, GRESO, HIVE and the oracle share.

round 0      target = C = ceil(oversample · B)
round r > 0  target = max(b_min, min(C, ceil(η·m / (1 - ρ̂))))     m = groups missing, ρ̂ = share of zero-variance groups
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np

from edgewise.errors import ConfigError, ShortfallError, StateMismatchError
from edgewise.kinds import EASY, HARD, Kinds, group_kinds, verdict_known, zero_variance
from edgewise.method import Method, StepView
from edgewise.methods import checks
from edgewise.types import Array, Bools, Groups, MethodState, Requests, Setting, Verdicts

_ROUNDING = 1e-9


def top_up_target(missing: int, dropped_share: float, *, most: int, least: int, factor: float = 1.25) -> int:
    """Groups to ask for so that the `missing` ones come out mixed: max(b_min, min(C, ceil(η·m / (1 - ρ̂)))). [HIVE B.3]

    missing: m >= 0.  dropped_share: ρ̂ in [0, 1]; at 1 the answer is `most`.  most: C.  least: b_min <= C.  factor: η.

    >>> top_up_target(256 - 200, 0.15, most=384, least=64)
    83
    """
    if dropped_share >= 1.0:
        return most
    return max(least, min(most, math.ceil(factor * missing / (1.0 - dropped_share) - _ROUNDING)))


@dataclass(kw_only=True, eq=False)
class DynamicSampling(Method):
    """Base of the methods that gate finished groups and top up. Children say which prompts; this says how many, and judges.

    A prompt of whose rollouts not one came back is retired for the rest of the pass.
    """

    gate: Literal["reward", "correct", "off"] | bool = "reward"
    """Drop groups of zero variance of the reward, or of `correct` where it is known for the whole group (else the reward).
    True is short for "reward", False for "off"."""
    tolerance: float = 0.0
    """tol: rewards within this of each other are equal; 1e-8 for rewards that were computed. [choice]"""
    correct_at: float = 0.5
    """A constant reward from here on counts as solved where the host reports no `correct`. [choice]"""
    oversample: float = 1.5
    """C / B: groups asked for in round 0 per group trained. [HIVE B.3, GRESO code: 384/256]"""
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "smoothed"
    """Size of later rounds. smoothed: the deficit rule, ρ̂ = (dropped + 1)/(rolled + 2) over the step [choice]; last_round:
    with the ratio of the last round [GRESO code]; fixed: C again [DAPO]; missing: exactly the missing groups."""
    topup_factor: float = 1.25
    """η: oversampling of a top-up. [HIVE B.3]"""
    min_round: int | None = None
    """b_min: fewest groups of a top-up. None: 64 where C >= 192 [HIVE B.3], else C/6 [choice]."""
    max_rounds: int = 8
    """Generation rounds a step may take. [choice; the papers name none]"""
    on_short: Literal["train_short", "error", "loop"] = "train_short"
    """When the rounds are used up: train on what there is, raise ShortfallError, or go on until every prompt was offered."""

    group_size: int = field(default=0, init=False, repr=False)
    pool_size: int = field(default=0, init=False, repr=False)
    _most: int = field(default=0, init=False, repr=False)
    _least: int = field(default=0, init=False, repr=False)
    _rolled: int = field(default=0, init=False, repr=False)
    _dropped: int = field(default=0, init=False, repr=False)
    _rolled_last: int = field(default=0, init=False, repr=False)
    _dropped_last: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.gate, bool):
            self.gate = "reward" if self.gate else "off"
        checks.one_of(self, "gate", ("reward", "correct", "off"))
        checks.number(self, "tolerance", low=0.0)
        checks.number(self, "correct_at", low=-math.inf)
        checks.number(self, "oversample", low=1.0, advice="Round 0 must ask for at least one group per group trained.")
        checks.one_of(self, "topup", ("smoothed", "last_round", "fixed", "missing"))
        checks.number(self, "topup_factor", low=0.0, above=True)
        if self.min_round is not None:
            checks.whole(self, "min_round", low=1, advice="None scales it with the batch.")
        checks.whole(self, "max_rounds", low=1, advice="Use on_short='loop' for no limit.")
        checks.one_of(self, "on_short", ("train_short", "error", "loop"))

    def start(self, setting: Setting) -> None:
        name, batch = type(self).__name__, setting.batch_size
        if setting.group_size < 2:
            raise ConfigError(
                f"{name}: group_size must be at least 2, got {setting.group_size}. A group of one has no variance; 8 is common."
            )
        if setting.pool_size < batch:
            raise ConfigError(
                f"{name}: the pool must hold at least one batch, got {setting.pool_size} prompts for batch_size {batch}. "
                "Add prompts or lower batch_size."
            )
        self.group_size, self.pool_size = setting.group_size, setting.pool_size
        self._most = math.ceil(self.oversample * batch - _ROUNDING)
        scaled = 64 if self._most >= 192 else max(1, round(self._most / 6))
        self._least = scaled if self.min_round is None else self.min_round
        if self._least > self._most:
            raise ConfigError(
                f"{name}(min_round=...) must be at most C = oversample · batch_size = {self._most}, got {self.min_round}. "
                "Leave it None to scale it with the batch."
            )

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    # -- how many ------------------------------------------------------------------------------------------------------

    def target(self, room: int, step: StepView) -> int:
        """Groups to ask for now; 0 when the step's rounds are used up. Call once a round, first. Raises ShortfallError."""
        if step.streaming:
            self._rolled = self._dropped = self._rolled_last = self._dropped_last = 0
            return room
        if step.round == 0:
            self._rolled = self._dropped = self._rolled_last = self._dropped_last = 0
            target = self._most
        elif step.round >= self.max_rounds and self.on_short != "loop":
            self._raise_if_short_is_an_error(room, f"{self.max_rounds} rounds are used up")
            return 0
        elif self.topup == "fixed":
            target = self._most
        elif self.topup == "missing":
            target = room
        else:
            target = top_up_target(room, self._dropped_share(), most=self._most, least=self._least, factor=self.topup_factor)
        self._rolled_last = self._dropped_last = 0
        step.log(target=target)
        return target

    def nothing_left(self, room: int, step: StepView) -> Requests:
        """The answer when no prompt can be offered any more. Raises ShortfallError where on_short says so."""
        if not step.streaming:
            self._raise_if_short_is_an_error(room, "no prompt is left to ask for")
        return Requests.of([], self.group_size)

    def _dropped_share(self) -> float:
        if self.topup == "last_round" and self._rolled_last > 0:
            return self._dropped_last / self._rolled_last
        return (self._dropped + 1) / (self._rolled + 2)

    def _raise_if_short_is_an_error(self, room: int, why: str) -> None:
        if self.on_short == "error":
            raise ShortfallError(
                f"{type(self).__name__}(on_short='error'): {room} groups are missing and {why}; {self._rolled} groups "
                f"were rolled out, {self._dropped} had zero variance. "
                "Allow more rounds, add prompts, or use on_short='train_short'."
            )

    # -- which finished groups -----------------------------------------------------------------------------------------

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        incomplete = groups.valid.sum(axis=1) < 2
        constant = self._constant(groups) & ~incomplete
        kinds = self.kinds(groups)
        keep = ~incomplete & ~constant
        varies = ~zero_variance(groups.rewards, groups.valid, self.tolerance)
        step.log(extraction_only=int((keep & varies & (kinds == HARD)).sum()))
        if self.gate != "off":
            dropped_easy, dropped_hard = int((constant & (kinds == EASY)).sum()), int((constant & (kinds == HARD)).sum())
            other = int(constant.sum()) - dropped_easy - dropped_hard
            step.log(dropped_easy=dropped_easy, dropped_hard=dropped_hard, dropped_other=other)
        reasons = np.where(incomplete, "incomplete", np.where(constant, "zero_variance", ""))
        silent: Bools = np.logical_not(groups.valid.any(axis=1))  # they teach nothing: a rank would bring them back at once
        return Verdicts(keep, tuple(reasons.tolist()), retire=silent if silent.any() else None)

    def observe(self, groups: Groups, step: StepView) -> None:
        complete = groups.select(groups.valid.sum(axis=1) >= 2)
        dropped = int(self._constant(complete).sum())
        self._rolled += len(complete)
        self._dropped += dropped
        self._rolled_last += len(complete)
        self._dropped_last += dropped

    def kinds(self, groups: Groups) -> Kinds:
        """(n,) MIXED, EASY or HARD by this method's `correct_at` and `tolerance`."""
        return group_kinds(groups.rewards, groups.valid, groups.correct, correct_at=self.correct_at, tolerance=self.tolerance)

    def _constant(self, groups: Groups) -> Bools:
        """(n,) True where the gate sees nothing to train on."""
        if self.gate == "off":
            return np.zeros(len(groups), dtype=np.bool_)
        by_reward = zero_variance(groups.rewards, groups.valid, self.tolerance)
        if self.gate == "reward":
            return by_reward
        by_verdict = zero_variance(groups.correct, groups.valid)
        return np.where(verdict_known(groups.valid, groups.correct), by_verdict, by_reward)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        tally = [self._rolled, self._dropped, self._rolled_last, self._dropped_last]
        return MethodState(shared={"rounds": np.array(tally, dtype=np.int64)})

    def restore(self, state: MethodState) -> None:
        tally = shared_array(state, "rounds", type(self).__name__)
        self._rolled, self._dropped, self._rolled_last, self._dropped_last = map(int, tally)


def shared_array(state: MethodState, name: str, owner: str) -> Array:
    """The shared array `name` of a saved state. Raises StateMismatchError if it is not there."""
    if name not in state.shared:
        raise StateMismatchError(
            f"{owner}.restore: the state lacks the array {name!r}, it has {sorted(state.shared)}. "
            f"Use a state that {owner} wrote."
        )
    return state.shared[name]
