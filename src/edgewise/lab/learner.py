"""A simulated learner: a test bed with known pass rates, in numpy only. It stands for no model; it makes promises testable.

Item response theory gives the pass rate of prompt i, of skill s, discrimination a, difficulty b:

    pass_rate[i] = sigmoid(a[i] * (ability[s] + familiarity[i] - b[i]))

Only mixed groups teach, each in proportion to v, its share of the batch's gradient: the prompt itself becomes familiar, its
skill grows, and the other skills grow a little. A group that all passes or all fails has v = 0 and moves nothing.

    familiarity[i] += own_gain * v      ability[s] += skill_gain * v      ability[other skills] += transfer * skill_gain * v

    v = (m / mean m) * mean over the m trained rollouts of weight * (reward - mean reward of the whole group)^2

With m the same for every group, all rollouts trained and weights of 1, v is the variance of the group's rewards, 0.25 at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from edgewise.errors import ConfigError, nearest
from edgewise.pool import PromptPool
from edgewise.synthetic import response_entropies, signals_of
from edgewise.types import PASS_RATE, PROMPT_ENTROPY, Array, Floats, Groups, Ints, Outcome, Signal, Ticket

POOLS: Mapping[str, Sequence[tuple[float, float, float]]] = {
    "wasteful": ((1 / 3, -2.2, 1.0), (1 / 6, 1.0, 1.0), (1 / 2, 6.0, 1.5)),
    "balanced": ((1.0, 0.5, 1.5),),
}
"""Difficulties of a pool as a mixture of normals: (share, mean, standard deviation) in logits at ability 0."""


class SimulatedLearner:
    """A policy that answers tickets and learns from groups. The same seed and the same calls give the same answers.

    Args:
        prompts: Size of the pool, >= 1.
        skills: Clusters of related prompts, >= 1; prompt i belongs to skill i % skills.
        pool: "wasteful" (a third near trivial, half near impossible, as late in published runs) or "balanced".
        entropy_difficulty: Correlation of the synthetic `prompt_entropy` with difficulty, in [-1, 1]. The default makes it high
            for hard prompts, which is what was measured on a small real policy (Spearman -.74 with the pass rate); HIVE hopes
            for a signal that is high for mixed prompts.
        embedding_share: Share of the difficulty's variance that a linear function of the embedding explains, in [0, 1].
        skill_gain: Growth of a skill per unit of reward variance; 0 freezes the learner together with `own_gain` 0.
        own_gain: Growth of the trained prompt itself.
        transfer: Share of a skill's growth that every other skill gets, in [0, 1].
        seed: Of the prompts and of every rollout.
    """

    def __init__(
        self,
        prompts: int = 2_000,
        *,
        skills: int = 8,
        pool: Literal["wasteful", "balanced"] = "wasteful",
        entropy_difficulty: float = 0.75,
        embedding_share: float = 0.3,
        skill_gain: float = 0.006,
        own_gain: float = 0.6,
        transfer: float = 0.1,
        seed: int = 0,
    ) -> None:
        if prompts < 1 or skills < 1:
            raise ConfigError(f"SimulatedLearner needs prompts >= 1 and skills >= 1, got {prompts} and {skills}.")
        if pool not in POOLS:
            raise ConfigError(f"SimulatedLearner(pool={pool!r}) must be one of {', '.join(POOLS)}.{nearest(str(pool), POOLS)}")
        if not -1.0 <= entropy_difficulty <= 1.0:
            raise ConfigError(f"SimulatedLearner(entropy_difficulty=...) must be in [-1, 1], got {entropy_difficulty}.")
        if not 0.0 <= embedding_share <= 1.0:
            raise ConfigError(f"SimulatedLearner(embedding_share=...) must be in [0, 1], got {embedding_share}.")
        rng = np.random.default_rng([seed, 0])
        share, mean, deviation = np.array(POOLS[pool]).T
        part = rng.choice(len(share), size=prompts, p=share)
        self.difficulty: Floats = mean[part] + deviation[part] * rng.standard_normal(prompts)
        self.discrimination: Floats = np.exp(0.2 * rng.standard_normal(prompts))
        self.skill: Ints = np.arange(prompts) % skills
        self.ability: Floats = np.zeros(skills)
        self.familiarity: Floats = np.zeros(prompts)
        noise = rng.standard_normal(prompts)
        hard = (self.difficulty - self.difficulty.mean()) / (self.difficulty.std() or 1.0)
        mixed = entropy_difficulty * hard + np.sqrt(1.0 - entropy_difficulty**2) * noise
        self.prompt_entropy: Floats = 1.5 * np.exp(0.15 * mixed)
        fixed = np.random.default_rng([seed, 2])
        self.fixed_signals = signals_of(self.difficulty, self.skill, fixed, embedding_share=embedding_share)
        """Signals that do not change as the learner learns, by name: see `edgewise.synthetic`."""
        self.skill_gain = skill_gain
        self.own_gain = own_gain
        self.transfer = transfer
        self.seed = seed
        self.responses = 0
        """Rollouts generated so far, kept or not."""

    @property
    def pool(self) -> PromptPool:
        """The prompts as a pool."""
        return PromptPool.from_ids(f"simulated-{row}" for row in range(len(self.difficulty)))

    @property
    def signals(self) -> Mapping[Signal, Callable[[Ints], Floats]]:
        """What a host would serve, all of it synthetic; and the exact pass rate for the oracle."""

        def serving(table: Floats) -> Callable[[Ints], Floats]:
            return lambda rows: table[rows]

        fixed = {name: serving(table) for name, table in self.fixed_signals.items()}
        return {**fixed, PROMPT_ENTROPY: lambda rows: self.prompt_entropy[rows], PASS_RATE: self.pass_rate}

    def pass_rate(self, rows: Array | slice = slice(None)) -> Floats:
        """Exact pass probability of the current policy at `rows` (n,), by default of the whole pool."""
        level = self.ability[self.skill[rows]] + self.familiarity[rows] - self.difficulty[rows]
        rate: Floats = 1.0 / (1.0 + np.exp(-self.discrimination[rows] * level))
        return rate

    def mixed_chance(self, group_size: int) -> Floats:
        """(N,) chance that a group of each prompt would be mixed now: 1 - p^G - (1-p)^G."""
        p = self.pass_rate()
        chance: Floats = 1.0 - p**group_size - (1.0 - p) ** group_size
        return chance

    def rollout(self, tickets: Sequence[Ticket]) -> list[Outcome]:
        """Answer tickets with rewards 0 and 1. A ticket's answer depends on the policy and its `seq`, not on its company.

        Response entropy is highest where the pass rate is near 1/2, and failing takes longer than passing; both are made up.
        """
        rates = self.pass_rate(np.array([ticket.row for ticket in tickets], dtype=np.int64))
        outcomes = []
        for ticket, rate in zip(tickets, rates.tolist(), strict=True):
            rng = np.random.default_rng([self.seed, 1, ticket.seq])
            passed = rng.random(ticket.rollouts) < rate
            outcomes.append(
                Outcome(
                    ticket=ticket,
                    rewards=passed.astype(np.float64).tolist(),
                    correct=passed.tolist(),
                    rollout_entropy=response_entropies(rate, ticket.rollouts, rng).tolist(),
                    response_tokens=int(60 * ticket.rollouts + 90 * np.count_nonzero(~passed)),
                )
            )
            self.responses += ticket.rollouts
        return outcomes

    def train(self, groups: Groups) -> None:
        """One optimizer step on a training batch."""
        if not len(groups):
            return
        finished = groups.valid.sum(axis=1)
        total = np.where(groups.valid, groups.rewards, 0.0).sum(axis=1)
        mean = total / np.maximum(finished, 1)
        trained = groups.valid & groups.trained
        spread = np.where(trained, groups.weights * (groups.rewards - mean[:, None]) ** 2, 0.0).sum(axis=1)
        size = groups.trained.sum(axis=1)  # a missing rollout is no sign of a group that was meant to be smaller
        variance = spread / np.maximum(trained.sum(axis=1), 1) * (size / max(1.0, size.mean()))
        np.add.at(self.familiarity, groups.rows, self.own_gain * variance)  # a streaming batch may hold a prompt twice
        taught = np.bincount(self.skill[groups.rows], weights=variance, minlength=len(self.ability))
        elsewhere = taught.sum() - taught
        self.ability += self.skill_gain * (taught + self.transfer * elsewhere)
