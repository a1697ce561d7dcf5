"""Choose by a score: the best, in proportion, or by softmax. Always without replacement, ties by a random key.

    top_k           the highest scores
    proportional    P(next) = s^(1/T) / Σ s^(1/T)  over those left      = the n largest of  ln(s)/T + Gumbel
    softmax         P(next) = e^(s/T) / Σ e^(s/T)  over those left      = the n largest of  s/T + Gumbel
    in_order        the first candidates as they come, whatever their score

Drawing one at a time without replacement and taking the n largest perturbed scores are the same distribution (Gumbel-top-n:
Kool, van Hoof and Welling, arXiv 1903.06059; Efraimidis and Spirakis 2006), so no draw needs a loop.

Every chooser is called `(scores (n,), most, rng)` and returns at most `most` distinct positions, the one drawn first in front.
All of them when `most` >= n. A score of NaN or -inf comes after every other, in random order (not for `in_order`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from edgewise.errors import ConfigError, MethodError
from edgewise.types import Floats, Ints


@dataclass(frozen=True)
class TopK:
    """The highest scores, best first; equal scores in random order."""

    name: ClassVar[str] = "top_k"

    def __call__(self, scores: Floats, most: int, rng: np.random.Generator) -> Ints:
        """(m,) positions, m = min(most, n). scores: (n,)."""
        keys = rng.random(len(scores))
        return _first(np.lexsort((keys, -_ranked(scores))), most)


@dataclass(frozen=True)
class Proportional:
    """Chances proportional to score^(1/T). Scores of 0 come after all others, in random order."""

    name: ClassVar[str] = "proportional"

    temperature: float = 1.0
    """T > 0: below 1 prefers high scores more than in proportion, above 1 less."""

    def __post_init__(self) -> None:
        _check_temperature(self.name, self.temperature)

    def __call__(self, scores: Floats, most: int, rng: np.random.Generator) -> Ints:
        """(m,) positions in the order drawn. scores: (n,) >= 0, NaN or -inf. Raises MethodError for a finite negative score."""
        ranked = _ranked(scores)
        wrong = np.flatnonzero((ranked < 0.0) & (ranked > -np.inf))
        if len(wrong):
            raise MethodError(
                f"choosers.Proportional: every score must be at least 0, got {ranked[wrong[0]]} at position {wrong[0]} "
                f"({len(wrong)} of {len(scores)} are below 0). Choose with Softmax or TopK instead."
            )
        logs = np.log(ranked, out=np.full(len(ranked), -np.inf), where=ranked > 0.0)
        return _race(logs / self.temperature, ranked, most, rng)


@dataclass(frozen=True)
class Softmax:
    """Chances proportional to exp(score / T)."""

    name: ClassVar[str] = "softmax"

    temperature: float = 1.0
    """T > 0, in units of the score: towards 0 it becomes TopK, towards infinity uniform."""

    def __post_init__(self) -> None:
        _check_temperature(self.name, self.temperature)

    def __call__(self, scores: Floats, most: int, rng: np.random.Generator) -> Ints:
        """(m,) positions in the order drawn. scores: (n,) of any sign."""
        ranked = _ranked(scores)
        finite = ranked[np.isfinite(ranked)]
        top = finite.max() if len(finite) else 0.0
        with np.errstate(over="ignore"):  # far below the top, at a tiny T: never before another, then by score
            logits = (ranked - top) / self.temperature
        return _race(logits, ranked, most, rng)


@dataclass(frozen=True)
class InOrder:
    """The first candidates as they come: for methods that take the stream as it is and choose rollouts only."""

    name: ClassVar[str] = "in_order"

    def __call__(self, scores: Floats, most: int, rng: np.random.Generator) -> Ints:
        """(m,) positions 0, 1, 2 …"""
        del rng
        return _first(np.arange(len(scores)), most)


Chooser = Callable[[Floats, int, np.random.Generator], Ints]

CHOOSERS: dict[str, Callable[..., Chooser]] = {c.name: c for c in (TopK, Proportional, Softmax, InOrder)}
"""Every chooser by the name that compositions write."""


def _race(logits: Floats, scores: Floats, most: int, rng: np.random.Generator) -> Ints:
    """The first to arrive when position i arrives at Exp(1) / exp(logit): -ln Exp(1) is a Gumbel draw.

    In logarithms, so that neither large nor tiny rates overflow. Arrivals at infinity (logit -inf) come by falling score,
    then in random order.
    """
    waits = rng.exponential(size=len(logits))
    with np.errstate(divide="ignore"):  # a wait of exactly 0 arrives first
        arrivals = np.where(logits == -np.inf, np.inf, np.log(waits) - logits)
    return _first(np.lexsort((waits, -scores, arrivals)), most)


def _ranked(scores: Floats) -> Floats:
    """The scores with NaN as -inf: what is not known never wins a rank."""
    return np.where(np.isnan(scores), -np.inf, scores)


def _first(order: Ints, most: int) -> Ints:
    return order[: max(most, 0)].astype(np.int64)


def _check_temperature(name: str, value: object) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0.0
    if not good:
        raise ConfigError(
            f"choosers[{name!r}](temperature=...) must be a number above 0, got {value!r}. Use TopK for the limit 0."
        )
