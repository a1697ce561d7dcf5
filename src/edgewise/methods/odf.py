"""Online difficulty filtering: keep finished groups whose pass rate lies in a band, and refill the batch.

Bae and others, "Online Difficulty Filtering for Reasoning Oriented Reinforcement Learning", arXiv 2504.03380 (EACL 2026):

    keep iff  T_low <= p̂ <= T_high,   p̂ = share of the rollouts that passed;  balanced: 0.2 and 0.8

At the usual group sizes the band is coarse; `band_of` says which counts survive it. With 0.2 … 0.8:

    G      2    3      4      5      6      7      8      10     16
    k      1    1-2    1-3    1-4    2-4    2-5    2-6    2-8    4-12

so up to G = 5 it is dynamic sampling's gate under another name, and from 6 on it also drops near misses.

Differs from the paper in: the batch is refilled in rounds by the smoothed deficit rule of the library, where the paper refills
asynchronously; p̂ is over the rollouts that came back, so a group with missing ones has a band of its own. The thresholds are
as reported by a summary of the paper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Entry
from edgewise.methods.rates import ROUNDING, pass_rates
from edgewise.types import Bools, Groups, Requests, Setting, Verdicts


def band_of(group_size: int, low: float, high: float) -> tuple[int, int]:
    """Fewest and most passes of `group_size` that survive low <= k/G <= high. The first is above the second if none does.

    >>> band_of(8, 0.2, 0.8), band_of(4, 0.2, 0.8), band_of(10, 0.3, 0.7)
    ((2, 6), (1, 3), (3, 7))
    """
    return math.ceil(low * group_size - ROUNDING), math.floor(high * group_size + ROUNDING)


@dataclass(kw_only=True, eq=False)
class OnlineDifficultyFiltering(DynamicSampling):
    """Dynamic sampling with a band of pass rates for a gate. Keeps no state of prompts."""

    name: ClassVar[str] = "odf"

    low: float = 0.2
    """T_low: least share of passes. [paper, balanced; as reported]"""
    high: float = 0.8
    """T_high: greatest share of passes. [paper, balanced; as reported]"""
    gate: Literal["reward", "correct", "off"] | bool = "correct"
    """Passes are counted by `correct` where it is known for the whole group, else by reward. "off" keeps every group."""
    oversample: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gate == "reward":
            raise ConfigError(
                "OnlineDifficultyFiltering(gate=...) must be 'correct' or 'off', got 'reward'. The band is one of pass rates."
            )
        checks.number(self, "high", low=0.0, high=1.0)
        checks.number(self, "low", low=0.0, high=self.high, advice="It must not exceed high.")

    def start(self, setting: Setting) -> None:
        super().start(setting)
        fewest, most = band_of(setting.group_size, self.low, self.high)
        if fewest > most:
            raise ConfigError(
                f"OnlineDifficultyFiltering(low={self.low}, high={self.high}) lets no group of {setting.group_size} rollouts "
                "survive: no k/G lies in the band. Widen it or take larger groups."
            )

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        rows = step.draw(target)
        return Requests.of(rows, self.group_size) if len(rows) else self.nothing_left(room, step)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        incomplete = groups.valid.sum(axis=1) < 2
        if self.gate == "off":
            return Verdicts.of(~incomplete, "incomplete")
        rates = pass_rates(groups, self.correct_at)
        too_hard, too_easy = rates < self.low - ROUNDING, rates > self.high + ROUNDING
        reasons = np.select([incomplete, too_hard, too_easy], ["incomplete", "too_hard", "too_easy"], default="")
        return Verdicts(~(incomplete | too_hard | too_easy), tuple(reasons.tolist()))

    def _constant(self, groups: Groups) -> Bools:
        """What the gate drops, so that the deficit rule tops up for the band."""
        if self.gate == "off":
            return np.zeros(len(groups), dtype=np.bool_)
        rates = pass_rates(groups, self.correct_at)
        return (rates < self.low - ROUNDING) | (rates > self.high + ROUNDING)


ENTRIES = {
    "odf": Entry(
        factory=OnlineDifficultyFiltering,
        summary="Keeps finished groups whose pass rate lies in a band, and tops up.",
        signal="group outcomes, within the step only",
        keeps="nothing",
        extra_rollouts="every group outside the band, and a small surplus of top-ups",
        cost="none",
        when="a simple gate that also drops groups with a single pass or a single failure; needs six rollouts or more",
        paper="Online difficulty filtering, arXiv 2504.03380",
    ),
}
