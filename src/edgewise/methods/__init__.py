"""The table of names: every method that `edgewise methods` lists, and `make`, which builds one. Light to import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgewise.errors import ConfigError, nearest
from edgewise.method import Method
from edgewise.methods.hive import Hive
from edgewise.methods.oracle import Oracle
from edgewise.methods.presets import Dapo, Greso, HiveEq, Uniform
from edgewise.types import PASS_RATE, Signal

Scalar = bool | int | float | str | None
"""A hyper-parameter's value."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method: how to build it, and what a reader needs to choose it. Words are for people; `needs` is for programs."""

    factory: Callable[..., Method]
    """Builds it; takes hyper-parameters by keyword only."""
    summary: str
    """One line: which prompts it asks for."""
    signal: str
    """What it learns from."""
    keeps: str
    """What it keeps per prompt."""
    extra_rollouts: str
    """Rollouts that are not trained on."""
    cost: str
    """Work per step apart from rollouts."""
    when: str
    """When to choose it."""
    paper: str
    """Where it comes from."""

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that the host must serve, at the default hyper-parameters."""
        return self.factory().needs

    @property
    def parameters(self) -> dict[str, Scalar]:
        """Every hyper-parameter with its default."""
        return self.factory().parameters()


METHODS: dict[str, Entry] = {
    "hive": Entry(
        factory=Hive,
        summary="Skips prompts that keep passing or failing whole, keeps the upper-middle prompt entropies, gates, tops up.",
        signal="group outcomes; entropy of the prompt under the current policy",
        keeps="19 bytes: visits, run length and kind, last response entropy, policy version",
        extra_rollouts="1.5 groups asked for per group trained, and small top-ups",
        cost="one forward over about 3 prompts per group trained, no generation",
        when="the default where the host can compute prompt entropies and rollouts dominate the step",
        paper="HIVE, arXiv 2603.25184 v2, as deployed (appendix B.3)",
    ),
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
    "oracle": Entry(
        factory=Oracle,
        summary="Chooses in proportion to the exact probability of a mixed group. The ceiling, for the laboratory only.",
        signal="the exact pass probability, which no real run has",
        keeps="nothing",
        extra_rollouts="zero-variance groups that chance produces",
        cost="one exact pass rate for every prompt of the pool",
        when="to see how much any selection could save on a task",
        paper="common yardstick",
    ),
}
"""Every method by the name users write."""


def make(method: str | Method, **parameters: Scalar) -> Method:
    """The method of that name with these hyper-parameters; a `Method` object is handed back as it is.

    Raises ConfigError for an unknown name or hyper-parameter (with the nearest known one) and for a value out of range.

    >>> make("greso", p_floor=0.05).parameters()["stage2"]
    'off'
    """
    if isinstance(method, Method):
        if parameters:
            raise ConfigError(
                f"make({type(method).__name__}(...)) takes no parameters for a method that is built already, got "
                f"{', '.join(sorted(parameters))}. Set them where it is built."
            )
        return method
    if not isinstance(method, str):
        raise ConfigError(f"make(method=...) must be a name or a Method object, got {method!r}. Names: {', '.join(METHODS)}.")
    if method not in METHODS:
        raise ConfigError(
            f"make(method=...) must be a known name, got {method!r}.{nearest(method, METHODS)} Names: {', '.join(METHODS)}."
        )
    entry = METHODS[method]
    known = inspect.signature(entry.factory).parameters
    for name in parameters:
        if name not in known:
            raise ConfigError(
                f"{method}({name}=...) is no hyper-parameter.{nearest(name, known)} It has: {', '.join(sorted(known))}."
            )
    return entry.factory(**parameters)


def methods_without(signals: Iterable[Signal]) -> list[str]:
    """Names of the methods that need none of these signals, nor one that only a laboratory can serve.

    >>> methods_without(["prompt_entropy"])
    ['greso', 'dapo', 'uniform']
    """
    refused = {*signals, PASS_RATE}
    return [name for name, entry in METHODS.items() if not entry.needs & refused]
