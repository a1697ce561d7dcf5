"""DEPO, the online part: roll out the prompts that explored most, and replay those that were rolled out least.

"Towards High Data Efficiency in Reinforcement Learning with Verifiable Reward", arXiv 2509.01321, ICLR 2026 [paper*]: the rule
as summaries and reviews report it; neither the paper's constants nor its code could be read. The offline part is the command
`edgewise subset`.

    E_i = |Â_i| · e_i · I_i       Â = (r - mean) / std of the group,  e_i = mean token entropy of response i
    I_i = 0 for an incorrect response with e_i > λ · (running level of e), else 1
    E   = mean over the group, then over the prompt's last s epochs
    of each candidate batch: the share ρ rolled out least often, then the share α_e of highest E     α_e = α_0 - d · epoch

A step takes its candidates from the stream: M = ceil(B / (α_e + ρ)) of them, so that B groups result; M shrinks to B and
grows with the epochs as α_e falls. An epoch is a pass of the stream over the pool, as candidates. Prompts without an E are
explored first, and unvisited ones are replayed first: while N is a whole number of candidate batches, with s = B/M, each pass
leaves at most the share 1 - s of the unvisited, and once there are at most B of them, the next pass visits them all.

Differs from the paper in: every constant is a placeholder but λ and the form of α_e; in the first epoch too only the share
α_0 + ρ is rolled out, since E says nothing yet; "least explored" is ranked within the candidate batch, not the pool;
the replay share is taken first, so that the two never overlap; the running level moves once a step (a policy version of a
stream), by all responses of that step, and masks nothing in the first step, before there is one; the last s epochs are those
in which the prompt was rolled out; standard deviations are over the group (divisor G); a zero-variance group has E exactly 0; a
response without a known entropy is left out of the mean over the group; the advantages themselves are the trainer's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.clock import time_of
from edgewise.errors import SignalError, StateMismatchError
from edgewise.kinds import zero_variance
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.methods.entry import Entry
from edgewise.prediction import passed
from edgewise.types import ROLLOUT_ENTROPY, Array, Bools, Floats, Groups, Ints, MethodState, Requests, Setting

_ROUNDING = 1e-9


@dataclass(kw_only=True, eq=False)
class Depo(DynamicSampling):
    """Explorability, replay of the least explored, and a share that falls with the epochs."""

    name: ClassVar[str] = "depo"

    explore_share: float = 0.5
    """α_0: share of the candidates that is kept for its E in epoch 0. [placeholder, not the paper's]"""
    explore_fall: float = 0.05
    """d: by how much that share falls an epoch. [placeholder, not the paper's]"""
    explore_floor: float = 0.2
    """Lowest α_e. [placeholder, not the paper's]"""
    replay_share: float = 0.1
    """ρ: share of the candidates that is kept because it was rolled out least often. [placeholder, not the paper's]"""
    window: int = 3
    """s: epochs over which E is averaged. [placeholder, not the paper's]"""
    entropy_limit: float = 1.5
    """λ: incorrect responses of more than this times the running level of entropy do not count. [paper*]"""
    level_memory: float = 0.9
    """Decay of the running level, a step. [choice]"""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    _explored: Floats = field(init=False, repr=False)
    _epoch: Ints = field(init=False, repr=False)
    _in_epoch: Ints = field(init=False, repr=False)
    _visits: Ints = field(init=False, repr=False)
    _now: int = field(default=0, init=False, repr=False)  # epoch of the last proposal: its groups belong to it
    _level: float = field(default=math.nan, init=False, repr=False)
    _pending: tuple[int, float, int] = field(default=(-1, 0.0, 0), init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "explore_share", low=0.0, high=1.0)
        checks.number(self, "explore_fall", low=0.0, high=1.0)
        checks.number(self, "explore_floor", low=0.0, high=self.explore_share, advice="It must not exceed explore_share.")
        checks.number(
            self, "replay_share", low=0.0, high=1.0, above=True, advice="Without replay prompts can be lost for ever."
        )
        checks.whole(self, "window", low=1)
        checks.number(self, "entropy_limit", low=0.0, above=True)
        checks.number(self, "level_memory", low=0.0, high=1.0)
        self.needs = frozenset({ROLLOUT_ENTROPY})

    def start(self, setting: Setting) -> None:
        super().start(setting)
        n = setting.pool_size
        self._explored = np.full((n, self.window), np.nan)  # E of the last s epochs in which the prompt had one, newest first
        self._epoch = np.full(n, -1, dtype=np.int64)  # the epoch of the newest
        self._in_epoch = np.zeros(n, dtype=np.int64)  # groups that the newest is the mean of
        self._visits = np.zeros(n, dtype=np.int64)
        self._now, self._level, self._pending = 0, math.nan, (-1, 0.0, 0)

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def explore_share_at(self, epoch: int) -> float:
        """α_e of an epoch: α_0 - d·e, not below the floor."""
        return max(self.explore_floor, self.explore_share - self.explore_fall * epoch)

    def candidates_for(self, target: int, epoch: int) -> int:
        """M: candidates of which `target` are kept."""
        share = min(1.0, self.explore_share_at(epoch) + self.replay_share)
        return max(target, math.ceil(target / share - _ROUNDING))

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        self._now = math.floor(step.epoch)
        wanted = self.candidates_for(target, self._now)
        rows = step.draw(wanted)
        if len(rows) == 0:
            return self.nothing_left(room, step)
        explored = self._mean(rows)
        chosen, replayed = self._chosen(rows, explored, target, wanted, step)
        known = np.isfinite(explored)
        step.log(replayed=replayed, unexplored=int((~known[chosen]).sum()))
        step.gauge(explore_share=self.explore_share_at(self._now))
        if known.any():
            step.gauge(explorability_median=float(np.median(explored[known])))
        return Requests.of(rows[chosen], self.group_size)

    def _chosen(self, rows: Ints, explored: Floats, target: int, wanted: int, step: StepView) -> tuple[Ints, int]:
        """At most `target` positions of the candidates, in stream order, and how many of them are replay. Ties are drawn."""
        keys = step.rng("depo").random((2, len(rows)))
        least = min(target, len(rows), math.ceil(self.replay_share * wanted - _ROUNDING))
        by_visits = np.lexsort((keys[0], self._visits[rows]))
        replay, others = by_visits[:least], by_visits[least:]
        by_explored = others[np.lexsort((keys[1, others], self._visits[rows[others]] > 0, -explored[others]))]
        return np.sort(np.concatenate([replay, by_explored[: target - least]])), least

    def _mean(self, rows: Ints) -> Floats:
        """(n,) E over the last s epochs of each prompt; +inf where there is none yet."""
        ring = self._explored[rows]
        known = np.isfinite(ring)
        count = known.sum(axis=1)
        total = np.where(known, ring, 0.0).sum(axis=1)
        mean: Floats = np.divide(total, count, out=np.full(len(rows), np.inf), where=count > 0)
        return mean

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        now = time_of(step, self._pending[0])
        if now != self._pending[0]:  # the responses of a finished step move the level, however they were reported
            self._fold()
            self._pending = (now, 0.0, 0)
        self._visits[groups.rows] += 1
        value = self.values_of(groups)
        known = groups.valid & _usable(groups.entropies)
        number, total, count = self._pending
        self._pending = (number, total + float(groups.entropies[known].sum()), count + int(known.sum()))
        missing = np.isnan(value)
        step.log(explorability_missing=int(missing.sum()))
        if len(groups) and not known.any() and missing.any():
            step.problem(
                SignalError(
                    f"{type(self).__name__}: not one of {int(groups.valid.sum())} responses came with its own mean token "
                    "entropy, so their explorability is unknown. Report Outcome(rollout_entropy=[...]), one number a response."
                )
            )
        if math.isfinite(self._level):
            step.gauge(entropy_level=self._level)
        self._record(groups.rows[~missing], value[~missing], self._now)

    def values_of(self, groups: Groups) -> Floats:
        """(n,) E of each group at the current level; 0 for zero variance, NaN for fewer than two rewards or no entropy."""
        right = passed(groups, self.correct_at)
        value = explorability(groups.rewards, groups.valid, groups.entropies, right, limit=self.entropy_limit * self._level)
        value = np.where(zero_variance(groups.rewards, groups.valid, self.tolerance), 0.0, value)
        return np.where(groups.valid.sum(axis=1) < 2, np.nan, value)

    def _record(self, rows: Ints, value: Floats, epoch: int) -> None:
        """Take a group's E into its prompt's mean of this epoch; an older epoch moves down the ring."""
        new = self._epoch[rows] != epoch
        self._explored[rows[new], 1:] = self._explored[rows[new], :-1]
        self._explored[rows[new], 0] = 0.0
        self._in_epoch[rows[new]] = 0
        self._epoch[rows] = epoch
        self._in_epoch[rows] += 1
        self._explored[rows, 0] += (value - self._explored[rows, 0]) / self._in_epoch[rows]

    def _fold(self) -> None:
        _, total, count = self._pending
        if count:
            mean = total / count
            first = math.isnan(self._level)
            self._level = mean if first else self.level_memory * self._level + (1.0 - self.level_memory) * mean

    # -- state ---------------------------------------------------------------------------------------------------------

    def _arrays(self) -> dict[str, Array]:
        return {
            "explorability": self._explored, "epoch": self._epoch, "in_epoch": self._in_epoch, "visits": self._visits,
        }  # fmt: skip

    def state(self) -> MethodState:
        number, total, count = self._pending
        shared = {"level": np.array([self._level, total]), "counts": np.array([number, count, self._now], dtype=np.int64)}
        return MethodState(prompts=self._arrays(), shared={**super().state().shared, **shared})

    def restore(self, state: MethodState) -> None:
        owner = type(self).__name__
        level, counts, _ = (shared_array(state, name, owner) for name in ("level", "counts", "rounds"))
        for name, array in self._arrays().items():
            got = state.prompts[name].shape if name in state.prompts else "nothing"
            if got != array.shape:
                raise StateMismatchError(f"{owner}.restore: {name!r} must have shape {array.shape}, got {got}. "
                                         "Use a state of this pool and window.")  # fmt: skip
        super().restore(state)
        for name, array in self._arrays().items():
            array[...] = state.prompts[name]
        self._level, self._now = float(level[0]), int(counts[2])
        self._pending = (int(counts[0]), float(level[1]), int(counts[1]))


def explorability(rewards: Floats, valid: Bools, entropies: Floats, passed: Bools, *, limit: float = math.inf) -> Floats:
    """Mean over the group of |Â|·e·I. [DEPO §online, as reported]

    rewards, entropies: (n, G), nats; NaN where missing.  valid, passed: (n, G).
    limit: λ times the running level; incorrect responses above it count 0. NaN: there is no level yet, and all count.
    Returns (n,) >= 0, over the valid responses whose entropy is known and >= 0; NaN where there is none, or no variance.

    >>> r = np.array([[1.0, 0, 0, 1, 0, 0, 0, 0]])
    >>> e = np.array([[0.4, 0.5, 0.6, 0.3, 0.2, 2.0, 0.5, 0.7]])
    >>> explorability(r, r >= 0, e, r > 0.5, limit=1.5 * 0.6).round(10).tolist()
    [0.3319764048]
    """
    count = np.maximum(valid.sum(axis=1, keepdims=True), 1)
    centred = np.where(valid, rewards, 0.0)
    centred = np.where(valid, centred - centred.sum(axis=1, keepdims=True) / count, 0.0)
    spread = np.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
    advantage = np.divide(centred, spread, out=np.full(rewards.shape, np.nan), where=spread > 0.0)
    known = valid & _usable(entropies)
    masked = ~passed & (entropies > limit)
    parts = np.where(known & ~masked, np.abs(advantage) * np.where(known, entropies, 0.0), 0.0)
    scored = known.sum(axis=1)
    total = np.where((spread[:, 0] > 0.0) & (scored > 0), parts.sum(axis=1), np.nan)
    mean: Floats = np.divide(total, scored, out=np.full(len(rewards), np.nan), where=scored > 0)
    return mean


def _usable(entropies: Floats) -> Bools:
    """Where an entropy is known: finite and not negative."""
    usable: Bools = np.isfinite(entropies) & (entropies >= 0.0)
    return usable


ENTRIES = {
    "depo": Entry(
        factory=Depo,
        summary="Of each batch of candidates, those that explored most when last rolled out, and those rolled out least.",
        signal="rewards and entropy of each response",
        keeps="48 bytes: explorability of three epochs, its epoch and count, visits",
        extra_rollouts="none; zero-variance groups are trained on",
        cost="arithmetic over the candidates",
        when="several passes over a small pool; constants other than λ are placeholders, not the paper's",
        paper="DEPO, arXiv 2509.01321, online part, as reported of it",
    ),
}
