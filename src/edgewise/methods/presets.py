"""HIVE's relatives: the engine of `hive.py` with other defaults. Nothing here computes.

A preset is a class so that its name, its defaults and its error messages are its own. Every switch of `Hive` stays a keyword:
`Hive(stage2="off")` and `Greso(topup="smoothed", shuffle=True)` choose alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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
    """Plain GRPO, arXiv 2402.03300: the next B prompts of the shuffled stream, every complete group trained."""

    name: ClassVar[str] = "uniform"

    stage1: bool = False
    stage2: Literal["band", "median", "off"] = "off"
    oversample: float = 1.0
    gate: Literal["reward", "correct", "off"] | bool = "off"
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1
    shuffle: bool = False
