"""The shuffled stream of prompts: an endless order over the pool, given by (seed, epoch), resumed from one integer."""

from __future__ import annotations

import zlib

import numpy as np

from edgewise.types import Bools, Ints


def derived_rng(seed: int, *where: int, purpose: str) -> np.random.Generator:
    """A generator that is a function of its arguments only, so it is never saved.

    >>> a = derived_rng(7, 3, 0, purpose="accept").random()
    >>> a == derived_rng(7, 3, 0, purpose="accept").random()
    True
    """
    return np.random.default_rng([seed, *where, zlib.crc32(purpose.encode())])


class PromptStream:
    """Epoch after epoch of the pool, each in its own shuffled order. `position` is all there is to save.

    The order of one epoch is a permutation drawn once an epoch (4 bytes a prompt); a draw touches only what it returns
    and the blocked rows it passes over.
    """

    def __init__(self, pool_size: int, seed: int) -> None:
        self.pool_size = pool_size
        self.seed = seed
        self.position = 0
        self._epoch = -1
        self._order = np.empty(0, dtype=np.uint32)

    @property
    def epoch(self) -> int:
        """Passes over the pool begun so far, minus one; from 0."""
        return self.position // self.pool_size

    def draw(self, n: int, blocked: Bools) -> Ints:
        """The next `n` rows that are not blocked, and block them.

        blocked: (N,) live mask, written at the rows returned; the caller guarantees at least `n` unblocked rows.
        Rows passed over because they were blocked wait for the next epoch.
        """
        taken: list[Ints] = []
        missing = n
        while missing > 0:
            epoch, start = divmod(self.position, self.pool_size)
            block = self._order_of(epoch)[start : start + missing].astype(np.int64)
            self.position += len(block)
            free = block[~blocked[block]]
            blocked[free] = True
            taken.append(free)
            missing -= len(free)
        return np.concatenate(taken) if taken else np.empty(0, dtype=np.int64)

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            rng = derived_rng(self.seed, epoch, purpose="stream")
            self._order = rng.permutation(self.pool_size).astype(np.uint32)
            self._epoch = epoch
        return self._order
