"""What a host, a method or a signal can do wrong, and that nothing learned is lost by it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise.errors import ConfigError, DegradedWarning, MethodError, OutcomeError, SignalError
from edgewise.method import StepView
from edgewise.types import Groups, Outcome, Requests, Ticket, Verdicts
from tests.test_selector import Counting, G, answer, pool, run_step, selector


def state_of(s: edgewise.Selector) -> dict[str, Any]:
    """Everything that a failed call must leave as it was: what was learned, and what is reported and not yet learned."""
    held = s.method.state()
    return {
        **{k: np.nan_to_num(v, nan=-9.0).tolist() for k, v in {**held.prompts, **held.shared}.items()},
        "position": s._stream.position,
        "open": [t.seq for t in s.in_flight],
        "blocked": np.flatnonzero(s._blocked).tolist(),
        "step": s.step_number,
        "to learn": [t.seq for groups in s._streaming._pending.lots() for t in groups.tickets],
        "expired": sorted(s._expired),
    }


def within(s: edgewise.Selector, work: Callable[[edgewise.Step], None]) -> None:
    with s.step(policy_version=0) as step:
        work(step)


class Failing(Counting):
    """Fails where it is told to, after having done half its work."""

    where = ""

    def __init__(self, scope: str = "group", error: type[BaseException] = ZeroDivisionError) -> None:
        super().__init__(scope)
        self.error = error

    def propose(self, room: int, step: StepView) -> Requests:
        requests = super().propose(room, step)
        self.fail("propose")
        return requests

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        self.fail("judge")
        return super().judge(groups, step)

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        self.fail("observe")

    def fail(self, where: str) -> None:
        if self.where == where:
            self.total += 1000
            raise self.error(where)


# -- a failing proposal ------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::edgewise.errors.DegradedWarning")
@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_failing_proposal_drew_goes_back_to_the_stream(streaming: bool) -> None:
    """In every epoch every prompt is offered once, whether the method works or not."""

    def asked(s: edgewise.Selector) -> list[str]:
        if streaming:
            tickets = s.take(5)
            s.report([answer(t) for t in tickets])
            return [t.prompt_id for t in tickets]
        return run_step(s, world=lambda t: Outcome(ticket=t, rewards=[1, 0, 0, 0]))[0]

    method = Failing()
    s = selector(method)
    seen = []
    for k in range(8):
        method.where = "propose" if k % 3 == 1 else ""
        seen += asked(s)
        assert s.metrics["offered"] == (5 * (k + 1) if streaming else 5)
    s.settle()
    assert sorted(seen) == sorted(s.pool.ids)
    assert s.method.total == 40  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::edgewise.errors.DegradedWarning")
@pytest.mark.parametrize(
    "serve",
    [
        lambda rows: 1 / 0,
        lambda rows: rows[:-1],
        lambda rows: "nonsense",
        lambda rows: None,
        lambda rows: np.full(len(rows), np.nan),
    ],
)
def test_a_broken_signal_costs_the_method_and_not_the_run(serve: Callable[[Any], Any]) -> None:
    def hive(mode: str) -> edgewise.Selector:
        return edgewise.Selector("hive", pool(60), batch_size=5, group_size=G, on_problem=mode)  # type: ignore[arg-type]

    s = hive("degrade")
    for k in range(6):
        with s.step(policy_version=k) as step:
            for batch in step.requests({"prompt_entropy": serve}):
                step.report([answer(t) for t in batch])
        assert s.metrics["rolled_out"] >= 5
    assert s.metrics["degraded_total"] >= 6
    assert not s._blocked.any()
    strict = hive("strict")
    before = state_of(strict)
    with (
        pytest.raises((SignalError, ZeroDivisionError, ValueError, TypeError)),
        strict.step(policy_version=0) as step,
    ):
        next(step.requests({"prompt_entropy": serve}))
    assert state_of(strict) == before


def test_a_signal_may_answer_with_a_tensor_of_any_type_and_is_not_asked_for_nothing() -> None:
    torch = pytest.importorskip("torch")

    class Asking(Counting):
        def propose(self, room: int, step: StepView) -> Requests:
            assert step.signal("x", np.empty(0, dtype=np.int64)).shape == (0,)
            rows = step.draw(room)
            assert (step.signal("x", rows) == 0.5).all()
            return Requests.of(rows, self.group_size)

    def serve(rows: Any) -> Any:
        assert len(rows)
        return torch.full((len(rows),), 0.5, dtype=torch.bfloat16, requires_grad=True)

    s = selector(Asking(), on_problem="strict")
    with s.step(policy_version=0) as step:
        step.report([answer(t) for t in next(step.requests({"x": serve}))])


class Saying(Counting):
    """Proposes what the test says."""

    def __init__(self, *answers: Requests) -> None:
        super().__init__()
        self.answers = list(answers)

    def propose(self, room: int, step: StepView) -> Requests:
        return self.answers.pop(0) if self.answers else Requests.of([], self.group_size)


def test_a_prompt_is_not_rolled_out_twice_in_a_step() -> None:
    s = selector(Saying(Requests.of([0, 3], G), Requests.of([3, 4], G)), on_problem="strict")
    with pytest.raises(MethodError, match="asked for a prompt that this step rolled out before"):
        run_step(s)


@pytest.mark.parametrize("predicted", [np.array([0.5]), np.array([1, 0]), np.array(["a", "b"])])
def test_nonsense_predictions_are_refused_before_a_ticket_is_issued(predicted: Any) -> None:
    def one() -> Requests:
        return Requests(np.array([1, 2]), np.array([G, G]), predicted)

    with pytest.raises(MethodError, match="must predict one float a row"):
        run_step(selector(Saying(one()), on_problem="strict"))
    s = selector(Saying(one()))
    with pytest.warns(DegradedWarning, match="must predict one float a row"):
        run_step(s)
    assert s.metrics["rolled_out"] == 5


def test_streaming_never_hands_out_more_than_asked_for() -> None:
    s = selector(Saying(Requests.of(range(9), G)), on_problem="strict")
    with pytest.raises(MethodError, match="at most 4 prompts when streaming, got 9"):
        s.take(4)
    assert s.in_flight == []


# -- calls that fail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["propose", "judge", "observe"])
def test_a_failing_call_of_a_streaming_host_changes_nothing_and_can_be_made_again(where: str) -> None:
    method = Failing()
    s = selector(method, on_problem="strict")
    first = s.take(4)
    s.report([answer(t) for t in first[:2]])
    before = state_of(s)
    method.where = where
    with pytest.raises(ZeroDivisionError):
        s.report([answer(t) for t in first[2:]]) if where == "judge" else s.take(3)
    assert state_of(s) == before
    method.where = ""
    s.report([answer(t) for t in first[2:]])
    assert method.total == 0  # it learns at the next decision, from all four at once
    assert len(s.take(3)) == 3
    assert method.total == 4


@pytest.mark.parametrize("call", ["settle", "commit", "save", "step"])
@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit, MemoryError])
def test_what_fails_as_the_method_learns_is_still_to_be_learned(call: str, error: type[BaseException], tmp_path: Any) -> None:
    """Every call that lets the method learn leaves everything as it was if that fails, and does it when it is called again."""

    def made() -> None:
        if call == "step":
            s.step(policy_version=1).__enter__()
        else:
            getattr(s, call)(*([tmp_path / "x"] if call == "save" else []))

    method = Failing(error=error)
    s = selector(method, on_problem="strict")
    tickets = s.take(5)
    s.report([answer(t) for t in tickets[:2]])
    s.take(1)
    s.expire(tickets[4:])
    s.report([answer(t) for t in tickets[2:]])
    before = state_of(s)
    assert len(before["to learn"]) == 3
    method.where = "observe"
    for _ in range(2):
        with pytest.raises(error):
            made()
        assert state_of(s) == before
        assert s._current is None
    method.where = ""
    made()
    assert method.total == 5


def test_tickets_to_hand_out_again_survive_a_failing_take(tmp_path: Any) -> None:
    s = selector(n=12)
    out = s.take(3)
    s.save(tmp_path / "x")
    method = Failing()
    again = selector(method, n=12, on_problem="strict")
    again.restore(tmp_path / "x")
    method.where = "propose"
    with pytest.raises(ZeroDivisionError):
        again.take(5)
    method.where = ""
    assert again.take(5)[:3] == out


def test_an_outcome_that_comes_late_after_a_restore_leaves_the_others_first_in_line(tmp_path: Any) -> None:
    s = selector(n=12)
    out = s.take(4)
    s.save(tmp_path / "x")
    again = selector(n=12)
    again.restore(tmp_path / "x")
    again.report([answer(out[0])])
    assert again.take(2) == out[1:3]
    again.report([answer(t) for t in out[1:]])  # the fourth was never handed out again, and still counts
    again.settle()
    assert again.method.state().shared["total"] == 4
    assert out[0].row not in {t.row for t in again.take(1)}


def test_after_a_restore_the_view_of_a_reporting_host_is_the_same(tmp_path: Any) -> None:
    """A judge that draws from `step.rng` says the same after a resume."""

    class Drawing(Counting):
        def judge(self, groups: Groups, step: StepView) -> Verdicts:
            return Verdicts.of(step.rng("gate").random(len(groups)) < 0.5, "chance")

    s = selector(Drawing())
    s.report([answer(t) for t in s.take(3)])
    out = s.take(8)
    s.save(tmp_path / "x")
    again = selector(Drawing())
    again.restore(tmp_path / "x")
    expected = s.report([answer(t) for t in out]).verdicts.keep
    assert (again.report([answer(t) for t in out]).verdicts.keep == expected).all()


@pytest.mark.filterwarnings("ignore::edgewise.errors.DegradedWarning")
@pytest.mark.parametrize("where", ["propose", "judge", "observe"])
def test_the_traceback_of_a_failing_method_is_shown_once(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    method = Failing()
    method.where = where
    s = selector(method)
    for _ in range(3):
        run_step(s)
    assert capsys.readouterr().err.count("Traceback") == 1


@pytest.mark.filterwarnings("ignore::edgewise.errors.DegradedWarning")
def test_a_failing_judge_leaves_no_half_done_work() -> None:
    method = Failing()
    s = selector(method)
    method.where = "judge"
    run_step(s)
    assert method.total == s.metrics["rolled_out"]


def test_an_error_on_leaving_a_step_rolls_it_back() -> None:
    """A batch method judges its last, cut-off round when the block ends; in strict mode that may raise."""
    method = Failing(scope="batch")
    s = selector(method, on_problem="strict")
    before = state_of(s)

    def cut_off(step: edgewise.Step) -> None:
        batch = next(step.requests())
        step.report([answer(t) for t in batch[:2]])

    def interrupted(step: edgewise.Step) -> None:
        cut_off(step)
        method.fail = lambda where: (_ for _ in ()).throw(KeyboardInterrupt)  # type: ignore[method-assign, assignment]

    with pytest.raises(OutcomeError, match="never reported"):
        within(s, cut_off)
    assert state_of(s) == before
    s.strict = False
    with pytest.raises(KeyboardInterrupt), pytest.warns(DegradedWarning, match="never reported"):
        within(s, interrupted)
    assert state_of(s) == before
    assert s._current is None


def test_rollback_of_a_method_without_shared_state_goes_back_to_the_start() -> None:
    class Stateless(Counting):
        def state(self) -> Any:
            return edgewise.method.MethodState()

        def restore(self, state: Any) -> None:
            pass

    def asking_twice(step: edgewise.Step) -> None:
        batch = next(step.requests())
        step.report([answer(t) for t in batch[:2]] + [Outcome(ticket=t, rewards=[]) for t in batch[2:]])
        next(step.requests())
        raise RuntimeError

    s = selector(Stateless())
    for _ in range(2):
        with pytest.raises(RuntimeError):
            within(s, asking_twice)
        assert s._stream.position == 0


# -- outcomes ----------------------------------------------------------------------------------------------------------


def test_a_batch_method_is_told_of_a_repeated_outcome_once() -> None:
    s = selector(Counting(scope="batch"))
    with s.step(policy_version=0) as step:
        batch = next(step.requests())
        step.report([answer(batch[0])])
        step.report([answer(batch[0])])
        judged = step.report([answer(t) for t in batch[1:]])
    assert len(judged.groups) == 5
    assert s.method.state().shared["total"] == 5
    assert s.metrics["dup_outcomes"] == 1


def test_steps_and_streaming_may_alternate_and_keep_their_tickets_apart() -> None:
    s = selector(n=12)
    taken = s.take(4)

    def mixing(step: edgewise.Step) -> None:
        next(step.requests())
        assert len(step.report([answer(t) for t in taken]).groups) == 0
        raise RuntimeError

    with pytest.raises(RuntimeError):
        within(s, mixing)
    assert s.in_flight == taken
    with s.step(policy_version=0) as step:
        batch = next(step.requests())
        assert not {t.row for t in batch} & {t.row for t in taken}
        step.report([answer(t) for t in batch])
    s.report([answer(t) for t in taken])
    s.settle()
    assert s.method.state().shared["total"] == 9
    assert not s._blocked.any()
    assert len(s.take(12)) == 12


@pytest.mark.parametrize(
    ("tokens", "counted"),
    [(7, 7), (np.int32(7), 7), (7.0, 7), (None, 0), (float("nan"), 0), (float("inf"), 0), (-1, 0), ("7", 0), (10**30, 0)],
)
def test_token_counts_that_are_none_count_nothing(tokens: Any, counted: int) -> None:
    s = selector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        with s.step(policy_version=0) as step:
            batch = next(step.requests())
            groups = step.report([Outcome(ticket=batch[0], rewards=[1, 0], response_tokens=tokens)]).groups
            assert groups.response_tokens.tolist() == [counted]
            step.report([answer(t) for t in batch[1:]])


def test_rewards_of_every_kind_stack_alike() -> None:
    torch = pytest.importorskip("torch")
    kinds: list[Any] = [
        [1.0, 0.0, 1.0, 0.0],
        (1, 0, True, None),
        np.array([1, 0, 1, 0], dtype=np.int8),
        np.array([True, False, True, False]),
        np.array([1.0, 0.0, 1.0, np.nan], dtype=np.float16),
        np.array([1, None, 0, 1], dtype=object),
        torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), np.float32(1), np.array(0.0)],
        [1.0, 0.0],
        [],
    ]
    missing = [0, 1, 0, 0, 1, 1, 0, 0, 2, 4]
    s = selector(n=40, batch_size=len(kinds), on_problem="strict")

    def report(reports: Any, **given: Any) -> Groups:
        with s.step(policy_version=0) as step:
            batch = next(step.requests())
            return step.report([Outcome(ticket=t, rewards=r, **given) for t, r in zip(batch, reports, strict=True)]).groups

    together = report(kinds)
    assert (G - together.valid.sum(axis=1)).tolist() == missing
    assert np.nanmax(together.rewards) == 1.0
    plain = report([[1.0, 0.0, 0.5, 0.25]] * len(kinds))
    assert (plain.rewards == [1.0, 0.0, 0.5, 0.25]).all()


@pytest.mark.parametrize("huge", [10**400, 1e309, [[1.0]], "1.0", b"1", 1j, object()], ids=lambda x: type(x).__name__)
def test_a_reward_that_is_no_finite_number_is_missing_and_never_ends_the_run(huge: Any) -> None:
    s = selector()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        with s.step(policy_version=0) as step:
            batch = next(step.requests())
            groups = step.report([Outcome(ticket=t, rewards=[1.0, huge, 0.0, 0.0]) for t in batch]).groups
    assert groups.valid.sum(axis=1).tolist() == [3] * 5
    assert s.metrics["degraded_total"] == 5


def test_statuses_are_checked_and_counted() -> None:
    s = selector()
    given: list[Any] = [
        ["ok", "truncated", "truncated", "failed"],
        ["ok"],
        ["ok", "ok", "ok", "lost"],
        ["ok", "ok", "ok", ["failed"]],
        5,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegradedWarning)
        with s.step(policy_version=0) as step:
            batch = next(step.requests())
            groups = step.report(
                [Outcome(ticket=t, rewards=[1, 1, 1, 1], statuses=x) for t, x in zip(batch, given, strict=True)]
            ).groups
    assert groups.truncated.tolist() == [2, 0, 0, 0, 0]
    assert groups.valid.sum(axis=1).tolist() == [3, 4, 4, 4, 4]


# -- bounds, metrics, misuse -------------------------------------------------------------------------------------------


def test_ten_thousand_takes_leave_nothing_behind() -> None:
    s = selector(n=60)
    waiting: list[Ticket] = []
    for k in range(10_000):
        waiting += s.take(2, policy_version=k)
        if len(waiting) > 20:
            s.report([answer(t) for t in waiting[:2]])
            waiting = waiting[2:]
    stage = s._streaming
    held = [stage.view.offered, stage.view.issued, stage._undo.rows, stage._round_tickets, stage._of_round, s._reissue]
    assert sum(map(len, held)) <= 2
    assert len(stage.accounts._entropies) <= 22
    assert len(s._open) == len(waiting) <= 22
    assert len(s.metrics) < 40
    assert stage.to_learn == 2
    s.settle()
    assert s.method.state().shared["total"] == 10_000 * 2 - len(waiting)


def test_streaming_metrics_add_up_until_the_next_commit(tmp_path: Any) -> None:
    s = selector(directory=tmp_path)
    tickets = s.take(6)
    for ticket in tickets:
        s.report([answer(ticket)])
    assert s.metrics["rolled_out"] == 6
    assert s.metrics["offered"] == 6
    s.commit()
    assert s.metrics["rolled_out"] == 6
    assert s.metrics["in_flight"] == 0
    s.report([answer(t) for t in s.take(2)])
    assert s.metrics["rolled_out"] == 2
    assert s.metrics["rollouts_total"] == 8 * G
    assert selector(directory=tmp_path).metrics["rolled_out"] == 6


def test_a_step_is_used_inside_its_block() -> None:
    s = selector()
    step = s.step(policy_version=0)
    with pytest.raises(ConfigError, match="not open"):
        next(step.requests())
    assert s.in_flight == []
    with step:
        pass
    with pytest.raises(ConfigError, match="not open"):
        next(step.requests())


def test_take_says_that_policy_version_moves_the_controllers() -> None:
    assert "policy_version" in (edgewise.Selector.take.__doc__ or "")
    s = edgewise.Selector("greso", pool(8), batch_size=4, group_size=G, parameters={"arm_at": 0.0})
    p = []
    for version in range(6):
        s.report([Outcome(ticket=t, rewards=[1.0] * G) for t in s.take(4, policy_version=version)])
        p.append(s.method.state().shared["controller_p"][0])
    assert p == sorted(p, reverse=True)
    assert p[-1] < p[0]
