"""Prompts of like meaning, easy to hard: k-means over their embeddings, each cluster sorted by difficulty. What ADS walks on.

Vectors are scaled to length 1, so that distance is by angle. Seeds are spread by k-means++ (Arthur and Vassilvitskii 2007);
Lloyd's steps follow until no prompt changes its cluster. Everything is a function of the vectors and the generator.
"""

from __future__ import annotations

import numpy as np

from edgewise.types import Bools, Floats, Ints

_FIT_ROWS = 20_000  # centres are fitted on at most this many prompts, drawn uniformly: the rest would hardly move them
_STEPS = 50
_BLOCK = 16_384  # prompts compared with the centres at once: bounds the memory


def clusters(vectors: Floats, count: int, rng: np.random.Generator) -> Ints:
    """(N,) cluster of each prompt, 0 … count - 1; a cluster may come out empty.

    vectors: (N, d) finite.  count: clusters, >= 1.

    >>> far_apart = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    >>> a, b, c, d = clusters(far_apart, 2, np.random.default_rng(0)).tolist()
    >>> a == c, b == d, a == b
    (True, True, False)
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.where(lengths > 0.0, lengths, 1.0)
    fitted = units
    if len(units) > _FIT_ROWS:
        fitted = units[np.sort(rng.choice(len(units), _FIT_ROWS, replace=False))]
    centres = _spread(fitted, min(count, len(fitted)), rng)
    before = np.full(len(fitted), -1)
    for _ in range(_STEPS):
        nearest = _nearest(fitted, centres)
        if np.array_equal(nearest, before):
            break
        before = nearest
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, fitted)
        sizes = np.bincount(nearest, minlength=len(centres))[:, None]
        centres = np.where(sizes > 0, sums / np.maximum(sizes, 1), centres)
    return _nearest(units, centres)


def easy_to_hard(cluster: Ints, difficulty: Floats, usable: Bools, count: int) -> list[Ints]:
    """`count` + 1 arrays of rows, each by rising difficulty; the last holds the rows that are not usable.

    cluster: (N,).  difficulty: (N,), +inf where unknown: last in its cluster. Equal difficulties keep the order of the pool.
    """
    where = np.where(usable, cluster, count)
    order = np.lexsort((difficulty, where)).astype(np.int64)
    return np.split(order, np.cumsum(np.bincount(where, minlength=count + 1))[:-1])


def _spread(units: Floats, count: int, rng: np.random.Generator) -> Floats:
    """(count, d) k-means++ seeds: the next one drawn with chances proportional to its squared distance from those so far."""
    chosen = [int(rng.integers(len(units)))]
    distance = _squared_to(units, units[chosen[0]])
    while len(chosen) < count:
        total = distance.sum()
        if total > 0.0:
            chosen.append(int(rng.choice(len(units), p=distance / total)))
        else:  # fewer different vectors than clusters
            chosen.append(int(rng.integers(len(units))))
        distance = np.minimum(distance, _squared_to(units, units[chosen[-1]]))
    return units[chosen]


def _squared_to(units: Floats, centre: Floats) -> Floats:
    squared: Floats = np.maximum(((units - centre) ** 2).sum(axis=1), 0.0)
    return squared


def _nearest(units: Floats, centres: Floats) -> Ints:
    """(N,) the centre of least distance; |u - c|² = |u|² - 2u·c + |c|², of which the first is the same for every centre."""
    offsets = (centres**2).sum(axis=1)
    parts = [np.argmin(offsets - 2.0 * (units[i : i + _BLOCK] @ centres.T), axis=1) for i in range(0, len(units), _BLOCK)]
    return np.concatenate(parts).astype(np.int64)
