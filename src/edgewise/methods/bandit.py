"""Bandits over categories: an arm is a category of prompts, its value how much its rollouts teach. The engine of SEC and DUMP.

    propose   what was heard since the last proposal is credited to arms;
              arms are drawn by exp(value / τ), then the next prompts of each arm
    observe   |advantage| of every rollout is heard

The category of a prompt is fixed: it is asked for once, for the whole pool, and not saved. What is heard before it is known
(after a resume, when reports come before the first request) waits in the saved state. When the data set was edited, categories
that are still there keep what was learned of them, and every category begins its shuffled order again.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs.arms import STRAY, Arms, absolute_advantages, boltzmann
from edgewise.errors import SignalError, StateMismatchError
from edgewise.method import StepView, renumbered
from edgewise.methods import checks
from edgewise.methods.dynamic import DynamicSampling, shared_array
from edgewise.types import CATEGORY, Array, Floats, Groups, Ints, MethodState, Requests, Setting

_MOST_ARMS = 4096  # beyond, arms have too few visits to learn from, and the state is no longer small


@dataclass(kw_only=True, eq=False)
class CategoryBandit(DynamicSampling):
    """Base of the bandits over categories. Children say what an arm is worth."""

    temperature: float = 1.0
    """τ of the Boltzmann draw over arms: small prefers the best arm, large draws arms alike."""

    gate: Literal["reward", "correct", "off"] | bool = "off"
    oversample: float = 1.0
    topup: Literal["smoothed", "last_round", "fixed", "missing"] = "missing"
    max_rounds: int = 1

    _arms: Arms | None = field(default=None, init=False, repr=False)
    _labels: Ints = field(init=False, repr=False)
    _cursors: Ints = field(init=False, repr=False)
    _order_seed: int = field(default=-1, init=False, repr=False)
    _heard_rows: Ints = field(init=False, repr=False)
    _heard: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.number(self, "temperature", low=0.0, above=True)
        self.needs = frozenset({CATEGORY})

    @abstractmethod
    def begin(self, count: int) -> None:
        """Allocate for `count` arms of which nothing is known."""

    @abstractmethod
    def credit(self, arms: Ints, advantages: Floats, policy_version: int) -> None:
        """Learn from rollouts. arms, advantages: (m,) the arm of each rollout and its |A|. Called at every proposal."""

    @abstractmethod
    def values(self) -> Floats:
        """(K,) what each arm is worth now, finite."""

    def start(self, setting: Setting) -> None:
        super().start(setting)
        self._arms, self._order_seed = None, -1
        self._labels, self._cursors = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        self._forget()
        self.begin(0)

    def _forget(self) -> None:
        self._heard_rows, self._heard = np.empty(0, dtype=np.int64), np.empty(0)

    # -- before rollouts -----------------------------------------------------------------------------------------------

    def propose(self, room: int, step: StepView) -> Requests:
        target = self.target(room, step)
        if target == 0:
            return Requests.of([], self.group_size)
        arms = self._known_arms(step)
        self.credit(arms.arm[self._heard_rows], self._heard, step.policy_version)
        self._forget()
        values = self.values()
        chances = boltzmann(values, self.temperature)
        top = int(np.argmax(chances))
        step.gauge(arms=len(arms), arm_top=int(arms.labels[top]), arm_top_chance=float(chances[top]))
        rows = arms.draw(values, self.temperature, target, self._cursors, self._order_seed, step)
        if len(rows) == 0:
            return self.nothing_left(room, step)
        return Requests.of(rows, self.group_size)

    def _known_arms(self, step: StepView) -> Arms:
        """The arms; the first call of a process asks the host for the categories."""
        if self._arms is None:
            self._arms = Arms(self._categories(step))
        edited = bool((self._cursors < 0).any())
        if edited:
            self._carry_over(self._arms.labels)
        elif not np.array_equal(self._labels, self._arms.labels):
            if len(self._labels):
                step.problem(
                    StateMismatchError(
                        f"{type(self).__name__}: the saved state knows {len(self._labels)} categories and the host serves "
                        f"{len(self._arms)} others. What was learned of categories starts anew."
                    )
                )
            self._labels, self._cursors = self._arms.labels, np.zeros(len(self._arms), dtype=np.int64)
            self.begin(len(self._arms))
        if self._order_seed < 0:
            self._order_seed = int(step.rng("order of arms").integers(2**62))
        return self._arms

    def _carry_over(self, labels: Ints) -> None:
        """After an edit of the data set: arms whose label is still there go on, the others begin. labels: (K,) rising."""
        before, learned = self._labels, {name: np.array(array) for name, array in self.learned().items()}
        _, was, now = np.intersect1d(before, labels, assume_unique=True, return_indices=True)
        self._labels, self._cursors = labels, np.zeros(len(labels), dtype=np.int64)
        self.begin(len(labels))
        merged = {name: np.array(array) for name, array in self.learned().items()}
        for name, array in learned.items():
            if name in self.per_arm:
                merged[name][now] = array[was]
            else:
                merged[name] = array
        self.relearn(merged)

    def _categories(self, step: StepView) -> Ints:
        """(N,) category of every prompt, STRAY where the host gave none. Raises SignalError if there are too many."""
        served = step.signal(CATEGORY, np.arange(self.pool_size, dtype=np.int64))
        good = np.isfinite(served) & (served >= 0.0) & (served == np.floor(served)) & (served < 2.0**53)
        if not good.all():
            first = int(np.flatnonzero(~good)[0])
            step.problem(
                SignalError(
                    f"signal({CATEGORY!r}) of prompt row {first} must be a whole number of at least 0, got {served[first]} "
                    f"({int((~good).sum())} of {len(served)} prompts). These prompts form an arm of their own."
                )
            )
        labels = np.where(good, served, STRAY).astype(np.int64)
        count = len(np.unique(labels))
        if count > _MOST_ARMS:
            raise SignalError(
                f"signal({CATEGORY!r}) must tell at most {_MOST_ARMS} categories apart, got {count}. Serve topics or sources, "
                "not prompts."
            )
        return labels

    # -- after rollouts ------------------------------------------------------------------------------------------------

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        advantages = absolute_advantages(groups, self.tolerance)
        known = ~np.isnan(advantages)
        rows = np.repeat(groups.rows, known.sum(axis=1))
        self._heard_rows = np.concatenate([self._heard_rows, rows])
        self._heard = np.concatenate([self._heard, advantages[known]])

    # -- state ---------------------------------------------------------------------------------------------------------

    per_arm: ClassVar[frozenset[str]]
    """Names of the arrays of `learned` that have one entry an arm."""

    @abstractmethod
    def learned(self) -> dict[str, Array]:
        """What `credit` learned, as named arrays."""

    @abstractmethod
    def relearn(self, arrays: dict[str, Array]) -> None:
        """Become what gave `arrays`; copies what it keeps."""

    def state(self) -> MethodState:
        shared = {
            **super().state().shared,
            "labels": self._labels,
            "cursors": self._cursors,
            "order_seed": np.array([self._order_seed], dtype=np.int64),
            "heard_rows": self._heard_rows,
            "heard": self._heard,
            **{f"arm_{name}": array for name, array in self.learned().items()},
        }
        return MethodState(shared=shared)

    def restore(self, state: MethodState) -> None:
        owner = type(self).__name__
        names = ("labels", "cursors", "order_seed", "heard_rows", "heard", *(f"arm_{name}" for name in self.learned()))
        found = {name: np.array(shared_array(state, name, owner)) for name in names}
        if len(found["labels"]) != len(found["cursors"]) or len(found["heard_rows"]) != len(found["heard"]):
            raise StateMismatchError(f"{owner}.restore: arrays of one length differ in length. Use a state of this method.")
        self.relearn({name.removeprefix("arm_"): array for name, array in found.items() if name.startswith("arm_")})
        self._labels, self._cursors = found["labels"].astype(np.int64), found["cursors"].astype(np.int64)
        self._order_seed = int(found["order_seed"][0])
        self._heard_rows, self._heard = found["heard_rows"].astype(np.int64), found["heard"].astype(np.float64)
        super().restore(state)

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """Which categories the edited pool has is known at the next proposal; cursors of -1 say that it is to be looked up."""
        held = super().adapt(state, rows)
        heard_rows = renumbered(state.shared["heard_rows"], rows)
        own = {
            "cursors": np.full(len(state.shared["cursors"]), -1, dtype=np.int64),
            "heard_rows": heard_rows[heard_rows >= 0], "heard": state.shared["heard"][heard_rows >= 0],
        }  # fmt: skip
        return MethodState(held.prompts, {**held.shared, **own})
