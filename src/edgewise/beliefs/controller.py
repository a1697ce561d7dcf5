"""How hard stage 1 pushes: p_easy and p_hard, steered so that easy and hard groups keep their target shares. [HIVE §3, B.3]"""

from __future__ import annotations

import numpy as np

from edgewise.errors import StateMismatchError
from edgewise.kinds import EASY, HARD, Kinds
from edgewise.types import Array, Bools


def moved(p: float, target: float, share: float, *, by: float, low: float, high: float) -> float:
    """p <- clip(p + Δp·sign(target - share), low, high): look less often where more than the target share comes out.

    >>> moved(0.5, 1 / 12, 2 / 24, by=0.01, low=0.05, high=0.95)
    0.5
    """
    return float(np.clip(p + by * np.sign(target - share), low, high))


class ShareController:
    """p_easy and p_hard, and the tallies since they last moved.

    Tallies are folded when a new policy version first asks for prompts, because a step has no end that a method could see.
    All state is small and shared: `state` / `restore`.
    """

    def __init__(self, p_easy: float, p_hard: float) -> None:
        self.p_easy = p_easy
        self.p_hard = p_hard
        self._version = -1
        self._offered = self._seen = self._rolled = self._easy = self._hard = 0

    def offer(self, seen: Bools) -> None:
        """Count prompts looked at by stage 1, and how many of them were visited before."""
        self._offered += len(seen)
        self._seen += int(seen.sum())

    def learn(self, kinds: Kinds) -> None:
        """Count the kinds of finished groups."""
        self._rolled += len(kinds)
        self._easy += int((kinds == EASY).sum())
        self._hard += int((kinds == HARD).sum())

    @property
    def seen_share(self) -> float | None:
        """Share of the offered prompts visited before; None before the first offer."""
        return self._seen / self._offered if self._offered else None

    @property
    def shares(self) -> tuple[float, float] | None:
        """(ρ̂_easy, ρ̂_hard) among the groups rolled out; None before the first."""
        return (self._easy / self._rolled, self._hard / self._rolled) if self._rolled else None

    def fold(
        self, policy_version: int, *, target_easy: float, target_hard: float, arm_at: float, by: float, low: float, high: float
    ) -> None:
        """At a new policy version: move both probabilities if armed, and start counting anew.

        Armed: at least the share `arm_at` of the offered prompts was visited before. With no finished group the tallies wait.
        """
        if policy_version == self._version:
            return
        self._version = policy_version
        shares, seen = self.shares, self.seen_share
        if shares is None:
            return
        if seen is not None and seen >= arm_at:
            self.p_easy = moved(self.p_easy, target_easy, shares[0], by=by, low=low, high=high)
            self.p_hard = moved(self.p_hard, target_hard, shares[1], by=by, low=low, high=high)
        self._offered = self._seen = self._rolled = self._easy = self._hard = 0

    def state(self) -> dict[str, Array]:
        """Two small arrays by name."""
        return {
            "p": np.array([self.p_easy, self.p_hard]),
            "tally": np.array([self._version, self._offered, self._seen, self._rolled, self._easy, self._hard], dtype=np.int64),
        }

    def restore(self, arrays: dict[str, Array]) -> None:
        """Become what gave `arrays`. Raises StateMismatchError if they do not fit."""
        p, tally = arrays.get("p"), arrays.get("tally")
        if p is None or tally is None or p.shape != (2,) or tally.shape != (6,):
            raise StateMismatchError(
                f"ShareController.restore: needs p (2,) and tally (6,), got {sorted(arrays)}. Use a state of this method."
            )
        self.p_easy, self.p_hard = map(float, p)
        self._version, self._offered, self._seen, self._rolled, self._easy, self._hard = map(int, tally)
