"""The machinery under a step: asking the method, issuing tickets, settling outcomes, rolling back.

A synchronous step makes a `Stage` and throws it away; streaming keeps one. What the method sees of it is its `View`.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from edgewise import outcomes
from edgewise.accepted import accepted
from edgewise.accounts import Accounts
from edgewise.contract import check_requests, check_verdicts
from edgewise.decided import LATE, Judged, Pending, nothing
from edgewise.errors import EdgewiseError, HostError, MethodError, OutcomeError, ShortfallError
from edgewise.metrics import StepMetrics
from edgewise.types import (
    Groups,
    Ints,
    Outcome,
    Requests,
    Ticket,
    Verdicts,
)
from edgewise.undo import Undo
from edgewise.view import View

if TYPE_CHECKING:
    from edgewise.selector import Selector


MOST_EXPIRED = 65_536
"""Expired tickets that are remembered: 8 numbers each in a saved state. The oldest go first."""


class Stage:
    """One step (or one stream) of one selector."""

    def __init__(self, selector: Selector, *, streaming: bool) -> None:
        self._selector = selector
        self.accounts = Accounts()
        self.view = View(selector, self.accounts, streaming=streaming)
        self._round_tickets: dict[int, Ticket] = {}
        self._of_round: dict[int, Outcome] = {}
        self._pending = Pending()
        self._fallen_back = False
        self._undo = Undo(selector, self.view, self._failed)

    @property
    def metrics(self) -> StepMetrics:
        """The numbers of the step (streaming: of the period) so far."""
        return self.accounts.metrics

    # -- one round -----------------------------------------------------------------------------------------------------

    def mark(self) -> None:
        """Remember what `roll_back` goes back to: the start of a step, or of one call when streaming."""
        self._undo.mark(self._pending)

    def drop_reissued(self) -> None:
        """Tickets that a restore left in flight expire: the step that was cut off is done again as a whole.

        Groups that were to be continued wait again, for another ticket: what these bring would count twice.
        """
        selector = self._selector
        void = [ticket for ticket in selector._reissue if ticket.seq in selector._open]
        selector._reissue = []
        selector._waiting.forget_asked({ticket.seq for ticket in void})
        self.expire([ticket for ticket in void if ticket.continues is None])
        for ticket in void:
            selector._open.pop(ticket.seq, None)
        self._free_up(np.array([ticket.row for ticket in void], dtype=np.int64))

    def begin(self) -> None:
        """The start of a step, after `mark`: tickets and groups that waited too long go, retired prompts come back in time."""
        selector = self._selector
        if self.view.streaming and selector.expire_after is not None:
            newest = self.view.policy_version - selector.expire_after
            old = [ticket for _, ticket in sorted(selector._open.items()) if ticket.policy_version < newest]
            self.give_up(old)
        if len(selector._retired):
            over = selector._retired.rows if self.view.free() < selector.batch_size else selector._retired.back(self.view.epoch)
            self.view.bring_back(over)
        limit = selector.method.max_staleness
        if limit is not None and len(selector._waiting):
            stale = [begun.group for begun in selector._waiting.stale(self.view.policy_version, limit)]
            if stale:
                groups = outcomes.joined(stale)
                seqs = [ticket.seq for ticket in groups.tickets]
                self._decide(groups, Verdicts.of(np.zeros(len(groups), dtype=np.bool_), "stale"), seqs)
                self._free_up(groups.rows)
        self.learn()

    def propose(self, room: int) -> Requests:
        """Ask the method; in degrade mode a failing method is replaced by uniform, for one round a step.

        What the failing call drew goes back to the stream: it is as if it had not been asked.
        """
        selector = self._selector
        before, position, offers = self._undo.shared(), selector._stream.position, len(self.view.offered)
        started, signal_before = time.perf_counter(), self.metrics.get("signal_s")
        try:
            requests = selector.method.propose(room, self.view)
            self._check(requests, room)
            requests = _own(requests)
        except ShortfallError:
            raise
        except Exception as error:
            if selector.strict:
                raise
            self._undo.restore(before)
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

    def accept(self, reported: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
        """Outcomes of open and of expired tickets that agree with what was issued; the rest are counted, once each.

        A step takes the outcomes of its own tickets and of expired ones: those of `take` are reported to the selector.
        """
        held = self._selector._open if self.view.streaming else self._round_tickets
        return accepted(self._selector, reported, held, self._of_round)

    def settle(self, reported: Sequence[Outcome]) -> Judged:
        """Judge; where the verdict is final, the method will `learn`. A method of scope "batch" waits for the whole round.

        Tickets are closed last: where something raises, they are still open and can be reported again. Returns the groups
        whose verdict is final.
        """
        selector = self._selector
        if selector.method.scope == "batch" and not self.view.streaming:
            self._of_round.update((o.ticket.seq, o) for o in reported)
            if any(seq not in self._of_round for seq in self._round_tickets):
                return nothing()
            reported, self._of_round = list(self._of_round.values()), {}
        if not reported:
            return nothing()
        ordered = sorted(reported, key=lambda o: o.ticket.seq)
        stacked = outcomes.stack(ordered, selector.problem)
        groups = selector._waiting.whole(stacked)
        verdicts = self._judge(groups)
        pending = verdicts.pending
        final = np.flatnonzero(pending == 0)
        closed_by = [stacked.tickets[i].seq for i in final]
        judged = self._decide(groups.select(final), verdicts.select(final), closed_by)
        held = np.zeros(len(groups), dtype=np.int64) if verdicts.hold is None else verdicts.hold
        for i in np.flatnonzero(pending).tolist():
            not_before = self.view.number + 1 if held[i] else self.view.number
            begun = outcomes.trimmed(groups.select(np.array([i])))
            selector._waiting.add(begun, int(pending[i]), not_before)
        for ticket in stacked.tickets:
            selector._open.pop(ticket.seq, None)
            self._round_tickets.pop(ticket.seq, None)
        if self.view.streaming:
            self._free_up(judged.groups.rows)
        self.accounts.rollouts(selector, stacked)
        return judged

    def settle_late(self, reported: Sequence[Outcome]) -> Judged:
        """Outcomes of expired tickets: their verdict is that they are late, and the method will learn from them all the same.

        Each is a group of its own. They free no prompt: it was freed when the ticket expired, and may be in flight again.
        """
        if not reported:
            return nothing()
        selector = self._selector
        groups = outcomes.stack(sorted(reported, key=lambda o: o.ticket.seq), selector.problem)
        judged = self._decide(groups, Verdicts.of(np.zeros(len(groups), dtype=np.bool_), LATE), None)
        arrived = {ticket.seq for ticket in groups.tickets}
        selector._expired = {seq: ticket for seq, ticket in selector._expired.items() if seq not in arrived}
        selector._totals["late_outcomes"] += len(groups)
        self.accounts.rollouts(selector, groups)
        return judged

    def _decide(self, groups: Groups, verdicts: Verdicts, closed_by: Sequence[int] | None) -> Judged:
        """The verdicts are final: retire prompts, count, and remember what there is to learn.

        closed_by: the ticket by whose report each group was decided; None for late groups.
        """
        selector = self._selector
        inside = np.arange(groups.rewards.shape[1]) < groups.asked[:, None]
        trained = inside if verdicts.trained is None else inside & verdicts.trained
        weights = trained.astype(np.float64) if verdicts.weights is None else np.where(trained, verdicts.weights, 0.0)
        groups = replace(groups, trained=trained & verdicts.keep[:, None], weights=weights)
        premise = self.accounts.groups(selector, groups, verdicts, closed_by)
        if closed_by is None:
            self._pending.add_late(groups)
        else:
            self._pending.add(closed_by, groups, premise)
            for ticket in groups.tickets:
                selector._waiting.remove(ticket.seq)
        if verdicts.retire is not None and verdicts.retire.any():
            selector._retired.add(groups.rows[verdicts.retire], self.view.epoch)
        for watcher in selector._watchers:
            try:
                watcher(groups, verdicts)
            except Exception as error:
                selector.problem(HostError(f"A function given to Selector.watch failed: {type(error).__name__}: {error}."))
        return Judged(groups, verdicts)

    def learn(self) -> None:
        """Let the method learn from what was decided since it last did, in ticket order. Before every decision.

        Where it raises, in strict mode, the caller rolls back and everything is still to be learned.
        """
        if len(self._pending) == 0:
            return
        pending, self._pending = self._pending, Pending()
        for groups in pending.lots():
            self._observe(groups)
        if len(premise := pending.premise()):
            self._selector._premise.add(*premise.T)

    @property
    def to_learn(self) -> int:
        """Groups that are decided and not learned from."""
        return len(self._pending)

    def _judge(self, groups: Groups) -> Verdicts:
        selector = self._selector
        before = self._undo.shared()
        try:
            verdicts = selector.method.judge(outcomes.copied(groups), self.view)
            check_verdicts(selector.method.name, verdicts, groups)
            return verdicts.select(np.arange(len(groups)))  # ours from here on, whatever the method keeps of it
        except Exception as error:
            if selector.strict:
                raise
            self._undo.restore(before)
            self._failed("judge", error, "All whole groups are kept.")
            return Verdicts.of(groups.valid.sum(axis=1) >= 2, "incomplete")

    def _observe(self, groups: Groups) -> None:
        selector = self._selector
        rows = np.unique(groups.rows)
        before = self._undo.shared()
        self._undo.touch(rows)
        if selector._durable is not None:
            selector._durable.touch(rows)
        try:
            selector.method.observe(outcomes.copied(groups), self.view)
        except Exception as error:
            if selector.strict:
                raise
            self._undo.restore(before, [self._undo.rows.pop()])
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
        """Tickets of the round that the host never reported expire: not outcomes, and their prompts are free again."""
        selector = self._selector
        left = [t for seq, t in self._round_tickets.items() if seq not in self._of_round]
        if left:
            self.metrics.add(unreported=len(left))
            selector.problem(
                OutcomeError(
                    f"Step {self.view.number}, round {self.view.round}: {len(left)} of its tickets were never reported (first: "
                    f"prompt {left[0].prompt_id!r}). They are cancelled; report failed rollouts with rewards of None."
                )
            )
        return self.give_up(left)

    def give_up(self, tickets: Sequence[Ticket]) -> Judged:
        """These outcomes are not waited for any longer. Returns the groups that are decided by it.

        A group that was begun is judged on what there is: the rest of it never came. That settles its ticket, so that an
        outcome of it that still comes changes nothing; a ticket that begins a group expires, and its outcome still teaches.
        """
        self.expire([ticket for ticket in tickets if ticket.continues is None])
        return self.settle([Outcome(ticket=ticket, rewards=[]) for ticket in tickets if ticket.continues is not None])

    def expire(self, tickets: Sequence[Ticket]) -> None:
        """Close open tickets that begin a group; their prompts are free again, and what still comes of them is late."""
        if not tickets:
            return
        selector = self._selector
        for ticket in tickets:
            selector._open.pop(ticket.seq, None)
            self._round_tickets.pop(ticket.seq, None)
        expired = selector._expired | {ticket.seq: ticket for ticket in tickets}  # a new one: `mark` keeps the old
        selector._expired = {seq: expired[seq] for seq in sorted(expired)[-MOST_EXPIRED:]}
        self._free_up(np.array([ticket.row for ticket in tickets], dtype=np.int64) if self.view.streaming else _NO_ROWS)
        self.metrics.add(expired=len(tickets))

    def release_offered(self) -> None:
        """Make everything this step offered choosable again, but for prompts that are in flight, wait or are retired."""
        for rows in self.view.offered:
            self._free_up(rows)
        self.view.offered = []

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
        self._round_tickets = {}
        self._of_round = {}
        self._pending = self._undo.pending
        self._undo.roll_back()
        self.view.offered = []
        selector._blocked[:] = False  # an interrupt may have come between a draw and the note of it
        selector._blocked[[ticket.row for ticket in selector._open.values()]] = True
        self._free_up(_NO_ROWS)


_NO_ROWS = np.empty(0, dtype=np.int64)


def _own(requests: Requests) -> Requests:
    """Requests that the method cannot change afterwards."""
    predicted = requests.predicted_pass_rate
    return Requests(
        np.array(requests.rows, dtype=np.int64), np.array(requests.rollouts, dtype=np.int64),
        None if predicted is None else np.array(predicted, dtype=np.float64),
    )  # fmt: skip
