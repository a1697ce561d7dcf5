"""A Gaussian process over prompt embeddings: a group teaches something about every prompt that resembles its own.

    f(x) = logit of the pass rate,  f ~ GP(m, A·k),  k(x, y) = exp(-|x - y|² / (2ℓ²))
    a round of groups at X with logits z and noise R:   w = (A·k(X, X) + R)⁻¹ (z - m(X)),   m(x) <- m(x) + A·k(x, X) w

The posterior mean of one round is the prior mean of the next, while the covariance stays the prior's [VIP code]: what was
learned of a prompt persists, and each round can move it again. No round touches every prompt: `observe` notes w and stores
f where it was observed; `predict` adds up, for each prompt, the rounds since its own last visit. That is the recursion itself,
not an approximation, as long as the prompts visited since are among the last `memory` groups; older rounds are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from edgewise.beliefs.base import Belief
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.method import StepView, renumbered
from edgewise.prediction import Prediction, Visits
from edgewise.types import EMBEDDING, Array, Floats, Ints, MethodState, Setting, Signal

_HARDLY = 1e-6
"""Distances below this are rounding between equal vectors."""
_SETTLED = 64
"""Groups after which the median distance is taken as it is. [choice]"""


@dataclass(kw_only=True, eq=False)
class GaussianBelief(Belief):
    """Gaussian process on logits; 16 bytes a prompt, and three numbers for each of the last `memory` groups.

    A step costs `memory` kernel values for each prompt asked about. Embeddings are asked for once a prompt and kept outside the
    state while in use; they must not change during a run. A prompt whose embedding is not finite learns from itself alone.

    Live arrays over the pool: latent (N,) posterior logit at the last visit.  visited (N,) number of the observation that it
    was part of, from 1; 0 = never. Shared: the last groups (rows, weights w, numbers of their observations), counters, ℓ.
    """

    name: ClassVar[str] = "gaussian"
    needs: frozenset[Signal] = frozenset({EMBEDDING})

    prior_logit: float = -1.0
    """m₀: logit of the pass rate of a prompt that resembles none. [VIP code: -1, a pass rate of 0.27]"""
    amplitude: float = 3.29
    """A > 0: prior variance of the logit; π²/3 is that of a uniform pass rate. [choice; VIP code: 1]"""
    bandwidth: float | None = None
    """ℓ > 0. None: the median distance between prompts visited [VIP], measured until 64 groups are in; VIP code: 0.4."""
    memory: int = 4096
    """Groups whose influence on other prompts is remembered. [choice; VIP code: the whole pool]"""

    latent: Floats = field(init=False, repr=False)
    visited: Ints = field(init=False, repr=False)
    _rows: Ints = field(init=False, repr=False)
    _weights: Floats = field(init=False, repr=False)
    _numbers: Ints = field(init=False, repr=False)
    _counters: Ints = field(init=False, repr=False)
    _length: Floats = field(init=False, repr=False)
    _vectors: dict[int, Floats] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._require("prior_logit", -np.inf, "must be finite", "0 is a pass rate of one half.")
        self._require("amplitude", 0.0, "must be above 0", "")
        if self.bandwidth is not None:
            self._require("bandwidth", 0.0, "must be above 0", "None measures it.")
        whole = isinstance(self.memory, int) and not isinstance(self.memory, bool) and self.memory >= 1
        if not whole:
            raise ConfigError(f"GaussianBelief(memory=...) must be a whole number >= 1, got {self.memory!r}.")

    def start(self, setting: Setting) -> None:
        self.latent = np.zeros(setting.pool_size)
        self.visited = np.zeros(setting.pool_size, dtype=np.int64)
        self._rows = np.zeros(self.memory, dtype=np.int64)
        self._weights = np.zeros(self.memory)
        self._numbers = np.zeros(self.memory, dtype=np.int64)  # 0 = empty
        self._counters = np.zeros(3, dtype=np.int64)  # observations, where the next group is written, groups
        self._length = np.zeros(1)  # 0 = not measured yet
        self._vectors = {}

    # -- reading -------------------------------------------------------------------------------------------------------

    def predict(self, rows: Ints, step: StepView) -> Prediction:
        """Pass rates σ(m(x)). The variance is as if only the nearest observation were known, with R = 1."""
        if len(rows) == 0:
            return Prediction.of_rates(np.empty(0))
        latent, resemblance = self._posterior(rows, step)
        mean = 1.0 / (1.0 + np.exp(-np.clip(latent, -500.0, 500.0)))
        left = self.amplitude * (1.0 - resemblance**2 * self.amplitude / (self.amplitude + 1.0))
        spread = mean * (1.0 - mean)
        return Prediction(mean=mean, variance=spread * np.minimum(spread * left, 1.0))

    def _posterior(self, rows: Ints, step: StepView) -> tuple[Floats, Floats]:
        """((n,), (n,)) m(x) now, and the largest kernel value with a group remembered or the prompt's own."""
        visited = self.visited[rows]
        latent = np.where(visited > 0, self.latent[rows], self.prior_logit)
        vectors = self._embeddings(rows, step)  # also before anything is known: they are needed when the groups come in
        used = np.flatnonzero(self._numbers > 0)
        if len(used) == 0:
            return latent, np.zeros(len(rows))
        kernel = self._kernel(vectors, self._embeddings(self._rows[used], step))
        since = self._numbers[used] > visited[:, None]
        latent = latent + self.amplitude * np.where(since, kernel, 0.0) @ self._weights[used]
        return latent, np.where(visited > 0, 1.0, kernel.max(axis=1))

    def _kernel(self, x: Floats, y: Floats) -> Floats:
        """(n, m) values in [0, 1]; 0 where a vector is not finite."""
        values = np.exp(-_squares(x, y) / (2.0 * self._length[0] ** 2))
        return np.where(np.isnan(values), 0.0, values)

    def _embeddings(self, rows: Ints, step: StepView) -> Floats:
        """(n, d) vectors, NaN throughout where the host's is not finite. Asks for those not at hand."""
        wanted = rows.tolist()
        missing = np.array([row for row in dict.fromkeys(wanted) if row not in self._vectors], dtype=np.int64)
        if len(missing):
            served = step.signal(EMBEDDING, missing)
            good = np.asarray(np.isfinite(served).all(axis=1))
            if not good.all():
                first = int(missing[np.flatnonzero(~good)[0]])
                step.problem(
                    SignalError(
                        f"signal({EMBEDDING!r}) of prompt row {first} must be finite ({int((~good).sum())} of {len(missing)} "
                        "are not). These prompts learn from their own groups only."
                    )
                )
                served = np.where(good[:, None], served, np.nan)
            self._vectors.update(zip(missing.tolist(), served, strict=True))
        vectors = np.stack([self._vectors[row] for row in wanted])
        spare = len(self._vectors) - 4 * self.memory - len(wanted)
        for row in list(self._vectors)[: max(0, spare)]:
            del self._vectors[row]  # the oldest; asked for again if they are needed
        return vectors

    # -- learning ------------------------------------------------------------------------------------------------------

    def observe(self, visits: Visits, step: StepView) -> None:
        """One joint update by all groups given. Logits and their noise are those of k + 1/2 passes and n - k + 1/2 fails."""
        rows = visits.rows
        if len(rows) == 0:
            return
        vectors = self._embeddings(rows, step)
        if self.bandwidth is not None:
            self._length[0] = self.bandwidth
        elif self._counters[2] < _SETTLED:
            earlier = self._rows[self._numbers > 0]
            self._length[0] = _median_distance(self._embeddings(np.concatenate([earlier, rows]), step))
        before, _ = self._posterior(rows, step)
        passes, fails = visits.successes + 0.5, visits.trials - visits.successes + 0.5
        kernel = self._kernel(vectors, vectors)
        np.fill_diagonal(kernel, 1.0)
        system = self.amplitude * kernel + np.diag(1.0 / passes + 1.0 / fails)
        weights = np.linalg.solve(system, np.log(passes / fails) - before)
        self._counters[0] += 1
        self.latent[rows] = before + self.amplitude * kernel @ weights
        self.visited[rows] = self._counters[0]
        last = slice(max(0, len(rows) - self.memory), None)
        places = (self._counters[1] + np.arange(len(rows[last]))) % self.memory
        self._rows[places], self._weights[places], self._numbers[places] = rows[last], weights[last], self._counters[0]
        self._counters[1] = (self._counters[1] + len(places)) % self.memory
        self._counters[2] += len(rows)

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> MethodState:
        return MethodState(prompts=self._of_prompts(), shared=self._shared())

    def restore(self, state: MethodState) -> None:
        pairs = [(self._of_prompts(), state.prompts), (self._shared(), state.shared)]
        for live, saved in pairs:
            for name, array in live.items():
                got = saved[name].shape if name in saved else "nothing"
                if got != array.shape:
                    raise StateMismatchError(
                        f"GaussianBelief.restore: {name!r} must have shape {array.shape}, got {got}. Use a state of this pool."
                    )
        for live, saved in pairs:
            for name, array in live.items():
                array[...] = saved[name]

    def adapt(self, state: MethodState, rows: Ints) -> MethodState:
        """What groups of prompts that are gone or changed taught others is forgotten: their embedding cannot be asked for."""
        held, now = super().adapt(state, rows), renumbered(state.shared["rows"], rows)
        size, start = len(now), int(state.shared["counters"][1])
        oldest_first = (start + np.arange(size)) % max(size, 1)
        kept = oldest_first[((now >= 0) & (state.shared["numbers"] > 0))[oldest_first]][-self.memory :]
        own = self._shared() | {"counters": np.array(state.shared["counters"]), "length": state.shared["length"]}
        if len(now) == self.memory:  # every group stays where it is, so that a pool that only moved goes on to the last bit
            places = kept
        else:
            places = np.arange(len(kept))
            own["counters"][1] = len(kept) % self.memory
        for name, values in (("rows", now), ("weights", state.shared["weights"]), ("numbers", state.shared["numbers"])):
            own[name] = np.zeros_like(own[name])
            own[name][places] = values[kept]
        return MethodState(held.prompts, {**held.shared, **own})

    def _of_prompts(self) -> dict[str, Array]:
        return {"latent": self.latent, "visited": self.visited}

    def _shared(self) -> dict[str, Array]:
        return {
            "rows": self._rows,
            "weights": self._weights,
            "numbers": self._numbers,
            "counters": self._counters,
            "length": self._length,
        }

    def _require(self, name: str, above: float, rule: str, advice: str) -> None:
        value = getattr(self, name)
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and above < value < np.inf):
            raise ConfigError(f"GaussianBelief({name}=...) {rule}, got {value!r}.{' ' * bool(advice)}{advice}")


def _median_distance(vectors: Floats) -> float:
    """Median distance between vectors that differ; 1 where none do."""
    finite = vectors[np.isfinite(vectors).all(axis=1)]
    distances = np.sqrt(_squares(finite, finite)[np.triu_indices(len(finite), k=1)])
    distances = distances[distances > _HARDLY]
    return float(np.median(distances)) if len(distances) else 1.0


def _squares(x: Floats, y: Floats) -> Floats:
    """(n, m) squared distances between rows, in O(n·m) memory."""
    squares: Floats = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1) - 2.0 * (x @ y.T)
    return np.maximum(squares, 0.0)
