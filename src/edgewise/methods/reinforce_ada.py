"""Reinforce-Ada: sample each prompt in rounds until it has shown both outcomes often enough, then train on a balanced part.

Xiong and others, "Reinforce-Ada: An Adaptive Sampling Framework for Reinforce-Style LLM Training", arXiv 2510.04996, and its
code, read in its second version (RLHFlow/Reinforce-Ada-Tinker: tinker_cookbook/rl/adaptive_sampling.py).

    round     8 more rollouts for every prompt that has not exited, at most 4 rounds
    exit      "balanced": floor(n/2) positives and ceil(n/2) negatives      "positive": one positive
    train     n = group_size rollouts of it, half positive as far as there are; "positive": all positives first
    baseline  the mean of *all* rollouts of the prompt: the host's advantage is over the whole group

The method does without the division by the standard deviation: that is the trainer's option (`scale_rewards` in TRL), not ours.
A prompt that never exits is trained on all the same, with what there is, as in the code; where all its outcomes agree its
advantages are 0. Sampling costs 2.8 and 1.59 times a step of GRPO (1.5B, 7B, balanced; reported): it can cost time.

Differs from the paper in: which of the positives and negatives are trained on is drawn at random, where the code takes the
first ones; a prompt without a positive that runs out of rounds under "positive" trains n negatives, where the code's rounding
leaves n - 1; a positive is a rollout with `correct` true where the verifier judged all of the group, else a reward above 0.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.errors import ConfigError
from edgewise.kinds import verdict_known
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Entry
from edgewise.types import Bools, Floats, Groups, Ints, Requests, Setting, Verdicts


@dataclass(kw_only=True, eq=False)
class ReinforceAda(DynamicSampling):
    """Adaptive numbers of rollouts by sequential sampling. Keeps no state of prompts."""

    name: ClassVar[str] = "reinforce-ada"

    exit: Literal["balanced", "positive"] = "balanced"
    """When a prompt has enough rollouts. [paper]"""
    per_round: int = 8
    """Rollouts a round, at least 2. [code: samples_per_round]"""
    rounds: int = 4
    """Rounds a prompt may take; per_round · rounds must hold a training group. [code: max_rounds]"""
    positive_above: float = 0.7
    """A reward above this is a positive, where the host reports no `correct`. [code: positive_threshold]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    """Also drop finished groups of zero variance. Off, as in the code."""
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1
    """Rounds in which new prompts are asked for; continuing them is not counted."""

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of(self, "exit", ("balanced", "positive"))
        checks.whole(self, "per_round", low=2)
        checks.whole(self, "rounds", low=1)
        checks.number(self, "positive_above", low=-np.inf)

    def start(self, setting: Setting) -> None:
        super().start(setting)
        if self.per_round * self.rounds < setting.group_size:
            raise ConfigError(
                f"ReinforceAda(per_round={self.per_round}, rounds={self.rounds}) samples at most "
                f"{self.per_round * self.rounds} rollouts a prompt, fewer than group_size = {setting.group_size}, which are "
                "trained. Raise one of them."
            )

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.per_round)
        rows = step.draw(target)
        return Requests.of(rows, self.per_round) if len(rows) else self.nothing_left(room, step)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        positive = self._positive(groups)
        negative = groups.valid & ~positive
        n_positive, n_negative = positive.sum(axis=1), negative.sum(axis=1)
        if self.exit == "balanced":
            exits = (n_positive >= self.group_size // 2) & (n_negative >= (self.group_size + 1) // 2)
        else:
            exits = n_positive >= 1
        left = np.maximum(self.per_round * self.rounds - groups.asked, 0)
        more = np.where(exits, 0, np.minimum(self.per_round, left))
        final = np.flatnonzero(more == 0)
        keep = np.zeros(len(groups), dtype=np.bool_)
        reasons = np.full(len(groups), "", dtype=object)
        trained = np.zeros(groups.rewards.shape, dtype=np.bool_)
        if len(final):
            verdicts = super().judge(groups.select(final), step)
            keep[final], reasons[final] = verdicts.keep, verdicts.reasons
            n_train = np.minimum(self.group_size, n_positive + n_negative)
            wanted = n_train // 2 if self.exit == "balanced" else n_train
            of_positive = np.minimum(wanted, n_positive)
            of_negative = np.minimum(n_train - of_positive, n_negative)
            of_positive = n_train - of_negative
            keys = np.zeros(groups.rewards.shape)
            for i in final.tolist():  # a key of the prompt's own, so that it does not matter with whom it is reported
                keys[i] = step.rng(f"trained {groups.rows[i]}").random(groups.rewards.shape[1])
            trained = _first(positive, keys, of_positive) | _first(negative, keys, of_negative)
            step.log(exited=int(exits[final].sum()), never_exited=int((~exits[final]).sum()))
        return Verdicts(keep, tuple(reasons.tolist()), more=more.astype(np.int64), trained=trained)

    def _positive(self, groups: Groups) -> Bools:
        """(n, G) rollouts that count as positive; False where missing."""
        by_verdict = verdict_known(groups.valid, groups.correct)[:, None]
        positive = np.where(by_verdict, groups.correct > 0.5, groups.rewards > self.positive_above)
        return np.logical_and(positive, groups.valid)


def _first(of: Bools, keys: Floats, count: Ints) -> Bools:
    """(n, G) True at the `count` (n,) entries of `of` with the smallest keys in each row."""
    order = np.argsort(np.where(of, keys, np.inf), axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    return np.logical_and(of, rank < count[:, None])


ENTRIES = {
    "reinforce-ada": Entry(
        factory=ReinforceAda,
        summary="Samples each prompt until it has shown both outcomes, trains on a balanced part of its rollouts.",
        signal="group outcomes, within the step only",
        keeps="nothing",
        extra_rollouts="up to 4 rounds of 8 per prompt, of which group_size are trained",
        cost="none; several generation calls a step",
        when="small groups, many hard prompts, rollouts to spare; the trainer must take advantages over more than it trains",
        paper="Reinforce-Ada, arXiv 2510.04996, as its code runs",
    ),
}
