"""LZE: learning-zone energy. Rank finished groups by energy, train on the best 40 %, rest prompts that are solved for good.

LZE, arXiv 2605.17003, and its code (Stellaris167/LZE: verl/trainer/ppo/sample_attention).

    E = D · 4p̂(1 - p̂) · (1 + 0.3 · min(2|p̂ - ema|, 1))      D = max(1 - first p̂, 0.05)      ema <- 0.9 ema + 0.1 p̂
    keep the largest E + Gumbel noise of scale 0.05 · (max E - min E); groups of E = 0 never
    all correct twice in a row: pruned; a tenth of the pruned is tried again in each pass, and comes back when it errs

E reads ema as it was before this visit; at the first visit ema = p̂. Rollouts are paid for all of them: what is saved is the
backward pass. The batch trained is the host's, so this rolls out batch / 0.4 prompts.

Differs from the paper in: the share does not fall from 1 to 0.4 over the first three epochs, as the code's does; each pruned
prompt is tried again with probability 0.1 when its turn comes, where the code draws exactly a tenth at the start of an epoch;
a prompt is known by its id, where the code falls back to the position in the batch and prompts collide; "twice in a row" counts
visits, which is what the code's epochs are where each prompt is visited once in each; a stream ranks among the groups that are
reported together and keeps its share of them, at least one with E above 0. The paper itself was not read: as reported, and as
its code runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgewise.errors import StateMismatchError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.best_of_round import BestOfRound
from edgewise.methods.entry import Entry
from edgewise.methods.rates import pass_rates
from edgewise.methods.skipping import draw_wanted
from edgewise.prediction import Visits
from edgewise.types import Array, Bools, Floats, Groups, Ints, MethodState, Setting

_LONGEST_RUN = np.iinfo(np.uint8).max
_LEAST_SPREAD = 0.01


def energy(rates: Floats, first: Floats, usual: Floats, *, floor: float = 0.05, momentum: float = 0.3) -> Floats:
    """E = D · 4p(1-p) · (1 + a · min(2|p - ema|, 1)), D = max(1 - first, floor).

    rates: (n,) p̂ of this visit.  first: (n,) p̂ of the first visit.  usual: (n,) ema before this visit.
    Returns (n,) in [0, 1 + a]; 0 at p̂ = 0 and 1.

    >>> energy(np.array([0.5]), np.array([0.25]), np.array([0.25])).round(12).tolist()
    [0.8625]
    """
    difficulty = np.maximum(1.0 - first, floor)
    zone = 4.0 * rates * (1.0 - rates)
    change = np.minimum(2.0 * np.abs(rates - usual), 1.0)
    return difficulty * zone * (1.0 + momentum * change)


@dataclass(kw_only=True, eq=False)
class Lze(BestOfRound):
    """Trains on the groups of highest energy; passes over prompts that stay solved."""

    name: ClassVar[str] = "lze"
    lost: ClassVar[str] = "less_energy"

    keep_share: float = 0.4
    """Share of the rolled-out groups that is trained; batch / keep_share prompts are rolled out. [paper, as reported]"""
    difficulty_floor: float = 0.05
    """Least D: a prompt that was solved at first keeps a little. [code]"""
    momentum: float = 0.3
    """Weight of a changing pass rate. [code]"""
    decay: float = 0.9
    """Of the running mean of p̂. [code]"""
    noise: float = 0.05
    """Scale of the Gumbel noise, in units of the spread of E over the groups above 0. [code]"""
    prune_after: int | None = 2
    """All-correct visits in a row after which a prompt rests; None: never. [code]"""
    retest: float = 0.1
    """Chance that a resting prompt is rolled out all the same when the stream offers it. [code: a tenth an epoch]"""

    oversample: float = field(default=2.5, init=False)

    _first: Array = field(init=False, repr=False)
    _usual: Array = field(init=False, repr=False)
    _solved: Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "keep_share", low=0.0, high=1.0, above=True, advice="1 trains on every group that can teach.")
        self.oversample = 1.0 / self.keep_share
        super().__post_init__()
        checks.number(self, "difficulty_floor", low=0.0, high=1.0)
        checks.number(self, "momentum", low=0.0)
        checks.number(self, "decay", low=0.0, high=1.0)
        checks.number(self, "noise", low=0.0)
        if self.prune_after is not None:
            checks.whole(self, "prune_after", low=1, advice="None never rests a prompt.")
        checks.number(self, "retest", low=0.0, high=1.0)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._first = np.full(setting.pool_size, np.nan, dtype=np.float32)
        self._usual = np.full(setting.pool_size, np.nan, dtype=np.float32)
        self._solved = np.zeros(setting.pool_size, dtype=np.uint8)

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        if self.prune_after is None:
            return step.draw(target)
        retest = step.rng("retest")

        def wanted(rows: Ints) -> Bools:
            return ~self.resting(rows) | (retest.random(len(rows)) < self.retest)

        return draw_wanted(step, target, wanted)

    def resting(self, rows: Ints) -> Bools:
        """(n,) True for prompts that were all correct at their last `prune_after` visits."""
        if self.prune_after is None:
            return np.zeros(len(rows), dtype=np.bool_)
        return np.asarray(self._solved[rows] >= min(self.prune_after, _LONGEST_RUN))

    def worth(self, groups: Groups, step: StepView) -> Floats:
        rates = pass_rates(groups, self.correct_at)
        seen = ~np.isnan(self._first[groups.rows])
        first = np.where(seen, self._first[groups.rows], rates)
        usual = np.where(seen, self._usual[groups.rows], rates)
        energies = energy(rates, first, usual, floor=self.difficulty_floor, momentum=self.momentum)
        alive = energies > 0.0
        if not alive.any():
            return np.full(len(groups), -np.inf)
        spread = max(float(np.ptp(energies[alive])), _LEAST_SPREAD)
        noisy = energies + self.noise * spread * step.rng("noise").gumbel(size=len(groups))
        return np.where(alive, noisy, -np.inf)

    def places(self, finished: int, step: StepView) -> int:
        return min(super().places(finished, step), self.share_of(finished))

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        visits = Visits.of(groups, self.correct_at)
        rows, rates = visits.rows, visits.successes / visits.trials
        new = np.isnan(self._first[rows])
        self._first[rows] = np.where(new, rates, self._first[rows])
        self._usual[rows] = np.where(new, rates, self.decay * self._usual[rows] + (1.0 - self.decay) * rates)
        run = np.minimum(self._solved[rows].astype(np.int64) + 1, _LONGEST_RUN)
        self._solved[rows] = np.where(visits.successes == visits.trials, run, 0)

    def state(self) -> MethodState:
        prompts = {"first": self._first, "usual": self._usual, "solved": self._solved}
        return MethodState(prompts=prompts, shared=super().state().shared)

    def restore(self, state: MethodState) -> None:
        for name in ("first", "usual", "solved"):
            if name not in state.prompts or len(state.prompts[name]) != self.pool_size:
                raise StateMismatchError(
                    f"Lze.restore: the state must hold {name!r} for {self.pool_size} prompts, it has {sorted(state.prompts)}. "
                    "Use a state that lze wrote for this pool."
                )
        super().restore(state)
        self._first = np.array(state.prompts["first"], dtype=np.float32)
        self._usual = np.array(state.prompts["usual"], dtype=np.float32)
        self._solved = np.array(state.prompts["solved"], dtype=np.uint8)


ENTRIES = {
    "lze": Entry(
        factory=Lze,
        summary="Rolls out 2.5 batches, trains on those of highest learning-zone energy, rests prompts that stay solved.",
        signal="group outcomes: now, at the first visit, and their running mean",
        keeps="9 bytes",
        extra_rollouts="1.5 groups dropped per group trained",
        cost="a sort of the round",
        when="backward passes cost more than rollouts; judge it at equal rollouts",
        paper="LZE, arXiv 2605.17003, as its code runs",
    ),
}
