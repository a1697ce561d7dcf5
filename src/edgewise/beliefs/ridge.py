"""Pass rates from features by regression, in numpy: forgetful ridge and forgetful logistic regression.

Both predict for prompts that were never rolled out, from what other prompts taught: the light stand-in for the predictive model
of GPS (arXiv 2602.01970) and for the value model of PCL (arXiv 2510.01135). Neither regression is in those papers. [choice]
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgewise.beliefs import checks
from edgewise.beliefs.shared import Batch, Predictor
from edgewise.method import StepView
from edgewise.types import Array, Floats

_LOW, _HIGH = 0.02, 0.98
_NEWTON_STEPS = 8
_STEEPEST = 30.0


@dataclass(kw_only=True, eq=False)
class Ridge(Predictor):
    """Least squares that forget, φ = [x; 1]:

        A <- f·A + Σ w φφᵀ      b <- f·b + Σ w φ(y - 1/2)      θ = (A + ρI)⁻¹ b      g = clip(1/2 + φᵀθ, .02, .98)

    ρ stays outside the forgetting, so the model goes back to 1/2 where it hears nothing. Solved by Cholesky in float64. The
    variance is s² = φᵀ(A + ρI)⁻¹φ, cut to g(1-g), the most that a rate of mean g can have.
    """

    forget: float = 0.97
    """f in (0, 1]: what one step leaves of the evidence; 1 forgets nothing. [choice, as simulated]"""
    ridge: float = 30.0
    """ρ > 0. [choice, as simulated]"""

    _a: Floats = field(init=False, repr=False)
    _b: Floats = field(init=False, repr=False)
    _root: Floats = field(init=False, repr=False)
    _theta: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "forget", low=0.0, high=1.0, above=True, advice="1 forgets nothing.")
        checks.number(self, "ridge", low=0.0, above=True, advice="It keeps the solution unique.")

    def start(self, dimension: int, rng: np.random.Generator) -> None:
        del rng
        self._a = np.zeros((dimension + 1, dimension + 1))
        self._b = np.zeros(dimension + 1)
        self._solve()

    def learn(self, batch: Batch, step: StepView) -> None:
        del step
        self.add(batch)

    def add(self, batch: Batch) -> None:
        """One update of A, b and θ."""
        phi = with_one(batch.features)
        weighted = phi * batch.weights[:, None]
        self._a = self.forget * self._a + weighted.T @ phi
        self._b = self.forget * self._b + weighted.T @ (batch.rates - 0.5)
        self._solve()

    def predict(self, features: Floats, *, spread: bool = False) -> tuple[Floats, Floats]:
        phi = with_one(features)
        rates = np.clip(0.5 + phi @ self._theta, _LOW, _HIGH)
        return rates, _variance(self._root, phi, rates, scale=1.0) if spread else np.zeros(len(phi))

    @property
    def coefficients(self) -> Floats:
        """(d + 1,) θ; the last one is the constant's."""
        return self._theta

    def _solve(self) -> None:
        from scipy.linalg import cho_solve

        self._root = np.asarray(np.linalg.cholesky(self._a + self.ridge * np.eye(len(self._b))), dtype=np.float64)
        self._theta = np.asarray(cho_solve((self._root, True), self._b))

    def state(self) -> dict[str, Array]:
        return {"a": self._a, "b": self._b}

    def restore(self, arrays: dict[str, Array]) -> None:
        self._a, self._b = np.array(arrays["a"], dtype=np.float64), np.array(arrays["b"], dtype=np.float64)
        self._solve()


@dataclass(kw_only=True, eq=False)
class Logistic(Predictor):
    """Logistic regression that forgets: each batch is fitted around what the earlier ones left (a Laplace approximation).

        θ <- argmax Σ w (y ln g + (1-y) ln(1-g)) - ½(θ-θ₀)ᵀ f·A (θ-θ₀) - ½ρ‖θ‖²       g = sigmoid(φᵀθ)
        A <- f·A + Σ w g(1-g) φφᵀ       at the new θ; θ₀ the old one

    Newton's method with halved steps. The variance is (g(1-g))² φᵀ(A + ρI)⁻¹φ, cut to g(1-g).
    """

    forget: float = 0.97
    """f in (0, 1]. [choice, as the ridge]"""
    ridge: float = 7.5
    """ρ > 0. A quarter of the linear model's, for g(1-g) <= 1/4 scales its evidence. [choice]"""

    _a: Floats = field(init=False, repr=False)
    _theta: Floats = field(init=False, repr=False)
    _root: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        checks.number(self, "forget", low=0.0, high=1.0, above=True, advice="1 forgets nothing.")
        checks.number(self, "ridge", low=0.0, above=True, advice="It keeps the solution unique.")

    def start(self, dimension: int, rng: np.random.Generator) -> None:
        del rng
        self._a, self._theta = np.zeros((dimension + 1, dimension + 1)), np.zeros(dimension + 1)
        self._factor()

    def learn(self, batch: Batch, step: StepView) -> None:
        del step
        phi, before, kept = with_one(batch.features), self._theta, self.forget * self._a

        def objective(theta: Floats) -> float:
            logits = phi @ theta
            likelihood = batch.weights @ (batch.rates * logits - np.logaddexp(0.0, logits))
            away = theta - before
            return float(likelihood - 0.5 * away @ kept @ away - 0.5 * self.ridge * theta @ theta)

        theta = before
        for _ in range(_NEWTON_STEPS):
            g = _sigmoid(phi @ theta)
            slope = phi.T @ (batch.weights * (batch.rates - g)) - kept @ (theta - before) - self.ridge * theta
            curve = (phi * (batch.weights * g * (1.0 - g))[:, None]).T @ phi + kept + self.ridge * np.eye(len(theta))
            move, length, here = np.linalg.solve(curve, slope), 1.0, objective(theta)
            while length > 1e-4 and objective(theta + length * move) < here:
                length *= 0.5
            theta = theta + length * move
            if float(np.abs(move).max()) < 1e-10:
                break
        g = _sigmoid(phi @ theta)
        self._theta, self._a = theta, kept + (phi * (batch.weights * g * (1.0 - g))[:, None]).T @ phi
        self._factor()

    def predict(self, features: Floats, *, spread: bool = False) -> tuple[Floats, Floats]:
        phi = with_one(features)
        rates = _sigmoid(phi @ self._theta)
        return rates, _variance(self._root, phi, rates, scale=(rates * (1.0 - rates)) ** 2) if spread else np.zeros(len(phi))

    def _factor(self) -> None:
        self._root = np.asarray(np.linalg.cholesky(self._a + self.ridge * np.eye(len(self._theta))), dtype=np.float64)

    def state(self) -> dict[str, Array]:
        return {"a": self._a, "theta": self._theta}

    def restore(self, arrays: dict[str, Array]) -> None:
        self._a, self._theta = np.array(arrays["a"], dtype=np.float64), np.array(arrays["theta"], dtype=np.float64)
        self._factor()


def with_one(features: Floats) -> Floats:
    """(n, d + 1) φ = [x; 1].

    >>> with_one(np.array([[2.0, 3.0]])).tolist()
    [[2.0, 3.0, 1.0]]
    """
    return np.concatenate([features, np.ones((len(features), 1))], axis=1)


def _variance(root: Floats, phi: Floats, rates: Floats, *, scale: float | Floats) -> Floats:
    from scipy.linalg import solve_triangular

    half = np.asarray(solve_triangular(root, phi.T, lower=True))
    return np.asarray(np.minimum(scale * (half * half).sum(axis=0), rates * (1.0 - rates)), dtype=np.float64)


def _sigmoid(logits: Floats) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logits, -_STEEPEST, _STEEPEST))), dtype=np.float64)
