"""HIVE's relatives: the engine of `hive.py` with other defaults. Nothing here computes.

A preset is a class so that its name, its defaults and its error messages are its own. Every switch of `Hive` stays a keyword:
`Hive(stage2="off")` and `Greso(topup="smoothed", shuffle=True)` choose alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from edgewise.methods.entry import Entry
from edgewise.methods.hive import Hive


@dataclass(kw_only=True, eq=False)
class HiveEq(Hive):
    """HIVE as its main text words it, arXiv 2603.25184 v2 §3: for reading the paper, not for runs.

    2·B candidates, those from the median entropy up, cut to the B highest; no gate, no top-up, no floor, one α.
    Differs from the paper in: a share that equals its target moves nothing, where Alg. 1 moves up; kinds as in `Hive`.
    """

    name: ClassVar[str] = "hive-eq"

    p_floor: float = 0.0
    target_easy: float = 0.25
    target_hard: float = 0.25
    arm_at: float = 0.0
    stage2: Literal["band", "median", "off"] = "median"
    oversample: float = 2.0
    gate: Literal["reward", "correct", "off"] | bool = "off"
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1


@dataclass(kw_only=True, eq=False)
class Greso(Hive):
    """GRESO, arXiv 2506.02177, as its code runs: HIVE without stage 2, ρ̂ of the last round, stream order.

    Differs from the paper in: kinds by correctness instead of thresholds on the mean reward, which depend on the group size; a
    share that equals its target moves nothing; ρ̂ = 1 does not divide by zero; the rounds after a small deficit are not cut off.
    """

    name: ClassVar[str] = "greso"

    stage2: Literal["band", "median", "off"] = "off"
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "last_round"
    shuffle: bool = False


@dataclass(kw_only=True, eq=False)
class Dapo(Hive):
    """Dynamic sampling of DAPO, arXiv 2503.14476, as verl's recipe runs it: whole batches until enough groups are mixed.

    `oversample` is the recipe's gen_batch_size / train_batch_size (3 in the 32B script).
    Differs from the paper in: max - min instead of a standard deviation, which is not 0 for constant groups of many sizes; a
    step that ends short trains on what it has (`on_short="error"` is the recipe's behaviour, and throws the step away).
    """

    name: ClassVar[str] = "dapo"

    stage1: bool = False
    stage2: Literal["band", "median", "off"] = "off"
    oversample: float = 1.0
    gate: Literal["reward", "correct", "off"] | bool = "correct"
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "fixed"
    max_rounds: int = 10
    shuffle: bool = False


@dataclass(kw_only=True, eq=False)
class Uniform(Hive):
    """Plain GRPO, arXiv 2402.03300: the next B prompts of the shuffled stream, every complete group trained.

    Differs from the paper in: groups with fewer than two scored rollouts are dropped, and made up for only if `max_rounds` > 1.
    """

    name: ClassVar[str] = "uniform"

    stage1: bool = False
    stage2: Literal["band", "median", "off"] = "off"
    oversample: float = 1.0
    gate: Literal["reward", "correct", "off"] | bool = "off"
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1
    shuffle: bool = False


ENTRIES = {
    "hive-eq": Entry(
        factory=HiveEq,
        summary="HIVE as its main text words it: candidates above the median entropy, no gate, no top-up.",
        signal="group outcomes; entropy of the prompt under the current policy",
        keeps="19 bytes, as hive",
        extra_rollouts="none",
        cost="one forward over 2 prompts per group trained, no generation",
        when="to read the paper against; not for runs: solved prompts can be lost, and zero-variance groups are trained on",
        paper="HIVE, arXiv 2603.25184 v2, section 3",
    ),
    "greso": Entry(
        factory=Greso,
        summary="Skips prompts that keep passing or failing whole, gates, tops up.",
        signal="group outcomes",
        keeps="19 bytes, as hive",
        extra_rollouts="1.5 groups asked for per group trained, and small top-ups",
        cost="2 ms of arithmetic at 256 groups, whatever the size of the pool",
        when="hosts without signals, from the second pass over the data on; before that it is dynamic sampling",
        paper="GRESO, arXiv 2506.02177, as its code runs",
    ),
    "dapo": Entry(
        factory=Dapo,
        summary="Dynamic sampling: rolls out whole batches in stream order until enough groups are mixed.",
        signal="group outcomes, within the step only",
        keeps="19 bytes, for reports only",
        extra_rollouts="every zero-variance group, and up to a whole batch of surplus",
        cost="none",
        when="the baseline to beat; small data sets that are passed over once",
        paper="DAPO, arXiv 2503.14476; verl's recipe",
    ),
    "uniform": Entry(
        factory=Uniform,
        summary="Plain GRPO: the next prompts of the shuffled stream, all groups trained.",
        signal="none",
        keeps="19 bytes, for reports only",
        extra_rollouts="none",
        cost="none",
        when="the control of every comparison",
        paper="GRPO, arXiv 2402.03300",
    ),
}
