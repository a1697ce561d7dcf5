"""What a belief says of prompts, and what it learns from: the currency between beliefs, scores and allocators."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgewise.kinds import verdict_known
from edgewise.types import Bools, Floats, Groups, Ints

_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is believed of the current pass rates of n prompts.

    mean: (n,) in [0, 1].  variance: (n,) of the pass rate, >= 0: how unsure the belief is.
    alpha, beta: (n,) > 0, where the belief is a Beta distribution; None where it is not.
    mixed: (n,) in [0, 1], where the belief models the chance of a mixed group directly (DPS, ARCUS); None where it does not.
    """

    mean: Floats
    variance: Floats
    alpha: Floats | None = None
    beta: Floats | None = None
    mixed: Floats | None = None

    @classmethod
    def of_beta(cls, alpha: Floats, beta: Floats) -> Prediction:
        """A Beta(α, β) belief: mean α/n₀, variance m(1-m)/(n₀+1), n₀ = α+β."""
        evidence = alpha + beta
        mean = alpha / evidence
        return cls(mean=mean, variance=mean * (1.0 - mean) / (evidence + 1.0), alpha=alpha, beta=beta)

    @classmethod
    def of_rates(cls, rates: Floats) -> Prediction:
        """Pass rates taken for certain."""
        return cls(mean=rates, variance=np.zeros(len(rates)))

    def __len__(self) -> int:
        return len(self.mean)

    def as_beta(self) -> tuple[Floats, Floats]:
        """((n,), (n,)) α and β: the belief's own, else those of the Beta distribution with its mean and variance.

        A variance too large for any Beta is lowered to that of n₀ = 0.01; certain beliefs get n₀ of at most 1e12 · m(1-m).
        """
        if self.alpha is not None and self.beta is not None:
            return self.alpha, self.beta
        mean = np.clip(self.mean, 1e-6, 1.0 - 1e-6)
        spread = mean * (1.0 - mean)
        evidence = np.maximum(spread / np.maximum(self.variance, _LEAST_VARIANCE) - 1.0, 0.01)
        return mean * evidence, (1.0 - mean) * evidence

    def select(self, index: Ints) -> Prediction:
        """The prompts at `index`, in that order."""

        def at(values: Floats | None) -> Floats | None:
            return None if values is None else values[index]

        return Prediction(
            mean=self.mean[index], variance=self.variance[index], alpha=at(self.alpha), beta=at(self.beta), mixed=at(self.mixed)
        )


def passed(groups: Groups, correct_at: float) -> Bools:
    """(n, G) which rollouts passed; False where one is missing.

    By `correct` where every valid rollout of the group was judged, else by reward >= `correct_at`.
    """
    by_verdict = verdict_known(groups.valid, groups.correct)[:, None]
    found: Bools = np.where(by_verdict, groups.correct > 0.5, groups.rewards >= correct_at) & groups.valid
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """Finished groups as a belief counts them: distinct rows, each visited once.

    rows: (n,) pool rows.  successes: (n,) k, whole numbers in [0, trials].  trials: (n,) scored rollouts, >= 1.
    """

    rows: Ints
    successes: Floats
    trials: Ints

    @classmethod
    def of(cls, groups: Groups, correct_at: float) -> Visits:
        """Count passes: by `correct` where every valid rollout of the group was judged, else by reward >= `correct_at`.

        A missing rollout is neither a success nor a failure; groups without a valid rollout are left out.
        """
        trials = groups.valid.sum(axis=1)
        some = np.flatnonzero(trials > 0)
        successes = passed(groups, correct_at).sum(axis=1)[some].astype(np.float64)
        return cls(rows=groups.rows[some], successes=successes, trials=trials[some])

    def __len__(self) -> int:
        return len(self.rows)
