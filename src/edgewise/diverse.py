"""Pure parts of a static subset: influence on a similarity graph, a diverse choice, and a draw by difficulty.

The offline part of DEPO, arXiv 2509.01321 [paper*]: the rule as summaries report it; constants without a source are choices.

    influence    w = PageRank of the similarity graph, of mean 1
    diversity    greedy maximum of det( diag(√w_Y) · S_Y · diag(√w_Y) ) over sets Y of a given size
    difficulty   P(x) ∝ φ((accuracy_x - μ)/σ), without replacement

Differs from the paper in: S is a Gaussian kernel on unit vectors and not their inner products, whose matrix has at most the
rank of the embedding's width d, so that every determinant beyond d picks is 0; 1e-6 on its diagonal, which keeps repeated
prompts comparable (and every marginal gain at 1e-6·w or more).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from edgewise.errors import ConfigError
from edgewise.types import Floats, Ints

DENSE = 4_096
"""Prompts up to which the graph holds every pair (128 MiB); beyond, the nearest of each."""
NEIGHBOURS = 64
"""Edges of a prompt in a sparse graph, before it is made symmetric. [choice]"""
MOST_PROMPTS = 100_000
"""Largest set: the graph compares every pair once, in blocks."""
JITTER = 1e-6
LEAST_GAIN = 1e-12
"""A pick that adds less than this factor to the determinant adds nothing; the rest is filled by influence."""

_PAIRS_OF = 2_000  # prompts whose pairs give the median distance
_BLOCK = 512  # rows of the similarity matrix held at once


def unit_rows(vectors: Any) -> Floats:
    """(n, d) the vectors at length 1. Raises ConfigError for other shapes, for vectors without a direction, for too many."""
    given = np.asarray(vectors)
    if given.ndim != 2 or given.dtype.kind not in "fiu" or 0 in given.shape:
        raise ConfigError(f"Embeddings must be a table of numbers (prompts, width), got {given.shape} of {given.dtype}.")
    if len(given) > MOST_PROMPTS:
        raise ConfigError(
            f"A subset is chosen from at most {MOST_PROMPTS:,} prompts, got {len(given):,}. Split the data set, for example "
            "by source, and choose from each part."
        )
    rows = given.astype(np.float64)
    lengths = np.sqrt((rows**2).sum(axis=1))
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0.0)))
    if len(bad):
        raise ConfigError(
            f"The embedding of row {bad[0]} has no direction: its length is {lengths[bad[0]]} ({len(bad)} of {len(rows)} "
            "rows). Leave out empty prompts."
        )
    rows /= lengths[:, None]
    return rows


def median_distance(units: Floats, rng: np.random.Generator) -> float:
    """Median distance of pairs of different rows, over at most 2,000 drawn rows; 1.0 where all rows are the same.

    Where more than half of the pairs coincide, the median of the others.
    """
    drawn = units if len(units) <= _PAIRS_OF else units[rng.choice(len(units), _PAIRS_OF, replace=False)]
    upper = np.triu_indices(len(drawn), k=1)
    distances = np.sqrt(np.maximum(0.0, 2.0 - 2.0 * (drawn @ drawn.T)[upper]))
    apart = distances[distances > 1e-6]  # rounding gives equal rows distances up to some 1e-8
    if len(apart) == 0:
        return 1.0
    median = float(np.median(distances))
    return median if median > 1e-6 else float(np.median(apart))


def similarity(some: Floats, others: Floats, bandwidth: float) -> Floats:
    """(m, n) exp(-|x - y|² / (2·bandwidth²)) of unit rows, in (0, 1].

    >>> similarity(np.array([[1.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 1.0]]), 1.0).round(6).tolist()
    [[1.0, 0.367879]]
    """
    squared = np.maximum(0.0, 2.0 - 2.0 * (some @ others.T))
    kernel: Floats = np.exp(-squared / (2.0 * bandwidth**2))
    return kernel


def similarity_graph(units: Floats, bandwidth: float, *, dense: int = DENSE, neighbours: int = NEIGHBOURS) -> Any:
    """(n, n) weights >= 0, symmetric, without self-loops: an array up to `dense` prompts, else a sparse matrix.

    units: (n, d) unit rows.  bandwidth: of the kernel.  neighbours: edges from each prompt to its nearest, where sparse; an
    edge stands if either end has it. Memory: 8·n² bytes dense; 8·512·n and some 24·n·neighbours bytes sparse.
    """
    count = len(units)
    if count <= max(dense, neighbours + 1):
        weights = similarity(units, units, bandwidth)
        np.fill_diagonal(weights, 0.0)
        weights = (weights + weights.T) / 2.0  # exactly symmetric, whatever order the product summed in
        return weights
    from scipy import sparse

    columns, values = [], []
    for start in range(0, count, _BLOCK):
        block = similarity(units[start : start + _BLOCK], units, bandwidth)
        block[np.arange(len(block)), np.arange(start, start + len(block))] = -1.0
        nearest = np.argpartition(-block, neighbours - 1, axis=1)[:, :neighbours]
        columns.append(nearest.astype(np.int32))
        values.append(np.take_along_axis(block, nearest, axis=1))
    rows = np.repeat(np.arange(count, dtype=np.int32), neighbours)
    directed = sparse.csr_array((np.concatenate(values).ravel(), (rows, np.concatenate(columns).ravel())), shape=(count, count))
    return directed.maximum(directed.T).tocsr()


def page_rank(weights: Any, *, damping: float = 0.85, tolerance: float = 1e-10) -> Floats:
    """(n,) stationary chances of a walk that follows an edge with chance `damping`, else jumps anywhere; times n, so of mean 1.

    weights: (n, n) >= 0, from row to column, as an array or a scipy sparse matrix; row-normalised here. A row without edges
    jumps anywhere.  tolerance: largest total change of the chances in the last round.

    >>> page_rank(np.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])).round(6).tolist()
    [1.459459, 0.77027, 0.77027]
    """
    count = weights.shape[0]
    out = np.asarray(weights.sum(axis=1), dtype=np.float64).ravel()
    isolated = out <= 0.0
    backward = weights.T
    chances = np.full(count, 1.0 / count)
    change = np.inf
    while change > tolerance:  # each round takes a factor of at least `damping` off the change
        spread = np.divide(chances, out, out=np.zeros(count), where=~isolated)
        moved = backward @ spread + chances[isolated].sum() / count
        following = damping * moved + (1.0 - damping) / count
        following /= following.sum()
        change = float(np.abs(following - chances).sum())
        chances = following
    rank: Floats = chances * count
    return rank


class Picked(NamedTuple):
    """A diverse choice: `positions` in the order picked, of which the last `filled` are by influence alone."""

    positions: Ints
    filled: int


def pick_diverse(
    units: Floats,
    influence: Floats,
    count: int,
    bandwidth: float,
    rng: np.random.Generator,
    *,
    most_bytes: float = 2e9,
) -> Picked:
    """Greedy maximum of the determinant of diag(√w)·(S + 1e-6·I)·diag(√w) over sets of `count`, by incremental Cholesky.

    Pick t costs O(n·(d + t)); in all O(n·count²/2) and 8·n·count bytes. Equal gains are decided by a random order.

    units: (n, d) unit rows.  influence: (n,) w > 0.  count: <= n.  bandwidth: of the kernel.
    Raises ConfigError where 8·n·count exceeds `most_bytes`.
    """
    total = len(units)
    if 8.0 * total * count > most_bytes:
        raise ConfigError(
            f"A diverse choice of {count:,} of {total:,} prompts needs {8e-9 * total * count:.1f} GB, and the limit is "
            f"{1e-9 * most_bytes:.1f} GB, or {int(most_bytes / 8 / total):,} of these prompts. Keep fewer, raise the limit, or "
            "split the data set."
        )
    order = rng.permutation(total)
    root = np.sqrt(influence)
    gain = influence * (1.0 + JITTER)  # squared diagonal of the Cholesky factor, were the prompt picked next
    factor = np.empty((count, total))
    picked: list[int] = []
    for t in range(count):
        best = int(order[np.argmax(gain[order])])
        if gain[best] < LEAST_GAIN:
            break
        row = root[best] * root * similarity(units[best : best + 1], units, bandwidth)[0]  # its own entry is not read again
        factor[t] = (row - factor[:t, best] @ factor[:t]) / np.sqrt(gain[best])
        gain -= factor[t] ** 2
        gain[best] = -np.inf
        picked.append(best)
    left = order[~np.isin(order, picked)]
    filled = left[np.argsort(-influence[left], kind="stable")][: count - len(picked)]
    return Picked(np.concatenate([np.array(picked, dtype=np.int64), filled]).astype(np.int64), len(filled))


def difficulty_odds(accuracies: Floats, mean: float, deviation: float) -> Floats:
    """(n,) P ∝ φ((accuracy - μ)/σ), summing to 1; 0 where the accuracy is NaN.

    >>> difficulty_odds(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), 0.5, 0.25).round(6).tolist()
    [0.054489, 0.244201, 0.40262, 0.244201, 0.054489]
    """
    logs = _log_density(accuracies, mean, deviation)
    if not np.isfinite(logs).any():
        return np.zeros(len(logs))
    odds = np.exp(logs - logs.max())
    shares: Floats = odds / odds.sum()
    return shares


def draw_by_difficulty(accuracies: Floats, count: int, mean: float, deviation: float, rng: np.random.Generator) -> Ints:
    """At most `count` positions, one after the other by `difficulty_odds` without replacement; never one without accuracy.

    By Gumbel keys, in logarithms, so that accuracies far from μ keep their order too.
    """
    logs = _log_density(accuracies, mean, deviation)
    keys = logs + rng.gumbel(size=len(logs))
    return np.argsort(-keys, kind="stable")[: min(count, int(np.isfinite(logs).sum()))].astype(np.int64)


def _log_density(accuracies: Floats, mean: float, deviation: float) -> Floats:
    """(n,) ln φ up to a constant; -inf where the accuracy is NaN."""
    return np.where(np.isfinite(accuracies), -0.5 * ((np.nan_to_num(accuracies) - mean) / deviation) ** 2, -np.inf)
