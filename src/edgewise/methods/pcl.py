"""PCL: a value model predicts pass rates; of 4B candidates the B nearest to 1/2 are rolled out.

"Prompt Curriculum Learning", arXiv 2510.01135: V(x) is trained on the observed group means with squared error, one step behind
the policy, and filters candidates before any rollout. Symbols: B groups a step, κ = 4 candidates per group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.ridge import Logistic, Ridge
from edgewise.beliefs.shared import Predictor, SharedPriorBelief
from edgewise.calibration import PredictionReport, prediction_pairs
from edgewise.choosers.rank import TopK
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.composed import Composition, Parts
from edgewise.methods.dynamic import shared_array
from edgewise.methods.entry import Entry
from edgewise.metrics import rank_correlation
from edgewise.prediction import Prediction, Visits
from edgewise.scores import NearTarget
from edgewise.types import Floats, Groups, Ints, MethodState, Requests, Setting

_FEWEST = 16  # pairs below which a rank correlation says nothing


@dataclass(kw_only=True, eq=False)
class Pcl(Composition):
    """Of 4B candidates of the stream, the B whose predicted pass rate is nearest to 1/2.

    As long as the predictions do not rank the observed pass rates better than chance (Spearman <= 0 over the last `window`
    groups, or too few of them), the first B candidates are taken: uniform. Predictions go on, so that the model can earn its
    way back. The correlation is measured on chosen prompts, whose predictions lie close together: it understates the model.

    Differs from the paper in: the value model is a regression on a fixed embedding of the text, where the paper trains a
    language model with a value head; the fall-back to uniform; groups are observed means over scored rollouts only. The
    paper's text was read in a summary, its code was not there.
    """

    name: ClassVar[str] = "pcl"

    spread: float = 4.0
    """Candidates per group wanted. [PCL, as reported]"""
    target_rate: float = 0.5
    """The pass rate to be near to. [PCL]"""
    model: Literal["ridge", "logistic"] = "ridge"
    """ridge: squared error, as the paper's loss. logistic: binomial likelihood. [choice]"""
    forget: float = 0.97
    """f: what a step leaves of the regression's evidence. [choice]"""
    ridge: float | None = None
    """ρ: pull towards 1/2. None: 30, and 7.5 for logistic. [choice]"""
    window: int = 256
    """Groups over which the rank correlation is taken. [choice]"""

    _belief: SharedPriorBelief = field(init=False, repr=False)
    _pairs: Floats = field(init=False, repr=False)
    _report: PredictionReport = field(default_factory=PredictionReport, init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "target_rate", low=0.0, high=1.0)
        checks.one_of(self, "model", ("ridge", "logistic"))
        checks.number(self, "forget", low=0.0, high=1.0, above=True, advice="1 forgets nothing.")
        if self.ridge is not None:
            checks.number(self, "ridge", low=0.0, above=True)
        checks.whole(self, "window", low=_FEWEST, advice="Fewer groups do not show a correlation.")
        super().__post_init__()

    def parts(self) -> Parts:
        self._belief = SharedPriorBelief(predictor=self._build, combine="none")
        return Parts(self._belief, NearTarget(target=self.target_rate), TopK())

    def _build(self) -> Predictor:
        kind, usual = (Ridge, 30.0) if self.model == "ridge" else (Logistic, 7.5)
        return kind(forget=self.forget, ridge=usual if self.ridge is None else self.ridge)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._pairs = np.empty((0, 2))

    def propose(self, room: int, step: StepView) -> Requests:
        requests = super().propose(room, step)
        if self._belief.trained:
            return requests
        return Requests(requests.rows, requests.rollouts)  # an untrained model predicts nothing

    def choose(self, rows: Ints, prediction: Prediction, target: int, step: StepView) -> Ints:
        correlation = self.correlation()
        if np.isfinite(correlation):
            step.gauge(pcl_corr=correlation)
        trusted = correlation > 0.0  # False for NaN
        step.gauge(pcl_uniform=float(not trusted))
        return super().choose(rows, prediction, target, step) if trusted else np.arange(min(target, len(rows)))

    def correlation(self) -> float:
        """Spearman of predicted and observed pass rates over the window, NaN while there are too few."""
        return rank_correlation(self._pairs[:, 0], self._pairs[:, 1]) if len(self._pairs) >= _FEWEST else float("nan")

    def observe(self, groups: Groups, step: StepView) -> None:
        super(Composition, self).observe(groups, step)  # the belief is told below, with the order of the tickets
        scored = groups.select(np.flatnonzero(groups.valid.any(axis=1)))
        if len(scored) == 0:
            return
        self._report.add(scored, self.correct_at, step)
        pairs = prediction_pairs(scored, self.correct_at)
        self._pairs = np.concatenate([self._pairs, np.column_stack([pairs[:, 0], pairs[:, 1] / pairs[:, 2]])])[-self.window :]
        tickets = np.array([ticket.seq for ticket in scored.tickets], dtype=np.int64)
        self._belief.observe(Visits.of(scored, self.correct_at), step, tickets)

    def state(self) -> MethodState:
        held = super().state()
        return MethodState(prompts=held.prompts, shared={**held.shared, "pairs": self._pairs})

    def restore(self, state: MethodState) -> None:
        pairs = shared_array(state, "pairs", type(self).__name__)
        super().restore(state)
        self._pairs = np.array(pairs, dtype=np.float64).reshape(-1, 2)


ENTRIES = {
    "pcl": Entry(
        factory=Pcl,
        summary="A regression on embeddings predicts pass rates; of 4B candidates it asks for the B nearest to 1/2.",
        signal="group outcomes; a fixed embedding of each prompt's text",
        keeps="nothing, and 4 bytes per number of the embedding in memory",
        extra_rollouts="none",
        cost="a regression step a batch, and one prediction per candidate",
        when="pools too large to meet prompts twice; it is uniform until its predictions rank better than chance",
        paper="PCL, arXiv 2510.01135, read in a summary; regression in place of its value model",
    ),
}
