"""Greedy max-sum diversification with a history anchor: informative prompts, unlike each other, unlike the last batch.

    d(i, j) = 1 - x̂_i · x̂_j                                    in [0, 2]; 1 where either vector is zero
    q_i     = u_i + λ_h · mean over the anchor of d(i, a)
    F(S)    = Σ_{i in S} q_i + λ_d/(B-1) · Σ_{i<j in S} d(i, j)
    add     argmax_i  c·q_i + λ_d/(B-1) · Σ_{j in S} d(i, j)     c = 1 "marginal", c = 1/2 "potential"

Source: GPS, arXiv 2602.01970, equations 12 to 14, reconstructed: the form of d, the scale 1/(B-1) and the weights are ours.

The "potential" rule is that of Borodin, Lee and Ye (PODS 2012), whose greedy reaches half of the best F *where d is a metric*.
1 - cos is none: with vectors at 0°, 60° and 120° d is 1/2, 1/2 and 3/2, which breaks the triangle inequality. Here
that bound is therefore no promise. F is not submodular either (gains grow with |S|), so a lazy heap would be wrong.

Cost: Σ_{j in S} d(i, j) = |S| - x̂_i · s with s = Σ_{j in S} x̂_j, one matrix-vector product a pick. Rows are scanned by
falling q; by Cauchy-Schwarz nothing behind a row with c·q_i + λ_d/(B-1)·(|S| + ‖s‖) below the best so far wins: exact pruning.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgewise.types import Floats, Ints

Rule = Literal["marginal", "potential"]

_TIE = 1e-12
"""Gains closer than this are equal: the same sum, taken in blocks of another size, differs by about as much."""
_NORM_SLACK = 1.0 + 1e-5
"""Unit vectors in float32 are a little longer than 1 at times."""


def anchored(scores: Floats, unit: npt.NDArray[Any], anchor: npt.NDArray[Any], weight: float) -> Floats:
    """(n,) q = u + λ_h · mean distance to the anchor; u where the anchor is empty.

    scores: (n,) u.  unit: (n, d) vectors of length 1 or 0.  anchor: (a, d) the same for the prompts of recent batches.
    weight: λ_h >= 0.

    >>> x = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    >>> anchored(np.array([0.25, 0.25, 0.25]), x, x[:1], 0.1).tolist()
    [0.25, 0.35, 0.35]
    """
    if weight == 0.0 or len(anchor) == 0:
        return scores
    centre = np.asarray(anchor, dtype=np.float64).mean(axis=0)
    return np.asarray(scores + weight * (1.0 - unit @ centre.astype(unit.dtype)), dtype=np.float64)


def max_sum(
    quality: Floats,
    unit: npt.NDArray[Any],
    most: int,
    rng: np.random.Generator,
    *,
    weight: float,
    chosen: npt.NDArray[Any] | None = None,
    rule: Rule = "marginal",
    size: int | None = None,
    prune: bool = True,
    block: int = 512,
) -> Ints:
    """At most `most` distinct positions by the greedy rule above, in the order picked; equal gains in random order.

    quality: (n,) q. What is not finite is picked last, in random order.  unit: (n, d) vectors of length 1 or 0.
    most: how many.  weight: λ_d >= 0.  chosen: (s, d) vectors that are in the batch already and stay in the diversity sum.
    rule: see the module.  size: B of the formula; None: `most` + s.  prune: False scans every row;
    same picks.  block: rows a scan step.
    """
    keys = rng.random(len(quality))
    finite = np.isfinite(quality)
    value = 0.5 * quality if rule == "potential" else quality
    order = np.lexsort((keys, -np.where(finite, value, -np.inf)))
    usable = int(finite.sum())
    taken_sum = np.zeros(unit.shape[1])
    inside = 0
    if chosen is not None and len(chosen):
        taken_sum, inside = np.asarray(chosen, dtype=np.float64).sum(axis=0), len(chosen)
    scale = weight / max(1, (most + inside if size is None else size) - 1)
    if scale == 0.0 or most <= 0:
        return order[: max(most, 0)].astype(np.int64)

    ranked_value, ranked_key = value[order], keys[order]
    free = np.ones(usable, dtype=np.bool_)
    blocks: list[Floats] = []  # rows by falling q in float64, made as far as a scan has ever come
    picks: list[int] = []
    for _ in range(min(most, usable)):
        reach = scale * (inside + _NORM_SLACK * float(np.linalg.norm(taken_sum))) + _TIE
        best, at = -np.inf, -1
        for number, start in enumerate(range(0, usable, block)):
            if prune and ranked_value[start] + reach < best:
                break
            stop = min(start + block, usable)
            if number == len(blocks):
                blocks.append(np.asarray(unit[order[start:stop]], dtype=np.float64))
            gains = ranked_value[start:stop] + scale * (inside - blocks[number] @ taken_sum)
            gains[~free[start:stop]] = -np.inf
            top = float(gains.max())
            if top < best - _TIE:
                continue
            tied = start + np.flatnonzero(gains >= max(top, best) - _TIE)
            if at >= 0 and top <= best + _TIE:
                tied = np.append(tied, at)
            best, at = max(top, best), int(tied[np.argmin(ranked_key[tied])])
        picks.append(at)
        free[at] = False
        taken_sum += blocks[at // block][at % block]
        inside += 1
    rest = np.arange(usable, len(order))[: most - len(picks)]
    return np.asarray(order[np.concatenate([np.array(picks, dtype=np.int64), rest])], dtype=np.int64)


def dispersion(quality: Floats, unit: npt.NDArray[Any], picks: Ints, weight: float) -> float:
    """F(S) of the module for the set `picks`, of size B >= 1, by |S|² - ‖Σ x̂‖² over ordered pairs."""
    vectors = np.asarray(unit[picks], dtype=np.float64)
    count = len(picks)
    total = vectors.sum(axis=0)
    pairs = (count * count - float(total @ total) - (count - float((vectors * vectors).sum()))) / 2.0
    return float(quality[picks].sum()) + weight / max(1, count - 1) * pairs
