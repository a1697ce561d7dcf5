"""Stage 2 of HIVE: keep the prompts whose entropy under the current policy lies in a band, or above the median.

Symbols: V prompt entropy (nats) · k_keep `keep_share` · k_off `trim_share` · N1 `candidates_for` · γ the median. [HIVE §3, B.3]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgewise.types import Floats, Ints

_ROUNDING = 1e-9  # 0.29 * 100 is 28.999999999999996 in floating point; shares are meant as decimals


@dataclass(frozen=True, slots=True)
class Ranked:
    """Positions in the candidate list, each part by falling entropy; together every candidate exactly once.

    upper: trimmed off the top.  kept: the choice.  low: below the band.
    """

    upper: Ints
    kept: Ints
    low: Ints

    def extended(self, extra: int) -> Ranked:
        """Keep `extra` more: the next-ranked below the band, then those above it; fewer if the candidates run out.

        >>> Ranked(np.array([0]), np.array([1, 2]), np.array([3])).extended(2).kept.tolist()
        [1, 2, 3, 0]
        """
        below = self.low[:extra]
        above = self.upper[::-1][: extra - len(below)]
        kept = np.concatenate([self.kept, below, above])
        return Ranked(self.upper[: len(self.upper) - len(above)], kept, self.low[len(below) :])

    def over(self, positions: Ints) -> Ranked:
        """The same choice, for candidates that stood at `positions` of a longer list."""
        return Ranked(positions[self.upper], positions[self.kept], positions[self.low])

    @staticmethod
    def joined(parts: Sequence[Ranked], entropies: Floats) -> Ranked:
        """Several choices over parts of one list as one; each part again by falling entropy."""

        def merged(pieces: list[Ints]) -> Ints:
            places = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)
            return places[_by_falling(entropies[places])]

        return Ranked(merged([p.upper for p in parts]), merged([p.kept for p in parts]), merged([p.low for p in parts]))


def candidates_for(target: int, keep_share: float) -> int:
    """How many candidates the band needs so that `target` of them are kept: N1 = ceil(target / k_keep).

    >>> candidates_for(384, 0.5)
    768
    """
    return math.ceil(target / keep_share - _ROUNDING)


def share_of(share: float, count: int) -> int:
    """Whole part of a share of a count: floor(share * count).

    >>> share_of(0.29, 100)
    29
    """
    return math.floor(share * count + _ROUNDING)


def entropy_band(entropies: Floats, target: int, missing: int, *, keep_share: float = 0.5, trim_share: float = 0.25) -> Ranked:
    """Trim the highest-entropy share, keep the next, leave the rest. Ties go to the earlier candidate.

    With enough candidates (M >= ceil(target / keep_share)) exactly `target` are kept. From a pool that ran dry below that,
    the keep share of what is there, but never fewer than are `missing` while there are candidates; the trim then yields.

    entropies: (M,) finite.  target: groups wanted.  missing: groups the training batch still lacks.
    keep_share, trim_share: k_keep in (0, 1] and k_off in [0, 1), together at most 1.

    >>> band = entropy_band(np.array([10.0, 9, 8, 7, 6, 5, 4, 3]), 4, 4)
    >>> band.upper.tolist(), band.kept.tolist(), band.low.tolist()
    ([0, 1], [2, 3, 4, 5], [6, 7])
    """
    count = len(entropies)
    if count >= candidates_for(target, keep_share):
        n_keep = target
    else:
        n_keep = min(count, target, max(share_of(keep_share, count), missing))
    return _cut(entropies, n_keep, share_of(trim_share, count))


def band_by_share(entropies: Floats, *, keep_share: float = 0.5, trim_share: float = 0.25) -> Ranked:
    """The band of one raw batch as the paper words it: keep floor(k_keep·M) after a trim of floor(k_off·M). [HIVE B.3]"""
    count = len(entropies)
    return _cut(entropies, share_of(keep_share, count), share_of(trim_share, count))


def median_gate(entropies: Floats, most: int) -> Ranked:
    """Keep V >= median(V), ties included, cut to the `most` highest. The rule of the paper's main text. [HIVE §3]

    >>> median_gate(np.array([5.0, 4.0, 3.0, 2.0]), 4).kept.tolist()
    [0, 1]
    """
    order = _by_falling(entropies)
    passing = int((entropies >= np.median(entropies)).sum()) if len(entropies) else 0
    n_keep = min(most, passing)
    return Ranked(order[:0], order[:n_keep], order[n_keep:])


def _cut(entropies: Floats, n_keep: int, n_trim: int) -> Ranked:
    order = _by_falling(entropies)
    start = min(n_trim, len(order) - n_keep)
    return Ranked(order[:start], order[start : start + n_keep], order[start + n_keep :])


def _by_falling(entropies: Floats) -> Ints:
    return np.argsort(-entropies, kind="stable").astype(np.int64)
