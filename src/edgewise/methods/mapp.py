"""MaPP: draw prompts in proportion to the chance of a mixed group under the whole belief; and its advantage.

MaPP: arXiv 2609.34990, reconstructed from notes on it: no code is public, and the paper could not be read again here.

    V_G = E[1 - p^G - (1-p)^G],  p ~ Beta(α, β)        B prompts drawn in proportion to V_G           [MaPP-PS, eq. 15]
    α <- λα + (1-λ)α₀ + k       β <- λβ + (1-λ)β₀ + n - k                                             λ = 0.5

`advantage` is the other half of the paper (MaPP-AD): the GRPO advantage expected under the belief. It selects nothing; a
trainer may call it in place of its own.

Differs from the paper in: the draw is without replacement, as one draw of Gumbel keys, where the notes name no scheme;
candidates are drawn uniformly from the pool, as in InSight, where they name only their number; group sizes may differ
between prompts; equal scores fall by a random key; rollouts that failed to run count neither way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.choosers.rank import Proportional, TopK
from edgewise.errors import ConfigError
from edgewise.methods import checks
from edgewise.methods.beta_counts import BetaCounts
from edgewise.methods.composed import Parts
from edgewise.methods.entry import Entry
from edgewise.scores import ExpectedMixed, ProbMixed
from edgewise.types import Bools, Floats


@dataclass(kw_only=True, eq=False)
class Mapp(BetaCounts):
    """MaPP's prompt selection as published: in proportion to V_G."""

    name: ClassVar[str] = "mapp"

    rule: Literal["proportional", "top_k"] = "proportional"
    """Draw in proportion to V_G [MaPP eq. 15], or take the highest [choice]."""
    decay: float = 0.5
    """λ in [0, 1]: what a visit leaves of a prompt's earlier counts. [MaPP Table 2: best of six]"""
    candidates: Literal["stream", "random", "pool"] = "random"
    """Where candidates come from. [choice]"""
    spread: float = 8.0
    """Candidates per group wanted. [MaPP]"""
    thompson: bool = False
    """Score the chance of a mixed group at one draw from each belief, of which V_G is the expectation. [choice]"""

    def __post_init__(self) -> None:
        checks.one_of(self, "rule", ("proportional", "top_k"))
        super().__post_init__()

    def parts(self) -> Parts:
        return Parts(
            belief=self.counts,
            score=ProbMixed() if self.thompson else ExpectedMixed(),
            chooser=Proportional() if self.rule == "proportional" else TopK(),
        )


@dataclass(kw_only=True, eq=False)
class MappTopK(Mapp):
    """MaPP with the highest V_G instead of a draw: selects harder, explores least.

    Differs from the paper in: the rule, which is ours, and what `Mapp` lists.
    """

    name: ClassVar[str] = "mapp-topk"

    rule: Literal["proportional", "top_k"] = "top_k"


def advantage(passed: Bools, valid: Bools, alpha: Floats, beta: Floats, *, sample_std: bool = False) -> Floats:
    """MaPP-AD: the advantage that GRPO would give each rollout, averaged over its siblings under the belief. [MaPP eq. 11-14]

        a = +Σ_{S=1}^{G-1} w_S(α-1, β) √((G-S)/S)  for a pass        w_S(a, b) = BetaBinomial(S-1 | G-1; a, b)
        a = -Σ_{S=1}^{G-1} w_S(β-1, α) √((G-S)/S)  for a fail

    A group whose rollouts all passed or all failed gets advantages too, all of one sign, and the advantages of a group do not
    sum to 0: a trainer must not centre or normalise them again.

    passed: (n, G) True where a rollout passed; rewards must be binary.  valid: (n, G) which rollouts ran; the others get 0.
    alpha, beta: (n,) the belief after the group was learned from, so that alpha > the group's weight of one pass.
    sample_std: scale as a trainer does that divides by the sample standard deviation (verl): by √((G-1)/G).
    Returns (n, G). Raises ConfigError that names the position where leaving one rollout out leaves no belief.

    >>> one_of_eight = np.arange(8)[None, :] < 1
    >>> advantage(one_of_eight, np.ones((1, 8), dtype=bool), np.array([2.0]), np.array([8.0]))[0, :2].round(10).tolist()
    [2.1012657676, -0.449459299]
    """
    passed = passed & valid
    failed = ~passed & valid
    for name, evidence, there in (("alpha", alpha, passed), ("beta", beta, failed)):
        wrong = ~(np.isfinite(evidence) & (evidence > there.any(axis=1)))
        if wrong.any():
            first = int(np.flatnonzero(wrong)[0])
            raise ConfigError(
                f"advantage({name}=...) at position {first} must be finite and above {int(there[first].any())}, got "
                f"{evidence[first]}. Give the belief after the group was learned from."
            )
    sizes = valid.sum(axis=1)
    result = np.zeros(passed.shape)
    for size in np.unique(sizes[sizes >= 2]):
        at = np.flatnonzero(sizes == size)
        scale = np.sqrt((size - 1) / size) if sample_std else 1.0
        for sign, there, own, other in ((1.0, passed, alpha, beta), (-1.0, failed, beta, alpha)):
            some = at[there[at].any(axis=1)]
            values = sign * scale * _expected_excess(own[some] - 1.0, other[some], int(size))
            result[some] += np.where(there[some], values[:, None], 0.0)
    return result


def _expected_excess(own: Floats, other: Floats, size: int) -> Floats:
    """(n,): Σ_{S=1}^{G-1} w_S √((G-S)/S), the siblings' outcomes beta-binomial."""
    from scipy.special import gammaln

    alike = np.arange(size - 1)[:, None]  # siblings with the same outcome: S - 1
    unlike = size - 1 - alike
    ways = gammaln(size) - gammaln(alike + 1) - gammaln(unlike + 1)
    rising = _log_rising(own, size)[alike[:, 0]] + _log_rising(other, size)[unlike[:, 0]]
    weights = np.exp(ways + rising - _log_rising(own + other, size)[size - 1])
    return np.asarray((weights * np.sqrt(unlike / (alike + 1))).sum(axis=0), dtype=np.float64)


def _log_rising(x: Floats, most: int) -> Floats:
    """(most, n): row s is ln x(x+1)...(x+s-1)."""
    steps = np.log(np.arange(most - 1)[:, None] + x)
    return np.concatenate([np.zeros((1, len(x))), np.cumsum(steps, axis=0)])


_ROW = {
    "signal": "group outcomes",
    "keeps": "20 bytes: discounted passes and fails, visits",
    "extra_rollouts": "none; zero-variance groups are trained on unless a gate is set",
    "cost": "arithmetic on 8 candidates per group trained",
}

ENTRIES = {
    "mapp": Entry(
        factory=Mapp,
        summary="Draws prompts in proportion to the chance of a mixed group under each prompt's own counts.",
        when="pools that are visited several times; keeps exploring, selects mildly",
        paper="MaPP, arXiv 2609.34990, reconstructed",
        **_ROW,
    ),
    "mapp-topk": Entry(
        factory=MappTopK,
        summary="mapp with the highest chances of a mixed group instead of a draw.",
        when="pools that are visited several times, where exploring matters less",
        paper="MaPP, arXiv 2609.34990, reconstructed, with a chooser of ours",
        **_ROW,
    ),
}
