"""Prompt Replay: prompts whose pass rate was near one half come again, rolled out anew, beside fresh ones.

Baroian and Berger, "Prompt Replay: Speeding up GRPO with On-Policy Reuse of High-Signal Prompts", arXiv 2603.21177.

    after a step   a prompt with low <= p̂ <= high enters a buffer; the nearer p̂ is to 1/2, the sooner it is replayed
    a batch        at most `replay_share` of it from the buffer, the rest fresh from the stream
    cool-down      no replay within `cooldown` steps of the last rollouts          cap: at most `max_reuse` replays of a prompt

Reported by its authors: fewer groups without variance and faster at first, then level with the baseline.

Differs from the paper in: the values of band, share, cool-down and cap are ours, for only the abstract was at hand; the buffer
is bounded (what is farthest from 1/2 is forgotten); ties, which are common, are decided by chance; a prompt whose p̂ leaves
the band leaves the buffer; the cap holds over the whole run; where groups come in a stream, a step is a policy version.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.clock import time_of
from edgewise.errors import StateMismatchError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Entry
from edgewise.methods.memory import PromptMemory, draw_beside
from edgewise.methods.rates import ROUNDING
from edgewise.prediction import Visits
from edgewise.types import Array, Groups, Ints, MethodState, Requests, Setting


@dataclass(kw_only=True, eq=False)
class PromptReplay(DynamicSampling):
    """Mixes fresh prompts with replayed ones of medium difficulty. No gate, as in the paper."""

    name: ClassVar[str] = "prompt-replay"

    low: float = 0.25
    """Least p̂ that enters the buffer. [choice]"""
    high: float = 0.75
    """Greatest p̂ that enters the buffer. [choice]"""
    replay_share: float = 0.5
    """Greatest share of a batch that is replayed. [choice]"""
    cooldown: int = 5
    """Steps between two rollouts of a prompt, at least. [choice; the paper has such a parameter]"""
    max_reuse: int = 3
    """Replays of a prompt in the whole run. [choice; the paper has such a parameter]"""
    buffer_size: int = 4096
    """Prompts the buffer holds at most. [choice]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    _memory: PromptMemory = field(init=False, repr=False)
    _reused: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "high", low=0.0, high=1.0)
        checks.number(self, "low", low=0.0, high=self.high, advice="It must not exceed high.")
        checks.number(self, "replay_share", low=0.0, high=1.0)
        checks.whole(self, "cooldown", low=0)
        checks.whole(self, "max_reuse", low=0, advice="0 replays nothing.")
        checks.whole(self, "buffer_size", low=1)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._memory = PromptMemory(self.buffer_size)
        self._reused = np.zeros(setting.pool_size, dtype=np.int32)

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if step.round == 0 and not step.streaming:
            self._memory.remove_unanswered()
        if target == 0:
            return Requests.of([], self.group_size)
        again = self._from_buffer(self._places(target, step), step)
        rows = np.concatenate([again, draw_beside(step, target - len(again), again)])
        return Requests.of(rows, self.group_size) if len(rows) else self.nothing_left(room, step)

    def _places(self, target: int, step: StepView) -> int:
        """Places for replays among `target`: the share, its fraction by chance, so that single requests replay too."""
        exact = self.replay_share * target
        return int(exact + step.rng("share").random()) if exact < target else target

    def _from_buffer(self, most: int, step: StepView) -> Ints:
        """(n,) rows to replay, n <= most, nearest to one half first."""
        memory = self._memory
        if most == 0 or len(memory) == 0:
            return np.empty(0, dtype=np.int64)
        rested = time_of(step, 0) - memory.last > self.cooldown
        rows = memory.best(most, rested & ~memory.asked & step.eligible(memory.rows), step.rng("buffer"))
        memory.ask(rows)
        step.log(replayed=len(rows))
        return rows

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        visits = Visits.of(groups.select(groups.valid.sum(axis=1) >= 2), self.correct_at)
        memory, rows = self._memory, visits.rows
        at = memory.find(rows)
        replayed = np.zeros(len(rows), dtype=np.bool_)
        replayed[at >= 0] = memory.asked[at[at >= 0]]
        reused = self._reused[rows] + replayed
        self._reused[rows] = reused
        rates = visits.successes / visits.trials
        medium = (rates >= self.low - ROUNDING) & (rates <= self.high + ROUNDING)
        stays = medium & (reused < self.max_reuse)
        memory.remove(rows[~stays])
        memory.put(rows[stays], -np.abs(rates[stays] - 0.5), reused[stays], time_of(step, 0), step.rng("forget"))
        step.gauge(memory=len(memory))

    def state(self) -> MethodState:
        reused = {"reused": self._reused}
        return MethodState(prompts=reused, shared={**super().state().shared, **self._memory.state()})

    def restore(self, state: MethodState) -> None:
        reused = state.prompts.get("reused")
        if reused is None or len(reused) != self.pool_size:
            raise StateMismatchError(
                f"PromptReplay.restore: the state must hold 'reused' for {self.pool_size} prompts, it has "
                f"{sorted(state.prompts)}. Use a state that prompt-replay wrote for this pool."
            )
        self._memory.restore(state.shared)
        super().restore(state)
        self._reused = np.array(reused, dtype=np.int32)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        held = super().adapt(state, rows)
        return MethodState(held.prompts, {**held.shared, **self._memory.adapted(state.shared, rows)})


ENTRIES = {
    "prompt-replay": Entry(
        factory=PromptReplay,
        summary="Mixes fresh prompts with ones whose pass rate was near one half, after a cool-down and up to a cap.",
        signal="group outcomes",
        keeps="4 bytes: times replayed; a buffer of 4,096 prompts",
        extra_rollouts="none",
        cost="a sort of the buffer",
        when="large data sets that are hard for the model, in which a medium prompt is worth a second visit",
        paper="Prompt Replay, arXiv 2603.21177; values of its parameters are ours",
    ),
}
