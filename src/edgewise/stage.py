"""The machinery under a step: asking the method, issuing tickets, settling outcomes, rolling back.

A synchronous step makes a `Stage` and throws it away; streaming keeps one. What the method sees of it is its `View`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgewise import outcomes
from edgewise.accounts import Accounts
from edgewise.contract import check_requests, check_verdicts
from edgewise.errors import EdgewiseError, HostError, MethodError, OutcomeError, ShortfallError
from edgewise.metrics import StepMetrics
from edgewise.types import (
    Array,
    Groups,
    Ints,
    MethodState,
    Outcome,
    Requests,
    Ticket,
    Verdicts,
)
from edgewise.view import View
from edgewise.waiting import Retired, Waiting

if TYPE_CHECKING:
    from edgewise.selector import Selector


class Judged(NamedTuple):
    """What became of reported groups: the checked groups and the method's verdicts on them, one each."""

    groups: Groups
    verdicts: Verdicts


class Stage:
    """One step (or one stream) of one selector."""

    def __init__(self, selector: Selector, *, streaming: bool) -> None:
        self._selector = selector
        self.accounts = Accounts()
        self.view = View(selector, self.accounts, streaming=streaming)
        self._round_tickets: dict[int, Ticket] = {}
        self._of_round: dict[int, Outcome] = {}
        self._fallen_back = False
        self._undo_rows: list[tuple[Ints, dict[str, Array]]] = []
        self._undo_shared: dict[str, Array] = {}
        self._undo_position = 0
        self._undo_premise: dict[str, Array] = {}
        self._undo_waiting = Waiting()
        self._undo_retired = Retired()

    @property
    def metrics(self) -> StepMetrics:
        """The numbers of the step (streaming: of the period) so far."""
        return self.accounts.metrics

    # -- one round -----------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Remember what `roll_back` goes back to: the start of a step, or of one call when streaming."""
        self._undo_rows = []
        self._undo_shared = _copies(self._selector.method.state().shared)
        self._undo_position = self._selector._stream.position
        self._undo_premise = self._selector._premise.arrays()
        self._undo_waiting, self._undo_retired = self._selector._waiting.copy(), self._selector._retired.copy()

    def drop_reissued(self) -> None:
        """Tickets that a restore left in flight are void: the step that was cut off is done again as a whole."""
        selector = self._selector
        void = [ticket for ticket in selector._reissue if selector._open.pop(ticket.seq, None) is not None]
        selector._reissue = []
        selector._waiting.forget_asked({ticket.seq for ticket in void})
        self._free_up(np.array([ticket.row for ticket in void], dtype=np.int64))

    def begin(self) -> None:
        """The start of a step, after `mark`: retired prompts whose pass is over come back, groups that waited too long go."""
        selector = self._selector
        if len(selector._retired):
            over = selector._retired.rows if self.view.free() < selector.batch_size else selector._retired.back(self.view.epoch)
            self.view.bring_back(over)
        limit = selector.method.max_staleness
        if limit is not None and len(selector._waiting):
            stale = [begun.group for begun in selector._waiting.stale(self.view.policy_version, limit)]
            if stale:
                groups = outcomes.joined(stale)
                self._decide(groups, Verdicts.of(np.zeros(len(groups), dtype=np.bool_), "stale"))
                self._free_up(groups.rows)

    def propose(self, room: int) -> Requests:
        """Ask the method; in degrade mode a failing method is replaced by uniform, for one round a step.

        What the failing call drew goes back to the stream: it is as if it had not been asked.
        """
        selector = self._selector
        before, position, offers = _copies(selector.method.state().shared), selector._stream.position, len(self.view.offered)
        started, signal_before = time.perf_counter(), self.metrics.get("signal_s")
        try:
            requests = selector.method.propose(room, self.view)
            self._check(requests, room)
        except ShortfallError:
            raise
        except Exception as error:
            if selector.strict:
                raise
            self._restore_shared(before)
            drawn, self.view.offered = self.view.offered[offers:], self.view.offered[:offers]
            for rows in drawn:
                selector._blocked[rows] = False
                self.metrics.add(offered=-len(rows))
            selector._stream.position = position
            requests = self._fall_back(room, error)
        spent = time.perf_counter() - started - (self.metrics.get("signal_s") - signal_before)
        self.metrics.add(propose_ms=1e3 * spent)
        return requests

    def _check(self, requests: Requests, room: int) -> None:
        selector = self._selector
        busy = [ticket.row for ticket in selector._open.values()]
        check_requests(
            selector.method.name,
            requests,
            pool_size=len(selector.pool),
            most=room if self.view.streaming else None,
            in_flight=[*busy, *selector._waiting.rows.tolist()],
            issued=self.view.issued,
        )

    def _fall_back(self, room: int, error: Exception) -> Requests:
        self._failed("propose", error, f"Prompts of this round of step {self.view.number} are drawn uniformly instead.")
        if self._fallen_back and not self.view.streaming:
            return Requests.of([], self._selector.group_size)
        self._fallen_back = True
        return Requests.of(self.view.draw(room), self._selector.group_size)

    def issue(self, requests: Requests) -> list[Ticket]:
        """Turn requests into tickets in flight."""
        selector = self._selector
        predicted = requests.predicted_pass_rate
        tickets = []
        for i, (row, rollouts) in enumerate(zip(requests.rows.tolist(), requests.rollouts.tolist(), strict=True)):
            p = None if predicted is None or not np.isfinite(predicted[i]) else float(predicted[i])
            tickets.append(self._ticket(row, rollouts, p, None))
        selector._retired.remove(requests.rows)  # a method may ask for one in spite of that
        selector._blocked[requests.rows] = True  # methods that pick from the whole pool do not draw
        self.view.offered.append(requests.rows)
        self.view.issued.append(requests.rows)
        return tickets

    def go_on(self, most: int) -> list[Ticket]:
        """Tickets for at most `most` groups that wait for more rollouts, oldest first."""
        waiting = self._selector._waiting
        tickets = []
        for begun in waiting.ready(self.view.number, most):
            ticket = self._ticket(begun.first.row, begun.wanted, begun.first.predicted_pass_rate, begun.first.seq)
            waiting.ask(begun.first.seq, ticket.seq)
            tickets.append(ticket)
        if tickets:
            rows = np.array([ticket.row for ticket in tickets], dtype=np.int64)
            self.view.offered.append(rows)
            self.view.issued.append(rows)
            self.metrics.add(continued=len(tickets))
        return tickets

    def _ticket(self, row: int, rollouts: int, predicted: float | None, continues: int | None) -> Ticket:
        selector = self._selector
        ticket = Ticket(
            seq=selector._next_seq, row=row, prompt_id=selector.pool.ids[row], step=self.view.number, round=self.view.round,
            policy_version=self.view.policy_version, rollouts=rollouts, predicted_pass_rate=predicted, continues=continues,
        )  # fmt: skip
        selector._next_seq += 1
        selector._open[ticket.seq] = ticket
        self._round_tickets[ticket.seq] = ticket
        return ticket

    def accept(self, reported: Sequence[Outcome]) -> list[Outcome]:
        """Those outcomes whose ticket is open and agrees with what was issued; the rest are counted, once each.

        A step takes the outcomes of its own tickets only: those of `take` are reported to the selector.
        """
        selector = self._selector
        held = selector._open if self.view.streaming else self._round_tickets
        good: list[Outcome] = []
        seen: set[int] = set()
        for outcome in reported:
            issued = held.get(outcome.ticket.seq)
            if issued is None or outcome.ticket.seq in seen or outcome.ticket.seq in self._of_round:
                known = outcome.ticket.seq < selector._next_seq
                selector._totals["dup_outcomes"] += 1
                if selector.strict:
                    raise OutcomeError(
                        f"Outcome for ticket {outcome.ticket.seq} of prompt {outcome.ticket.prompt_id!r}: "
                        + (
                            "it was already reported or cancelled, or `take` issued it."
                            if known
                            else "no such ticket was issued."
                        )
                    )
                continue
            same = outcome.ticket is issued or replace(outcome.ticket, predicted_pass_rate=issued.predicted_pass_rate) == issued
            if not same:
                selector.problem(
                    OutcomeError(
                        f"Outcome for ticket {issued.seq}: it was issued for prompt {issued.prompt_id!r} and is reported for "
                        f"{outcome.ticket.prompt_id!r}. The outcome is refused whole."
                    )
                )
                continue
            seen.add(outcome.ticket.seq)
            good.append(outcome if outcome.ticket is issued else replace(outcome, ticket=issued))
        return good

    def settle(self, reported: Sequence[Outcome]) -> Judged:
        """Judge and, where the verdict is final, observe. A method of scope "batch" waits until the round is complete.

        Tickets are closed last: where something raises, they are still open and can be reported again. Returns the groups
        whose verdict is final.
        """
        selector = self._selector
        if selector.method.scope == "batch" and not self.view.streaming:
            self._of_round.update((o.ticket.seq, o) for o in reported)
            if any(seq not in self._of_round for seq in self._round_tickets):
                return _nothing()
            reported, self._of_round = list(self._of_round.values()), {}
        if not reported:
            return _nothing()
        ordered = sorted(reported, key=lambda o: o.ticket.seq)
        stacked = outcomes.stack(ordered, selector.problem)
        groups = selector._waiting.whole(stacked)
        verdicts = self._judge(groups)
        pending = verdicts.pending
        final = np.flatnonzero(pending == 0)
        judged = self._decide(groups.select(final), verdicts.select(final))
        held = np.zeros(len(groups), dtype=np.int64) if verdicts.hold is None else verdicts.hold
        for i in np.flatnonzero(pending).tolist():
            not_before = self.view.number + 1 if held[i] else self.view.number
            selector._waiting.add(groups.select(np.array([i])), int(pending[i]), not_before)
        for ticket in stacked.tickets:
            selector._open.pop(ticket.seq, None)
            self._round_tickets.pop(ticket.seq, None)
        if self.view.streaming:
            self._free_up(judged.groups.rows)
        self.accounts.rollouts(selector, stacked)
        return judged

    def _decide(self, groups: Groups, verdicts: Verdicts) -> Judged:
        """The verdicts are final: learn from the groups, retire prompts, count."""
        selector = self._selector
        inside = np.arange(groups.rewards.shape[1]) < groups.asked[:, None]
        trained = inside if verdicts.trained is None else inside & verdicts.trained
        weights = trained.astype(np.float64) if verdicts.weights is None else np.where(trained, verdicts.weights, 0.0)
        groups = replace(groups, trained=trained & verdicts.keep[:, None], weights=weights)
        self._observe(groups.select(np.flatnonzero(groups.valid.any(axis=1))))
        for ticket in groups.tickets:
            selector._waiting.remove(ticket.seq)
        if verdicts.retire is not None and verdicts.retire.any():
            selector._retired.add(groups.rows[verdicts.retire], self.view.epoch)
        self.accounts.groups(selector, groups, verdicts)
        for watcher in selector._watchers:
            try:
                watcher(groups, verdicts)
            except Exception as error:
                selector.problem(HostError(f"A function given to Selector.watch failed: {type(error).__name__}: {error}."))
        return Judged(groups, verdicts)

    def _judge(self, groups: Groups) -> Verdicts:
        selector = self._selector
        before = _copies(selector.method.state().shared)
        try:
            verdicts = selector.method.judge(groups, self.view)
            check_verdicts(selector.method.name, verdicts, groups)
            return verdicts
        except Exception as error:
            if selector.strict:
                raise
            self._restore_shared(before)
            self._failed("judge", error, "All whole groups are kept.")
            return Verdicts.of(groups.valid.sum(axis=1) >= 2, "incomplete")

    def _observe(self, groups: Groups) -> None:
        if len(groups) == 0:
            return
        selector = self._selector
        rows = np.unique(groups.rows)
        held = selector.method.state()
        before = _copies(held.shared)
        self._undo_rows.append((rows, {k: v[rows].copy() for k, v in held.prompts.items()}))
        try:
            selector.method.observe(groups, self.view)
        except Exception as error:
            if selector.strict:
                raise
            self._restore_shared(before, [self._undo_rows.pop()])
            self._failed("observe", error, "These groups teach nothing.")

    def _failed(self, what: str, error: Exception, then: str) -> None:
        """Degrade: say which part of the method failed and what happens instead; show where, the first time."""
        selector = self._selector
        if not isinstance(error, EdgewiseError) and what not in selector._warned:
            selector._warned.add(what)
            traceback.print_exception(error)
        selector.problem(MethodError(f"{selector.method.name}.{what} failed: {type(error).__name__}: {error}. {then}"))
        self.metrics.set(degraded=1.0)

    # -- ends ----------------------------------------------------------------------------------------------------------

    def cancel_unreported(self) -> Judged:
        """Tickets of the round that the host never reported are cancelled: not outcomes, and free to be chosen again."""
        selector = self._selector
        left = [t for seq, t in self._round_tickets.items() if seq not in self._of_round]
        for ticket in left:
            if ticket.continues is None:
                selector._open.pop(ticket.seq, None)
                self._round_tickets.pop(ticket.seq, None)
        if left:
            self.metrics.add(unreported=len(left))
            selector.problem(
                OutcomeError(
                    f"Step {self.view.number}, round {self.view.round}: {len(left)} of its tickets were never reported (first: "
                    f"prompt {left[0].prompt_id!r}). They are cancelled; report failed rollouts with rewards of None."
                )
            )
        # a group that was begun is judged on what there is: the rest of it never came
        return self.settle([Outcome(ticket=ticket, rewards=[]) for ticket in left if ticket.continues is not None])

    def release_offered(self) -> None:
        """Make everything this step offered choosable again, but for prompts that are in flight, wait or are retired."""
        offered, self.view.offered = self.view.offered, []
        for rows in offered:
            self._free_up(rows)

    def _free_up(self, rows: Ints) -> None:
        selector = self._selector
        selector._blocked[rows] = False
        for still in (selector._waiting.rows, selector._retired.rows):
            selector._blocked[still] = True

    def release_unissued(self) -> None:
        """Streaming: what was drawn and not issued is free again; issued prompts stay in flight."""
        self.release_offered()
        busy = {ticket.row for ticket in self._selector._open.values()}
        self._selector._blocked[list(busy)] = True
        self.accounts.forget_scores(busy)
        self._round_tickets = {}
        self.view.issued = []

    def numbers(self) -> dict[str, float]:
        """Streaming: the metrics so far, with totals and what is in flight."""
        selector = self._selector
        self.metrics.set(step=selector._number, in_flight=float(len(selector._open)), **selector._totals)
        self.metrics.set(**self.accounts.predictions())
        return self.metrics.as_dict()

    def roll_back(self) -> None:
        """Undo everything since `mark`, except the count of rollouts that were really generated."""
        selector = self._selector
        for seq in self._round_tickets:
            selector._open.pop(seq, None)
        self._round_tickets = {}
        self._of_round = {}
        selector._waiting, selector._retired = self._undo_waiting, self._undo_retired
        self.release_offered()
        self._free_up(np.empty(0, dtype=np.int64))
        self._restore_shared(self._undo_shared, self._undo_rows)
        self._undo_rows = []
        selector._stream.position = self._undo_position
        selector._premise.restore(self._undo_premise)

    def _restore_shared(self, shared: dict[str, Array], rows: Sequence[tuple[Ints, dict[str, Array]]] = ()) -> None:
        held = self._selector.method.state()
        prompts = _copies(held.prompts)
        for at, values in reversed(rows):
            for name, old in values.items():
                prompts[name][at] = old
        self._selector.method.restore(MethodState(prompts=prompts, shared=_copies(shared)))


def _copies(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _nothing() -> Judged:
    """No group at all."""
    return Judged(outcomes.stack([], lambda error: None), Verdicts(np.empty(0, dtype=np.bool_), ()))
