"""VCRL: keep groups of high outcome variance under a threshold that rises, refill the batch from a memory of such prompts.

Jiang and others, "VCRL: Variance-based Curriculum Reinforcement Learning for Large Language Models", arXiv 2509.19803. No code
was released.

    v = σ² / σ²_max,  σ² = k(G - k) / (G(G - 1)),  σ²_max = that of k = floor(G/2)      v = 4k(G - k)/G² (even), /(G² - 1) (odd)
    keep iff v >= κ,  κ = 0.3 for the first 20 steps, then 0.8
    memory:  a kept prompt enters with priority v;  each later visit  P <- 0.9 P + 0.1 v;  out after 2 replays
    a step that is short after its first round rolls out prompts of the memory anew, highest priority first

At G = 8 κ = 0.8 keeps k = 3, 4, 5 only; at G = 16 even κ = 0.3 drops k = 1 (v = 0.2344).

Differs from the paper in: replayed groups pass the same threshold, for the paper was read in summaries that do not say; the
memory is bounded (the lowest priorities are forgotten); the two replays are counted per stay in the memory, and a prompt that
the stream brings again can enter again; what the memory cannot fill is drawn from the stream; v is over the rollouts that came
back; streaming hosts replay one prompt for each group dropped, having no step that could be short, and a step is a policy
version there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from edgewise.beliefs.clock import time_of
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.entry import Entry
from edgewise.methods.memory import PromptMemory, draw_beside
from edgewise.methods.rates import ROUNDING
from edgewise.prediction import Visits
from edgewise.types import Bools, Floats, Groups, Ints, MethodState, Requests, Setting, Verdicts


def variance_score(successes: npt.NDArray[np.floating], trials: Ints) -> Floats:
    """v = σ²/σ²_max in [0, 1]: variance of k passes of n against the largest that n rollouts can show. 0 for n < 2.

    successes: (n,) k.  trials: (n,).

    >>> variance_score(np.array([1.0, 2.0, 1.0]), np.array([8, 8, 5])).round(4).tolist()
    [0.4375, 0.75, 0.6667]
    """
    largest = np.where(trials % 2 == 0, trials**2, trials**2 - 1)
    return 4.0 * successes * (trials - successes) / np.maximum(largest, 1)


@dataclass(kw_only=True, eq=False)
class Vcrl(DynamicSampling):
    """A gate on the variance score, and a memory of prompts that passed it."""

    name: ClassVar[str] = "vcrl"

    early_threshold: float = 0.3
    """κ of the first steps. [paper]"""
    late_threshold: float = 0.8
    """κ from then on. [paper]"""
    early_steps: int = 20
    """Steps with the early κ. [paper]"""
    memory_momentum: float = 0.9
    """Weight of the old priority at a visit. [paper]"""
    replays: int = 2
    """Replays of a prompt until it leaves the memory. [paper]"""
    memory_size: int = 4096
    """Prompts the memory holds at most. [choice]"""

    gate: Literal["reward", "correct", "off"] | bool = "correct"
    """Anything but "off" is the threshold κ; "off" keeps every complete group. Passes are always counted by `correct` where it
    is known for the whole group, else by reward."""
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 2
    """One round of fresh prompts and one of replays. [paper]"""

    _memory: PromptMemory = field(init=False, repr=False)
    _owed: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("early_threshold", "late_threshold", "memory_momentum"):
            checks.number(self, name, low=0.0, high=1.0)
        checks.whole(self, "early_steps", low=0)
        checks.whole(self, "replays", low=0, advice="0 switches the memory off.")
        checks.whole(self, "memory_size", low=1)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._memory = PromptMemory(self.memory_size)

    def threshold(self, step: StepView) -> float:
        """κ of this step."""
        return self.early_threshold if time_of(step, 0) < self.early_steps else self.late_threshold

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if step.round == 0 and not step.streaming:
            self._memory.remove_unanswered()
        if target == 0:
            return Requests.of([], self.group_size)
        short = min(target, self._owed) if step.streaming else target * (step.round > 0)
        again = self._from_memory(short, step)
        rows = np.concatenate([again, draw_beside(step, target - len(again), again)])
        return Requests.of(rows, self.group_size) if len(rows) else self.nothing_left(room, step)

    def _from_memory(self, most: int, step: StepView) -> Ints:
        """(n,) rows to replay, n <= most, highest priority first."""
        memory = self._memory
        if most == 0 or len(memory) == 0:
            return np.empty(0, dtype=np.int64)
        rows = memory.best(most, step.eligible(memory.rows) & ~memory.asked, step.rng("memory"))
        memory.ask(rows)
        self._owed = max(0, self._owed - len(rows))
        step.log(replayed=len(rows))
        return rows

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        incomplete = groups.valid.sum(axis=1) < 2
        flat = self._below(groups, step) & ~incomplete
        reasons = np.select([incomplete, flat], ["incomplete", "low_variance"], default="")
        return Verdicts(~incomplete & ~flat, tuple(reasons.tolist()))

    def _below(self, groups: Groups, step: StepView) -> Bools:
        """(n,) True where v is below κ."""
        below = np.zeros(len(groups), dtype=np.bool_)
        if self.gate != "off":
            visits = Visits.of(groups, self.correct_at)
            score = variance_score(visits.successes, visits.trials)
            below[groups.valid.any(axis=1)] = score < self.threshold(step) - ROUNDING
        return below

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        if step.streaming:
            self._owed = min(self._owed + int(self._below(groups, step).sum()), self.pool_size)
        visits = Visits.of(groups.select(groups.valid.sum(axis=1) >= 2), self.correct_at)
        memory, rows = self._memory, visits.rows
        score = variance_score(visits.successes, visits.trials)
        at = memory.find(rows)
        known = at >= 0
        priority, reused = score.copy(), np.zeros(len(rows), dtype=np.int64)
        held = at[known]
        priority[known] = self.memory_momentum * memory.priority[held] + (1.0 - self.memory_momentum) * score[known]
        reused[known] = memory.reused[held] + memory.asked[held]
        stays = (known | (score >= self.threshold(step) - ROUNDING)) & (reused < self.replays)
        memory.remove(rows[~stays])
        memory.put(rows[stays], priority[stays], reused[stays], step.number, step.rng("forget"))
        step.gauge(memory=len(memory))

    def state(self) -> MethodState:
        owed = {"owed": np.array([self._owed], dtype=np.int64)}
        return MethodState(shared={**super().state().shared, **owed, **self._memory.state()})

    def restore(self, state: MethodState) -> None:
        self._memory.restore(state.shared)
        self._owed = int(shared_array(state, "owed", "Vcrl")[0])
        super().restore(state)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        held = super().adapt(state, rows)
        return MethodState(held.prompts, {**held.shared, **self._memory.adapted(state.shared, rows)})


ENTRIES = {
    "vcrl": Entry(
        factory=Vcrl,
        summary="Keeps groups of high outcome variance under a rising threshold; refills from a memory of such prompts.",
        signal="group outcomes",
        keeps="nothing per prompt; a memory of 4,096 prompts",
        extra_rollouts="every group below the threshold: at group size 8 all but 3 to 5 passes after step 20",
        cost="a sort of the memory in steps that are short",
        when="medium prompts are plenty; a high threshold starves on skewed pools",
        paper="VCRL, arXiv 2509.19803",
    ),
}
