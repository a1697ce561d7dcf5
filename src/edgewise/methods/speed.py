"""SPEED-RL: screen prompts with a few rollouts, give the rest only to those that are mixed.

Zhang, Arora, Mei and Zanette, "SPEED-RL: Faster Training of Reasoning Models via Online Curriculum Learning", arXiv 2506.09016,
and its code (Zanette-Labs/speed-rl: verl/trainer/ppo/data_controller.py; read in a fork of it).

    screen with N_init;   continue with N_cont = group_size - N_init iff 0 < p̂ < 1;   train on all N_init + N_cont

The second phase of accepted prompts rides in the generation call of the next screening; accepted prompts that the batch has no
place for carry over. With n = N_init a trained group costs on average n / (1 - p^n - (1-p)^n) + N_cont rollouts: with 4 + 20,
24.57 at p = 1/2 and 31.63 at p = 1/10, where dynamic sampling pays 24 and 26.08. So screening pays by pools in which p is
near 0 or 1 for good, not by its hit rate.

What it trains on is biased: the first N_init rollouts of a trained group are mixed by selection, which favours p near one half
and draws the group's mean towards it. Pilots that waited are a few policy versions older than the rest, uncorrected.

Differs from the paper in: a group's phase is told by the rollouts asked for, so N_init = N_cont works, and N_cont need not be a
multiple of N_init, which the code asserts for its tensor layout; accepted prompts wait in order of age; a step without room for
new groups screens none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from edgewise.methods.entry import Entry
from edgewise.methods.two_phase import TwoPhase
from edgewise.types import Bools, Groups


@dataclass(kw_only=True, eq=False)
class Speed(TwoPhase):
    """Two phases; a pilot passes if its outcomes are mixed."""

    name: ClassVar[str] = "speed"

    pilot: int | None = None
    """N_init. None: 4 [code: 4 + 20], but at most half of a small group and at least 2 [choice]."""
    oversample: float = 4.0
    """Prompts screened per round and group trained. [code: 64 / 16]"""
    max_rounds: int = 50
    """Generation rounds a step may take. [code]"""

    def default_pilot(self, group_size: int) -> int:
        return max(2, min(4, group_size // 2))

    def screen(self, groups: Groups) -> tuple[Bools, list[str]]:
        constant = self._constant(groups)
        return ~constant, ["zero_variance" if dropped else "" for dropped in constant]


ENTRIES = {
    "speed": Entry(
        factory=Speed,
        summary="Screens prompts with a few rollouts and completes the groups of those that are mixed.",
        signal="outcomes of a pilot",
        keeps="nothing; groups that wait for their second phase",
        extra_rollouts="the pilots of prompts that are all right or all wrong",
        cost="none",
        when="large groups, many prompts without variance; the trainer must accept rollouts of mixed age",
        paper="SPEED-RL, arXiv 2506.09016, as its code runs",
    ),
}
