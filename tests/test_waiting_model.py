"""The selector against a plain model, with groups that go on, wait, go stale and retire their prompts: Hypothesis draws."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import edgewise
from edgewise.errors import DegradedWarning
from edgewise.method import Method, StepView
from edgewise.types import Groups, MethodState, Outcome, Requests, Setting, Ticket, Verdicts

N, B, G, LIMIT = 23, 4, 4, 5
REWARDS = st.lists(st.sampled_from([1.0, 0.0, None, float("nan"), "x"]), min_size=0, max_size=2)


def verdict(row: int, asked: int) -> tuple[int, int, bool]:
    """(more, hold, retire) of a group, by its prompt and size: the whole theory of the method."""
    kind = row % 7
    more = 1 if kind in (1, 5) and asked < 4 else 0
    hold = 1 if kind in (2, 3) and asked < kind + 1 else 1 if kind == 6 else 0  # 6: for ever
    return more, hold, kind in (4, 5) and not more


class GoingOn(Method):
    """The next prompts of the stream, two rollouts each."""

    name: ClassVar[str] = "going-on"
    max_staleness = LIMIT

    def start(self, setting: Setting) -> None:
        self.visits = np.zeros(setting.pool_size, dtype=np.int64)
        self.rollouts = np.zeros(setting.pool_size, dtype=np.int64)
        self.total = np.zeros(1, dtype=np.int64)

    def propose(self, room: int, step: StepView) -> Requests:
        return Requests.of(step.draw(room), 2)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        says = [verdict(row, asked) for row, asked in zip(groups.rows.tolist(), groups.asked.tolist(), strict=True)]
        more, hold, retire = (np.array(column) for column in zip(*says, strict=True))
        return Verdicts(groups.rows % 2 == 0, ("odd",) * len(groups), more=more, hold=hold, retire=retire)

    def observe(self, groups: Groups, step: StepView) -> None:
        self.visits[groups.rows] += 1
        self.rollouts[groups.rows] += groups.asked
        self.total += len(groups)

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {}

    def state(self) -> MethodState:
        return MethodState(prompts={"visits": self.visits, "rollouts": self.rollouts}, shared={"total": self.total})

    def restore(self, state: MethodState) -> None:
        self.visits, self.rollouts = state.prompts["visits"].copy(), state.prompts["rollouts"].copy()
        self.total = state.shared["total"].copy()


class Machine(RuleBasedStateMachine):
    """What the model knows: open tickets, groups that wait, retired prompts (an upper bound), what was learned.

    A group that waits is a dict: row, version, asked (rollouts), valid (any), parts, ready (step), wanted, by (ticket or None).
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.pool = edgewise.PromptPool.from_ids([f"p{i}" for i in range(N)])
        self.s = self.made()
        self.m: dict[str, Any] = {
            "visits": [0] * N, "rollouts": [0] * N, "open": {}, "waiting": {}, "retired": set(), "steps": 0,
        }  # fmt: skip
        self.reissue: list[int] = []
        self.generated = 0
        self.version = 0
        self.saved: list[tuple[Path, dict[str, Any], int]] = []

    def made(self) -> edgewise.Selector:
        return edgewise.Selector(GoingOn(), self.pool, batch_size=B, group_size=G, seed=3)

    def teardown(self) -> None:
        self.folder.cleanup()

    # -- the model -----------------------------------------------------------------------------------------------------

    def began(self) -> None:
        """A step or a take begins: groups that waited too long go."""
        for first, group in list(self.m["waiting"].items()):
            if group["by"] is None and self.version - group["version"] > LIMIT:
                self.learn(self.m["waiting"].pop(first))

    def learn(self, group: dict[str, Any]) -> None:
        self.m["visits"][group["row"]] += group["valid"]
        self.m["rollouts"][group["row"]] += group["asked"] * group["valid"]

    def settled(self, ticket: Ticket, rewards: list[Any], number: int) -> None:
        self.m["open"].pop(ticket.seq)
        self.generated += ticket.rollouts
        first = ticket.seq if ticket.continues is None else ticket.continues
        new = {"row": ticket.row, "version": ticket.policy_version, "asked": 0, "valid": False, "parts": []}
        group = self.m["waiting"].pop(first, new)
        group["asked"] += ticket.rollouts
        group["valid"] |= len(rewards) <= ticket.rollouts and any(r in (1.0, 0.0) for r in rewards)
        group["parts"].append((ticket.seq, ticket.rollouts))
        more, hold, retire = verdict(ticket.row, group["asked"])
        if more or hold:
            self.m["waiting"][first] = group | {"wanted": more + hold, "ready": number + (hold > 0), "by": None}
        else:
            self.learn(group)
            self.m["retired"] |= {ticket.row} if retire else set()

    def issued(self, tickets: list[Ticket], number: int, room: int) -> None:
        """Continuations first, the oldest first; then fresh prompts, of which none is in flight, waits, or is missing."""
        ready = [seq for seq, g in sorted(self.m["waiting"].items()) if g["by"] is None and g["ready"] <= number][:room]
        assert [t.continues for t in tickets[: len(ready)]] == ready
        for ticket in tickets[: len(ready)]:
            group = self.m["waiting"][ticket.continues]
            assert (ticket.row, ticket.rollouts) == (group["row"], group["wanted"])
            group["by"] = ticket.seq
        fresh = tickets[len(ready) :]
        assert all(t.continues is None for t in fresh)
        busy = {t.row for t in self.m["open"].values()} | {g["row"] for g in self.m["waiting"].values()}
        rows = [t.row for t in fresh]
        assert len(set(rows)) == len(rows)
        assert not set(rows) & busy
        self.m["retired"] -= set(rows)
        self.m["open"] |= {t.seq: t for t in tickets}

    # -- streaming -----------------------------------------------------------------------------------------------------

    @rule(n=st.integers(1, 7))
    def take(self, n: int) -> None:
        self.version += 1
        first = [seq for seq in self.reissue if seq in self.m["open"]][:n]
        tickets = self.s.take(n, policy_version=self.version)
        assert [t.seq for t in tickets[: len(first)]] == first
        self.reissue = [seq for seq in self.reissue if seq not in first]
        if len(first) < n:
            self.began()
            before = len({t.row for t in self.m["open"].values()} | {g["row"] for g in self.m["waiting"].values()})
            self.issued(tickets[len(first) :], self.m["steps"], n - len(first))
            going_on = sum(t.continues is not None for t in tickets[len(first) :])
            assert len(tickets) - len(first) - going_on == min(n - len(first) - going_on, N - before), "somebody starves"
            self.m["steps"] += 1

    @precondition(lambda self: self.m["open"])
    @rule(data=st.data(), rewards=REWARDS, again=st.booleans())
    def report(self, data: st.DataObject, rewards: list[Any], again: bool) -> None:
        some = data.draw(st.lists(st.sampled_from(sorted(self.m["open"])), min_size=1, max_size=4, unique=True))
        tickets = [self.m["open"][seq] for seq in some]
        outcomes = [Outcome(ticket=t, rewards=rewards) for t in tickets]
        self.s.report(outcomes * (2 if again else 1))
        if again:
            assert len(self.s.report(outcomes).groups) == 0
        for ticket in sorted(tickets, key=lambda t: t.seq):
            self.settled(ticket, rewards, self.s._streaming.view.number)

    # -- steps ---------------------------------------------------------------------------------------------------------

    @rule(
        rewards=REWARDS, drop=st.integers(0, 2), turned=st.booleans(), crash=st.integers(0, 4), apart=st.booleans(),
    )  # fmt: skip
    def step(self, rewards: list[Any], drop: int, turned: bool, crash: int, apart: bool) -> None:
        self.version += 1
        for seq in self.reissue:  # what a restore left in flight, and nobody took, is void
            if self.m["open"].pop(seq, None):
                for group in self.m["waiting"].values():
                    group["by"] = None if group["by"] == seq else group["by"]
        self.reissue = []
        before, number, rounds = copy.deepcopy(self.m), self.m["steps"], 0
        seen: set[int] = set()
        try:
            with self.s.step(policy_version=self.version) as step:
                self.began()
                for tickets in step.requests():
                    rounds += 1
                    self.issued(tickets, number, max(0, step.missing))
                    fresh = {t.row for t in tickets if t.continues is None}
                    assert not fresh & seen, "a prompt was offered twice in a step"
                    seen |= {t.row for t in tickets}
                    if rounds == crash:
                        raise InterruptedError
                    reported = tickets[drop:][::-1] if turned else tickets[drop:]
                    outcomes = [Outcome(ticket=t, rewards=rewards) for t in reported]
                    for part in [[o] for o in outcomes] if apart else [outcomes]:
                        step.report(part)
                    for ticket in reported:
                        self.settled(ticket, rewards, number)
                    for ticket in tickets[:drop]:
                        if ticket.continues is None:
                            self.m["open"].pop(ticket.seq)
                        else:
                            self.settled(ticket, [], number)
            self.m["steps"] += 1
        except InterruptedError:
            self.m = before

    # -- durable -------------------------------------------------------------------------------------------------------

    @rule()
    def save(self) -> None:
        path = Path(self.folder.name) / f"{len(self.saved)}"
        self.s.save(path)
        self.saved.append((path, copy.deepcopy(self.m), self.generated))

    @precondition(lambda self: self.saved)
    @rule(data=st.data(), fresh=st.booleans())
    def restore(self, data: st.DataObject, fresh: bool) -> None:
        path, model, generated = data.draw(st.sampled_from(self.saved))
        if fresh:
            self.s = self.made()
        self.s.restore(path)
        self.m, self.generated = copy.deepcopy(model), generated
        self.reissue = sorted(self.m["open"])
        twins = [self.made(), self.made()]
        for twin in twins:
            twin.restore(path)
        assert twins[0].take(9, policy_version=99) == twins[1].take(9, policy_version=99)

    # -- always --------------------------------------------------------------------------------------------------------

    @invariant()
    def agrees_with_the_model(self) -> None:
        s, m = self.s, self.m
        held = s.method.state()
        visits, rollouts = held.prompts["visits"].copy(), held.prompts["rollouts"].copy()
        assert held.shared["total"][0] == visits.sum()
        for groups in s._streaming._pending.lots():  # reported, and learned from at the next decision
            visits[groups.rows] += 1
            rollouts[groups.rows] += groups.asked
        assert visits.tolist() == m["visits"]
        assert rollouts.tolist() == m["rollouts"]
        assert s.in_flight == [m["open"][seq] for seq in sorted(m["open"])]
        assert s.waiting == {seq: g["parts"] for seq, g in sorted(m["waiting"].items())}
        retired = set(s._retired.rows.tolist())
        assert retired <= m["retired"]
        busy = {t.row for t in m["open"].values()} | {g["row"] for g in m["waiting"].values()}
        assert not retired & busy
        assert set(np.flatnonzero(s._blocked).tolist()) == busy | retired
        assert s._totals["rollouts_total"] == self.generated
        assert s.step_number == m["steps"]


class Quiet(Machine):
    """The machine, with the warnings that unreported tickets and odd rewards rightly cause put aside."""

    def __init__(self) -> None:
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore", DegradedWarning)
        super().__init__()

    def teardown(self) -> None:
        super().teardown()
        self._quiet.__exit__(None, None, None)


TestGroupsThatGoOnAgainstAModel = Quiet.TestCase
TestGroupsThatGoOnAgainstAModel.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
