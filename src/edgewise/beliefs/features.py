"""Embeddings as a model reads them: unit vectors for distances, z-scored copies for regressions.

x̂ = e/‖e‖, and x = (x̂ - mean)/max(std, 1e-6) per dimension over the pool [choice: unscaled, a
model can lock onto a wrong region]. Mean and standard deviation are state: prompts that come later are scored by the same ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from edgewise.errors import SignalError
from edgewise.method import StepView
from edgewise.types import EMBEDDING, Floats, Ints

_LEAST_STD = 1e-6


class PromptFeatures:
    """Unit vectors of the whole pool, and the scale by which they are z-scored.

    unit: (N, d) float32, rows of length 1, or 0 where the embedding has no length.  mean, std: (d,) over the pool.
    """

    def __init__(self, unit: npt.NDArray[np.float32], mean: Floats, std: Floats) -> None:
        self.unit, self.mean, self.std = unit, mean, std

    @classmethod
    def of(cls, vectors: npt.NDArray[Any]) -> PromptFeatures:
        """From (N, d) finite embeddings of any length."""
        unit = unit_vectors(vectors)
        return cls(unit, unit.mean(axis=0, dtype=np.float64), unit.std(axis=0, dtype=np.float64))

    def scaled_as(self, mean: Floats, std: Floats) -> PromptFeatures:
        """The same vectors, z-scored by the given scale."""
        return PromptFeatures(self.unit, mean, std)

    def scored(self, rows: Ints | slice) -> Floats:
        """(n, d) z-scored features of these rows."""
        return (self.unit[rows] - self.mean) / np.maximum(self.std, _LEAST_STD)

    def __len__(self) -> int:
        return len(self.unit)


def unit_vectors(vectors: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """(n, d) float32 rows of length 1; rows of length 0 stay 0.

    >>> unit_vectors(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, norms, out=np.zeros(vectors.shape), where=norms > 0.0)
    return np.asarray(unit, dtype=np.float32)


def ask_for_features(pool_size: int, step: StepView) -> PromptFeatures:
    """The features of the whole pool, from the host. An embedding that is not finite is reported and counts as a zero vector.

    Raises SignalError where the host answers with vectors of no dimension.
    """
    vectors = step.signal(EMBEDDING, np.arange(pool_size, dtype=np.int64))
    if vectors.ndim != 2 or vectors.shape[1] == 0:
        raise SignalError(
            f"signal({EMBEDDING!r}) must give one vector a prompt, shape ({pool_size}, d >= 1), got {vectors.shape}."
        )
    good = np.asarray(np.isfinite(vectors).all(axis=1))
    if not good.all():
        first = int(np.flatnonzero(~good)[0])
        step.problem(
            SignalError(
                f"signal({EMBEDDING!r}) of prompt row {first} must be finite ({int((~good).sum())} of {pool_size} prompts are "
                "not). These count as zero vectors: at distance 1 from everything."
            )
        )
        vectors = np.where(good[:, None], vectors, 0.0)
    features = PromptFeatures.of(vectors)
    step.gauge(embedding_zero=float((~features.unit.any(axis=1)).sum()))
    return features
