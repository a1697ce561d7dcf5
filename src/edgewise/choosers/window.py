"""A window that slides up a ranking as training goes on: low values first, high values last. [PREPO, arXiv 2511.00794 §3]"""

from __future__ import annotations

import math

import numpy as np

from edgewise.types import Floats, Ints

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996 in floating point; shares of a whole are meant as decimals


def window_start(progress: float, candidates: int, size: int) -> int:
    """l(ρ) = floor(ρ · (|B| - K)), at least 0.

    progress: ρ in [0, 1].  candidates: |B| >= 0.  size: K >= 0.

    >>> [window_start(rho, 1280, 256) for rho in (0.0, 0.25, 0.5, 1.0)]
    [0, 256, 512, 1024]
    """
    return max(0, math.floor(progress * (candidates - size) + _ROUNDING))


def window(values: Floats, size: int, progress: float, rng: np.random.Generator) -> Ints:
    """Positions of the K values that follow the l(ρ) smallest, by rising value; ties in random order.

    Values that are not finite have no rank: the window slides over the others, and they fill it, in random order, only when
    there are fewer than K others. So they come last at every ρ, also where the window stands at the top.

    values: (n,).  size: K >= 0.  progress: ρ in [0, 1].
    Returns (min(K, n),) distinct positions.

    >>> window(np.array([5.0, 1.0, np.nan, 3.0, 2.0, 4.0]), 2, 0.5, np.random.default_rng(0)).tolist()
    [4, 3]
    """
    ranked = np.isfinite(values)
    order = np.lexsort((rng.random(len(values)), np.where(ranked, values, np.inf), ~ranked))
    start = window_start(progress, int(ranked.sum()), size)
    return order[start : start + size].astype(np.int64)
