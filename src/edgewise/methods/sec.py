"""SEC, Self-Evolving Curriculum, arXiv 2505.14970: a bandit over categories that learns from the size of advantages.

Q_c <- Q_c + lr (r_c - Q_c) once a training batch, for the categories in it; r_c = mean |A| over their rollouts, Q_c = 0 at
first (the paper's TD(0) update). A category is drawn with chance softmax(Q_c / τ), a prompt uniformly inside it. For 0/1
rewards and the population deviation mean |A| is 2·sqrt(p(1-p)): the value of a category is highest where half of it passes.

Differs from the paper in: prompts come in a shuffled order of their category, so that all have their turn before one returns,
as in its authors' code, where the paper draws uniformly; a category whose prompts are all in flight is out of the draw. That
code (read in copies of it) gives categories that are not in a batch r = 0, so that they decay; here they keep their value, as
the paper's equation says. The batch of an asynchronous host is what was reported before a new policy version first asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgewise.errors import StateMismatchError
from edgewise.methods import checks
from edgewise.methods.bandit import CategoryBandit
from edgewise.methods.entry import Entry
from edgewise.types import Array, Floats, Ints


@dataclass(kw_only=True, eq=False)
class Sec(CategoryBandit):
    """A bandit over categories: Boltzmann over Q, and Q follows the mean |advantage| of its category."""

    name: ClassVar[str] = "sec"
    per_arm = frozenset({"q", "sums", "counts"})

    temperature: float = 0.4
    """τ. [code: 0.4 for mathematics, 1.0 for Countdown, 0.2 for two-dimensional categories]"""
    learning_rate: float = 0.5
    """lr of Q. [paper, code]"""

    _q: Floats = field(init=False, repr=False)
    _sums: Floats = field(init=False, repr=False)
    _counts: Ints = field(init=False, repr=False)
    _version: int = field(default=-1, init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "learning_rate", low=0.0, high=1.0, above=True)

    def begin(self, count: int) -> None:
        self._q, self._sums, self._counts = np.zeros(count), np.zeros(count), np.zeros(count, dtype=np.int64)
        self._version = -1

    def credit(self, arms: Ints, advantages: Floats, policy_version: int) -> None:
        self._sums = self._sums + np.bincount(arms, advantages, minlength=len(self._q))
        self._counts = self._counts + np.bincount(arms, minlength=len(self._q))
        if policy_version == self._version:  # rounds and requests of one policy version are one batch
            return
        self._version = policy_version
        drawn = self._counts > 0
        reward = self._sums / np.maximum(self._counts, 1)
        self._q = np.where(drawn, self._q + self.learning_rate * (reward - self._q), self._q)
        self._sums, self._counts = np.zeros(len(self._q)), np.zeros(len(self._q), dtype=np.int64)

    def values(self) -> Floats:
        return self._q

    def learned(self) -> dict[str, Array]:
        return {"q": self._q, "sums": self._sums, "counts": self._counts, "version": np.array([self._version], dtype=np.int64)}

    def relearn(self, arrays: dict[str, Array]) -> None:
        if not len(arrays["q"]) == len(arrays["sums"]) == len(arrays["counts"]):
            raise StateMismatchError("Sec.restore: q, sums and counts must be of one length. Use a state of this method.")
        self._q, self._sums = arrays["q"].astype(np.float64), arrays["sums"].astype(np.float64)
        self._counts, self._version = arrays["counts"].astype(np.int64), int(arrays["version"][0])


ENTRIES = {
    "sec": Entry(
        factory=Sec,
        summary="A bandit over categories: draws the topic or difficulty level whose rollouts have the largest advantages.",
        signal="the size of advantages, by category",
        keeps="nothing; a few numbers a category",
        extra_rollouts="zero-variance groups, as in plain GRPO",
        cost="none to speak of",
        when="a pool of several topics or graded levels; within a category it does not choose",
        paper="SEC, arXiv 2505.14970, and its authors' code",
    ),
}
