"""What every belief does: predict the pass rates of prompts, learn from finished groups, be saved and restored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass
from typing import ClassVar

import numpy as np

from edgewise.method import StepView, followed
from edgewise.prediction import Prediction, Visits
from edgewise.types import Floats, Ints, MethodState, Setting, Signal


class Belief(ABC):
    """Knowledge of each prompt's pass rate. A dataclass whose init fields are its hyper-parameters.

    `predict` is a read: it changes nothing, whoever asks and however often. `observe` writes per-prompt arrays only at the
    visited rows; what changes for everybody (drift, ageing) is worked out when it is read, from the step of the last visit.
    """

    name: ClassVar[str]
    """Lower-case name for compositions."""

    needs: frozenset[Signal] = frozenset()
    """Signals that the host must serve."""

    @abstractmethod
    def start(self, setting: Setting) -> None:
        """Allocate for a pool. Raises ConfigError if the setting cannot work with the hyper-parameters."""

    @abstractmethod
    def predict(self, rows: Ints, step: StepView) -> Prediction:
        """What is believed now of the prompts at `rows` (n,). Finite everywhere."""

    @abstractmethod
    def observe(self, visits: Visits, step: StepView) -> None:
        """Learn from finished groups."""

    @abstractmethod
    def state(self) -> MethodState:
        """Live arrays, as in `Method.state`."""

    @abstractmethod
    def restore(self, state: MethodState) -> None:
        """Become exactly the belief that gave `state`; copies what it keeps. Raises StateMismatchError."""

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """What `restore` takes for an edited pool, made of a state of the pool before, as `Method.adapt`. A read."""
        return followed(state, self.state(), rows)

    def sample(self, rows: Ints, prediction: Prediction, rng: np.random.Generator) -> Floats:
        """(n,) one draw of each pass rate, for Thompson sampling. By default from the Beta with the same mean and variance."""
        del rows
        return rng.beta(*prediction.as_beta())

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        """Hyper-parameters by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init} if is_dataclass(self) else {}
