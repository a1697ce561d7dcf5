"""What a method sees of the step under way: the `StepView` of a real selector."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgewise.accounts import Accounts
from edgewise.errors import EdgewiseError, SignalError
from edgewise.stream import derived_rng
from edgewise.types import MATRIX_SIGNALS, PROMPT_ENTROPY, Bools, Floats, Ints, Signal

if TYPE_CHECKING:
    from edgewise.selector import Selector

Signals = Mapping[Signal, Callable[[Ints], Any]]
"""Name -> function from (n,) pool rows to (n,) numbers, computed with the current policy."""


class View:
    """The view of one step, or of one stream. Docstrings of what methods use stand in `StepView`."""

    def __init__(self, selector: Selector, accounts: Accounts, *, streaming: bool) -> None:
        self._selector = selector
        self._accounts = accounts
        self._signals: Signals = {}
        self.streaming = streaming
        self.number = 0
        self.round = 0
        self.policy_version = 0
        self.offered: list[Ints] = []
        """Rows that the step drew or issued, in parts."""
        self.issued: list[Ints] = []
        """Rows of its tickets, round by round."""

    def aim(self, number: int, policy_version: int, signals: Signals) -> None:
        """Point the view at a step."""
        self.number, self.policy_version, self._signals = number, policy_version, signals

    @property
    def aimed(self) -> tuple[int, int, Signals]:
        """What `aim` was last given."""
        return self.number, self.policy_version, self._signals

    @property
    def strict(self) -> bool:
        return self._selector.strict

    @property
    def epoch(self) -> float:
        return self._selector._stream.passes(self._selector._next_seq)

    def rng(self, purpose: str) -> np.random.Generator:
        return derived_rng(self._selector.seed, self.number, self.round, purpose=purpose)

    def draw(self, n: int) -> Ints:
        blocked = self._selector._blocked
        if n > self.free() and len(self._selector._retired):  # rather than starve; but nothing twice in one step
            this_step = np.concatenate(self.issued) if self.issued else np.empty(0, dtype=np.int64)
            self.bring_back(np.setdiff1d(self._selector._retired.rows, this_step))
        rows = self._selector._stream.draw(min(n, self.free()), blocked)
        self.offered.append(rows)
        self._accounts.metrics.add(offered=len(rows))
        return rows.copy()  # whatever the method does with it, these are the rows to be freed

    def eligible(self, rows: Ints) -> Bools:
        return ~self._selector._blocked[rows]

    def signal(self, name: Signal, rows: Ints) -> Floats:
        serve = self._signals.get(name)
        if serve is None:
            raise SignalError(
                f"signal({name!r}): this host serves {sorted(self._signals) or 'no signals'}; it cannot be asked for."
            )
        asked = np.array(rows, dtype=np.int64)
        if asked.size == 0:
            return np.empty(0)
        started = time.perf_counter()
        served = serve(asked)
        # a torch tensor may be on a device, or of a type that numpy does not have; an array may be the host's own table
        values = np.array(served.tolist() if hasattr(served, "detach") else served, dtype=np.float64)
        self._accounts.metrics.add(signal_s=time.perf_counter() - started)
        if values.shape[:1] != asked.shape or values.ndim != 1 + (name in MATRIX_SIGNALS):
            wanted = (
                f"one vector a row, shape ({len(asked)}, d)" if name in MATRIX_SIGNALS else f"one number a row, {asked.shape}"
            )
            raise SignalError(f"signal({name!r}) must answer with {wanted}, got {values.shape}.")
        if name == PROMPT_ENTROPY:
            self._accounts.scored(asked, values)
        return values

    def log(self, **values: float) -> None:
        self._accounts.metrics.add(**values)

    def gauge(self, **values: float) -> None:
        self._accounts.metrics.set(**values)

    def problem(self, error: EdgewiseError) -> None:
        self._selector.problem(error)

    # -- for the stage -------------------------------------------------------------------------------------------------

    def free(self) -> int:
        """Prompts that could be offered now."""
        return len(self._selector.pool) - int(np.count_nonzero(self._selector._blocked))

    def bring_back(self, rows: Ints) -> None:
        """Retired prompts may be offered again."""
        if len(rows):
            self._selector._retired.remove(rows)
            self._selector._blocked[rows] = False
