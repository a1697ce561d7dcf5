"""What MoPPS, InSight and MaPP share: each prompt's own discounted passes and fails, as a Beta belief."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgewise.beliefs.beta import BetaBelief
from edgewise.methods import checks
from edgewise.methods.composed import Composition


@dataclass(kw_only=True, eq=False)
class BetaCounts(Composition):
    """Base of the compositions over `BetaBelief`. Children build their parts on `self.counts`."""

    decay: float = 1.0
    """λ in [0, 1]: what a visit leaves of a prompt's earlier counts. 1 forgets nothing."""
    prior_alpha: float = 1.0
    """α₀ > 0 of a prompt never visited. [MoPPS, InSight, MaPP]"""
    prior_beta: float = 1.0
    """β₀ > 0. [MoPPS, InSight, MaPP]"""
    prior: Literal["flat", "signal"] = "flat"
    """flat: Beta(α₀, β₀) for every prompt. signal: Beta(κg, κ(1-g)), with g the host's `pass_rate_prior`: offline pass rates,
    another model's, a predictor's. [choice]"""
    prior_strength: float = 2.0
    """κ > 0: rollouts that the host's guess is worth; 2 is the evidence of the flat prior. [choice]"""

    counts: BetaBelief = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        for name in ("prior_alpha", "prior_beta", "prior_strength"):
            checks.number(self, name, low=0.0, above=True, advice="Beta(1, 1) is uniform.")
        checks.one_of(self, "prior", ("flat", "signal"))
        self.counts = BetaBelief(
            decay=self.decay,
            prior_alpha=self.prior_alpha,
            prior_beta=self.prior_beta,
            prior=self.prior,
            prior_strength=self.prior_strength,
        )
        super().__post_init__()
