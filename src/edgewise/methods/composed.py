"""Composition: belief × score × chooser × allocator, over the gate and top-up of dynamic sampling.

    candidates ──► belief.predict ──► score ──► chooser ──► allocator ──► requests        observe: belief.observe

Two thirds of the published methods are this with other parts. A paper is a child of `Composition` whose fields are the paper's
hyper-parameters and whose `parts` builds the parts from them; `Composed` takes parts from the user.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from edgewise.beliefs.base import Belief
from edgewise.errors import MethodError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.prediction import Prediction, Visits
from edgewise.types import Floats, Groups, Ints, MethodState, Requests, Setting

ScoreFunction = Callable[[Prediction, int], Floats]
"""(what is believed of n prompts, rollouts a prompt) -> (n,) scores, higher is better, finite."""
ChooserFunction = Callable[[Floats, int, np.random.Generator], Ints]
"""((n,) scores, how many at most, generator for ties and draws) -> distinct positions, best first."""
AllocatorFunction = Callable[[Prediction, int, int], Ints]
"""(what is believed of the m chosen prompts, rollouts in all, group_size) -> (m,) rollouts >= 1, summing to the budget."""


class Parts(NamedTuple):
    """What a composition is made of. No allocator: the same number of rollouts for every prompt."""

    belief: Belief
    score: ScoreFunction
    chooser: ChooserFunction
    allocator: AllocatorFunction | None = None


@dataclass(kw_only=True, eq=False)
class Composition(DynamicSampling):
    """Base of the methods that score candidates by a belief. No gate and no top-up unless asked for, as their papers run."""

    candidates: Literal["stream", "random", "pool"] = "stream"
    """Where candidates come from: the next prompts of the shuffled stream, a uniform draw from the pool, or all of it."""
    spread: float = 16.0
    """Candidates per group wanted, where `candidates` is not "pool"."""
    thompson: bool = False
    """Score one draw from each belief instead of its mean."""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    batch_size: int = field(default=0, init=False, repr=False)
    _parts: Parts = field(init=False, repr=False)

    @abstractmethod
    def parts(self) -> Parts:
        """The parts, built from the hyper-parameters. Called once, when the method is built; raises ConfigError."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(self, "candidates", ("stream", "random", "pool"))
        checks.number(self, "spread", low=1.0, advice="There must be at least one candidate for every group wanted.")
        checks.switch(self, "thompson")
        self._parts = self.parts()
        self.needs = frozenset(self._parts.belief.needs)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self.batch_size = setting.batch_size
        self._parts.belief.start(setting)

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        rows = self.candidate_rows(target, step)
        if len(rows) == 0:
            return self.nothing_left(room, step)
        prediction = self._parts.belief.predict(rows, step)
        chosen = self.choose(rows, prediction, target, step)
        believed = prediction.select(chosen)
        return Requests(rows[chosen], self.rollouts(rows[chosen], believed, step), believed.mean)

    def candidate_rows(self, target: int, step: StepView) -> Ints:
        """(n,) distinct rows that could be asked for now."""
        wanted = max(target, round(self.spread * target))
        if self.candidates == "stream" and 2 * wanted < self.pool_size:
            return step.draw(wanted)
        if self.candidates == "random" and wanted < self.pool_size:
            return uniform_rows(wanted, self.pool_size, step)
        pool = np.arange(self.pool_size, dtype=np.int64)
        free = pool[step.eligible(pool)]
        if self.candidates == "stream":  # asked for more than there are, the stream would bring retired prompts back
            return step.draw(max(target, min(wanted, len(free))))
        return free

    def choose(self, rows: Ints, prediction: Prediction, target: int, step: StepView) -> Ints:
        """Positions of the candidates to ask for, at most `target`, best first."""
        scores = self.scores(rows, prediction, step)
        return self._parts.chooser(scores, target, step.rng("choose"))

    def scores(self, rows: Ints, prediction: Prediction, step: StepView) -> Floats:
        """(n,) scores of the candidates; -inf where the score is not finite, which never wins a rank."""
        if self.thompson:
            draw = self._parts.belief.sample(rows, prediction, step.rng("thompson"))
            prediction = replace(prediction, mean=draw)
        scores = self._parts.score(prediction, self.group_size)
        bad = ~np.isfinite(scores)
        if bad.any():
            first = int(rows[np.flatnonzero(bad)[0]])
            step.log(score_missing=int(bad.sum()))
            step.problem(
                MethodError(
                    f"{type(self).__name__}: the score of prompt row {first} must be finite ({int(bad.sum())} of {len(rows)} "
                    "are not). These prompts rank last."
                )
            )
            scores = np.where(bad, -np.inf, scores)
        return scores

    def rollouts(self, rows: Ints, believed: Prediction, step: StepView) -> Ints:
        """(m,) rollouts of each chosen prompt, for children whose allocation looks at more than the belief."""
        del rows
        return self.allocate(believed, step)

    def allocate(self, believed: Prediction, step: StepView) -> Ints:
        """(m,) rollouts of each chosen prompt."""
        del step
        if self._parts.allocator is None or len(believed) == 0:
            return np.full(len(believed), self.group_size, dtype=np.int64)
        return self._parts.allocator(believed, self.group_size * len(believed), self.group_size)

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        visits = Visits.of(groups, self.correct_at)
        if len(visits):
            self._parts.belief.observe(visits, step)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        belief = self._parts.belief.state()
        shared = {f"belief_{name}": array for name, array in belief.shared.items()}
        return MethodState(prompts=belief.prompts, shared={**super().state().shared, **shared})

    def restore(self, state: MethodState) -> None:
        shared = {name.removeprefix("belief_"): array for name, array in state.shared.items() if name.startswith("belief_")}
        self._parts.belief.restore(MethodState(prompts=state.prompts, shared=shared))
        super().restore(state)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        ours = {name: array for name, array in state.shared.items() if not name.startswith("belief_")}
        theirs = {n.removeprefix("belief_"): array for n, array in state.shared.items() if n.startswith("belief_")}
        belief = self._parts.belief.adapt(MethodState(state.prompts, theirs), rows)
        held = super().adapt(MethodState(state.prompts, ours), rows)
        shared = {name: array for name, array in held.shared.items() if not name.startswith("belief_")}
        return MethodState(
            prompts={**held.prompts, **belief.prompts},
            shared={**shared, **{f"belief_{name}": array for name, array in belief.shared.items()}},
        )


def uniform_rows(n: int, pool_size: int, step: StepView) -> Ints:
    """At most `n` distinct eligible rows, uniformly drawn from the pool, in random order; fewer if there are fewer.

    Costs O(n) where n is well below the pool, O(pool) otherwise.
    """
    rng = step.rng("candidates")
    if 4 * n < pool_size:  # draw with a little to spare, until there are enough
        found = np.empty(0, dtype=np.int64)
        for _ in range(16):
            drawn = np.concatenate([found, rng.integers(pool_size, size=2 * n)])
            _, first = np.unique(drawn, return_index=True)
            found = drawn[np.sort(first)]
            found = found[step.eligible(found)]
            if len(found) >= n:
                return found[:n]
    pool = np.arange(pool_size, dtype=np.int64)
    rows = pool[step.eligible(pool)]
    return rows[rng.permutation(len(rows))[:n]]
