"""Groups that wait and retired prompts: nothing is lost, nothing is offered twice, and no saved state can say otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise import state
from edgewise.errors import DegradedWarning, StateError
from edgewise.method import StepView
from edgewise.tickets import COLUMNS
from edgewise.types import Groups, Outcome, Requests, Verdicts
from tests.test_continued import Scripted, answer, holding, run_step, selector


def blocked(s: edgewise.Selector) -> list[int]:
    return np.flatnonzero(s._blocked).tolist()


def keep_all(groups: Groups, step: StepView) -> Verdicts:
    return Verdicts(np.ones(len(groups), dtype=bool), ("",) * len(groups))


def hold_once(groups: Groups, step: StepView) -> Verdicts:
    """What step 0 piloted goes on in step 1; everything is dropped and retired in the end."""
    pilot = groups.asked == 2
    hold = np.where(pilot & (step.number == 0), 2, 0)
    return Verdicts(
        np.zeros(len(groups), dtype=bool), ("no",) * len(groups), hold=hold, retire=np.ones(len(groups), dtype=bool)
    )


@pytest.mark.parametrize("streaming", [False, True])
def test_prompts_of_stale_groups_can_be_chosen_again(streaming: bool) -> None:
    def hold_first(groups: Groups, step: StepView) -> Verdicts:
        return holding(groups, step) if step.policy_version == 0 else keep_all(groups, step)

    s = selector(Scripted(hold_first, limit=1), pool=6, batch=2)
    if streaming:
        s.report([answer(t) for t in s.take(4)])
        again = s.take(6, policy_version=5)
        assert sorted(t.row for t in again) == list(range(6))
        assert all(t.continues is None for t in again)
        s.report([answer(t) for t in again])
    else:
        run_step(s, 0)
        assert len(s._waiting) == 6
        run_step(s, 5)
        assert s.metrics["dropped_stale"] == 6
    assert blocked(s) == []


def test_a_held_group_that_ends_retired_is_not_offered_again_in_that_step() -> None:
    s = selector(Scripted(hold_once), pool=4)
    run_step(s, 0)
    assert len(s._waiting) == 4
    rounds, _ = run_step(s, 1)
    rows = [t.row for tickets in rounds for t in tickets]
    assert len(rows) == len(set(rows)) == 4


def test_a_whole_pool_method_may_not_ask_for_a_prompt_whose_held_group_ended_in_this_step() -> None:
    class Stubborn(Scripted):
        def propose(self, room: int, step: StepView) -> Requests:
            return Requests.of(step.draw(room), 2) if step.number == 0 else Requests.of([int(self.held)], 2)

    def once(groups: Groups, step: StepView) -> Verdicts:
        return hold_once(groups, step)

    method = Stubborn(once)
    s = selector(method, pool=4, batch=2)
    run_step(s, 0)
    method.held = s._waiting.rows[0]  # type: ignore[attr-defined]
    with pytest.raises(edgewise.errors.MethodError, match="this step rolled out before"):
        run_step(s, 1)
    assert s._next_seq == 8, "four pilots and their four continuations"


def test_a_retired_prompt_that_a_method_asks_for_all_the_same_is_retired_no_more() -> None:
    class Stubborn(Scripted):
        def propose(self, room: int, step: StepView) -> Requests:
            return Requests.of([0, 1], 2)

    def retire_zero(groups: Groups, step: StepView) -> Verdicts:
        return Verdicts(groups.rows >= 0, ("",) * len(groups), retire=(groups.rows == 0) & (step.number == 0))

    s = selector(Stubborn(retire_zero), pool=8, batch=2)
    s.report([answer(t) for t in s.take(2)])
    assert blocked(s) == [0]
    out = s.take(2)
    assert blocked(s) == [0, 1]
    s.report([answer(t) for t in out])
    assert blocked(s) == []
    run_step(s)
    assert blocked(s) == []


@pytest.mark.parametrize("taken", [0, 1])
def test_a_step_after_a_restore_of_a_stream_leaves_prompts_that_wait_alone(tmp_path: Path, taken: int) -> None:
    """Two continuations were in flight. One that was handed out again stays in flight, the other is asked for anew."""
    s = selector(Scripted(holding), pool=9, batch=8)
    s.report([answer(t) for t in s.take(4)])
    out = s.take(2, policy_version=1)
    s.save(tmp_path / "x")
    again = selector(Scripted(holding), pool=9, batch=8)
    again.restore(tmp_path / "x")
    if taken:
        assert again.take(taken) == out[:taken]
    rounds, _ = run_step(again, 2)
    assert [t.continues for t in rounds[0] if t.continues is not None] == list(range(taken, 4))
    if taken:
        assert again.report([answer(out[0])]).groups.asked.tolist() == [4]
    assert blocked(again) == sorted(again._waiting.rows.tolist())


def test_giving_up_what_waits_gives_up_the_tickets_that_continue_it() -> None:
    s = selector(Scripted(holding), pool=6, batch=2, strict=False)
    s.report([answer(t) for t in s.take(3)])
    out = s.take(2, policy_version=1)
    with pytest.warns(DegradedWarning, match="3 groups that were begun are given up"):
        s.give_up_waiting("the disk is gone")
    assert (s.in_flight, blocked(s)) == ([], [])
    assert len(s.report([answer(t) for t in out]).groups) == 0
    assert s.metrics["dup_outcomes"] == 2


def test_a_group_larger_than_the_batch_is_trained_as_far_as_the_budget_goes() -> None:
    def weighted(groups: Groups, step: StepView) -> Verdicts:
        return Verdicts(groups.rows >= 0, ("",) * len(groups), weights=np.full(groups.rewards.shape, 2.0))

    s = selector(Scripted(weighted, pilot=15), pool=6, batch=3)
    _, batch = run_step(s)
    assert batch is not None
    assert len(batch) == 1
    assert batch.asked.tolist() == [15]
    assert batch.trained.tolist() == [[True] * 12 + [False] * 3]
    assert batch.weights.tolist() == [[2.0] * 12 + [0.0] * 3]


def test_a_restored_stream_knows_the_policy_version_of_its_last_take(tmp_path: Path) -> None:
    versions: list[int] = []

    class Noting(Scripted):
        def observe(self, groups: Groups, step: StepView) -> None:
            super().observe(groups, step)
            versions.append(step.policy_version)

    s = selector(Noting(keep_all))
    slow = s.take(2, policy_version=3)
    s.report([answer(t) for t in s.take(2, policy_version=9)])
    s.save(tmp_path / "x")
    again = selector(Noting(keep_all))
    again.restore(tmp_path / "x")
    for one in (s, again):
        one.report([answer(t) for t in slow])
        one.settle()
    assert versions == [9, 9, 9]


def test_a_restored_stream_learns_from_late_outcomes_with_the_signals_it_is_given(tmp_path: Path) -> None:
    class LookingUp(Scripted):
        def observe(self, groups: Groups, step: StepView) -> None:
            self.visits[groups.rows] += step.signal("difficulty", groups.rows).astype(np.int64)

    def difficulty(rows: Any) -> Any:
        return rows + 1.0

    s, again = selector(LookingUp(keep_all)), selector(LookingUp(keep_all))
    out = s.take(3, signals={"difficulty": difficulty})
    s.save(tmp_path / "x")
    again.restore(tmp_path / "x")
    again.report([answer(out[0])])
    for _ in range(2):  # what fails leaves everything to be learned
        with pytest.raises(edgewise.errors.SignalError, match="serves no signals"):
            again.settle()
    assert again.method.state().prompts["visits"].sum() == 0
    again.report([answer(out[1])], signals={"difficulty": difficulty})
    again.report([answer(out[2])])
    again.settle()
    s.report([answer(t) for t in out])
    s.settle()
    assert again.method.state().prompts["visits"].tolist() == s.method.state().prompts["visits"].tolist()
    assert again.method.state().prompts["visits"].sum() == sum(t.row + 1 for t in out)


# -- saved states that no selector wrote -------------------------------------------------------------------------------


def streamed(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Three groups wait, their continuations in flight; one fresh ticket is in flight too; one prompt is retired."""

    def judge(groups: Groups, step: StepView) -> Verdicts:
        last = groups.rows == groups.rows[-1]
        hold = np.where((groups.asked == 2) & ~last, 3, 0)
        return Verdicts(np.ones(len(groups), dtype=bool), ("",) * len(groups), hold=hold, retire=last)

    s = selector(Scripted(judge), pool=20)
    s.report([answer(t) for t in s.take(4)])
    s.take(4, policy_version=1)
    s.save(path)
    header, arrays = state.load(path)
    return header, {name: np.array(array) for name, array in arrays.items()}


WAITING = (*COLUMNS, "wanted", "not_before", "asked", "parts")


def put(table: str, at: int, columns: tuple[str, ...] = COLUMNS, **changed: int) -> Any:
    def spoil(h: dict[str, Any], a: dict[str, np.ndarray]) -> None:
        for name, value in changed.items():
            a[table][at, columns.index(name)] = value

    return spoil


def entry(**changed: int) -> Any:
    return put("table/waiting", 0, WAITING, **changed)


def flying(at: int, **changed: int) -> Any:
    return put("table/in_flight", at, **changed)


def replaced(name: str, change: Any) -> Any:
    return lambda h, a: a.update({name: change(a[name])})


def array(name: str, change: Any) -> Any:
    def spoil(h: dict[str, Any], a: dict[str, np.ndarray]) -> None:
        a[f"selector/{name}"] = change(a[f"selector/{name}"])

    return spoil


def first(value: Any) -> Any:
    def changed(column: np.ndarray) -> np.ndarray:
        column = column.copy()
        column.reshape(-1)[0] = value
        return column

    return changed


SPOILED: dict[str, Any] = {
    "asked huge": array("waiting_asked", first(10**12)),
    "asked negative": array("waiting_asked", first(-1)),
    "asked zero": array("waiting_asked", first(0)),
    "asked unlike its parts": array("waiting_asked", first(1)),
    "asked as floats": array("waiting_asked", lambda c: c.astype(np.float64)),
    "rows of others": array("waiting_rows", first(10**9)),
    "rows negative": array("waiting_rows", first(-1)),
    "rewards narrow": array("waiting_rewards", lambda c: c[:, :1]),
    "rewards flat": array("waiting_rewards", lambda c: c[:, 0]),
    "rewards infinite": array("waiting_rewards", first(np.inf)),
    "valid where nothing is": array("waiting_rewards", first(np.nan)),
    "trained as numbers": array("waiting_trained", lambda c: c.astype(np.int64)),
    "one group short": array("waiting_weights", lambda c: c[1:]),
    "tokens negative": array("waiting_response_tokens", first(-5)),
    "wants nothing": entry(wanted=0),
    "wants less than nothing": entry(wanted=-3),
    "asked for by nobody": entry(asked=77),
    "parts of others": replaced("table/waiting_parts", first(5)),
    "parts without rollouts": entry(parts=0),
    "parts in one column": replaced("table/waiting_parts", lambda c: c[:, :1]),
    "no ticket at all": replaced("table/waiting", lambda c: c[:, 8:]),
    "a ticket of the future": entry(seq=10**6),
    "a ticket without rollouts": entry(rollouts=0),
    "a table of floats": replaced("table/waiting", lambda c: c.astype(np.float64)),
    "waits twice": lambda h, a: a["table/waiting"].__setitem__(1, a["table/waiting"][0]),
    "a table that is none": replaced("table/waiting", lambda c: np.array(5)),
    "continues what does not wait": flying(0, continues=3),
    "continues nothing": flying(0, continues=-1),
    "continues with other rollouts": flying(0, rollouts=9),
    "in flight twice": replaced("table/in_flight", lambda c: np.concatenate([c, c[-1:]])),
    "a row out of range": flying(-1, row=20),
    "a seq before the first": flying(0, seq=-1),
    "predicted nonsense": flying(-1, predicted_pass_rate=int(np.float64(np.nan).view(np.int64))),
    "rollouts beyond all bounds": flying(-1, rollouts=2**40),
    "retired out of range": replaced("table/retired", first(20)),
    "retired negative": replaced("table/retired", first(-1)),
    "retired for ever": replaced("table/retired", lambda c: c + [[0, 10**9]]),
    "retired in one column": replaced("table/retired", lambda c: c[:, :1]),
    "a prompt short": lambda h, a: a.update({"method/prompts/visits": a["method/prompts/visits"][1:]}),
    "position before the start": lambda h, a: h.update(position=-1),
    "steps before the first": lambda h, a: h.update(step=-4),
    "tickets forgotten": lambda h, a: h.update(next_seq=1),
    "totals in words": lambda h, a: h["totals"].update(rollouts_total="many"),
    "totals of another name": lambda h, a: h["totals"].update(step=1.0),
    "totals of no kind": lambda h, a: h.update(totals=[1, 2]),
    "metrics in lists": lambda h, a: h["metrics"].update(step=[1]),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_state_that_no_selector_wrote_is_refused_whole(tmp_path: Path, how: str) -> None:
    header, arrays = streamed(tmp_path / "good")
    SPOILED[how](header, arrays)
    state.save(tmp_path / "bad", header, arrays)
    s = selector(Scripted(keep_all), pool=20)
    before = (s.step_number, s._next_seq, s.run_id, blocked(s))
    with pytest.raises(StateError):
        s.restore(tmp_path / "bad")
    assert (s.step_number, s._next_seq, s.run_id, blocked(s)) == before
    s.restore(tmp_path / "good")
    assert (len(s.waiting), len(s.in_flight), len(s._retired)) == (3, 4, 1)


def test_holds_that_never_finish_leave_nothing_behind_but_themselves() -> None:
    """Two thousand takes; groups are held for some time, and an outcome in ten never comes with a reward."""

    def judge(groups: Groups, step: StepView) -> Verdicts:
        return Verdicts(np.ones(len(groups), dtype=bool), ("",) * len(groups), hold=np.where(groups.asked < 8, 2, 0))

    s = selector(Scripted(judge, limit=40), pool=60, batch=4)
    method: Any = s.method
    late: list[Any] = []
    for k in range(2000):
        late += s.take(3, policy_version=k)
        method.seen.clear()
        if len(late) > 9:
            s.report([Outcome(ticket=t, rewards=[1.0] * t.rollouts if t.seq % 10 else []) for t in late[::-2]])
            late = [t for t in late if t.seq in s._open]
        if k % 100 == 0:
            s.commit()
            assert set(blocked(s)) == {t.row for t in s.in_flight} | set(s._waiting.rows.tolist())
    assert len(s._waiting) <= 60
    assert len(s._streaming.view.offered) <= 1
    assert len(s._streaming.view.issued) == 0
    assert s._streaming._round_tickets == {}
    assert len(s._streaming.accounts._entropies) == 0
