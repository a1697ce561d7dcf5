"""`Composed`: a method made of parts, for people who want to try one that no paper names.

    method = Composed(belief=BetaBelief(decay=0.5), score=ExpectedMixed(), chooser=Proportional(), candidates="random")
    selector = edgewise.Selector(method, pool, batch_size=256, group_size=8)

`edgewise.compose` builds the same from a file. A part of one's own is a `Belief`, or a function of the signature in
`edgewise.methods.composed`; give it a name and fields (a frozen dataclass), so that a saved state can tell it from another.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import ClassVar

import numpy as np

from edgewise.beliefs.base import Belief
from edgewise.choosers.rank import TopK
from edgewise.errors import ConfigError
from edgewise.method import StepView
from edgewise.methods.allocated import SharedBudget
from edgewise.methods.composed import AllocatorFunction, ChooserFunction, Parts, ScoreFunction
from edgewise.methods.dynamic import DynamicSampling
from edgewise.methods.entry import Scalar
from edgewise.prediction import Prediction
from edgewise.types import Ints

_ALPHA = np.array([1.0, 0.2, 9.0, 3.0, 40.0, 1.0])
_BETA = np.array([1.0, 7.0, 0.5, 3.0, 60.0, 30.0])
_GROUP = 4


@dataclass(kw_only=True, eq=False)
class Composed(SharedBudget):
    """Belief × score × chooser × allocator, over any candidates, gate and top-up. Parts are tried on a few made-up beliefs
    when the method is built, so that what cannot work together is refused before a run.

    Differs from the paper in: there is none; what papers make of these parts has a name of its own in `edgewise.METHODS`.
    """

    name: ClassVar[str] = "composed"

    belief: Belief
    """What is known of pass rates. The method keeps a copy: a belief is of one run."""
    score: ScoreFunction
    """What a candidate is worth, from the belief. One of `edgewise.scores.SCORES`, or a function."""
    chooser: ChooserFunction = field(default_factory=TopK)
    """Who picks among scored candidates. One of `edgewise.choosers.rank.CHOOSERS`, or a function."""
    allocator: AllocatorFunction | None = None
    """How many rollouts each chosen prompt gets. None: a group each. One of `edgewise.allocators.ALLOCATORS`, or a function."""

    def __post_init__(self) -> None:
        self._check_parts()
        self.belief = copy.deepcopy(self.belief)
        self.parameters()  # a part with hyper-parameters that cannot be saved is refused now
        super().__post_init__()

    def parts(self) -> Parts:
        self._try()
        return Parts(self.belief, self.score, self.chooser, self.allocator)

    def allocate(self, believed: Prediction, step: StepView) -> Ints:
        if self.allocator is None or len(believed) == 0:
            return super().allocate(believed, step)
        least = min(getattr(self.allocator, "floor", 2), self.group_size)  # where it does not say, as `Greedy`
        most = math.floor(getattr(self.allocator, "cap_factor", 4.0) * self.group_size + 1e-9)
        return self.allocator(believed, self.budget(len(believed), step, least=least, most=most), self.group_size)

    def parameters(self) -> dict[str, Scalar]:
        """Flat: "belief" is the name of the belief, "belief.decay" its hyper-parameter; alike for the other parts."""
        flat: dict[str, Scalar] = {}
        for name, value in DynamicSampling.parameters(self).items():
            part: object = value
            flat |= self._described(name, part) if name in _PARTS and part is not None else {name: value}
        return flat

    def _described(self, role: str, part: object) -> dict[str, Scalar]:
        if isinstance(part, Belief):
            named, own = part.name, {key: value for key, value in part.parameters().items() if key != "needs"}
        else:
            kind = part if hasattr(part, "__qualname__") else type(part)
            named = getattr(part, "name", None) or f"{kind.__module__}.{kind.__qualname__}"
            own = {f.name: getattr(part, f.name) for f in fields(part) if f.init} if is_dataclass(part) else {}
        for key, value in own.items():
            if not (value is None or isinstance(value, (str, int)) or (isinstance(value, float) and math.isfinite(value))):
                raise ConfigError(
                    f"Composed({role}=...): {key} of {named} must be a finite number, text, True, False or None, got "
                    f"{value!r}. A saved state compares it; make other fields init=False."
                )
        return {role: named, **{f"{role}.{key}": value for key, value in own.items()}}

    def _check_parts(self) -> None:
        for role in _PARTS:
            part = getattr(self, role)
            fits = isinstance(part, Belief) if role == "belief" else callable(part) and not isinstance(part, type)
            if fits or (part is None and role == "allocator"):
                continue
            rule = "a Belief" if role == "belief" else "a function or an object that can be called"
            if isinstance(part, type):
                remedy = f"Build it: {part.__name__}(...)."
            elif isinstance(part, str):
                remedy = f"Names are for edgewise.compose({{{role!r}: {part!r}, ...}})."
            else:
                remedy = "See edgewise.methods.composed for what each part is called with."
            raise ConfigError(f"Composed({role}=...) must be {rule}, got {part!r}. {remedy}")

    def _try(self) -> None:
        """Score, choose and allocate once, on made-up beliefs. Raises ConfigError for parts that do not go together."""
        believed = Prediction.of_beta(_ALPHA, _BETA)
        count, wanted = len(believed), 4
        role = "score"
        try:
            scores = np.asarray(self.score(believed, _GROUP))
            _require(scores.shape == (count,) and scores.dtype.kind == "f", f"must give ({count},) floats", scores)
            _require(bool(np.isfinite(scores).all()), "must be finite", scores)
            role = "chooser"
            chosen = np.asarray(self.chooser(scores, wanted, np.random.default_rng(0)))
            _require(chosen.ndim == 1 and chosen.dtype.kind == "i", "must give whole positions (m,)", chosen)
            distinct = len(np.unique(chosen)) == len(chosen) and bool(((chosen >= 0) & (chosen < count)).all())
            _require(distinct and len(chosen) <= wanted, f"must give at most {wanted} distinct positions of {count}", chosen)
            role = "allocator"
            if self.allocator is not None and len(chosen):
                budget = _GROUP * len(chosen)
                rollouts = np.asarray(self.allocator(believed.select(chosen), budget, _GROUP))
                whole = rollouts.shape == chosen.shape and rollouts.dtype.kind == "i"
                _require(whole, f"must give {chosen.shape} whole numbers", rollouts)
                _require(bool((rollouts >= 1).all()), "must give at least one rollout", rollouts)
                _require(int(rollouts.sum()) == budget, f"must give rollouts that sum to the budget of {budget}", rollouts)
        except Exception as error:
            parts = self._described("score", self.score)["score"], self._described("chooser", self.chooser)["chooser"]
            together = f" (with score {parts[0]!r})" if role == "chooser" else ""
            raise ConfigError(
                f"Composed({role}=...){together} failed when it was tried on made-up beliefs: {error} "
                "Choose another part; edgewise.methods.composed says what each is called with."
            ) from error


_PARTS = ("belief", "score", "chooser", "allocator")


def _require(good: bool, rule: str, got: object) -> None:
    if not good:
        raise ConfigError(f"it {rule}, got {got!r}.")
