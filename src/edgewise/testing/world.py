"""A world to try a method in: prompts of known pass rates, every signal by name, and a policy that never learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from edgewise.pool import PromptPool
from edgewise.synthetic import response_entropies, signals_of
from edgewise.types import PASS_RATE, PROMPT_ENTROPY, Bools, Floats, Ints, Outcome, Signal, Ticket

_PARTS = ((1 / 4, -4.0), (1 / 2, 0.0), (1 / 4, 6.0))
"""Shares of prompts that are near trivial, at the edge and near impossible, with their mean difficulties in logits. [choice]"""


class World:
    """A frozen policy over a made-up pool. The same ticket gets the same answer, whenever and with whatever others.

    Args:
        prompts: size of the pool, >= 1.
        seed: of difficulties, signals and rollouts.
        pass_rates: (N,) in [0, 1] to use instead of made-up ones.
        missing: share of rollouts without a reward. If above 0, every fifth ticket fails whole and every third is reported with
            fewer rewards than were asked for.
        unmeasured: (N,) True where every signal is NaN.
        entropy_difficulty: correlation of the prompt entropy with difficulty, in [-1, 1].
    """

    def __init__(
        self,
        prompts: int = 96,
        *,
        seed: int = 0,
        pass_rates: Floats | None = None,
        missing: float = 0.0,
        unmeasured: Bools | None = None,
        entropy_difficulty: float = 0.75,
    ) -> None:
        rng = np.random.default_rng([seed, 10])
        share, mean = np.array(_PARTS).T
        difficulty = mean[rng.choice(len(share), size=prompts, p=share)] + rng.standard_normal(prompts)
        self.pass_rates: Floats = 1.0 / (1.0 + np.exp(difficulty)) if pass_rates is None else pass_rates
        self.seed = seed
        self.missing = missing
        self.pool = PromptPool.from_ids(f"made-up-{row}" for row in range(prompts))
        z = (difficulty - difficulty.mean()) / (difficulty.std() or 1.0)
        mixed = entropy_difficulty * z + np.sqrt(1.0 - entropy_difficulty**2) * rng.standard_normal(prompts)
        tables = signals_of(difficulty, np.arange(prompts) % 4, rng)
        tables |= {PROMPT_ENTROPY: 1.5 * np.exp(0.15 * mixed), PASS_RATE: self.pass_rates.copy()}
        if unmeasured is not None:
            for table in tables.values():
                table[unmeasured] = np.nan
        self._tables = tables

    @property
    def signals(self) -> dict[Signal, Callable[[Ints], Floats]]:
        """Every signal that edgewise names, as a host serves them: a new array for every question."""

        def serving(table: Floats) -> Callable[[Ints], Floats]:
            return lambda rows: table[rows].copy()

        return {name: serving(table) for name, table in self._tables.items()}

    def rollout(self, tickets: Sequence[Ticket]) -> list[Outcome]:
        """Answer tickets with rewards 0 and 1, and the entropy of each response."""
        return [self._answer(ticket) for ticket in tickets]

    def _answer(self, ticket: Ticket) -> Outcome:
        rng = np.random.default_rng([self.seed, 11, ticket.seq])
        rate = float(self.pass_rates[ticket.row])
        passed = rng.random(ticket.rollouts) < rate
        rewards: list[Any] = passed.astype(np.float64).tolist()
        entropies: list[Any] = response_entropies(rate, ticket.rollouts, rng).tolist()
        if self.missing > 0.0:
            lost = rng.random(ticket.rollouts) < (1.0 if ticket.seq % 5 == 4 else self.missing)
            rewards = [None if gone else reward for reward, gone in zip(rewards, lost.tolist(), strict=True)]
            entropies = [None if gone else entropy for entropy, gone in zip(entropies, lost.tolist(), strict=True)]
            if ticket.seq % 3 == 2:
                rewards, entropies = rewards[:-1], entropies[:-1]
        correct = None if self.missing > 0.0 and ticket.seq % 2 else [None if r is None else r > 0.5 for r in rewards]
        return Outcome(
            ticket=ticket, rewards=rewards, correct=correct, rollout_entropy=entropies, response_tokens=50 * ticket.rollouts
        )
