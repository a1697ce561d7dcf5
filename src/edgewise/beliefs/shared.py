"""One small model for all prompts, and each prompt's own counts on top of it.

    g_i   the model's pass rate for prompt i, from its embedding and what other prompts taught    (Predictor: ridge.py, ppm.py)
    a <- λ a + k,  b <- λ b + (n-k)             own counts, at each visit; a = b = 0 before the first
    m_i = (κ g_i + a_i) / (κ + a_i + b_i)       the belief: Beta(κg + a, κ(1-g) + b)

A prompt never visited is believed to be exactly g; after many visits its own evidence weighs n/(1-λ) against κ. The prior moves
with the model, counts do not. The combination is ours [choice]; combine="none" is the model alone, as in GPS, arXiv 2602.01970.

The model learns once per step, from the groups observed since, in ticket order: when the first prediction of the next step is
asked for. In a stream it learns when a batch of new groups is in and the policy version has moved, whichever is later; a
version that stands still is waited for until four batches are in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from edgewise.beliefs import checks
from edgewise.beliefs.base import Belief
from edgewise.beliefs.features import PromptFeatures, ask_for_features
from edgewise.errors import ConfigError, MethodError, SignalError, StateMismatchError
from edgewise.method import StepView, renumbered
from edgewise.prediction import Prediction, Visits
from edgewise.types import EMBEDDING, Array, Floats, Ints, MethodState, Setting

_CHUNK = 8192
_EDGE = 1e-6
_SAME_SCALE = 1e-3
_PATIENCE = 4  # batches for which a stream's policy version may stand still before the model learns all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a model learns from at once: n groups in ticket order.

    features: (n, d) z-scored.  rates: (n,) y = k/n in [0, 1].  weights: (n,) > 0, scored rollouts over the group size.
    """

    features: Floats
    rates: Floats
    weights: Floats


class Predictor(ABC):
    """A regression from prompt features to pass rates that is updated batch by batch. State: named plain arrays."""

    @abstractmethod
    def start(self, dimension: int, rng: np.random.Generator) -> None:
        """Become untrained, for features of `dimension` numbers."""

    @abstractmethod
    def learn(self, batch: Batch, step: StepView) -> None:
        """Take in one batch; may log to the step."""

    @abstractmethod
    def predict(self, features: Floats, *, spread: bool) -> tuple[Floats, Floats]:
        """(m,) pass rates in (0, 1), and their (m,) variances >= 0 (zeros unless `spread`), for (m, d) features. A read."""

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """Arrays that `restore` takes. May be live."""

    @abstractmethod
    def restore(self, arrays: dict[str, Array]) -> None:
        """Become exactly the model that gave `arrays`; copies what it keeps. No `start` is needed before."""


@dataclass(kw_only=True, eq=False)
class SharedPriorBelief(Belief):
    """A shared model as the Beta prior of every prompt's own discounted counts. 16 bytes a prompt, and the model.

    Besides, not saved: unit embeddings of the pool in float32 (4·d bytes a prompt), asked for once, at the first prediction.
    """

    name: ClassVar[str] = "shared_prior"

    predictor: Callable[[], Predictor]
    """Builds the model. Called at start, so that a model may need a heavy package only when it is used."""
    combine: Literal["beta", "none"] = "beta"
    """beta: the model is the prior of own counts. none: the model alone, with no memory of single prompts."""
    prior_strength: float = 4.0
    """κ > 0: rollouts that the model's word is worth. [choice, as simulated]"""
    decay: float = 0.5
    """λ in [0, 1]: what a visit leaves of the earlier counts. [choice, as simulated; MoPPS runs .5 and 1]"""
    whole_pool: bool = False
    """Predict for the whole pool at once and keep it until the model learns again. For methods that rank the whole pool."""

    passed: Floats = field(init=False, repr=False)
    failed: Floats = field(init=False, repr=False)
    _model: Predictor = field(init=False, repr=False)
    _setting: Setting = field(init=False, repr=False)
    _served: PromptFeatures | None = field(init=False, repr=False, default=None)
    _features: PromptFeatures | None = field(init=False, repr=False, default=None)
    _scale: Floats = field(init=False, repr=False)
    _known_by: Floats | None = field(init=False, repr=False, default=None)
    _pending: Floats = field(init=False, repr=False)
    _learned: Ints = field(init=False, repr=False)
    _pool_rates: tuple[Floats, Floats] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.combine not in ("beta", "none"):
            raise ConfigError(f"SharedPriorBelief(combine=...) must be 'beta' or 'none', got {self.combine!r}.")
        checks.number(self, "prior_strength", low=0.0, above=True, advice="combine='none' uses the model alone.")
        checks.number(self, "decay", low=0.0, high=1.0, advice="1 forgets nothing.")
        self.needs = frozenset({EMBEDDING})

    def start(self, setting: Setting) -> None:
        self._setting = setting
        self._model = self.predictor()
        size = setting.pool_size if self.combine == "beta" else 0
        self.passed, self.failed = np.zeros(size), np.zeros(size)
        self._scale = np.zeros((2, 0))  # mean and std of the features, once they are known
        self._known_by = (
            None  # mean and std of an edited pool's, by which its embeddings are known again; (2, 0) until asked for
        )
        self._pending = np.zeros((0, 5))  # one line a group: step, ticket, row, successes, trials
        self._learned = np.array([0, -1], dtype=np.int64)  # batches, and the policy version at the last one
        self._served = self._features = self._pool_rates = None

    @property
    def trained(self) -> bool:
        """Whether the model has learned from any batch."""
        return bool(self._learned[0] > 0)

    def features(self, step: StepView) -> PromptFeatures:
        """The features of the pool; asked of the host at the first call.

        The scale of a restored state is kept; embeddings that do not fit it are reported, and used. After an edit of the data
        set they need not fit it: those of the first run afterwards are taken as they come.
        """
        if self._features is not None:
            return self._features
        if self._served is None:
            self._served = ask_for_features(self._setting.pool_size, step)
        served = self._served
        dimension = served.unit.shape[1]
        if self._scale.shape[1] == 0:
            self._scale = np.stack([served.mean, served.std])
            self._model.start(dimension, step.rng("model_weights"))
        if dimension != self._scale.shape[1]:
            raise SignalError(
                f"signal({EMBEDDING!r}) has {dimension} dimensions, and the saved state was made with {self._scale.shape[1]}. "
                "Serve the embedding of the first run, or begin a new run."
            )
        if self._known_by is not None and self._known_by.shape[1] == 0:
            self._known_by = np.stack([served.mean, served.std])
        known_by = self._scale if self._known_by is None else self._known_by
        if not np.allclose([served.mean, served.std], known_by, rtol=_SAME_SCALE, atol=_SAME_SCALE):
            step.problem(
                SignalError(
                    f"signal({EMBEDDING!r}): these are not the embeddings of the saved state (their mean or spread differs). "
                    "The model goes on with the new ones; serve the old ones to resume exactly."
                )
            )
        self._features = served.scaled_as(self._scale[0], self._scale[1])
        return self._features

    # -- reading -------------------------------------------------------------------------------------------------------

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        """Beliefs at `rows`. The first call of a step lets the model learn what was observed before (see the module)."""
        features = self.features(step)
        self._catch_up(features, step)
        rates, variance = self._rates(rows, features, step)
        if self.combine == "none":
            return Prediction(mean=rates, variance=variance)
        alpha = self.prior_strength * rates + self.passed[rows]
        beta = self.prior_strength * (1.0 - rates) + self.failed[rows]
        return Prediction.of_beta(alpha, beta)

    def _rates(self, rows: Ints, features: PromptFeatures, step: StepView) -> tuple[Floats, Floats]:
        """(n,) rates in (0, 1) and their variances. What is not finite becomes 1/2, and is reported."""
        if not self.whole_pool:
            return self._checked(*self._model.predict(features.scored(rows), spread=self.combine == "none"), step)
        if self._pool_rates is None:
            parts = [
                self._model.predict(features.scored(slice(start, start + _CHUNK)), spread=self.combine == "none")
                for start in range(0, len(features), _CHUNK)
            ]
            self._pool_rates = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
        return self._checked(self._pool_rates[0][rows], self._pool_rates[1][rows], step)

    def _checked(self, rates: Floats, variance: Floats, step: StepView) -> tuple[Floats, Floats]:
        bad = ~(np.isfinite(rates) & np.isfinite(variance))
        if bad.any():
            step.log(predictions_missing=int(bad.sum()))
            step.problem(
                MethodError(
                    f"{type(self._model).__name__}: {int(bad.sum())} of {len(bad)} predicted pass rates are not finite. "
                    "They count as 1/2."
                )
            )
            rates, variance = np.where(bad, 0.5, rates), np.where(bad, 0.0, variance)
        return np.clip(rates, _EDGE, 1.0 - _EDGE), variance

    # -- learning ------------------------------------------------------------------------------------------------------

    def observe(self, visits: Visits, step: StepView, tickets: Ints | None = None, fresh: Array | None = None) -> None:
        """Count at once; the model learns later. tickets: (n,) numbers that order the groups; None: as they come.

        fresh: (n,) False for groups that count for their prompt and teach the model nothing (too old). None: all are fresh.
        """
        rows, failures = visits.rows, visits.trials - visits.successes
        if self.combine == "beta":
            self.passed[rows] = self.decay * self.passed[rows] + visits.successes
            self.failed[rows] = self.decay * self.failed[rows] + failures
        if tickets is None:
            begin = self._pending[:, 1].max(initial=-1.0) + 1.0
            tickets = np.arange(len(visits)) + int(begin)
        columns = [np.full(len(visits), step.number), tickets, rows, visits.successes, visits.trials]
        lines = np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=1)
        self._pending = np.concatenate([self._pending, lines if fresh is None else lines[fresh]])
        if step.streaming:  # a host that never moves its policy version must not make this grow
            most = _PATIENCE * self._setting.batch_size
            self._pending = self._pending[np.argsort(self._pending[:, 1], kind="stable")][-most:]

    def _catch_up(self, features: PromptFeatures, step: StepView) -> None:
        """Let the model learn from the groups of earlier steps, once."""
        if step.streaming:
            batches = len(self._pending) // self._setting.batch_size
            enough = batches >= _PATIENCE or (batches >= 1 and step.policy_version > self._learned[1])
            ready = np.full(len(self._pending), enough)
        else:
            ready = self._pending[:, 0] < step.number
        if not ready.any():
            return
        lines = self._pending[ready]
        lines = lines[np.argsort(lines[:, 1], kind="stable")]
        rows = lines[:, 2].astype(np.int64)
        batch = Batch(
            features=features.scored(rows), rates=lines[:, 3] / lines[:, 4], weights=lines[:, 4] / self._setting.group_size
        )
        self._model.learn(batch, step)
        self._pending = self._pending[~ready]
        self._learned = np.array([self._learned[0] + 1, step.policy_version], dtype=np.int64)
        self._pool_rates = None

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        shared = {"scale": self._scale, "pending": self._pending, "learned": self._learned}
        if self._known_by is not None:
            shared["known_by"] = self._known_by
        if self._scale.shape[1]:
            shared |= {f"model_{name}": array for name, array in self._model.state().items()}
        own = {"passed": self.passed, "failed": self.failed} if self.combine == "beta" else {}
        return MethodState(prompts=own, shared=shared)

    def restore(self, state: MethodState) -> None:
        own = ("passed", "failed") if self.combine == "beta" else ()
        missing = [n for n in own if n not in state.prompts] + [
            n for n in ("scale", "pending", "learned") if n not in state.shared
        ]
        if missing:
            raise StateMismatchError(
                f"SharedPriorBelief.restore: the state lacks {missing}. Use a state that this belief wrote."
            )
        model = {n.removeprefix("model_"): a for n, a in state.shared.items() if n.startswith("model_")}
        scale = np.array(state.shared["scale"], dtype=np.float64)
        if scale.shape[1]:
            self._model.restore(model)
        self._scale = scale
        known_by = state.shared.get("known_by")
        self._known_by = None if known_by is None else np.array(known_by, dtype=np.float64)
        self._pending = np.array(state.shared["pending"], dtype=np.float64)
        self._learned = np.array(state.shared["learned"], dtype=np.int64)
        for name in own:
            setattr(self, name, np.array(state.prompts[name], dtype=np.float64))
        self._features = self._pool_rates = None  # the served vectors are no state and stay

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """The model stays, and so does its scale. What it has still to learn from prompts that are gone or changed is lost."""
        held, pending = super().adapt(state, rows), np.array(state.shared["pending"], dtype=np.float64)
        now = renumbered(pending[:, 2].astype(np.int64), rows)
        pending[:, 2] = now
        own = {"pending": pending[now >= 0]}
        if np.asarray(state.shared["scale"]).shape[1]:
            own["known_by"] = np.zeros((2, 0))
        return MethodState(held.prompts, {**held.shared, **own})

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {"combine": self.combine, "prior_strength": self.prior_strength, "decay": self.decay}
