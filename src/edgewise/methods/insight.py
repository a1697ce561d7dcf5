"""InSight: ask where the outcomes would tell most about prompts that also teach.

InSight: "Efficient RLVR Training via Weighted Mutual Information Data Selection", arXiv 2603.01907.

    A_i = w(m_i) · I_K(α_i, β_i)        w(m) = m(1-m)·exp(-η(m-μ)²)        I_K = nats that K outcomes tell of the pass rate
    the B highest of 16·B prompts drawn uniformly from the pool                                       [eq. 13-17, Alg. 1]

With the published settings a prompt never visited scores 0.1699 at K = 8, and no belief that holds 8 outcomes or more scores
above 0.0683: as long as the candidates hold B unseen prompts, nothing else is chosen, the unseen ones tie, and the rule is
uniform sampling without replacement. It begins to select when the pool has been seen once. `max_unseen` and `prior="signal"`
change that; `tie_share` and `unseen_share` show it, and a warning says it once.

Differs from the paper in: μ is 0.3, which its Table 5 reproduces, where its appendix D prints 3.0; equal scores fall by a
random key; a rollout passes by `correct`, else by its reward against `correct_at`, where the paper is silent on partial
rewards; forgetting, prior means from outside and the cap on unseen prompts are options, all off in `insight`.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.choosers.rank import TopK
from edgewise.errors import ConfigError, DegradedWarning
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.beta_counts import BetaCounts
from edgewise.methods.composed import Parts, ScoreFunction
from edgewise.methods.dynamic import shared_array
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.scores import Information, VarianceReduction, WeightedInformation
from edgewise.types import Bools, Floats, Ints, MethodState, Setting

_PATIENCE = 20
"""Steps of nothing but unseen prompts, with seen ones among the candidates, after which a warning says so."""
_ROUNDING = 1e-9


@dataclass(kw_only=True, eq=False)
class Insight(BetaCounts):
    """InSight as published."""

    name: ClassVar[str] = "insight"

    score: Literal["weighted_information", "information", "variance_reduction"] = "weighted_information"
    """A of the paper; I_K alone, its ablation; or the cheap relative of I_K. [InSight eq. 17 and its ablation; choice]"""
    eta: float = 3.0
    """η >= 0: how narrow the weight is around μ. [InSight App. D]"""
    mu: float = 0.3
    """μ in [0, 1]: the preferred pass rate. [InSight Table 5; App. D prints 3.0]"""
    decay: float = 1.0
    """λ in [0, 1]: what a visit leaves of a prompt's earlier counts. [InSight App. D]"""
    max_unseen: float | None = None
    """At most this share of a request are prompts without counts, while there are enough others; what is no whole number is
    rounded by chance. None: no limit [InSight]; 0.25 with decay=0.5 for pools larger than one run [choice]."""
    candidates: Literal["stream", "random", "pool"] = "random"
    """Where candidates come from. [InSight Alg. 1: a uniform draw from the pool]"""
    spread: float = 16.0
    """Candidates per group wanted. [InSight: 16]"""
    thompson: bool = False
    """Weight a draw from each belief instead of its mean. [InSight Table 4: the mean is better]"""

    _unseen_steps: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.one_of(self, "score", ("weighted_information", "information", "variance_reduction"))
        checks.number(self, "eta", low=0.0, advice="0 takes the preference for μ off.")
        checks.number(self, "mu", low=0.0, high=1.0, advice="It is a pass rate; the 3.0 in the paper's appendix is a misprint.")
        if self.max_unseen is not None:
            checks.number(self, "max_unseen", low=0.0, high=1.0, advice="None sets no limit.")
        super().__post_init__()
        if self.thompson and self.score != "weighted_information":
            raise ConfigError(
                f"{type(self).__name__}(thompson=...) must be False with score={self.score!r}, got True: that score reads the "
                "whole belief, a draw changes nothing. Use score='weighted_information'."
            )

    def parts(self) -> Parts:
        scores: dict[str, ScoreFunction] = {
            "weighted_information": WeightedInformation(eta=self.eta, mu=self.mu),
            "information": Information(),
            "variance_reduction": VarianceReduction(),
        }
        return Parts(belief=self.counts, score=scores[self.score], chooser=TopK())

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._unseen_steps = 0

    def choose(self, rows: Ints, prediction: Prediction, target: int, step: StepView) -> Ints:
        scores = self.scores(rows, prediction, step)
        order = self._parts.chooser(scores, len(rows), step.rng("choose"))
        unseen = ~self.counts.seen(rows, step)
        limit = target if self.max_unseen is None else self._limit(target, step)
        over = unseen[order] & (np.cumsum(unseen[order]) > limit)
        chosen = np.concatenate([order[~over], order[over]])[:target]
        self._tell(scores, unseen, chosen, step)
        return chosen

    def _limit(self, target: int, step: StepView) -> int:
        """Most unseen prompts among `target`: the share, rounded by chance, or small requests would never see a new one."""
        assert self.max_unseen is not None
        return math.floor(self.max_unseen * target + _ROUNDING + (1.0 - 2.0 * _ROUNDING) * step.rng("unseen").random())

    def _tell(self, scores: Floats, unseen: Bools, chosen: Ints, step: StepView) -> None:
        """How much of the choice was uniform, and the one warning about it."""
        taken = np.zeros(len(scores), dtype=np.bool_)
        taken[chosen] = True
        tied = sum(decided_by_key(scores[part], taken[part]) for part in self._apart(unseen))
        step.gauge(tie_share=tied / max(1, len(chosen)), unseen_share=float(unseen[chosen].mean()) if len(chosen) else 0.0)
        if step.round > 0 or self._unseen_steps >= _PATIENCE:
            return
        self._unseen_steps = self._unseen_steps + 1 if unseen[chosen].all() and not unseen.all() else 0
        if self._unseen_steps == _PATIENCE:
            warnings.warn(
                f"{type(self).__name__}: {_PATIENCE} steps in a row asked only for prompts never visited; selection is uniform "
                "until the pool has been seen. Give prior pass rates (prior='signal') or set max_unseen.",
                DegradedWarning,
                stacklevel=2,
            )

    def _apart(self, unseen: Bools) -> list[Bools]:
        """The candidates among whom one cut was made: all of them, or those with and without counts by themselves."""
        return [np.ones_like(unseen)] if self.max_unseen is None else [unseen, ~unseen]

    def state(self) -> MethodState:
        state = super().state()
        unseen_steps = np.array([self._unseen_steps], dtype=np.int64)
        return MethodState(prompts=state.prompts, shared={**state.shared, "unseen_steps": unseen_steps})

    def restore(self, state: MethodState) -> None:
        unseen_steps = shared_array(state, "unseen_steps", type(self).__name__)
        super().restore(state)
        self._unseen_steps = int(unseen_steps[0])


def decided_by_key(scores: Floats, taken: Bools) -> int:
    """How many of the taken have the same score as one that was left: those whom only the random key preferred.

    scores: (n,).  taken: (n,).

    >>> decided_by_key(np.array([3.0, 2.0, 2.0, 2.0, 1.0]), np.array([True, True, True, False, False]))
    2
    """
    if not taken.any() or taken.all():
        return 0
    return int((scores[taken] == scores[~taken].max()).sum())


@dataclass(kw_only=True, eq=False)
class InsightRevisit(Insight):
    """InSight for pools larger than one run: at most a quarter of a batch unseen, old counts halve at each visit.

    Differs from the paper in: `decay` and `max_unseen`, which are ours, and what `Insight` lists. Chosen by a
    simulation with fixed pass rates; not tested in training.
    """

    name: ClassVar[str] = "insight-revisit"

    decay: float = 0.5
    max_unseen: float | None = 0.25


_ROW = {
    "signal": "group outcomes",
    "keeps": "20 bytes: passes and fails, visits",
    "extra_rollouts": "none; zero-variance groups are trained on unless a gate is set",
    "cost": "information of 16 candidates per group trained, once for each distinct belief",
}

ENTRIES = {
    "insight": Entry(
        factory=Insight,
        summary="Asks where K outcomes would tell most of a prompt's pass rate, weighted towards a pass rate of 0.3.",
        when="pools that are visited several times; within the first pass it is uniform sampling",
        paper="InSight, arXiv 2603.01907",
        **_ROW,
    ),
    "insight-revisit": Entry(
        factory=InsightRevisit,
        summary="insight with at most a quarter of a batch unseen, and counts that halve at each visit.",
        when="pools larger than one run, where insight itself never gets to choose",
        paper="InSight, arXiv 2603.01907, with two options of ours",
        **_ROW,
    ),
}
