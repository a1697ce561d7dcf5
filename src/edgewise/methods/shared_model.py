"""Selection by a model shared by all prompts: what the GPS family has in common, whatever the model.

    model -> g   ->   u = g(1 - g)   ->   greedy max-sum diversification over the whole pool with a history anchor

Order of a step: the model learns from the last batch, predicts, the batch is built; predictions ride on the tickets, and the
metrics `predicted_corr`, `predicted_brier`, `predicted_gap` (the selector's) and `predicted_ece` compare those with what came.
The paper is in `gps.py`, with what is known of it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgewise.beliefs.shared import Predictor, SharedPriorBelief
from edgewise.calibration import PredictionReport
from edgewise.choosers.max_sum import Rule, anchored, max_sum
from edgewise.choosers.rank import TopK
from edgewise.method import StepView, renumbered
from edgewise.methods import checks
from edgewise.methods.composed import Composition, Parts
from edgewise.methods.dynamic import shared_array
from edgewise.prediction import Prediction, Visits
from edgewise.scores import Variance
from edgewise.types import Bools, Groups, Ints, MethodState, Requests, Setting


@dataclass(kw_only=True, eq=False)
class SharedModelSelection(Composition):
    """Base of the GPS family: everything but the model. Defaults are reconstructed, not the paper's."""

    candidates: Literal["stream", "random", "pool"] = "pool"
    """The whole pool, every step. [GPS app. D.3, as reported]"""
    combine: Literal["beta", "none"] = "none"
    """none: the model alone [GPS]. beta: the model as the prior of the prompt's own counts [choice]."""
    prior_strength: float = 4.0
    """κ: rollouts that the model's word is worth, with combine="beta". [choice, as simulated]"""
    decay: float = 0.5
    """λ_c: what a visit leaves of the prompt's earlier counts, with combine="beta". [choice, as simulated]"""
    diversity: float = 0.1
    """λ_d >= 0: weight of the distances inside the batch; 0 is the ablation. [choice; only 0 and 0.1 were tried]"""
    novelty: float = 0.1
    """λ_h >= 0: weight of the distance to the last batches; 0 is the ablation. [choice]"""
    rule: Rule = "marginal"
    """marginal: plain marginal gain [GPS, as worded in summaries]. potential: half the score [PDTS code]."""
    anchor_steps: int = 1
    """Batches that the new one should be unlike. [choice]"""
    cooldown: int = 1
    """Steps for which a prompt rests after a visit; 0: none. Given up where too few prompts are left. [choice]"""
    warmup_steps: int = 1
    """Batches drawn uniformly before the model is asked. [choice, as simulated; MPTS code: 10 % of the run]"""
    random_share: float = 0.05
    """Share of each batch drawn uniformly, so that coverage never dies. [choice; MPTS code: .5, simulated: 0]"""
    whole_pool: int = 50_000
    """Up to so many candidates the greedy rule sees all; above, the `prefilter` best by u. [choice]"""
    prefilter: float = 32.0
    """Candidates per group wanted that pass the pre-filter: another, cheaper selection. [choice]"""
    stale_after: int | None = None
    """Policy versions after which a group counts for its prompt but teaches the model nothing. None: no limit. [choice]"""

    _belief: SharedPriorBelief = field(init=False, repr=False)
    _recent: Ints = field(init=False, repr=False)
    _observed: int = field(default=0, init=False, repr=False)
    _report: PredictionReport = field(default_factory=PredictionReport, init=False, repr=False)

    @abstractmethod
    def model(self) -> Callable[[], Predictor]:
        """What builds the model at start, from hyper-parameters that are checked now. Raises ConfigError."""

    def __post_init__(self) -> None:
        checks.one_of(self, "combine", ("beta", "none"))
        checks.number(self, "prior_strength", low=0.0, above=True, advice="combine='none' uses the model alone.")
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        for name in ("diversity", "novelty"):
            checks.number(self, name, low=0.0)
        checks.one_of(self, "rule", ("marginal", "potential"))
        checks.whole(self, "anchor_steps", low=0, advice="0: no anchor.")
        checks.whole(self, "cooldown", low=0, advice="0: no rest.")
        checks.whole(self, "warmup_steps", low=0)
        checks.number(self, "random_share", low=0.0, high=1.0, advice="Use the method 'uniform' for whole batches at random.")
        checks.whole(self, "whole_pool", low=1)
        checks.number(self, "prefilter", low=1.0)
        if self.stale_after is not None:
            checks.whole(self, "stale_after", low=0, advice="None: no limit.")
        super().__post_init__()

    def parts(self) -> Parts:
        self._belief = SharedPriorBelief(
            predictor=self.model(),
            combine=self.combine,
            prior_strength=self.prior_strength,
            decay=self.decay,
            whole_pool=self.candidates == "pool",
        )
        return Parts(self._belief, Variance(), TopK())

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._recent, self._observed = np.zeros((0, 2), dtype=np.int64), 0

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        requests = super().propose(room, step)
        return requests if self._belief.trained else replace(requests, predicted_pass_rate=None)

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        rows = super().candidate_rows(target, step)
        rested = rows[~np.isin(rows, self._aged(step, 0, self.cooldown) if self.cooldown else [])]
        return rested if len(rested) >= target else rows

    def choose(self, rows: Ints, prediction: Prediction, target: int, step: StepView) -> Ints:
        rng = step.rng("choose")
        shuffled = rng.permutation(len(rows))
        if self._batch_number(step) < self.warmup_steps:
            return shuffled[:target]
        at_random = shuffled[: math.floor(self.random_share * min(target, len(rows)) + rng.random())]
        scores = self.scores(rows, prediction, step)
        left = np.setdiff1d(np.arange(len(rows)), at_random)
        if len(left) > self.whole_pool:
            left = left[self._parts.chooser(scores[left], max(target, round(self.prefilter * target)), rng)]
        step.gauge(greedy_candidates=float(len(left)))
        vectors = self._belief.features(step).unit
        anchor = vectors[self._aged(step, 1, self.anchor_steps)]
        inside = np.concatenate([self._aged(step, 0, 0), rows[at_random]])
        unit = vectors[rows[left]]
        picked = max_sum(
            anchored(scores[left], unit, anchor, self.novelty),
            unit,
            target - len(at_random),
            rng,
            weight=self.diversity,
            chosen=vectors[inside],
            rule=self.rule,
            size=self.batch_size,
        )
        return np.concatenate([left[picked], at_random])

    def _batch_number(self, step: StepView) -> int:
        """The clock: the step, or in a stream, where every `take` is one, how many batches were observed."""
        return self._observed // self.batch_size if step.streaming else step.number

    def _aged(self, step: StepView, youngest: int, oldest: int) -> Ints:
        """Rows observed from `oldest` to `youngest` batches ago; 0 is the batch under way."""
        age = self._batch_number(step) - self._recent[:, 0]
        return np.asarray(self._recent[(age >= youngest) & (age <= oldest), 1], dtype=np.int64)

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super(Composition, self).observe(groups, step)  # the belief is told below, with the order of the tickets
        scored = groups.select(np.flatnonzero(groups.valid.any(axis=1)))
        if len(scored) == 0:
            return
        self._report.add(scored, self.correct_at, step)
        tickets = np.array([ticket.seq for ticket in scored.tickets], dtype=np.int64)
        self._belief.observe(Visits.of(scored, self.correct_at), step, tickets, self._fresh(scored, step))
        now = np.full(len(scored), self._batch_number(step), dtype=np.int64)
        kept = self._recent[self._recent[:, 0] >= now[0] - max(self.anchor_steps, self.cooldown)]
        self._recent = np.concatenate([kept, np.stack([now, scored.rows], axis=1)])
        self._observed += len(scored)

    def _fresh(self, groups: Groups, step: StepView) -> Bools:
        """(n,) False where the oldest scored rollout is staler than allowed."""
        oldest = np.where(groups.valid, groups.policy_versions, np.iinfo(np.int64).max).min(axis=1)
        fresh: Bools = np.asarray(step.policy_version - oldest <= (self.stale_after or 0)) | (self.stale_after is None)
        step.log(too_stale_to_learn=int((~fresh).sum()))
        return fresh

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        held = super().state()
        own = {"recent": self._recent, "observed": np.array([self._observed], dtype=np.int64)}
        return MethodState(prompts=held.prompts, shared={**held.shared, **own})

    def restore(self, state: MethodState) -> None:
        name = type(self).__name__
        recent, observed = shared_array(state, "recent", name), shared_array(state, "observed", name)
        super().restore(state)
        self._recent = np.array(recent, dtype=np.int64).reshape(-1, 2)
        self._observed = int(observed[0])

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        held, recent = super().adapt(state, rows), state.shared["recent"]
        now = renumbered(recent[:, 1], rows)
        return MethodState(held.prompts, {**held.shared, "recent": np.stack([recent[:, 0], now], axis=1)[now >= 0]})
