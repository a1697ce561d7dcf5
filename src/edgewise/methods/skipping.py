"""Follow the stream of prompts and pass over those that are out of the running."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edgewise.method import StepView
from edgewise.types import Bools, Ints

_LOOKS = 64
"""Prompts looked at per prompt wanted, so that a step costs what the batch costs when nearly all are out."""


def draw_wanted(step: StepView, most: int, wanted: Callable[[Ints], Bools]) -> Ints:
    """The next at most `most` rows of the stream that are `wanted`, in stream order.

    Where the stream or the looks run out before, prompts that were passed over fill up, so that a pool of which nearly all is
    out does not stop the run. They are logged as `relaxed`, the others that were passed over as `skipped`.

    wanted: (n,) rows -> (n,) True for those to take.
    """
    taken = np.empty(0, dtype=np.int64)
    passed_over = np.empty(0, dtype=np.int64)
    looks = _LOOKS * most
    while len(taken) < most and looks > 0:
        rows = step.draw(min(looks, most - len(taken)))
        if len(rows) == 0:
            break
        looks -= len(rows)
        good = wanted(rows)
        taken = np.concatenate([taken, rows[good]])
        passed_over = np.concatenate([passed_over, rows[~good]])
    relaxed = passed_over[: most - len(taken)]
    step.log(skipped=len(passed_over) - len(relaxed), relaxed=len(relaxed))
    return np.concatenate([taken, relaxed])
