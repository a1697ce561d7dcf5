"""The selector against a plain model, under whatever a host may do: Hypothesis draws the calls."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import edgewise
from edgewise.errors import DegradedWarning
from edgewise.types import Outcome, Ticket
from tests.test_selector import Counting, G, answer

N = 23
REWARDS = st.lists(
    st.sampled_from([1.0, 0.0, 0.5, None, float("nan"), float("inf"), "x", True, np.float32(1)]), min_size=0, max_size=G + 1
)


def teaches(rewards: list[Any]) -> bool:
    """Whether a group has one usable reward: the model's whole theory of outcomes."""
    return len(rewards) <= G and any(isinstance(r, (int, float, np.floating)) and np.isfinite(r) for r in rewards)


class SelectorMachine(RuleBasedStateMachine):
    """Steps and streaming mixed, with bad outcomes, exceptions, saves and restores.

    The model: how often each prompt was learned from, which tickets are open, which were ever closed, what was generated.
    """

    method = "counting"

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.pool = edgewise.PromptPool.from_ids([f"p{i}" for i in range(N)])
        self.s = self.made()
        self.visits = [0] * N
        self.open: dict[int, Ticket] = {}
        self.reissue: list[Ticket] = []
        self.closed: list[Ticket] = []
        self.generated = 0
        self.steps = 0
        self.saved: list[tuple[Path, dict[str, Any]]] = []
        self.version = 0

    def made(self) -> edgewise.Selector:
        return edgewise.Selector(Counting(), self.pool, batch_size=4, group_size=G, seed=7)

    def teardown(self) -> None:
        self.folder.cleanup()

    def model(self) -> dict[str, Any]:
        return {
            "visits": list(self.visits),
            "open": dict(self.open),
            "closed": list(self.closed),
            "generated": self.generated,
            "steps": self.steps,
        }

    def learn(self, ticket: Ticket, rewards: list[Any]) -> None:
        self.open.pop(ticket.seq, None)
        self.closed.append(ticket)
        self.visits[ticket.row] += teaches(rewards)
        self.generated += ticket.rollouts

    # -- streaming -----------------------------------------------------------------------------------------------------

    @rule(n=st.integers(1, 7))
    def take(self, n: int) -> None:
        self.version += 1
        first = [t for t in self.reissue if t.seq in self.open][:n]
        room = N - len(self.open)
        tickets = self.s.take(n, policy_version=self.version)
        assert tickets[: len(first)] == first  # what was in flight at a restore comes first
        fresh = tickets[len(first) :]
        assert len(fresh) == min(n - len(first), room)
        assert not {t.row for t in fresh} & {t.row for t in self.open.values()}
        assert len({t.row for t in tickets}) == len(tickets)
        self.reissue = [t for t in self.reissue if t not in first]
        self.open |= {t.seq: t for t in fresh}
        self.steps += len(tickets) > len(first) or len(first) < n

    @precondition(lambda self: self.open)
    @rule(data=st.data(), rewards=REWARDS, again=st.booleans())
    def report(self, data: st.DataObject, rewards: list[Any], again: bool) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.open)), min_size=1, max_size=4, unique=True))
        tickets = [self.open[seq] for seq in some]
        outcomes = [Outcome(ticket=t, rewards=rewards) for t in tickets]
        judged = self.s.report(outcomes * (2 if again else 1))
        assert [t.seq for t in judged.groups.tickets] == sorted(some)
        for ticket in tickets:
            self.learn(ticket, rewards)

    @precondition(lambda self: self.closed)
    @rule(data=st.data())
    def report_again(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.closed))
        assert len(self.s.report([answer(ticket)]).groups) == 0

    @rule(seq=st.integers(10_000, 10_003))
    def report_unknown(self, seq: int) -> None:
        stray = Ticket(seq=seq, row=1, prompt_id="p1", step=0, round=0, policy_version=0, rollouts=G)
        assert len(self.s.report([answer(stray)]).groups) == 0

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def report_for_another_prompt(self, data: st.DataObject) -> None:
        ticket = self.open[data.draw(st.sampled_from(sorted(self.open)))]
        wrong = Ticket(seq=ticket.seq, row=ticket.row, prompt_id="else", step=0, round=0, policy_version=0, rollouts=G)
        assert len(self.s.report([answer(wrong)]).groups) == 0

    # -- steps ---------------------------------------------------------------------------------------------------------

    @rule(rewards=REWARDS, mixed=st.floats(0, 1), drop=st.integers(0, 3), crash=st.sampled_from(["", "before", "after"]))
    def step(self, rewards: list[Any], mixed: float, drop: int, crash: str) -> None:
        self.version += 1
        before, busy = self.model(), {t.row for t in self.open.values()} - {t.row for t in self.reissue}
        for ticket in self.reissue:  # a step cancels what a restore left in flight
            if self.open.pop(ticket.seq, None):
                self.closed.append(ticket)
        self.reissue = []
        seen: set[int] = set()
        try:
            with self.s.step(policy_version=self.version) as step:
                for batch in step.requests():
                    rows = {t.row for t in batch}
                    assert len(rows) == len(batch)
                    assert not rows & (seen | busy)
                    seen |= rows
                    if crash == "before":
                        raise InterruptedError
                    for ticket in batch[drop:]:
                        given = [1.0, 0.0] if ticket.row / N < mixed else rewards
                        assert len(step.report([Outcome(ticket=ticket, rewards=given)]).groups) == 1
                        self.learn(ticket, given)
                    self.closed += batch[:drop]  # cancelled
                if crash == "after":
                    raise InterruptedError
            self.steps += 1
        except InterruptedError:
            generated = self.generated
            self.visits, self.generated = before["visits"], generated  # all but what was really generated is undone

    # -- durable -------------------------------------------------------------------------------------------------------

    @rule()
    def save(self) -> None:
        path = Path(self.folder.name) / f"{len(self.saved)}"
        self.s.save(path)
        self.saved.append((path, self.model()))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def restore(self, data: st.DataObject, fresh: bool) -> None:
        path, model = data.draw(st.sampled_from(self.saved))
        if fresh:  # a new process
            self.s = self.made()
        self.s.restore(path)
        self.visits, self.open, self.closed = list(model["visits"]), dict(model["open"]), list(model["closed"])
        self.generated, self.steps = model["generated"], model["steps"]
        self.reissue = [self.open[seq] for seq in sorted(self.open)]
        twin = self.made()
        twin.restore(path)
        other = self.made()
        other.restore(path)
        assert twin.take(9) == other.take(9)  # exact resume

    # -- always --------------------------------------------------------------------------------------------------------

    @invariant()
    def agrees_with_the_model(self) -> None:
        held = self.s.method.state()
        assert held.prompts["visits"].tolist() == self.visits
        assert int(held.shared["total"][0]) == sum(self.visits)
        assert self.s.in_flight == [self.open[seq] for seq in sorted(self.open)]
        assert np.flatnonzero(self.s._blocked).tolist() == sorted(t.row for t in self.open.values())
        assert self.s._totals["rollouts_total"] == self.generated
        assert self.s.step_number == self.steps
        assert all(np.isfinite(v) for v in self.s.metrics.values())


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


TestSelectorAgainstAModel = Quiet.TestCase
TestSelectorAgainstAModel.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
