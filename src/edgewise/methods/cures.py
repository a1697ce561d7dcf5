"""CurES: prompts by a softmax over the spread of their outcomes, rollouts by the variance of their gradients.

CurES: "From Gradient Analysis to Efficient Curriculum Learning for Reasoning LLMs", arXiv 2510.01037, as reported by public
summaries, and its code (ZexuSun/CurES), which was read. GVM: arXiv 2505.02391 and its code.

    which     ρ(x) ∝ exp(√(p̂q̂) / τ)                 B prompts without replacement, over the whole pool
    how many  minimise Σ σ²/n, Σn = B·G             σ² the variance of the gradient of one rollout; √(p̂q̂) at equal norms
    belief    p̂ = (passes + 1) / (rollouts + 2)

Differs from the paper in: n is the exact whole-number optimum between a floor and a cap, where the paper rounds the shares
budget · σ/Σσ; gradient norms are an option (`gradient_signal`), for a host has to run backward passes for them, and without
them every rollout counts as having the same; no rollouts are spent before the first step: the paper rolls each prompt of a
shard out 4 times first and starts anew for each shard, here an unknown prompt counts as p̂ = 1/2 and learns from training
(`reset_every` starts the counts anew). There is no preset with the paper's cold start: it would have to roll out a whole
shard before the first batch, and a batch here always holds B·G rollouts. τ is ours: the paper's could not be read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.allocators import greedy, largest_remainder, variance_gains
from edgewise.beliefs.beta import BetaBelief
from edgewise.choosers.rank import Softmax
from edgewise.errors import SignalError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.allocated import Allocated
from edgewise.methods.composed import Parts
from edgewise.methods.entry import Entry
from edgewise.prediction import Prediction
from edgewise.scores import SqrtVariance
from edgewise.types import Floats, Ints, Signal

GRADIENT_DEVIATION: Signal = "gradient_deviation"
"""(n,) >= 0: σ, the root of the trace of the covariance of A·∇ln π over a prompt's rollouts, as the host last measured it;
`gradient_deviation` computes it from norms. NaN where it has none."""


@dataclass(kw_only=True, eq=False)
class Cures(Allocated):
    """CurES by the paper's rule."""

    name: ClassVar[str] = "cures"

    temperature: float = 0.1
    """τ > 0: at 0.1 a prompt with p̂ = 1/18 is 15 times less likely than one with 1/2, at 0.2 3.9 times. [choice]"""
    decay: float = 1.0
    """λ in [0, 1] of the counts; 1 forgets nothing. [paper: 1]"""
    reset_every: int | None = None
    """Start the counts anew each so many steps. None: never. [paper: every 10 steps, with a new shard of the data]"""
    gradient_signal: bool = False
    """σ from the signal `gradient_deviation` instead of √(p̂q̂). [paper: on]"""
    cap_factor: float = 4.0
    """Most rollouts of a group, in group sizes. [choice; the code has no cap]"""
    candidates: Literal["stream", "random", "pool"] = "pool"

    def __post_init__(self) -> None:
        checks.number(self, "temperature", low=0.0, above=True, advice="Large values choose uniformly.")
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        if self.reset_every is not None:
            checks.whole(self, "reset_every", low=1, advice="None never resets.")
        checks.switch(self, "gradient_signal")
        checks.number(self, "cap_factor", low=1.0, advice="1 gives every prompt the same.")
        super().__post_init__()
        if self.gradient_signal:
            self.needs |= {GRADIENT_DEVIATION}

    def parts(self) -> Parts:
        belief = BetaBelief(decay=self.decay, reset_every=self.reset_every)
        return Parts(belief=belief, score=SqrtVariance(), chooser=Softmax(self.temperature))

    @property
    def cap(self) -> int:
        return math.floor(self.cap_factor * self.group_size + 1e-9)

    def share_out(self, rows: Ints, believed: Prediction, budget: int, step: StepView) -> Ints:
        spread = believed.mean * (1.0 - believed.mean)
        variances = self._measured(rows, spread, step) if self.gradient_signal else spread
        return greedy(variance_gains(variances, self.cap), budget, self.least, self.cap)

    def _measured(self, rows: Ints, spread: Floats, step: StepView) -> Floats:
        """(m,) σ² as measured; where it is not known, p̂q̂ in the scale of the others."""
        deviation = step.signal(GRADIENT_DEVIATION, rows)
        wrong = np.flatnonzero((deviation < 0.0) | np.isinf(deviation))
        if len(wrong):
            step.problem(
                SignalError(
                    f"signal({GRADIENT_DEVIATION!r}) of prompt row {int(rows[wrong[0]])} must be finite and >= 0, or NaN, "
                    f"got {deviation[wrong[0]]} ({len(wrong)} of {len(rows)} prompts). They count as not measured."
                )
            )
        known = np.isfinite(deviation) & (deviation >= 0.0)
        usual = float(spread[known].sum())
        scale = float((deviation[known] ** 2).sum()) / usual if usual > 0.0 else 1.0
        return np.where(known, deviation**2, scale * spread)


@dataclass(kw_only=True, eq=False)
class CuresReleased(Cures):
    """CurES as its released code chooses, for comparison: a temperature for each prompt, rounded shares.

    Weights exp(√(p̂q̂) / (100·(passes + 1))), which differ by a factor of 1.0022 at most over all outcomes of 16 rollouts:
    prompts are in effect drawn uniformly. Rollouts in proportion to √(k/n·(1-k/n)) of the raw shares.

    Differs from the paper in: all of the above, as the code does. And from the code in: prompts whose share is 0 get the floor,
    where the code loses them from the batch; the batch always holds B·G rollouts; counts follow training, where the code's stay
    at the cold start unless its group filter is on; no cold start; equal gradient norms unless `gradient_signal` is set.
    """

    name: ClassVar[str] = "cures-released"

    def parts(self) -> Parts:
        return super().parts()._replace(score=self._released_score, chooser=Softmax())

    def _released_score(self, prediction: Prediction, rollouts: int) -> Floats:
        passes_and_one, _ = prediction.as_beta()
        return SqrtVariance()(prediction, rollouts) / (100.0 * passes_and_one)

    def share_out(self, rows: Ints, believed: Prediction, budget: int, step: StepView) -> Ints:
        alpha, beta = believed.as_beta()
        passes, seen = alpha - 1.0, alpha + beta - 2.0
        raw = np.divide(passes, seen, out=np.full(len(passes), 0.5), where=seen > 0.0)
        spread = raw * (1.0 - raw)
        variances = self._measured(rows, spread, step) if self.gradient_signal else spread
        return largest_remainder(np.sqrt(variances), budget, self.least, self.cap)


def gradient_deviation(rates: Floats, up_squared: Floats, down_squared: Floats, up: Floats, down: Floats) -> Floats:
    """σ of one rollout's gradient A·∇ln π, A = r - p: √(p q² E[g₊²] + p² q E[g₋²] - p² q² (E[g₊] - E[g₋])²). [CurES eq. 127]

    The exact trace has the vectors E[∇₊] and E[∇₋] in its last term; mean norms in their place are the paper's approximation.

    rates: (n,) p in [0, 1].  up_squared, down_squared: (n,) mean squared gradient norms of correct and of wrong rollouts.
    up, down: (n,) their mean norms. Where there is no such rollout any finite number will do if p says so too.
    Returns (n,) >= 0.

    >>> one = np.ones(1)
    >>> gradient_deviation(0.25 * one, one, one, one, one).round(10).tolist()
    [0.4330127019]
    """
    p, q = rates, 1.0 - rates
    variance = p * q**2 * up_squared + p**2 * q * down_squared - (p * q * (up - down)) ** 2
    return np.asarray(np.sqrt(np.maximum(variance, 0.0)), dtype=np.float64)


def gvm_shares(rates: Floats, norms: Floats, *, a: float = 1e-3, b: float = 2.0) -> Floats:
    """Shares of the rollouts by GVM, the ancestor: ḡ / √(p + a/p^(b-1)), 0 where p = 0. For `largest_remainder`. [GVM code]

    They fall with p, where those of CurES are bell-shaped: GVM trains on accepted rollouts only.

    rates: (n,) p in [0, 1].  norms: (n,) ḡ >= 0, mean gradient norms of the accepted rollouts.  a, b: a penalty on small p.
    Returns (n,) >= 0, not normalised.
    """
    safe = np.where(rates > 0.0, rates, 1.0)
    return np.where(rates > 0.0, norms / np.sqrt(safe + a / safe ** (b - 1.0)), 0.0)


_ROW = {
    "signal": "group outcomes; the deviation of the gradient, if the host measures it",
    "keeps": "20 bytes: passes and fails, visits",
    "extra_rollouts": "none; zero-variance groups are trained on unless a gate is set",
    "paper": "CurES, arXiv 2510.01037",
}

ENTRIES = {
    "cures": Entry(
        factory=Cures,
        summary="Draws prompts by a softmax over √(pq), gives more rollouts where outcomes vary more.",
        cost="arithmetic on the whole pool",
        when="trainers that take groups of different sizes; pools that are visited several times",
        **_ROW,
    ),
    "cures-released": Entry(
        factory=CuresReleased,
        summary="cures as its code runs: prompts in effect uniform, rollouts by rounded shares.",
        cost="arithmetic on the whole pool",
        when="to compare with published runs of the code",
        **_ROW,
    ),
}
