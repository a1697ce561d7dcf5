"""The loop: tickets, the step transaction, degradation, streaming, and exact resume."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest

import edgewise
from edgewise.directory import History
from edgewise.errors import (
    ConfigError,
    DegradedWarning,
    HostError,
    MethodError,
    OutcomeError,
    ShortfallError,
    StateError,
    StateMismatchError,
)
from edgewise.method import Method, StepView
from edgewise.types import Groups, MethodState, Outcome, Requests, Setting, Ticket, Verdicts

G = 4


class Counting(Method):
    """Draws what is missing, keeps mixed groups, counts visits per prompt and groups in all: enough state to lose."""

    name: ClassVar[str] = "counting"

    def __init__(self, scope: str = "group") -> None:
        self.scope = scope  # type: ignore[assignment]

    def start(self, setting: Setting) -> None:
        self.group_size = setting.group_size
        self.visits = np.zeros(setting.pool_size, dtype=np.int32)
        self.total = np.zeros(1, dtype=np.int64)

    def propose(self, room: int, step: StepView) -> Requests:
        return Requests.of(step.draw(room), self.group_size)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        low = np.where(groups.valid, groups.rewards, np.inf).min(axis=1, initial=np.inf)
        high = np.where(groups.valid, groups.rewards, -np.inf).max(axis=1, initial=-np.inf)
        return Verdicts.of(high > low, "zero_variance")

    def observe(self, groups: Groups, step: StepView) -> None:
        self.visits[groups.rows] += 1
        self.total += len(groups)

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {}

    def state(self) -> MethodState:
        return MethodState(prompts={"visits": self.visits}, shared={"total": self.total})

    def restore(self, state: MethodState) -> None:
        self.visits = state.prompts["visits"]
        self.total = state.shared["total"]


def pool(n: int = 40) -> edgewise.PromptPool:
    return edgewise.PromptPool.from_ids([f"p{i}" for i in range(n)])


def selector(method: Any = None, n: int = 40, **given: Any) -> edgewise.Selector:
    given = {"batch_size": 5, "group_size": G, "seed": 3} | given
    return edgewise.Selector(Counting() if method is None else method, pool(n), **given)


def answer(ticket: Ticket) -> Outcome:
    """A world without chance: two prompts of three are mixed, the rest all pass."""
    mixed = ticket.row % 3 != 0
    return Outcome(ticket=ticket, rewards=[1.0] * (G - mixed) + [0.0] * mixed, response_tokens=10)


def run_step(s: edgewise.Selector, version: int = 0, world: Callable[[Ticket], Outcome] = answer) -> list[list[str]]:
    """One step; the prompt ids of each round."""
    rounds = []
    with s.step(policy_version=version) as step:
        for batch in step.requests():
            rounds.append([t.prompt_id for t in batch])
            step.report([world(t) for t in batch])
    return rounds


def test_step_tops_up_until_the_batch_is_full_and_trains_in_request_order() -> None:
    s = selector()
    with s.step(policy_version=7) as step:
        for batch in step.requests():
            step.report([answer(t) for t in reversed(batch)])  # order of arrival must not matter
        groups = step.training_batch
    assert len(groups) == 5
    assert (groups.rows % 3 != 0).all()
    assert [t.seq for t in groups.tickets] == sorted(t.seq for t in groups.tickets)
    assert groups.tickets[0].policy_version == 7
    assert s.metrics["mixed"] == 5 + s.metrics["surplus"]
    assert s.metrics["rolled_out"] == s.metrics["mixed"] + s.metrics["all_pass"]
    assert s.metrics["responses"] == G * s.metrics["rolled_out"] == s.metrics["rollouts_total"]
    assert s.metrics["response_tokens"] == 10 * s.metrics["rolled_out"]
    assert s.in_flight == []


def test_no_prompt_twice_in_a_step_though_the_stream_runs_over_epochs() -> None:
    s = selector(n=7)
    for _ in range(20):
        ids = [i for batch in run_step(s, world=lambda t: Outcome(ticket=t, rewards=[1.0] * G)) for i in batch]
        assert len(ids) == len(set(ids)) == 7  # all pass: the pool is exhausted, and the loop ends


def test_an_epoch_offers_every_prompt_once() -> None:
    s = selector(n=40)
    seen = []
    for _ in range(8):
        seen += run_step(s, world=lambda t: Outcome(ticket=t, rewards=[1.0, 0, 0, 0]))[0]
    assert sorted(seen) == sorted(s.pool.ids)


def test_exception_rolls_everything_back_but_the_rollouts_really_made() -> None:
    s = selector()
    run_step(s)
    before = (
        {k: v.copy() for k, v in s.method.state().prompts.items()},
        s.method.state().shared["total"].copy(),
        s.step_number,
    )
    spent = s.metrics["rollouts_total"]
    ids: list[list[str]] = []

    def crash() -> None:
        with s.step(policy_version=1) as step:
            for batch in step.requests():
                ids.append([t.prompt_id for t in batch])
                step.report([answer(t) for t in batch])
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        crash()
    assert (s.method.state().prompts["visits"] == before[0]["visits"]).all()
    assert s.method.state().shared["total"] == before[1]
    assert s.step_number == before[2]
    assert s.in_flight == []
    assert run_step(s, version=1) == ids  # done again, with the same prompts
    assert s.metrics["rollouts_total"] == spent + 2 * s.metrics["responses"]


def test_crash_in_mid_round_frees_its_tickets() -> None:
    s = selector()

    def crash() -> None:
        with s.step(policy_version=0) as step:
            next(step.requests())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        crash()
    assert s.in_flight == []
    assert run_step(s) == run_step(selector())


@pytest.mark.parametrize("stop_after", range(6))
def test_resume_at_any_step_gives_the_prompts_of_the_uninterrupted_run(tmp_path: Any, stop_after: int) -> None:
    whole = selector()
    expected = [run_step(whole, k) for k in range(6)]
    first = selector(directory=tmp_path)
    for k in range(stop_after):
        assert run_step(first, k) == expected[k]
    second = selector(directory=tmp_path)
    assert second.step_number == stop_after
    assert [run_step(second, k) for k in range(stop_after, 6)] == expected[stop_after:]
    assert second.metrics["rollouts_total"] == whole.metrics["rollouts_total"]


def test_directory_keeps_two_states_and_falls_back_to_the_older_if_the_newer_is_damaged(tmp_path: Any) -> None:
    s = selector(directory=tmp_path)
    for k in range(5):
        run_step(s, k)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2
    data = bytearray(files[-1].read_bytes())
    data[-3] ^= 1
    files[-1].write_bytes(bytes(data))
    with pytest.warns(DegradedWarning, match="damaged"):
        again = selector(directory=tmp_path)
    assert again.step_number == 5  # the older one and the journals lead there too
    again.close()
    for file in files:
        file.write_bytes(b"zeros")
    with pytest.raises(StateError, match="resume='fresh' starts anew"):
        selector(directory=tmp_path)
    assert selector(directory=tmp_path, resume="fresh").step_number == 0


def test_state_of_another_run_is_refused_with_the_fields_that_differ(tmp_path: Any) -> None:
    s = selector()
    run_step(s)
    s.save(tmp_path / "x")
    with pytest.raises(StateMismatchError, match=r"seed: saved 3, this run 4"):
        selector(seed=4).restore(tmp_path / "x")
    with pytest.raises(StateMismatchError, match=r"group_size: saved 4, this run 8"):
        selector(group_size=8).restore(tmp_path / "x")
    with pytest.raises(StateMismatchError, match=r"knows 40 prompts, and of these only 19 are in this data set"):
        selector(n=19).restore(tmp_path / "x")
    with pytest.raises(StateMismatchError, match="method: saved 'counting', this run 'hive'"):
        edgewise.Selector("hive", pool(), batch_size=5, group_size=G, seed=3).restore(tmp_path / "x")
    with pytest.warns(DegradedWarning, match="batch_size was 5 and is 6"):
        selector(batch_size=6).restore(tmp_path / "x")


def test_full_disk_degrades_and_the_last_state_stands(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s = selector(directory=tmp_path)
    run_step(s)

    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgewise.state.os.fsync", full)
    with pytest.warns(DegradedWarning, match="No space left"):
        run_step(s)
    monkeypatch.undo()
    held = History.of(tmp_path).newest()
    assert held is not None
    assert held.node.step == 1
    run_step(s)
    assert selector(directory=tmp_path).step_number == 3
    assert not [f for f in tmp_path.iterdir() if f.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("rewards", "valid"),
    [
        ([1, None, float("nan"), 0], 2),
        ([True, np.float32(0), np.bool_(True), 1.0], 4),
        (np.array([1.0, 0.0, 1.0]), 3),
        ([1.0], 1),
        ([], 0),
    ],
)
def test_missing_is_not_zero(rewards: Any, valid: int) -> None:
    s = selector(on_problem="strict")
    with s.step(policy_version=0) as step:
        batch = next(step.requests())
        judged = step.report([Outcome(ticket=batch[0], rewards=rewards)] + [answer(t) for t in batch[1:]])
        assert judged.groups.valid[0].sum() == valid
        assert np.isfinite(judged.groups.rewards[judged.groups.valid]).all()


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([1.0, float("inf"), 0.0, 0.0], "entry 1 must be finite, got inf"),
        ([1.0, "0.5", 0.0, 0.0], r"entry 1 must be a number or None, got '0.5' \(str\)"),
        ([1.0] * 5, "5 entries for a ticket of 4 rollouts"),
        (0.5, "must be a list with one entry a rollout, got float"),
    ],
)
def test_bad_rewards_are_named_in_strict_mode_and_missing_otherwise(rewards: Any, message: str) -> None:
    def first_round(mode: str) -> Groups:
        s = selector(on_problem=mode)
        with s.step(policy_version=0) as step:
            batch = next(step.requests())
            return step.report([Outcome(ticket=batch[0], rewards=rewards), *(answer(t) for t in batch[1:])]).groups

    with pytest.raises(OutcomeError, match=message):
        first_round("strict")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        groups = first_round("degrade")
    assert re.search(message, "\n".join(str(w.message) for w in said if w.category is DegradedWarning))
    assert not np.isinf(groups.rewards).any()
    assert groups.valid[0].sum() < G


def test_group_of_failed_rollouts_is_dropped_and_teaches_nothing() -> None:
    s = selector()
    dead: list[int] = []

    def world(ticket: Ticket) -> Outcome:
        if ticket.row == 1:
            dead.append(ticket.row)
            return Outcome(ticket=ticket, rewards=[1, 0, 1, 0], statuses=["failed"] * G)
        return answer(ticket)

    for _ in range(9):
        run_step(s, world=world)
    assert dead
    assert s.method.state().prompts["visits"][1] == 0


def test_an_outcome_counts_once() -> None:
    s = selector()
    with s.step(policy_version=0) as step:
        batch = next(step.requests())
        step.report([answer(t) for t in batch])
        step.report([answer(t) for t in batch])
        step.report([answer(batch[0]), answer(batch[0])])
        never = Ticket(seq=999, row=1, prompt_id="p1", step=0, round=0, policy_version=0, rollouts=G)
        step.report([answer(never)])
    assert s.method.state().shared["total"] == 5
    assert s.metrics["dup_outcomes"] == 8


def test_unknown_and_repeated_tickets_raise_in_strict_mode() -> None:
    s = selector(on_problem="strict")
    with s.step(policy_version=0) as step:
        batch = next(step.requests())
        step.report([answer(t) for t in batch])
        with pytest.raises(OutcomeError, match="already reported or cancelled"):
            step.report([answer(batch[0])])
        with pytest.raises(OutcomeError, match="no such ticket was issued"):
            step.report([answer(Ticket(seq=999, row=1, prompt_id="p1", step=0, round=0, policy_version=0, rollouts=G))])


def test_outcome_for_another_prompt_is_refused_whole() -> None:
    s = selector()
    with s.step(policy_version=0) as step:
        a, b, *rest = next(step.requests())
        swapped = Ticket(seq=a.seq, row=b.row, prompt_id=b.prompt_id, step=0, round=0, policy_version=0, rollouts=G)
        with pytest.warns(DegradedWarning, match="refused whole"):
            judged = step.report([answer(swapped)])
        assert len(judged.groups) == 0
        step.report([answer(t) for t in (a, b, *rest)])
    assert s.method.state().shared["total"] == 5


def test_unreported_tickets_are_cancelled_not_learned() -> None:
    s = selector()

    def forget_one(step: edgewise.Step) -> None:
        for number, batch in enumerate(step.requests()):
            step.report([answer(t) for t in (batch[1:] if number == 0 else batch)])

    with s.step(policy_version=0) as step, pytest.warns(DegradedWarning, match="1 of its tickets were never reported"):
        forget_one(step)
    assert s.metrics["unreported"] == 1
    assert s.in_flight == []


def test_batch_scope_waits_for_the_whole_round() -> None:
    s = selector(Counting(scope="batch"))
    with s.step(policy_version=0) as step:
        batch = next(step.requests())
        assert len(step.report([answer(batch[0])]).groups) == 0
        assert len(step.report([answer(t) for t in batch[1:]]).groups) == 5


class Broken(Counting):
    """Fails in one place, chosen by the test."""

    def __init__(self, where: str, rows: Any = None) -> None:
        super().__init__()
        self.where = where
        self.bad_rows = rows

    def propose(self, room: int, step: StepView) -> Requests:
        if self.where == "propose":
            self.total += 100  # half-done work that must not stay
            raise ZeroDivisionError("1 - rho")
        if self.where == "rows":
            return Requests.of(self.bad_rows, self.group_size)
        return super().propose(room, step)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        if self.where == "judge":
            raise IndexError("no such group")
        if self.where == "verdicts":
            return Verdicts(np.ones(1, dtype=bool), ("",))
        return super().judge(groups, step)

    def observe(self, groups: Groups, step: StepView) -> None:
        super().observe(groups, step)
        if self.where == "observe":
            raise FloatingPointError("half observed")
        if self.where == "mutate":
            groups.rewards[0] = 7.0


@pytest.mark.filterwarnings("ignore::edgewise.errors.DegradedWarning")
@pytest.mark.parametrize("where", ["propose", "judge", "verdicts", "observe", "mutate"])
def test_a_failing_method_never_stops_the_run_and_learns_nothing_by_halves(where: str) -> None:
    s = selector(Broken(where))
    run_step(s)
    assert s.metrics["degraded"] == 1
    assert s.metrics["rolled_out"] >= 5
    learned = int(s.method.state().shared["total"][0])
    assert learned == (0 if where in ("observe", "mutate") else s.metrics["rolled_out"])
    assert s.method.state().prompts["visits"].sum() == learned
    with pytest.raises((MethodError, ZeroDivisionError, IndexError, FloatingPointError, ValueError)):
        run_step(selector(Broken(where), on_problem="strict"))


@pytest.mark.parametrize(
    ("rows", "message"),
    [([1, 1], "distinct rows"), ([40], r"rows in \[0, 40\)"), ([-1], r"rows in \[0, 40\)"), ([[1]], "must give integer rows")],
)
def test_nonsense_requests_are_refused_by_name(rows: Any, message: str) -> None:
    with pytest.raises(MethodError, match=message):
        run_step(selector(Broken("rows", rows), on_problem="strict"))


def test_warning_is_said_once() -> None:
    s = selector(Broken("propose"))
    with pytest.warns(DegradedWarning, match="drawn uniformly instead"):
        run_step(s)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_step(s)
    assert s.metrics["degraded_total"] >= 2


def test_no_group_to_train_on_is_a_shortfall_error_with_the_counts() -> None:
    s = selector(n=6)
    with s.step(policy_version=0) as step:
        for batch in step.requests():
            step.report([Outcome(ticket=t, rewards=[0.0] * G) for t in batch])
        with pytest.raises(ShortfallError, match="6 groups rolled out in 2 rounds, 0 mixed, 0 all passing, 6 all failing"):
            _ = step.training_batch
        assert len(step.fillers) == 6  # type: ignore[arg-type]
    assert s.metrics["short_groups"] == 5


def test_streaming_take_and_report_share_the_state_and_never_repeat_a_prompt_in_flight(tmp_path: Any) -> None:
    s = selector(n=12)
    a = s.take(5, policy_version=1)
    b = s.take(5, policy_version=1)
    assert len({t.row for t in a + b}) == 10
    assert len(s.take(5)) == 2  # everything else is in flight
    judged = s.report([answer(t) for t in reversed(a)])
    assert [t.seq for t in judged.groups.tickets] == sorted(t.seq for t in a)
    assert {t.row for t in s.take(5)} == {t.row for t in a}
    assert s.method.state().shared["total"] == 5


def test_streaming_resume_reissues_what_was_in_flight_first(tmp_path: Any) -> None:
    s = selector()
    done, open_ = s.take(4), s.take(4)
    s.report([answer(t) for t in done])
    s.save(tmp_path / "x")
    next_of_whole = [t.prompt_id for t in s.take(6)]
    again = selector()
    again.restore(tmp_path / "x")
    assert again.in_flight == open_
    assert again.take(3) == open_[:3]
    assert again.take(1) == open_[3:]
    assert [t.prompt_id for t in again.take(6)] == next_of_whole
    again.report([answer(t) for t in open_])  # tickets of before the crash still count
    again.settle()
    assert again.method.state().shared["total"] == 8


def test_a_missing_signal_is_refused_with_methods_that_do_without() -> None:
    s = edgewise.Selector("hive", pool(60), batch_size=5, group_size=G)
    with s.step(policy_version=0) as step, pytest.raises(HostError, match="needs the signal prompt_entropy.*greso"):
        next(step.requests({}))


def test_misuse_is_named() -> None:
    s = selector()
    with s.step(policy_version=0):
        with pytest.raises(ConfigError, match="still open"):
            s.step(policy_version=0)
        with pytest.raises(ConfigError, match="either `step` or `take`"):
            s.take(1)
        with pytest.raises(ConfigError, match="save between steps"):
            s.save("x")
    with pytest.raises(ConfigError, match=r"batch_size=...\) must be a whole number >= 1, got 0"):
        selector(batch_size=0)
    with pytest.raises(ConfigError, match="seed"):
        selector(seed=-1)
    with pytest.raises(ConfigError, match="on_problem"):
        selector(on_problem="ignore")
    with pytest.raises(ConfigError, match="resume"):
        selector(resume="yes")


def test_a_policy_version_that_stands_still_is_asked_about_once() -> None:
    s = edgewise.Selector("uniform", edgewise.PromptPool.from_ids(range(40)), batch_size=2, group_size=2)

    def step(version: int) -> None:
        with s.step(policy_version=version) as step:
            for tickets in step.requests():
                step.report([edgewise.Outcome(ticket=t, rewards=[1.0, 0.0]) for t in tickets])

    for _ in range(64):
        step(7)
    with pytest.warns(DegradedWarning, match="policy_version has been 7 for 128 tickets"):
        step(7)
    for version in (7, 7, 8, 8):
        step(version)  # said once
