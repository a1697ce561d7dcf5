"""GAIN-RL: a bell over the ranks of the prompts' hidden-state angles, which moves on with accuracy and concentration.

"Angles Don't Lie: Unlocking Training-Efficient RL Through the Model's Own Signals", arXiv 2506.02281, and its code (TRL
script), from which the rule is taken; the paper's own text could not be read.

    order   all prompts by falling C_intra + 8·C_inter, once, before the first step
    draw    rank ~ N(μ, σ), without replacement                                       μ = 0 at first
    move    after every `loop` prompts: μ += clip( n·tanh(a(accuracy - β)) + n·tanh(a·C), 0, 1000 )

C is the mean concentration of the loop. μ, σ, n and the limits count ranks of the pool: they fit pools of many thousands. In
a pool of fewer than σ prompts the bell is flat.

Differs from the paper in: C is the mean of the two angles of the loop's prompts under the current policy, one more forward over
the batch, where the code averages over prompt and response while it trains on them (NOT VERIFIED to give the same moves; C
enters through a tanh); angles are those of the host, see `signals/hidden.py`; the code moves μ one loop late, and lets it run
past the end of the pool, where its chances become 0/0: here μ stays within the ranks; each step draws anew with the μ of its
loop, where the code draws a loop at once; prompts without an angle rank last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.errors import SignalError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.entry import Entry
from edgewise.prediction import Visits
from edgewise.types import HIDDEN_ANGLES, Floats, Groups, Ints, MethodState, Requests, Setting


@dataclass(kw_only=True, eq=False)
class GainRl(DynamicSampling):
    """The bell and its moves."""

    name: ClassVar[str] = "gain-rl"

    inter_weight: float = 8.0
    """Weight of the inter-segment angle in the order; 0 where prompts have no common prefix. [code]"""
    deviation: float = 1000.0
    """σ of the draw, ranks. [code]"""
    move: float = 500.0
    """n: scale of each of the two terms of a move, ranks. [code]"""
    sharpness: float = 2.0
    """a: inside both tanh. [code]"""
    goal: float = 0.5
    """β: accuracy above which the first term moves on. [code]"""
    least_move: float = 0.0
    """Lowest move, ranks. [code]"""
    most_move: float = 1000.0
    """Highest move, ranks. [code]"""
    loop: int = 256
    """Prompts rolled out between two moves. [code, TRL script: subset_size]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    _rank: Ints = field(init=False, repr=False)
    _centre: float = field(default=0.0, init=False, repr=False)
    _tally: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "inter_weight", low=0.0)
        checks.number(self, "deviation", low=0.0, above=True)
        for name in ("move", "sharpness", "least_move"):
            checks.number(self, name, low=0.0)
        checks.number(self, "goal", low=0.0, high=1.0)
        checks.number(self, "most_move", low=self.least_move, advice="It must not lie below least_move.")
        checks.whole(self, "loop", low=1)
        self.needs = frozenset({HIDDEN_ANGLES})

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._rank = np.empty(0, dtype=np.int64)  # (N,) from the first proposal on
        self._centre = 0.0
        self._tally = np.zeros(5)  # of the loop so far: groups, passes, rollouts, sum and number of concentrations

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        pool = np.arange(self.pool_size, dtype=np.int64)
        if len(self._rank) == 0:
            self._rank = self._ranked(pool, step)
        if self._tally[0] >= self.loop:
            self._centre = min(self.pool_size - 1.0, self._centre + self.moved())
            self._tally = np.zeros(5)
        rows = pool[step.eligible(pool)]
        keys = -0.5 * ((self._rank[rows] - self._centre) / self.deviation) ** 2 + step.rng("gain").gumbel(size=len(rows))
        chosen = rows[np.argsort(-keys, kind="stable")[:target]]
        if len(chosen) == 0:
            return self.nothing_left(room, step)
        concentration = self._angles(chosen, step).mean(axis=1)
        known = np.isfinite(concentration)
        self._tally[3:] += concentration[known].sum(), known.sum()
        step.gauge(centre=self._centre, rank_median=float(np.median(self._rank[chosen])))
        return Requests.of(chosen, self.group_size)

    def moved(self) -> float:
        """Ranks by which the loop so far moves μ; a term without data is 0."""
        _, passes, rollouts, total, count = self._tally
        by_accuracy = math.tanh(self.sharpness * (passes / rollouts - self.goal)) if rollouts else 0.0
        by_angle = math.tanh(self.sharpness * total / count) if count else 0.0
        return min(self.most_move, max(self.least_move, self.move * (by_accuracy + by_angle)))

    def _ranked(self, pool: Ints, step: StepView) -> Ints:
        """(N,) rank of each prompt by falling concentration, from 0; ties in random order, prompts without an angle last."""
        angles = self._angles(pool, step)
        score = angles[:, 0] + self.inter_weight * angles[:, 1]
        bad = ~np.isfinite(score)
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            step.problem(
                SignalError(
                    f"signal({HIDDEN_ANGLES!r}) of prompt row {first} must be finite, got {angles[first].tolist()} "
                    f"({int(bad.sum())} of {len(pool)} prompts). They rank last; without a prefix, set inter_weight=0."
                )
            )
        order = np.lexsort((step.rng("ties").random(len(pool)), -np.where(bad, -np.inf, score)))
        rank = np.empty(len(pool), dtype=np.int64)
        rank[order] = pool
        return rank

    def _angles(self, rows: Ints, step: StepView) -> Floats:
        """(n, 2) intra and inter, NaN where not finite; with inter_weight 0 the second is a copy of the first."""
        angles = step.signal(HIDDEN_ANGLES, rows)
        if angles.shape != (len(rows), 2):
            raise SignalError(
                f"signal({HIDDEN_ANGLES!r}) must answer with (intra, inter), ({len(rows)}, 2), got {angles.shape}."
            )
        angles = np.where(np.isfinite(angles), angles, np.nan)
        return angles if self.inter_weight > 0.0 else angles[:, [0, 0]]

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        visits = Visits.of(groups, self.correct_at)
        self._tally[:3] += len(visits), visits.successes.sum(), visits.trials.sum()

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        shared = {**super().state().shared, "rank": self._rank, "centre": np.array([self._centre]), "tally": self._tally}
        return MethodState(shared=shared)

    def restore(self, state: MethodState) -> None:
        rank, centre, tally = (shared_array(state, name, "GainRl") for name in ("rank", "centre", "tally"))
        super().restore(state)
        self._rank, self._centre, self._tally = rank.astype(np.int64), float(centre[0]), tally.astype(np.float64)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """Prompts that are left keep their order. With added ones all are ranked anew, by the policy of the next step."""
        held, rank = super().adapt(state, rows), state.shared["rank"]
        if len(rank) == 0:
            return held
        survivors = rank[rows[rows >= 0]]
        share = float((survivors < state.shared["centre"][0]).mean()) if len(survivors) else 0.0
        whole = len(rows) == len(survivors)
        own = {
            "rank": np.argsort(np.argsort(survivors)).astype(np.int64) if whole else np.empty(0, dtype=np.int64),
            "centre": state.shared["centre"] if len(rows) == len(rank) else np.array([min(share * len(rows), len(rows) - 1.0)]),
        }
        return MethodState(held.prompts, {**held.shared, **own})


ENTRIES = {
    "gain-rl": Entry(
        factory=GainRl,
        summary="Prompts whose hidden states are most concentrated first; a bell over their ranks moves on as accuracy grows.",
        signal="angles between hidden states of the prompt; accuracy of each loop",
        keeps="8 bytes: its rank",
        extra_rollouts="none; zero-variance groups are trained on",
        cost="one forward over the pool at the start, then over each batch; arithmetic over the pool",
        when="pools of many thousands; reconstructed from code, one term not verified: to compare, not to rely on",
        paper="GAIN-RL, arXiv 2506.02281, after its code",
    ),
}
