"""The selector against a plain model, under whatever a host may do: Hypothesis draws the calls."""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import edgewise
from edgewise import saved
from edgewise.errors import DegradedWarning
from edgewise.types import Outcome, Ticket
from tests import ledger
from tests.test_selector import Counting, G, answer

N = 23
REWARDS = st.lists(
    st.sampled_from([1.0, 0.0, 0.5, None, float("nan"), float("inf"), "x", True, np.float32(1)]), min_size=0, max_size=G + 1
)
DONE: Counter[int] = Counter()
"""What the machines tried of each fault, by its row."""


def teaches(rewards: list[Any]) -> bool:
    """Whether a group has one usable reward: the model's whole theory of outcomes."""
    return len(rewards) <= G and any(isinstance(r, (int, float, np.floating)) and np.isfinite(r) for r in rewards)


class SelectorMachine(RuleBasedStateMachine):
    """Steps and streaming mixed, with bad, late and repeated outcomes, exceptions, expiry, saves, crashes and restores.

    The model: how often each prompt is to be learned from, which tickets are open, which have expired, which can never count
    again, what was generated. The method learns at the next decision, so what it knows and what is pending are added up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.pool = edgewise.PromptPool.from_ids([f"p{i}" for i in range(N)])
        self.s = self.made()
        self.visits = [0] * N
        self.open: dict[int, Ticket] = {}
        self.expired: dict[int, Ticket] = {}
        self.reissue: list[Ticket] = []
        self.closed: list[Ticket] = []
        self.taught: Counter[int] = Counter()
        self.generated = 0
        self.late = 0
        self.steps = 0
        self.saved: list[tuple[Path, dict[str, Any]]] = []
        self.committed: tuple[Path, dict[str, Any]] | None = None
        self.version = 0
        self.calls = 0
        self.last: tuple[str, list[Ticket]] | None = None

    def made(self) -> edgewise.Selector:
        return edgewise.Selector(Counting(), self.pool, batch_size=4, group_size=G, seed=7)

    def teardown(self) -> None:
        self.folder.cleanup()

    def model(self) -> dict[str, Any]:
        return {
            "visits": list(self.visits),
            "open": dict(self.open),
            "expired": dict(self.expired),
            "closed": list(self.closed),
            "taught": Counter(self.taught),
            "generated": self.generated,
            "late": self.late,
            "steps": self.steps,
            "last": self.last,
        }

    def become(self, model: dict[str, Any]) -> None:
        for name in ("visits", "open", "expired", "closed", "taught", "generated", "late", "steps", "last"):
            value = model[name]
            setattr(self, name, value.copy() if hasattr(value, "copy") else value)
        self.reissue = [self.open[seq] for seq in sorted(self.open)]

    def learn(self, ticket: Ticket, rewards: list[Any]) -> None:
        self.late += ticket.seq in self.expired
        self.open.pop(ticket.seq, None)
        self.expired.pop(ticket.seq, None)
        self.closed.append(ticket)
        self.visits[ticket.row] += teaches(rewards)
        self.taught[ticket.seq] += teaches(rewards)
        self.generated += ticket.rollouts

    # -- streaming -----------------------------------------------------------------------------------------------------

    @rule(n=st.integers(1, 7), named=st.booleans())
    def take(self, n: int, named: bool) -> None:
        self.version += 1
        self.calls += 1
        first = [t for t in self.reissue if t.seq in self.open][:n]
        room = N - len(self.open)
        call = f"call {self.calls}" if named else None
        tickets = self.s.take(n, policy_version=self.version, call=call)
        assert tickets[: len(first)] == first  # what was in flight at a restore comes first
        fresh = tickets[len(first) :]
        assert len(fresh) == min(n - len(first), room)
        assert not {t.row for t in fresh} & {t.row for t in self.open.values()}
        assert len({t.row for t in tickets}) == len(tickets)
        self.reissue = [t for t in self.reissue if t not in first]
        self.open |= {t.seq: t for t in fresh}
        self.steps += len(tickets) > len(first) or len(first) < n
        self.last = None if call is None else (call, tickets)

    @precondition(lambda self: self.last)
    @rule(n=st.integers(1, 7))
    def take_again(self, n: int) -> None:
        """The caller does not know whether the call ran, and makes it again."""
        assert self.last is not None
        call, tickets = self.last
        open_ = [t for t in tickets if t.seq in self.open]
        assert self.s.take(n, policy_version=self.version, call=call) == open_
        self.reissue = [t for t in self.reissue if t not in open_]
        DONE[21] += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), rewards=REWARDS, again=st.booleans())
    def report(self, data: st.DataObject, rewards: list[Any], again: bool) -> None:
        """In any order, some of them twice."""
        some = data.draw(st.lists(st.sampled_from(sorted(self.open)), min_size=1, max_size=4, unique=True))
        tickets = [self.open[seq] for seq in some]
        outcomes = [Outcome(ticket=t, rewards=rewards) for t in tickets]
        judged = self.s.report(outcomes * (2 if again else 1))
        assert [t.seq for t in judged.groups.tickets] == sorted(some)
        for ticket in tickets:
            self.learn(ticket, rewards)
        DONE[24] += some != sorted(some)
        DONE[23] += again

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.closed))
        assert len(self.s.report([answer(ticket)]).groups) == 0
        DONE[23] += 1

    @rule(seq=st.integers(10_000, 10_003))
    def report_unknown(self, seq: int) -> None:
        stray = Ticket(seq=seq, row=1, prompt_id="p1", step=0, round=0, policy_version=0, rollouts=G)
        assert len(self.s.report([answer(stray)]).groups) == 0
        DONE[27] += 1

    @precondition(lambda self: self.open or self.expired)
    @rule(data=st.data())
    def report_for_another_prompt(self, data: st.DataObject) -> None:
        known = self.open | self.expired
        ticket = known[data.draw(st.sampled_from(sorted(known)))]
        wrong = Ticket(seq=ticket.seq, row=ticket.row, prompt_id="else", step=0, round=0, policy_version=0, rollouts=G)
        assert len(self.s.report([answer(wrong)]).groups) == 0
        DONE[28] += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data(), again=st.booleans())
    def expire(self, data: st.DataObject, again: bool) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.open)), min_size=1, max_size=4, unique=True))
        tickets = [self.open.pop(seq) for seq in some]
        for _ in range(1 + again):
            self.s.expire([*tickets, *self.closed[-2:]])
        self.expired |= {t.seq: t for t in tickets}
        DONE[26] += len(some)

    @precondition(lambda self: self.expired)
    @rule(data=st.data(), rewards=REWARDS, again=st.booleans())
    def report_late(self, data: st.DataObject, rewards: list[Any], again: bool) -> None:
        """Late outcomes, in any order, together with one that is not late."""
        some = data.draw(st.lists(st.sampled_from(sorted(self.expired)), min_size=1, max_size=4, unique=True))
        tickets = [self.expired[seq] for seq in some]
        fresh = [self.open[seq] for seq in sorted(self.open)[:1]]
        outcomes = [Outcome(ticket=t, rewards=rewards) for t in [*tickets, *fresh]]
        judged = self.s.report(outcomes)
        assert [t.seq for t in judged.groups.tickets] == [*(t.seq for t in fresh), *sorted(some)]
        assert not judged.verdicts.keep[len(fresh) :].any()
        assert judged.verdicts.reasons[len(fresh) :] == ("late",) * len(some)
        assert not judged.groups.trained[len(fresh) :].any()
        if again:
            assert len(self.s.report(outcomes).groups) == 0
        for ticket in [*tickets, *fresh]:
            self.learn(ticket, rewards)
        DONE[25] += len(some)

    @rule()
    def settle(self) -> None:
        self.s.settle()
        assert self.s._streaming.to_learn == 0

    # -- steps ---------------------------------------------------------------------------------------------------------

    @rule(
        rewards=REWARDS,
        mixed=st.floats(0, 1),
        drop=st.integers(0, 3),
        crash=st.sampled_from(["", "before", "after"]),
        late=st.booleans(),
    )
    def step(self, rewards: list[Any], mixed: float, drop: int, crash: str, late: bool) -> None:
        self.version += 1
        for ticket in self.reissue:  # in a step, what a restore left in flight expires
            if self.open.pop(ticket.seq, None):
                self.expired[ticket.seq] = ticket
        self.reissue = []
        before, busy = self.model(), {t.row for t in self.open.values()}
        seen: set[int] = set()
        issued: list[Ticket] = []
        try:
            with self.s.step(policy_version=self.version) as step:
                for batch in step.requests():
                    rows = {t.row for t in batch}
                    issued += batch
                    assert len(rows) == len(batch)
                    assert not rows & (seen | busy)
                    seen |= rows
                    if crash == "before":
                        raise InterruptedError
                    if late and self.expired:  # of an earlier step, of the stream, or of an earlier round
                        ticket = self.expired[max(self.expired)]
                        judged = step.report([Outcome(ticket=ticket, rewards=rewards)] * 2)
                        assert judged.verdicts.reasons == ("late",)
                        self.learn(ticket, rewards)
                        DONE[25] += 1
                    for ticket in batch[drop:]:
                        given = [1.0, 0.0] if ticket.row / N < mixed else rewards
                        assert len(step.report([Outcome(ticket=ticket, rewards=given)]).groups) == 1
                        self.learn(ticket, given)
                    self.expired |= {t.seq: t for t in batch[:drop]}
                    DONE[26] += drop
                if crash == "after":
                    raise InterruptedError
                fillers = step.fillers
                assert fillers is None or {t.seq for t in fillers.tickets} <= {t.seq for t in issued}
            self.steps += 1
        except InterruptedError:
            generated, arrived = self.generated, self.late
            self.visits, self.expired, self.taught = before["visits"], before["expired"], before["taught"]
            self.generated, self.late = generated, arrived  # all but what was really generated is undone
            self.closed = before["closed"] + issued

    # -- durable -------------------------------------------------------------------------------------------------------

    @rule(commit=st.booleans())
    def save(self, commit: bool) -> None:
        path = Path(self.folder.name) / f"{len(self.saved)}"
        self.s.save(path)
        self.saved.append((path, self.model()))
        if commit:
            self.s.commit()
            self.committed = self.saved[-1]

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def restore(self, data: st.DataObject, fresh: bool) -> None:
        path, model = data.draw(st.sampled_from(self.saved))
        if fresh:  # a new process
            self.s = self.made()
        self.s.restore(path)
        self.become(model)
        twin = self.made()
        twin.restore(path)
        other = self.made()
        other.restore(path)
        assert twin.take(9) == other.take(9)  # exact resume

    @precondition(lambda self: self.committed)
    @rule(n=st.integers(1, 7), calls=st.integers(1, 3), answered=st.integers(0, 3))
    def crash_restore(self, n: int, calls: int, answered: int) -> None:
        """Everything since the last commit is lost. Done again after the restart, it is the same, ticket by ticket."""
        assert self.committed is not None
        path, model = self.committed
        lives = []
        for _ in range(2):
            s = self.made()
            s.restore(path)
            made = []
            for call in range(calls):
                made.append(s.take(n, policy_version=self.version + call, call=f"after {call}"))
                s.report([answer(t) for t in reversed(s.in_flight[:answered])])
            header, arrays = whole_state(s)
            lives.append((made, header, {k: (v.dtype, v.tolist()) for k, v in arrays.items()}))
        assert lives[0] == lives[1]
        self.s = self.made()
        self.s.restore(path)
        self.become(model)
        self.version += 1

    # -- always --------------------------------------------------------------------------------------------------------

    @invariant()
    def agrees_with_the_model(self) -> None:
        held = self.s.method.state()
        known = held.prompts["visits"].copy()
        for groups in self.s._streaming._pending.lots():
            assert len(set(groups.rows.tolist())) == len(groups)
            known[groups.rows] += 1
        assert known.tolist() == self.visits
        assert int(held.shared["total"][0]) == held.prompts["visits"].sum()
        assert self.s.in_flight == [self.open[seq] for seq in sorted(self.open)]
        assert self.s._expired == self.expired
        assert self.s._totals["rollouts_total"] == self.generated
        assert self.s._totals["late_outcomes"] == self.late
        assert self.s.step_number == self.steps

    @invariant()
    def each_ticket_teaches_at_most_once(self) -> None:
        """C2."""
        assert max(self.taught.values(), default=0) <= 1

    @invariant()
    def nothing_is_nan_or_infinite(self) -> None:
        """C6."""
        for array in whole_state(self.s)[1].values():
            assert array.dtype.kind != "f" or np.isfinite(array).all()
        assert all(np.isfinite(v) for v in self.s.metrics.values())

    @invariant()
    def no_prompt_is_blocked_for_ever(self) -> None:
        """C8: what cannot be offered is in flight."""
        assert np.flatnonzero(self.s._blocked).tolist() == sorted(t.row for t in self.open.values())


def whole_state(s: edgewise.Selector) -> tuple[dict[str, Any], dict[str, Any]]:
    """What would be saved, but for how long it took."""
    header, arrays = saved.content(s)
    metrics = {k: v for k, v in header["metrics"].items() if not k.endswith(("_ms", "_s"))}
    return header | {"metrics": metrics}, {k: np.asarray(v) for k, v in arrays.items()}


class Quiet(SelectorMachine):
    """The machine, with the warnings that its bad outcomes rightly cause put aside."""

    def __init__(self) -> None:
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore", DegradedWarning)
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self._quiet.__exit__(None, None, None)


EXAMPLES = ledger.cases(150, chaos=1_000)


class TestSelectorAgainstAModel(Quiet.TestCase):  # type: ignore[misc, name-defined]
    """Every example is a life of 30 calls; what was tried of each fault goes into the ledger."""

    settings = settings(
        max_examples=EXAMPLES,
        stateful_step_count=30,
        deadline=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )

    def runTest(self) -> None:  # noqa: N802 (unittest's name)
        DONE.clear()
        super().runTest()
        for row, tried in sorted(DONE.items()):
            ledger.note(row, tried=tried, held=tried)
        assert DONE.keys() == {21, 23, 24, 25, 26, 27, 28}
