"""What a paper implements: one small class that never sees a trainer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, Protocol

import numpy as np

from edgewise.errors import EdgewiseError
from edgewise.types import Array, Bools, Floats, Groups, Ints, MethodState, Requests, Setting, Signal, Verdicts


class StepView(Protocol):
    """What a method may see and ask of the step under way. It cannot change the run through it."""

    @property
    def number(self) -> int:
        """Selector step, from 0."""

    @property
    def round(self) -> int:
        """Generation round inside the step, from 0; rounds after the first are top-ups."""

    @property
    def policy_version(self) -> int:
        """Version of the weights that will generate; grows with each optimizer step the host counts."""

    @property
    def epoch(self) -> float:
        """Passes over the pool so far: prompts offered by the stream, or requested where that is more, over its size."""

    @property
    def streaming(self) -> bool:
        """True for `Selector.take`: one proposal, no top-up, no oversampling."""

    @property
    def strict(self) -> bool:
        """True when problems raise instead of degrading."""

    def rng(self, purpose: str) -> np.random.Generator:
        """A fresh generator that is a function of (seed, step, round, purpose) and of nothing else."""

    def draw(self, n: int) -> Ints:
        """The next at most `n` rows of the shuffled stream of prompts, which runs on into the next epoch.

        Never a row in flight, never a row twice in one step; shorter than `n` (down to empty) once every such row was offered.
        """

    def eligible(self, rows: Ints) -> Bools:
        """(n,) True where a row could be requested now: not in flight and not offered in this step. Consumes nothing.

        For methods that rank the whole pool; a method that follows the stream uses `draw`.
        """

    def signal(self, name: Signal, rows: Ints) -> Floats:
        """Ask the host for `name` at `rows`. Returns (n,) floats as the host gave them, (n, d) for `MATRIX_SIGNALS`; NaN is
        possible. What does not change with the policy is worth keeping: ask once, at the first proposal.

        Raises SignalError if the host cannot serve the name or answers with another length.
        """

    def log(self, **values: float) -> None:
        """Add values to this step's metrics. Repeated names in one step are summed; see `gauge` for levels."""

    def gauge(self, **values: float) -> None:
        """Set this step's metrics to the given levels; the last call wins."""

    def problem(self, error: EdgewiseError) -> None:
        """Something is wrong that the method can live with: raises in strict mode, else warns once and counts."""


class Method(ABC):
    """One way of choosing prompts: `propose` before rollouts, `judge` and `observe` after.

    Life of one step: `propose(room, step)` is called while `room` > 0 groups are missing; each finished round goes through
    `judge` and then, where the verdict is final, `observe` (every group rolled out: kept, dropped or surplus; once, as a
    whole). Only `observe` writes what is kept per prompt, and only at the rows of the groups it is given; `propose` and
    `judge` may write shared state, never per-prompt state. The selector relies on this to roll a failed step back at a cost
    that follows the batch, not the pool.
    """

    name: ClassVar[str]
    """Lower-case name of the paper's method, written into saved states."""

    needs: frozenset[Signal] = frozenset()
    """Signals without which the method cannot run; a host that lacks one refuses it at start."""

    scope: Literal["group", "batch"] = "group"
    """Whether `judge` may be given groups one at a time ("group") or needs the whole round ("batch")."""

    max_staleness: int | None = None
    """Policy versions for which a group may wait to be continued; older ones are dropped as "stale". None: no limit."""

    arrival_order_matters: str = ""
    """Why the order in which a streaming host reports, and in how many calls, may change what the method does: for a `judge`
    that weighs the groups of one call against each other and continues, holds or retires some of them. Empty: it does not
    matter, which the conformance suite checks. `observe` is never concerned: the selector restores the order of tickets."""

    @abstractmethod
    def start(self, setting: Setting) -> None:
        """Allocate state for a pool. Raises ConfigError if the setting cannot work with the hyper-parameters."""

    @abstractmethod
    def propose(self, room: int, step: StepView) -> Requests:
        """Choose prompts for the next round while `room` >= 1 groups are missing. Empty means: cannot fill."""

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        """Decide which finished groups may be trained on. Default: every group with at least two valid rollouts."""
        del step
        return Verdicts.of(groups.valid.sum(axis=1) >= 2, "incomplete")

    def observe(self, groups: Groups, step: StepView) -> None:
        """Learn from finished groups that have at least one valid rollout. Default: learn nothing."""
        del groups, step

    @abstractmethod
    def parameters(self) -> dict[str, bool | int | float | str | None]:
        """Hyper-parameters as JSON scalars; compared with a saved state's at resume."""

    @abstractmethod
    def state(self) -> MethodState:
        """Named arrays from which `restore` rebuilds the method exactly. May hand out live arrays."""

    @abstractmethod
    def restore(self, state: MethodState) -> None:
        """Become exactly the method that gave `state`. `start` was called before with the same setting."""

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """What `restore` takes for this pool, made of a state of the pool before the data set was edited. A read.

        Called right after `start`, so that `state()` is that of a method that knows nothing yet. Group size, batch size and
        hyper-parameters may be others than those of `state`, too.

        rows: (N,) the row that each prompt of this pool had there; -1 for one that is new, or whose content is another.

        Default: per-prompt arrays follow their prompts, shared arrays stay (`followed`). Override it where a shared array holds
        pool rows (`renumbered`), or is of a length that depends on the pool.
        """
        return followed(state, self.state(), rows)


def followed(state: MethodState, fresh: MethodState, rows: Ints) -> MethodState:
    """A state of an edited pool: per-prompt arrays follow their prompts, shared arrays stay.

    fresh: of the same method, just started for the edited pool. New prompts get what it holds for them, and so do all where
    the saved array has another shape or type; shared arrays that only `fresh` has are taken from there. Per-prompt arrays that
    only `state` has are kept, with zeros for new prompts.  rows: (N,) as in `Method.adapt`.

    >>> old = MethodState(prompts={"visits": np.array([3, 5, 7])}, shared={"level": np.ones(1)})
    >>> followed(old, MethodState(prompts={"visits": np.zeros(3, dtype=int)}), np.array([2, 0, -1])).prompts["visits"].tolist()
    [7, 3, 0]
    """
    known = rows >= 0
    prompts: dict[str, Array] = {}
    for name, old in state.prompts.items():
        blank = fresh.prompts.get(name)
        array = np.zeros((len(rows), *old.shape[1:]), dtype=old.dtype) if blank is None else np.array(blank)
        if old.shape[1:] == array.shape[1:] and old.dtype == array.dtype:
            array[known] = old[rows[known]]
        prompts[name] = array
    unknown = {name: np.array(array) for name, array in fresh.prompts.items() if name not in prompts}
    return MethodState(prompts | unknown, {**fresh.shared, **state.shared})


def renumbered(saved: Ints, rows: Ints) -> Ints:
    """(n,) the rows that prompts at the `saved` rows (n,) have in an edited pool; -1 for those that are gone or were changed.

    rows: (N,) as in `Method.adapt`.

    >>> renumbered(np.array([0, 2, 1]), np.array([2, 0, -1])).tolist()
    [1, 0, -1]
    """
    here = np.flatnonzero(rows >= 0)
    now = np.full(1 + int(rows.max(initial=-1)), -1, dtype=np.int64)
    now[rows[here]] = here
    found = np.full(saved.shape, -1, dtype=np.int64)
    known = (saved >= 0) & (saved < len(now))
    found[known] = now[saved[known]]
    return found
