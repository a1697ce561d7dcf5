"""One line a method: mean held-out accuracy over seeds against generated responses, and where it meets the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgewise.types import Floats

_MOST_POINTS = 400


@dataclass(frozen=True, slots=True)
class Curve:
    """The mean of a method's seeds. All arrays (n,), on one grid of generated responses."""

    method: str
    seeds: int
    responses: Floats
    mean: Floats
    low: Floats
    high: Floats

    def first_reach(self, accuracy: float) -> float | None:
        """Generated responses when the mean line first meets `accuracy`; None if it never does."""
        above = np.flatnonzero(self.mean >= accuracy - 1e-9)
        if not len(above):
            return None
        i = int(above[0])
        if i == 0:
            return float(self.responses[0])
        part = (accuracy - self.mean[i - 1]) / (self.mean[i] - self.mean[i - 1])
        return float(self.responses[i - 1] + min(part, 1.0) * (self.responses[i] - self.responses[i - 1]))


def curves(comparison: Mapping[str, Any]) -> list[Curve]:
    """The methods in the order in which their first arm stands in the comparison."""
    arms: dict[str, list[list[tuple[float, float]]]] = {}
    for curve in comparison["curves"]:
        points = sorted((float(p["responses"]), float(p["held_out"])) for p in curve["points"])
        if points:
            arms.setdefault(str(curve["method"]), []).append(points)
    return [_over_seeds(method, seeds) for method, seeds in arms.items()]


def target(comparison: Mapping[str, Any]) -> float | None:
    """The accuracy to reach: the reference's final one, mean over its seeds; None if it did not run."""
    values = [float(value) for value in comparison["targets"].values()]
    return float(np.mean(values)) if values else None


def _over_seeds(method: str, seeds: Sequence[Sequence[tuple[float, float]]]) -> Curve:
    """Linear between evaluations, as far as the shortest seed goes; then one point with the means of all seeds' ends.

    Seeds end within a step of each other. The last point is thus exactly what the summary calls final.
    """
    arms = [np.array(points) for points in seeds]
    end = min(arm[-1, 0] for arm in arms)
    grid = np.unique(np.concatenate([arm[:, 0] for arm in arms]))
    grid = grid[grid <= end]
    if len(grid) > _MOST_POINTS:
        grid = np.linspace(grid[0], end, _MOST_POINTS)
    values = np.stack([np.interp(grid, arm[:, 0], arm[:, 1]) for arm in arms])  # (seeds, n)
    last = float(np.mean([arm[-1, 0] for arm in arms]))
    if last > end:
        grid = np.append(grid, last)
        values = np.column_stack([values, [arm[-1, 1] for arm in arms]])
    return Curve(method, len(arms), grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))
