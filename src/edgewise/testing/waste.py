"""How many responses lie in mixed groups, of a method and of uniform, on the same frozen policies."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from edgewise.method import Method
from edgewise.methods import make
from edgewise.testing.drive import Size, mixed_share, selector_of
from edgewise.testing.world import World


def share_of(build: Callable[[], Method], entropy_difficulty: float, groups: int) -> tuple[float, int]:
    """Mean share of responses in mixed groups over four pools, and the prompts asked for in all of them."""
    size = Size(batch_size=8, group_size=8, total_steps=60)
    found = []
    for seed in range(1, 5):
        world = World(200, seed=seed, entropy_difficulty=entropy_difficulty)
        found.append(mixed_share(selector_of(build(), world, size, seed=seed), world, groups // 4))
    return float(np.mean([share for share, _ in found])), sum(prompts for _, prompts in found)


@functools.cache
def uniform_share(entropy_difficulty: float, groups: int) -> tuple[float, int]:
    """The same for `uniform`."""
    return share_of(lambda: make("uniform"), entropy_difficulty, groups)
