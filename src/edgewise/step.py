"""One training step of a synchronous host: a transaction over rounds of requests and reports."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from edgewise import outcomes
from edgewise.decided import Judged, together
from edgewise.errors import ConfigError, ShortfallError
from edgewise.stage import Stage
from edgewise.types import ROLLOUT_SIGNALS, Groups, Outcome, Ticket
from edgewise.view import Signals

if TYPE_CHECKING:
    from edgewise.selector import Selector


class Step:
    """One training step of a synchronous host. Made by `Selector.step`; use it as a context manager."""

    def __init__(self, selector: Selector, policy_version: int) -> None:
        self._selector = selector
        self._stage = Stage(selector, streaming=False)
        self._policy_version = int(policy_version)
        self._kept: list[Groups] = []
        self._dropped: list[Groups] = []
        self._issued = 0
        self._entered = False

    def __enter__(self) -> Step:
        selector = self._selector
        if self._entered or selector._current is not None:
            raise ConfigError("Selector.step(): a step is entered once, and one at a time.")
        selector.settle()  # what `report` brought is learned before this step decides anything
        self._entered = True
        self._stage.drop_reissued()
        self._stage.view.aim(selector._number, self._policy_version, {})
        self._stage.mark()
        try:
            selector._current = self
            self._stage.begin()
            return self
        except BaseException:  # strict mode, or an interrupt
            self._undo()
            raise

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:  # from the first line to the one that commits: an interrupt may come at any of them
            selector, started = self._selector, time.perf_counter()
            if kind is not None:
                self._undo()
                return
            self._take_in(self._stage.cancel_unreported())
            self._stage.learn()
            self._stage.release_offered()
            metrics = self._stage.metrics
            metrics.set(step=selector._number, **selector._totals)
            metrics.set(**self.accounts())
            values = metrics.as_dict()
            selector._number, selector.metrics, selector._current = selector._number + 1, values, None
        except BaseException:  # strict mode, or an interrupt
            self._undo()
            raise
        selector._autosave()
        selector.metrics["commit_ms"] = 1e3 * (time.perf_counter() - started)

    def _undo(self) -> None:
        self._stage.roll_back()
        self._selector._current = None

    @property
    def missing(self) -> int:
        """Groups that the training batch still lacks."""
        return max(0, self._selector.batch_size - sum(len(g) for g in self._kept))

    def requests(self, signals: Signals | None = None) -> Iterator[list[Ticket]]:
        """Rounds of tickets until the training batch is full or the method cannot fill it.

        signals: what the method may ask for, by name, for the current policy.
        Raises HostError if the method needs one that is not there; SignalError, MethodError and the method's own errors only
        in strict mode; ShortfallError where the method is told to.
        """
        selector, stage = self._selector, self._stage
        if selector._current is not self:
            raise ConfigError("Step.requests(): the step is not open; use it inside `with selector.step(...) as step:`.")
        selector.check_signals({*(signals or {}), *ROLLOUT_SIGNALS})
        stage.view.aim(selector._number, self._policy_version, signals or {})
        while self.missing > 0:
            tickets = stage.go_on(self.missing)
            room = self.missing - len(tickets)
            if room > 0:
                tickets += stage.issue(stage.propose(room))
            if not tickets:
                break
            stage.metrics.add(rounds=1)
            yield tickets
            self._take_in(stage.cancel_unreported())
            stage.learn()
            stage.view.round += 1
        stage.metrics.set(shortfall=self.missing)

    def report(self, reported: Sequence[Outcome]) -> Judged:
        """Outcomes of this step's tickets, in any order and any number of calls before the next round is asked for.

        Outcomes of expired tickets, of this step or an earlier one, may be among them: their verdict is "late", the method
        learns from them, and they go into no training batch. The method learns when the round is over.
        """
        good, late = self._stage.accept(reported)
        judged = self._stage.settle(good)
        self._take_in(judged)
        return together(judged, self._stage.settle_late(late))

    def note(self, **values: float) -> None:
        """Add a host's own counts to this step's metrics, such as `rollout_s`."""
        self._stage.metrics.add(**values)

    def _take_in(self, judged: Judged) -> None:
        if len(judged.groups):
            self._kept.append(judged.groups.select(judged.verdicts.keep))
            self._dropped.append(judged.groups.select(~judged.verdicts.keep))

    @property
    def training_batch(self) -> Groups:
        """The first `batch_size` kept groups in the order in which they were requested; fewer if the step ended short.

        Together they train on at most batch_size x group_size rollouts: groups that go beyond are left out, and of a first
        group that alone goes beyond, its last rollouts. `trained` and `weights` say which rollouts of each group count, and how
        much. Raises ShortfallError if not one group was kept.
        """
        kept = _in_request_order(self._kept)
        if kept is None or len(kept) == 0:
            raise ShortfallError(
                f"Step {self._selector._number} has no group to train on: {self._counts()}. Lower the bar (another gate, more "
                "rounds), add prompts of other difficulty, or train on a zero-variance batch on purpose."
            )
        first = kept.select(np.arange(min(len(kept), self._selector.batch_size)))
        most = self._selector.batch_size * self._selector.group_size
        within = np.cumsum(first.trained.sum(axis=1)) <= most
        if not within[0]:
            alone = first.select(np.array([0]))
            trained = alone.trained & (np.cumsum(alone.trained, axis=1) <= most)
            return replace(alone, trained=trained, weights=np.where(trained, alone.weights, 0.0))
        return first if within.all() else first.select(np.flatnonzero(within))

    @property
    def fillers(self) -> Groups | None:
        """Groups that were rolled out and dropped, in request order; a host may fill a short batch with them."""
        return _in_request_order(self._dropped)

    def _counts(self) -> str:
        m = self._stage.metrics
        return (
            f"{m.get('rolled_out'):.0f} groups rolled out in {m.get('rounds'):.0f} rounds, {m.get('mixed'):.0f} mixed, "
            f"{m.get('all_pass'):.0f} all passing, {m.get('all_fail'):.0f} all failing"
        )

    def accounts(self) -> dict[str, float]:
        """Shares and totals of the step so far, as they will be logged."""
        m = self._stage.metrics
        kept = sum(len(g) for g in self._kept)
        rolled = m.get("rolled_out")
        values = {
            "in_flight": float(len(self._selector._open)),
            "short_groups": float(max(0, self._selector.batch_size - kept)),
            "surplus": float(max(0, kept - self._selector.batch_size)),
            "topup_rounds": max(0.0, m.get("rounds") - 1),
            "epoch": self._stage.view.epoch,
        }
        if rolled:
            values |= {f"{name}_frac": m.get(name) / rolled for name in ("mixed", "all_pass", "all_fail")}
        if len(self._selector._waiting):
            values["waiting"] = float(len(self._selector._waiting))
        return values | self._stage.accounts.predictions() | self._selector._premise.correlations()


def _in_request_order(parts: Sequence[Groups]) -> Groups | None:
    """One `Groups` of all parts, by ticket; None if there are no parts."""
    if not parts:
        return None
    groups = outcomes.joined(parts)
    return groups.select(np.argsort([t.seq for t in groups.tickets], kind="stable"))
