"""PREPO: prompts of rising perplexity, and more weight on responses of higher entropy.

"Efficient Reinforcement Learning for Large Language Models with Intrinsic Exploration", arXiv 2511.00794. The formulas are
those reported of the paper in summaries and reviews, and the authors' poster; there is no public code, and the paper itself
could not be read line by line. Marked [paper*] below.

    before rollouts   candidates 𝓑 by rising prompt perplexity; the K from position l(ρ) = floor(ρ(|𝓑| - K)),  ρ = step / steps
    after rollouts    w_i = H̄_i / H̄        H̄_i = mean token entropy of response i, H̄ = mean of the H̄_i of the batch

The weights are factors of the loss and not of the advantage. Zero-variance groups are kept: the paper has no filter.

Differs from the paper in: prompts without a finite perplexity (a single token) are taken last at every ρ, not ranked highest;
a response without a known entropy has weight 1 and is left out of H̄; a group with fewer than two scored responses is dropped;
the batch keeps the shuffled order of the stream, so that mini-batches are no curriculum of their own; when groups were lost and
`max_rounds` allows another round, new candidates are drawn at the same ρ and their weights average 1 by themselves; when
streaming, ρ counts calls of `take`, and H̄ is that of the outcomes reported together. |𝓑| = 5K follows the paper's "random
20 %" baseline and is not stated by what we could read. Ranking inside strata of language and length, the remedy for what its
reviews object to, is not built: the pool has no such columns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.choosers.window import window
from edgewise.errors import ConfigError, SignalError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Entry
from edgewise.types import PROMPT_PERPLEXITY, ROLLOUT_ENTROPY, Floats, Groups, Ints, Requests, Setting, Verdicts


@dataclass(kw_only=True, eq=False)
class Prepo(DynamicSampling):
    """The perplexity schedule and the entropy weights; each can be switched off, since the paper never tried them apart."""

    name: ClassVar[str] = "prepo"
    scope = "batch"

    schedule: bool = True
    """Choose prompts by perplexity. False: the next prompts of the stream. [paper*]"""
    entropy_weight: bool = True
    """Weight responses by their relative entropy. False: every response weighs 1. [paper*]"""
    spread: float = 5.0
    """|𝓑| / K: candidates per group wanted. [choice; the paper's random baseline takes 20 %]"""
    total_steps: int | None = None
    """Steps of the whole run: ρ = step / total_steps. None: what the host says; an error at start where it cannot. [paper*]"""
    weight_cap: float | None = None
    """Highest weight, >= 1; what it takes off is spread over the other responses. None: no cap, as in the paper. [choice]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    _steps: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.switch(self, "schedule")
        checks.switch(self, "entropy_weight")
        checks.number(self, "spread", low=1.0, advice="There must be at least one candidate for every group wanted.")
        if self.total_steps is not None:
            checks.whole(self, "total_steps", low=1, advice="None takes what the host says.")
        if self.weight_cap is not None:
            checks.number(self, "weight_cap", low=1.0, advice="The mean weight is 1. None is no cap.")
        needs = {PROMPT_PERPLEXITY} if self.schedule else set()
        if self.entropy_weight:
            needs.add(ROLLOUT_ENTROPY)
        self.needs = frozenset(needs)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        steps = setting.total_steps if self.total_steps is None else self.total_steps
        if self.schedule and steps is None:
            raise ConfigError(
                f"{type(self).__name__}(total_steps=...) is needed: its schedule goes from low to high perplexity over the "
                "run, and the host does not say how long that is. Set it to the steps you will train, or schedule=False."
            )
        self._steps = steps or 0

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        rows = step.draw(max(target, round(self.spread * target)) if self.schedule else target)
        if len(rows) == 0:
            return self.nothing_left(room, step)
        if self.schedule:
            rows = self._in_window(rows, target, step)
        return Requests.of(rows, self.group_size)

    def progress(self, step: StepView) -> float:
        """ρ in [0, 1]: the share of the run that is done."""
        return min(1.0, step.number / self._steps)

    def _in_window(self, rows: Ints, target: int, step: StepView) -> Ints:
        """The candidates inside the window, in the order of the stream."""
        perplexities = step.signal(PROMPT_PERPLEXITY, rows)
        ranked = np.isfinite(perplexities)
        if not ranked.all():
            first = int(np.flatnonzero(~ranked)[0])
            step.log(perplexity_missing=int((~ranked).sum()))
            step.problem(
                SignalError(
                    f"signal({PROMPT_PERPLEXITY!r}) of prompt row {int(rows[first])} must be finite, got {perplexities[first]} "
                    f"({int((~ranked).sum())} of {len(rows)} prompts). They are taken last; a prompt needs at least two tokens."
                )
            )
        progress = self.progress(step)
        chosen = np.sort(window(perplexities, target, progress, step.rng("window")))
        step.gauge(progress=progress)
        inside = perplexities[chosen][ranked[chosen]]
        if len(inside):
            step.gauge(perplexity_low=float(inside.min()), perplexity_high=float(inside.max()))
        return rows[chosen]

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        verdicts = super().judge(groups, step)
        if not self.entropy_weight:
            return verdicts
        trained = groups.valid & verdicts.keep[:, None]
        known = trained & np.isfinite(groups.entropies) & (groups.entropies >= 0.0)
        weights = np.ones(groups.valid.shape)
        weights[known] = relative_entropies(groups.entropies[known], self.weight_cap)
        missing = int((trained & ~known).sum())
        step.log(weight_missing=missing)
        if missing and not known.any():
            step.problem(
                SignalError(
                    f"{type(self).__name__}: not one of {missing} responses came with its own mean token entropy, so all weigh "
                    "1. Report Outcome(rollout_entropy=[...]) with one number a response, not one for the group."
                )
            )
        if known.any():
            step.gauge(weight_max=float(weights[known].max()))
        return Verdicts(verdicts.keep, verdicts.reasons, weights=weights)


def relative_entropies(entropies: Floats, cap: float | None = None) -> Floats:
    """w_i = H̄_i / H̄, of mean 1. All 1 where every entropy is 0.

    entropies: (m,) finite, >= 0, nats.  cap: no weight is higher, >= 1; the others are scaled up by one factor so that the mean
    stays 1, as far as they are not all 0. None: no cap.
    Returns (m,) >= 0.

    >>> relative_entropies(np.array([1.0, 1.0, 2.0])).tolist()
    [0.75, 0.75, 1.5]
    >>> relative_entropies(np.array([1.0, 1.0, 6.0]), cap=2.0).tolist()
    [0.5, 0.5, 2.0]
    """
    largest = entropies.max(initial=0.0)
    if largest == 0.0:
        return np.ones(len(entropies))
    shares = entropies / largest  # first, so that the sum of very large or very small entropies stays in range
    weights: Floats = shares / shares.mean()
    if cap is None or weights.max() <= cap:
        return weights
    order = np.argsort(-weights, kind="stable")
    falling = weights[order]
    rest = falling.sum() - np.concatenate([[0.0], np.cumsum(falling)[:-1]])  # of entry k and all lower ones
    capped = np.arange(len(falling))
    factor = np.divide(len(falling) - capped * cap, rest, out=np.zeros(len(falling)), where=rest > 0.0)
    fits = np.flatnonzero((rest > 0.0) & (factor * falling <= cap))
    k = int(fits[0]) if len(fits) else int((falling > 0.0).sum())  # how many meet the cap
    result = np.full(len(falling), cap)
    result[order[k:]] = factor[k] * falling[k:] if len(fits) else 0.0
    return result


ENTRIES = {
    "prepo": Entry(
        factory=Prepo,
        summary="Prompts of low perplexity first, of high perplexity last; responses of high entropy weigh more.",
        signal="perplexity of the prompt under the current policy; entropy of each response",
        keeps="nothing",
        extra_rollouts="none; zero-variance groups are trained on",
        cost="one forward over 5 prompts per group trained, no generation",
        when="runs of a known length, where the host can compute perplexities; pools of one language and similar lengths",
        paper="PREPO, arXiv 2511.00794, as reported of it",
    ),
}
