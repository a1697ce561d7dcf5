"""Outcomes that come late, twice, in another order, or never; and calls whose answer was lost."""

from __future__ import annotations

import uuid
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgewise
from edgewise import saved, stage
from edgewise.errors import ConfigError, DegradedWarning, OutcomeError
from edgewise.method import StepView
from edgewise.types import Groups, MethodState, Outcome, Ticket
from tests import ledger
from tests.test_continued import Scripted, holding
from tests.test_continued import answer as half
from tests.test_continued import selector as going_on
from tests.test_selector import Counting, G, answer, run_step, selector


class Fading(Counting):
    """Every visit halves what came before: the state is the order in which groups were learned from. It keeps the lots too."""

    def start(self, setting: Any) -> None:
        super().start(setting)
        self.level = np.full(setting.pool_size, 0.5)
        self.mean = np.full(1, 0.5)
        self.lots: list[list[int]] = []

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        self.lots.append([ticket.seq for ticket in groups.tickets])
        for row, rewards in zip(groups.rows, groups.rewards, strict=True):
            self.mean = 0.7 * self.mean + 0.3 * np.nanmean(rewards)
            self.level[row] = 0.5 * self.level[row] + 0.5 * self.mean[0] * np.nanmean(rewards)

    def state(self) -> MethodState:
        held = super().state()
        return MethodState({**held.prompts, "level": self.level}, {**held.shared, "mean": self.mean})

    def restore(self, state: MethodState) -> None:
        super().restore(state)
        self.level, self.mean = np.array(state.prompts["level"]), np.array(state.shared["mean"])


def some(ticket: Ticket) -> Outcome:
    """Rewards of a ticket's own."""
    rewards = np.random.default_rng([3, ticket.seq]).random(ticket.rollouts).round(3)
    return Outcome(ticket=ticket, rewards=rewards.tolist(), response_tokens=5)


def whole(s: edgewise.Selector) -> tuple[Any, Any]:
    """What a saved state holds, but for how long things took and whose run it is."""
    header, arrays = saved.content(s)
    header = {k: v for k, v in header.items() if k not in ("run_id", "metrics", "last_take")}
    arrays = {k: v for k, v in arrays.items() if k != "selector/last_take"}  # the name of a call is the host's
    return header, {k: (np.asarray(v).dtype.str, np.asarray(v).tobytes()) for k, v in arrays.items()}


def total(s: edgewise.Selector) -> int:
    s.settle()
    return int(s.method.state().shared["total"][0])


# -- late: rows 25 and 26 ----------------------------------------------------------------------------------------------


def short_step(s: edgewise.Selector, version: int, lost: int) -> list[Ticket]:
    """A step whose first `lost` tickets are never reported; these."""
    missing: list[Ticket] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        with s.step(policy_version=version) as step:
            for number, batch in enumerate(step.requests()):
                here = lost if number == 0 else 0
                missing += batch[:here]
                step.report([answer(t) for t in batch[here:]])
    return missing


@pytest.mark.parametrize("through", ["stream", "step"])
def test_a_late_outcome_of_a_step_teaches_once_and_is_never_trained_on(through: str) -> None:
    s = selector(Fading(), n=12)
    missing = short_step(s, 0, 2)
    learned, rolled = total(s), s._totals["rollouts_total"]
    assert s.metrics["unreported"] == s.metrics["expired"] == 2
    assert sorted(s._expired) == [t.seq for t in missing]
    assert not s._blocked.any()  # they can be issued again
    if through == "stream":
        for _ in range(2):
            judged = s.report([answer(t) for t in [*missing[::-1], missing[0]]])
    else:
        with s.step(policy_version=1) as step:
            for batch in step.requests():
                late = step.report([answer(t) for t in missing])
                judged = step.report([answer(t) for t in [*missing, *batch]])
                assert {t.seq for t in judged.groups.tickets} == {t.seq for t in batch}
                judged = late if len(late.groups) else judged
                learned += len(batch)
            assert not {t.seq for t in missing} & {t.seq for t in step.training_batch.tickets}
            fillers = step.fillers
            assert fillers is None or not {t.seq for t in missing} & {t.seq for t in fillers.tickets}
    assert total(s) == learned + 2
    assert s._expired == {}
    assert s._totals["late_outcomes"] == s.metrics["late_outcomes"] == s.metrics["dropped_late"] == 2
    assert s._totals["dup_outcomes"] == (4 if through == "stream" else 4 * s.metrics["rounds"] - 2)
    assert s._totals["rollouts_total"] - rolled == G * (2 + (s.metrics["rolled_out"] - 2 if through == "step" else 0))


def test_the_verdict_on_a_late_group_says_so() -> None:
    s = selector(n=12)
    tickets = s.take(4)
    s.expire(tickets[:2])
    judged = s.report([answer(t) for t in tickets])
    assert [t.seq for t in judged.groups.tickets] == [2, 3, 0, 1]
    assert judged.verdicts.reasons[2:] == ("late", "late")
    assert not judged.verdicts.keep[2:].any()
    assert not judged.groups.trained[2:].any()
    assert (s.metrics["expired"], s.metrics["late_outcomes"], s.metrics["dropped_late"]) == (2, 2, 2)
    assert total(s) == 4


def test_a_prompt_issued_again_learns_from_both_and_never_in_one_call() -> None:
    """Late groups are learned from apart and first; two late groups of one prompt apart from each other."""
    method = Fading()
    s = selector(method, n=3, batch_size=3)
    first = s.take(3)
    s.expire(first)
    second = s.take(3)
    s.expire(second[:1])
    third = s.take(1)
    assert third[0].row == second[0].row
    outcomes = [some(t) for t in [*third, *second, *first]]
    s.report(outcomes)
    s.settle()
    assert method.lots == [[0, 1, 2], [3], [4, 5, 6]]
    assert method.visits.sum() == 7
    assert not s._blocked.any()


def test_a_late_outcome_frees_no_prompt_that_is_in_flight_again() -> None:
    s = selector(n=4, batch_size=4)
    first = s.take(4)
    s.expire(first)
    again = s.take(4)
    s.report([answer(t) for t in first])
    assert s._blocked.all()
    assert s.take(2) == []
    assert s.in_flight == again


def test_a_dropped_group_pins_no_cursor() -> None:
    """TRL#7274: one group dropped as stale kept the resume cursor back, and all that came after was trained again."""
    tried = ledger.cases(8, chaos=40)
    held = 0
    for lost in range(tried):
        lives = []
        for resumed in (False, True):
            s = selector(Fading(), n=40)
            taken = s.take(8)
            slow = taken[lost % 8]
            s.report([some(t) for t in taken if t is not slow])
            s.expire([slow])
            s.commit()
            if resumed:
                s = restored(s, Fading())
                assert s.in_flight == []  # nothing is done again
            following = [s.take(4, policy_version=1 + k) for k in range(3)]
            assert not {t.seq for tickets in following for t in tickets} & {t.seq for t in taken}
            judged = s.report([some(slow)])
            assert judged.verdicts.reasons == ("late",)
            s.settle()
            lives.append((following, whole(s)))
        held += lives[0] == lives[1]
    ledger.note(25, tried=tried, held=held)


def restored(s: edgewise.Selector, method: Any, **given: Any) -> edgewise.Selector:
    """Another selector that takes up where `s` is, as after a crash."""
    import tempfile

    other = selector(method, n=len(s.pool), batch_size=s.batch_size, **given)
    with tempfile.TemporaryDirectory() as folder:
        s.save(Path(folder) / "x")
        other.restore(Path(folder) / "x")
    return other


def test_expired_tickets_survive_a_crash_and_still_count_once() -> None:
    tried = held = 0
    for lost in range(1, 6):
        s = selector(n=12)
        tickets = s.take(5)
        s.expire(tickets[:lost])
        s.report([answer(t) for t in tickets[lost:]])
        again = restored(s, None)
        assert again._expired == s._expired
        for _ in range(3):
            again.report([answer(t) for t in tickets])
            again = restored(again, None)
        tried += 1
        held += total(again) == 5 and again._totals["late_outcomes"] == lost
    ledger.note(26, tried=tried, held=held)


def test_the_oldest_expired_tickets_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "MOST_EXPIRED", 3)
    s = selector(n=12)
    tickets = s.take(6)
    s.expire(tickets[3:])
    s.expire(tickets[:2])
    assert sorted(s._expired) == [3, 4, 5]  # by ticket, so that a restored selector forgets the same ones
    s.report([answer(t) for t in tickets])
    assert total(s) == 4
    assert s._totals["dup_outcomes"] == 2


def test_tickets_expire_by_themselves_after_so_many_policy_versions() -> None:
    s = selector(n=12, expire_after=2)
    first = s.take(4, policy_version=10)
    second = s.take(4, policy_version=11)
    s.take(2, policy_version=12)
    assert len(s.in_flight) == 10
    third = s.take(2, policy_version=13)
    assert sorted(s._expired) == [t.seq for t in first]
    assert {t.row for t in third} & {t.row for t in first} == set()  # the stream goes on; the others were never offered
    assert len(s.take(12, policy_version=13)) == 4  # then come those that are free again
    s.report([answer(t) for t in [*first, *second]])
    assert total(s) == 8
    with pytest.raises(ConfigError, match=r"expire_after=...\) must be None or a whole number of policy versions >= 0, got -1"):
        selector(expire_after=-1)


def test_a_ticket_that_is_about_to_expire_is_not_handed_out_after_a_restore() -> None:
    """It would be issued again by the very call that lets it expire: two tickets of one prompt, and one of them late."""
    s = selector(n=6, expire_after=2)
    old = s.take(3, policy_version=0)
    fresh = s.take(1, policy_version=2)
    for n in (1, 2, 6):
        again = restored(s, Counting(), expire_after=2)
        got = again.take(n, policy_version=3)
        assert got[0] == fresh[0]
        assert len({t.row for t in got}) == len(got) == n
        assert all(again._open[t.seq] is t for t in got)
        again.take(1, policy_version=3)  # one that is handed out by no call expires all the same
        assert sorted(again._expired) == [t.seq for t in old]
        judged = again.report([answer(t) for t in [*old, *got]])
        assert judged.verdicts.reasons.count("late") == 3
        assert total(again) == n + 3


def test_a_failing_take_expires_nothing() -> None:
    class Failing(Counting):
        def propose(self, room: int, step: StepView) -> Any:
            if step.policy_version == 9:
                raise KeyboardInterrupt
            return super().propose(room, step)

    s = selector(Failing(), n=12, expire_after=1)
    tickets = s.take(4)
    blocked = s._blocked.copy()
    with pytest.raises(KeyboardInterrupt):
        s.take(4, policy_version=9)
    assert s.in_flight == tickets
    assert s._expired == {}
    assert (s._blocked == blocked).all()


def test_expiring_is_safe_to_repeat_and_refuses_strangers() -> None:
    s = selector(n=12)
    tickets = s.take(4)
    s.report([answer(tickets[0])])
    never = Ticket(seq=99, row=1, prompt_id="p1", step=0, round=0, policy_version=0, rollouts=G)
    for _ in range(2):
        s.expire([*tickets[:2], never])
    assert sorted(s._expired) == [1]
    wrong = Ticket(seq=2, row=1, prompt_id="else", step=0, round=0, policy_version=0, rollouts=G)
    with pytest.warns(DegradedWarning, match="ticket 2 was issued for prompt"):
        s.expire([wrong])
    strict = selector(n=12, on_problem="strict")
    strict.take(4)
    with pytest.raises(OutcomeError, match="not for 'else'. It stays open"):
        strict.expire([wrong, *strict.in_flight[:1]])
    assert len(strict.in_flight) == 4  # refused whole
    with s.step(policy_version=0), pytest.raises(ConfigError, match="a step is open"):
        s.expire(tickets)


def test_a_ticket_that_continues_a_group_settles_it_and_a_later_outcome_is_a_repeat() -> None:
    """The group is judged on its pilot; what comes of the rest belongs to a group that has taught already."""
    s = going_on(Scripted(lambda groups, step: holding(groups, step)), pool=6, batch=2)
    s.report([half(t) for t in s.take(2)])
    (more, other) = s.take(2, policy_version=1)
    assert more.continues == 0
    s.expire([more])
    assert 0 not in s.waiting
    assert s.in_flight == [other]
    assert s._expired == {}
    learned = s.method.state().prompts["visits"].sum()
    s.settle()
    assert s.method.state().prompts["visits"].sum() == learned + 1
    with pytest.raises(OutcomeError, match="already reported or cancelled"):
        s.report([half(more)])
    assert s._totals["dup_outcomes"] == 1


# -- order of arrival: rows 23 and 24 ----------------------------------------------------------------------------------

PLANS = st.tuples(st.integers(0, 2**31), st.lists(st.integers(0, 6), min_size=0, max_size=5))


def streamed(plan: tuple[int, list[int]] | None, *, crash: bool = False) -> edgewise.Selector:
    """Six takes; of each, some outcomes come at once, some one take later, some expire first; in the order of the plan."""
    s = selector(Fading(), n=30)
    rng = np.random.default_rng(plan[0]) if plan else None
    due: list[Ticket] = []
    for number in range(6):
        tickets = s.take(6, policy_version=number)
        lost = [t for t in tickets if t.seq % 7 == 3]
        s.expire(lost)
        now = [*due, *(t for t in tickets if t.seq % 3 != 1 and t not in lost)]
        due = [t for t in tickets if t not in now]
        parts = [now]
        if rng is not None and plan is not None:
            now = [now[i] for i in rng.permutation(len(now))]
            cuts = sorted(min(cut, len(now)) for cut in plan[1])
            parts = [now[a:b] for a, b in zip([0, *cuts], [*cuts, len(now)], strict=True)]
        for part in parts:
            s.report([some(t) for t in part])
            if rng is not None and rng.random() < 0.3:
                s.report([some(t) for t in part[:2]])  # and again
    s._totals["dup_outcomes"] = 0.0
    s.settle()
    return s


def test_one_state_whatever_the_order_of_arrival() -> None:
    """Row 24: `Fading` is made so that any other order gives another state."""
    expected = whole(streamed(None))
    tried = held = 0

    @settings(max_examples=ledger.cases(50, chaos=500), deadline=None, derandomize=True, database=None)
    @given(PLANS)
    def orders(plan: tuple[int, list[int]]) -> None:
        nonlocal tried, held
        tried += 1
        held += whole(streamed(plan)) == expected

    orders()
    ledger.note(24, tried=tried, held=held)


def test_without_the_order_of_tickets_there_would_be_as_many_states_as_orders() -> None:
    """What the test above is worth: learning at once, in order of arrival, gives a state for every order."""
    found = set()
    for seed in range(8):
        s = selector(Fading(), n=30)
        tickets = s.take(6)
        for i in np.random.default_rng(seed).permutation(6):
            s.report([some(tickets[i])])
            s.settle()  # a decision after every outcome: this is the order it was decided in
        found.add(s.method.state().prompts["level"].tobytes())
    assert len(found) == 8


@pytest.mark.parametrize("scope", ["group", "batch"])
def test_rounds_of_a_step_may_be_reported_in_any_order(scope: str) -> None:
    def run(seed: int | None) -> Any:
        s = selector(Fading(scope=scope), n=40)
        rng = np.random.default_rng(seed)
        for version in range(4):
            with s.step(policy_version=version) as step:
                for batch in step.requests():
                    order = range(len(batch)) if seed is None else rng.permutation(len(batch))
                    outcomes = [answer(batch[i]) for i in order]
                    for part in [outcomes] if seed is None else [outcomes[:2], outcomes[2:]]:
                        step.report(part)
        return whole(s)

    expected = run(None)
    assert all(run(seed) == expected for seed in range(10))


# -- calls that are made again: rows 21 and 23 -------------------------------------------------------------------------


class Twice:
    """A host whose every call is made twice, for the first answer was lost: the answers must be equal."""

    def __init__(self, inner: edgewise.Selector) -> None:
        self.inner = inner
        self.calls = 0
        self.repeated = 0

    def __getattr__(self, name: str) -> Any:
        def called(*args: Any, **given: Any) -> Any:
            self.calls += 1
            if name in ("take", "report"):
                given["call"] = f"{name}-{self.calls}"
            first = getattr(self.inner, name)(*args, **given)
            metrics = dict(self.inner.metrics)
            again = getattr(self.inner, name)(*args, **given)
            assert again is first or again == first
            assert self.inner.metrics == metrics
            self.repeated += 1
            return first

        return called


def life(host: Any, s: edgewise.Selector) -> Any:
    """A stream through `host`, which is `s` or stands in front of it."""
    for number in range(8):
        tickets = host.take(5, policy_version=number)
        host.expire([t for t in tickets if t.seq % 6 == 1])
        host.report([some(t) for t in tickets if t.seq % 4])
        host.report([some(t) for t in tickets if t.seq % 6 == 1])
        if number % 3 == 2:
            host.commit()
        host.settle()
    return whole(s)


def test_a_run_whose_every_call_is_made_twice_is_the_run() -> None:
    once, doubled = selector(Fading(), n=60), selector(Fading(), n=60)
    twice = Twice(doubled)
    same = life(once, once) == life(twice, doubled)
    ledger.note(21, tried=twice.repeated, held=twice.repeated * same)


def test_a_call_that_is_made_again_after_a_restart_is_the_same_call(tmp_path: Path) -> None:
    """The answer of `take` was lost with the process: before its commit, or after it."""
    tried = held = 0
    for committed in (False, True):
        for n in range(1, 9):
            s = selector(Fading(), n=30)
            s.report([some(t) for t in s.take(4, call="a")])
            s.commit()
            s.save(tmp_path / "x")
            expected = s.take(n, policy_version=1, call="b")
            if committed:
                s.commit()
                s.save(tmp_path / "x")
            again = selector(Fading(), n=30)
            again.restore(tmp_path / "x")
            same = again.take(n, policy_version=1, call="b") == expected
            following = again.take(2, policy_version=2, call="c") == s.take(2, policy_version=2, call="c")
            tried += 1
            held += same and following
    ledger.note(21, tried=tried, held=held)


def test_an_actor_that_is_built_again_in_the_middle_of_its_calls_goes_on_as_if_it_were_not(tmp_path: Path) -> None:
    """Each call is made, its commit is durable, the actor dies, its constructor runs again, and the call is made again."""
    lives, tried = [], 0
    for dies in (False, True):
        s = selector(Fading(), n=60, directory=tmp_path / str(dies))
        for number in range(ledger.cases(4, chaos=8)):
            for call in ("take", "expire", "report"):
                for _ in range(1 + dies):
                    if call == "take":
                        tickets = s.take(5, policy_version=number, call=f"take {number}")
                    elif call == "expire":
                        s.expire([t for t in tickets if t.seq % 6 == 1])
                    else:
                        s.report([some(t) for t in reversed(tickets)])
                    s.commit()
                    tried += dies
                    if dies:
                        s.close()
                        s = selector(Fading(), n=60, directory=tmp_path / str(dies))
        header, arrays = whole(s)
        s.close()
        del header["totals"]["dup_outcomes"]  # the reports that were made again
        lives.append((header, {k: v for k, v in arrays.items() if k != "selector/last_take"}))
    assert lives[0][0]["totals"]["late_outcomes"] > 0
    ledger.note(21, tried=tried, held=tried * (lives[0] == lives[1]))


def test_tickets_that_were_answered_meanwhile_do_not_come_back() -> None:
    s = selector(n=30)
    tickets = s.take(4, call="a")
    s.report([answer(tickets[0])])
    s.expire(tickets[1:2])
    assert s.take(4, call="a") == tickets[2:]
    assert s.take(4, call="b") != tickets
    assert s.take(4, call="a")[0].seq == 8  # only the call before is remembered


@pytest.mark.parametrize("name", [uuid.uuid4(), 5, "", "\ud800", "x" * 1_000])
def test_a_call_is_told_by_its_name_whatever_that_is(name: Any, tmp_path: Path) -> None:
    s = selector(n=30, directory=tmp_path)
    tickets = s.take(4, call=name)
    assert s.take(4, call=name) == tickets
    judged = s.report([answer(tickets[0])], call=name)
    assert s.report([answer(tickets[0])], call=name) is judged
    s.commit()
    s.close()
    again = selector(n=30, directory=tmp_path)
    assert again.take(4, call=name) == tickets[1:]
    assert again._totals["dup_outcomes"] == 0
    ledger.note(21, tried=3, held=3)


def test_a_failed_call_is_not_remembered() -> None:
    class Failing(Counting):
        fails = True

        def propose(self, room: int, step: StepView) -> Any:
            if self.fails:
                raise ZeroDivisionError
            return super().propose(room, step)

    method = Failing()
    s = selector(method, on_problem="strict")
    with pytest.raises(ZeroDivisionError):
        s.take(4, call="a")
    method.fails = False
    assert len(s.take(4, call="a")) == 4


def test_a_report_made_again_has_the_same_answer() -> None:
    tried = held = 0
    for named in (True, False):
        for n in range(1, 6):
            s = selector(n=30)
            outcomes = [answer(t) for t in s.take(n)]
            first = s.report(outcomes, call="x" if named else None)
            again = s.report(outcomes, call="x" if named else None)
            assert len(first.groups) == n
            assert (again is first) if named else len(again.groups) == 0
            tried += 1
            held += total(s) == n and s._totals["dup_outcomes"] == (0 if named else n)
    ledger.note(23, tried=tried, held=held)


def test_a_restored_selector_does_not_take_a_report_for_one_made_before(tmp_path: Path) -> None:
    s = selector(n=30)
    tickets = s.take(4)
    s.save(tmp_path / "x")
    s.report([answer(t) for t in tickets], call="x")
    s.restore(tmp_path / "x")
    assert len(s.report([answer(t) for t in tickets], call="x").groups) == 4
    assert total(s) == 4


def test_synchronous_runs_are_what_they_were() -> None:
    """A step still learns round by round, in one call each."""
    method = Fading()
    s = selector(method, n=40)
    rounds = run_step(s)
    assert [len(lot) for lot in method.lots] == [len(batch) for batch in rounds]
