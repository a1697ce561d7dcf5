"""A regression on embeddings as the prior of every prompt's own counts: the beliefs of `shared`, for compositions.

`SharedPriorBelief` takes a function that builds its model; these take numbers, so that a file can name them and a saved state
can compare them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import ClassVar

from edgewise.beliefs.ridge import Logistic, Ridge
from edgewise.beliefs.shared import Predictor, SharedPriorBelief


@dataclass(kw_only=True, eq=False)
class RidgeBelief(SharedPriorBelief):
    """Least squares that forget, and own counts. [choice; see `ridge`]"""

    name: ClassVar[str] = "ridge"

    forget: float = 0.97
    """f in (0, 1]: what one step leaves of the regression's evidence. [choice]"""
    ridge: float = 30.0
    """ρ > 0: pull towards 1/2. [choice]"""

    predictor: Callable[[], Predictor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.predictor = self.build
        self.build()  # its hyper-parameters are checked now, not at start

    def build(self) -> Predictor:
        """A new, untrained model."""
        return Ridge(forget=self.forget, ridge=self.ridge)

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}


@dataclass(kw_only=True, eq=False)
class LogisticBelief(RidgeBelief):
    """Logistic regression that forgets, and own counts. [choice; see `ridge`]"""

    name: ClassVar[str] = "logistic"

    ridge: float = 7.5
    """ρ > 0: pull towards 1/2. [choice]"""

    def build(self) -> Predictor:
        return Logistic(forget=self.forget, ridge=self.ridge)
