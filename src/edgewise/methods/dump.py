"""DUMP, arXiv 2504.09710: upper confidence bounds over data sources, by the size of advantages.

value of a source = mean |A| of its last 300 rollouts + sqrt(2 ln(N + 1) / (n + 1)), n = rollouts of the source so far, N of
all; a source is drawn with chance softmax(value / 0.1).

Differs from the paper in: prompts come in a shuffled order of their source, where its authors' code draws with replacement
(a prompt can be in a batch twice there); a source whose prompts are all in flight is out of the draw. Before the first
rollout N is 1, as in the code; all sources are alike then.
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


def upper_bounds(means: Floats, counts: Ints, exploration: float = 1.0) -> Floats:
    """(K,) mean + exploration · sqrt(2 ln(N + 1) / (n + 1)), N = Σ n, at least 1.

    means: (K,) mean |A| in the window.  counts: (K,) n, rollouts so far.

    >>> upper_bounds(np.array([0.5, 0.5]), np.array([8, 0])).round(4).tolist()
    [1.1988, 2.5963]
    """
    total = max(1, int(counts.sum()))
    bounds: Floats = means + exploration * np.sqrt(2.0 * np.log(total + 1.0) / (counts + 1.0))
    return bounds


@dataclass(kw_only=True, eq=False)
class Dump(CategoryBandit):
    """A bandit over sources: softmax over upper confidence bounds of the mean |advantage| in a window."""

    name: ClassVar[str] = "dump"
    per_arm = frozenset({"ring", "counts"})

    temperature: float = 0.1
    """τ. [paper, code]"""
    window: int = 300
    """Rollouts of a source whose advantages count. [paper, code]"""
    exploration: float = 1.0
    """Factor of the bonus for sources seldom drawn. [code]"""

    _ring: Floats = field(init=False, repr=False)
    _counts: Ints = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.whole(self, "window", low=1)
        checks.number(self, "exploration", low=0.0)

    def begin(self, count: int) -> None:
        self._ring, self._counts = np.zeros((count, self.window)), np.zeros(count, dtype=np.int64)

    def credit(self, arms: Ints, advantages: Floats, policy_version: int) -> None:
        del policy_version  # a window needs no batches
        for arm in np.unique(arms).tolist():
            heard = advantages[arms == arm]
            places = (self._counts[arm] + np.arange(len(heard))) % self.window
            kept = slice(max(0, len(heard) - self.window), None)  # a place written twice holds the later value
            self._ring[arm, places[kept]] = heard[kept]
            self._counts[arm] += len(heard)

    def values(self) -> Floats:
        filled = np.minimum(self._counts, self.window)
        means = self._ring.sum(axis=1) / np.maximum(filled, 1)  # places not written yet hold 0
        return upper_bounds(means, self._counts, self.exploration)

    def learned(self) -> dict[str, Array]:
        return {"ring": self._ring, "counts": self._counts}

    def relearn(self, arrays: dict[str, Array]) -> None:
        ring, counts = arrays["ring"], arrays["counts"]
        if ring.shape != (len(counts), self.window):
            raise StateMismatchError(
                f"Dump.restore: the window of {len(counts)} sources must have shape ({len(counts)}, {self.window}), got "
                f"{ring.shape}. Use a state of this method with this window."
            )
        self._ring, self._counts = ring.astype(np.float64), counts.astype(np.int64)


ENTRIES = {
    "dump": Entry(
        factory=Dump,
        summary="A bandit over data sources: draws the source with the largest recent advantages, or few rollouts.",
        signal="the size of advantages, by source",
        keeps="nothing; a window of 300 numbers a source",
        extra_rollouts="zero-variance groups, as in plain GRPO",
        cost="none to speak of",
        when="mixtures of data sources of unlike difficulty; within a source it does not choose",
        paper="DUMP, arXiv 2504.09710, and its authors' code",
    ),
}
