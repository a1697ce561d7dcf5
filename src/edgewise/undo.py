"""What a step, or a call of a streaming host, goes back to when something raises: the cost follows the batch, not the pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from edgewise.decided import Pending
from edgewise.errors import MethodError
from edgewise.types import Array, Ints, MethodState, Ticket
from edgewise.view import View
from edgewise.waiting import Retired, Waiting

if TYPE_CHECKING:
    from edgewise.selector import Selector

Touched = tuple[Ints, dict[str, Array]]
"""(n,) rows, and what the method's per-prompt arrays held there."""


class Undo:
    """The state of a selector and its method at `mark`, and the rows that were written since.

    failed: told what of the method failed, how, and what happens instead; only called in degrade mode.
    """

    def __init__(self, selector: Selector, view: View, failed: Callable[[str, Exception, str], None]) -> None:
        self._selector = selector
        self._view = view
        self._failed = failed
        self.rows: list[Touched] = []
        self.pending = Pending()
        self._shared: dict[str, Array] = {}
        self._position = 0
        self._premise: dict[str, Array] = {}
        self._waiting = Waiting()
        self._retired = Retired()
        self._open: dict[int, Ticket] = {}
        self._expired: dict[int, Ticket] = {}
        self._aimed = view.aimed

    def mark(self, pending: Pending) -> None:
        """Remember everything as it is. pending: what there is to learn."""
        selector = self._selector
        self.rows = []
        self.pending = pending.copy()
        self._shared = self.shared()
        self._position = selector._stream.position
        self._premise = selector._premise.arrays()
        self._waiting, self._retired = selector._waiting.copy(), selector._retired.copy()
        self._open, self._expired = dict(selector._open), selector._expired
        self._aimed = self._view.aimed

    def touch(self, rows: Ints) -> None:
        """The method is about to write its per-prompt arrays at `rows`."""
        self.rows.append((rows, {name: array[rows].copy() for name, array in self._held().prompts.items()}))

    def roll_back(self) -> None:
        """Be as at `mark`, but for the count of rollouts that were really generated and for what is blocked."""
        selector = self._selector
        selector._open, selector._expired = self._open, self._expired
        selector._waiting, selector._retired = self._waiting, self._retired
        self._view.aim(*self._aimed)
        self.restore(self._shared, self.rows)
        self.rows = []
        selector._stream.position = self._position
        selector._premise.restore(self._premise)

    def shared(self) -> dict[str, Array]:
        """A copy of the method's shared state."""
        return _copies(self._held().shared)

    def restore(self, shared: Mapping[str, Array], rows: list[Touched] | None = None) -> None:
        """Give the method back its shared state, and what it held at `rows`, the newest first."""
        selector = self._selector
        prompts = _copies(self._held().prompts)
        try:
            for at, values in reversed(rows or []):
                for name, old in values.items():
                    prompts[name][at] = old
            selector.method.restore(MethodState(prompts=prompts, shared=_copies(shared)))
        except Exception as error:
            if selector.strict:
                raise
            self._failed("restore", error, "What it did just now is not undone.")

    def _held(self) -> MethodState:
        """The method's state; what it cannot give, or gives in another shape than at the start, cannot be undone either."""
        selector = self._selector
        size = len(selector.pool)
        try:
            held = selector.method.state()
            wrong = [name for name, array in held.prompts.items() if array.shape[:1] != (size,)]
            odd = [name for name, array in (held.prompts | held.shared).items() if np.asarray(array).dtype.kind not in "biuf"]
            if wrong or odd:
                raise MethodError(
                    f"{selector.method.name}.state() must hold plain arrays, in `prompts` one entry for each of {size}; "
                    f"these are not: {wrong + odd}."
                )
            return held
        except Exception as error:
            if selector.strict:
                raise
            self._failed("state", error, "What it does from here on cannot be undone.")
            return MethodState()


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}
