"""Prompts sorted into arms: drawing an arm by its value, then the next prompt of that arm. What SEC and DUMP share.

    chance of arm a = exp(v_a / τ) / Σ exp(v_b / τ)  over the arms that still have a free prompt

Slots are drawn one after another; an arm without a free prompt is out of the draw for the rest of it. Inside an arm prompts
come in the arm's own shuffled order, pass after pass, so that none returns before the others of its arm had their turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgewise.kinds import zero_variance
from edgewise.method import StepView
from edgewise.types import Bools, Floats, Groups, Ints

STRAY = -1
"""Label of the arm that takes the prompts without a usable category."""

_LEAST_BLOCK = 64  # rows looked at together, so that a long stretch of rows in flight costs few calls


def boltzmann(values: Floats, temperature: float) -> Floats:
    """(K,) chances proportional to exp(value / temperature); -inf has none. The largest value is taken off before exp.

    values: (K,), at least one finite.  temperature: > 0.

    >>> boltzmann(np.array([1000.0, 1000.0, -np.inf]), 0.1).tolist()
    [0.5, 0.5, 0.0]
    """
    weights = np.exp((values - values.max()) / temperature)
    chances: Floats = weights / weights.sum()
    return chances


def absolute_advantages(groups: Groups, tolerance: float = 0.0) -> Floats:
    """(n, G) |r - mean| / std over the valid rollouts of each group, as GRPO computes advantages. [DeepSeekMath §4.1]

    The sample standard deviation (divisor valid - 1), as verl and TRL take it, without their 1e-6 or 1e-4 under the fraction.
    0 in groups of zero variance, by max - min <= tolerance. NaN where a rollout is missing, and in groups with fewer than two
    valid ones: they have no advantage.
    """
    valid = groups.valid & (groups.valid.sum(axis=1) >= 2)[:, None]
    trials = np.maximum(valid.sum(axis=1), 2)[:, None]
    rewards = np.where(valid, groups.rewards, 0.0)
    away = np.where(valid, rewards - rewards.sum(axis=1, keepdims=True) / trials, 0.0)
    deviation = np.sqrt((away**2).sum(axis=1, keepdims=True) / (trials - 1))
    flat = zero_variance(groups.rewards, valid, tolerance)[:, None] | (deviation == 0.0)
    ratios = np.abs(away) / np.where(flat, 1.0, deviation)
    advantages: Floats = np.where(valid, np.where(flat, 0.0, ratios), np.nan)
    return advantages


class Arms:
    """The prompts of each arm. Fixed once built; what moves (the cursors) belongs to the caller, who saves it."""

    def __init__(self, labels: Ints) -> None:
        """labels: (N,) the arm of every pool row, any whole numbers."""
        self.labels, arm = np.unique(labels, return_inverse=True)
        self.arm: Ints = arm.reshape(-1).astype(np.int64)
        """(N,) arm of each row, 0 … K - 1."""
        ends = np.cumsum(np.bincount(self.arm, minlength=len(self.labels)))
        self._rows = np.split(np.argsort(self.arm, kind="stable").astype(np.int64), ends[:-1])
        self._orders: dict[int, tuple[int, int, Ints]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def draw(self, values: Floats, temperature: float, n: int, cursors: Ints, seed: int, step: StepView) -> Ints:
        """At most `n` distinct rows that could be asked for now, in the order drawn; fewer only if there are no more.

        values: (K,) finite.  cursors: (K,) how far each arm's order was walked, moved in place.  seed: of the orders.
        """
        rng = step.rng("arms")
        picked = np.full(n, -1, dtype=np.int64)
        live = np.ones(len(self), dtype=np.bool_)
        slots = np.arange(n)

        def free(rows: Ints) -> Bools:
            unblocked: Bools = step.eligible(rows) & ~np.isin(rows, picked)
            return unblocked

        while len(slots) and live.any():  # a draw of an arm that ran dry is drawn again: the rule of one slot at a time
            chances = boltzmann(np.where(live, values, -np.inf), temperature)
            drawn = rng.choice(len(self), size=len(slots), p=chances)
            for arm in np.unique(drawn).tolist():
                wanted = slots[drawn == arm]
                rows = self._next(arm, len(wanted), cursors, seed, free)
                picked[wanted[: len(rows)]] = rows
                live[arm] = len(rows) == len(wanted)
            slots = slots[picked[slots] < 0]
        return picked[picked >= 0]

    def _next(self, arm: int, n: int, cursors: Ints, seed: int, free: Callable[[Ints], Bools]) -> Ints:
        """At most `n` free rows of the arm, in its order, which runs on into the next pass; moves its cursor.

        Rows passed over because they were not free wait for the next pass.
        """
        size = len(self._rows[arm])
        at = int(cursors[arm])
        last = -(-at // size) * size + size  # by then a whole pass was looked at
        found = np.empty(0, dtype=np.int64)
        missing = n
        while missing > 0 and at < last:
            lap, start = divmod(at, size)
            block = self._order(arm, lap, seed)[start : start + max(missing, _LEAST_BLOCK)]
            usable = np.flatnonzero(free(block) & ~np.isin(block, found))[:missing]
            found = np.concatenate([found, block[usable]])
            missing -= len(usable)
            at += len(block) if missing else int(usable[-1]) + 1
        cursors[arm] = at
        return found

    def _order(self, arm: int, lap: int, seed: int) -> Ints:
        """The arm's rows in the order of one pass: a function of (seed, arm's label, pass)."""
        held = self._orders.get(arm)
        if held is None or held[:2] != (lap, seed):
            rng = np.random.default_rng([seed, int(self.labels[arm]) - STRAY, lap])
            held = (lap, seed, rng.permutation(self._rows[arm]))
            self._orders[arm] = held
        return held[2]
