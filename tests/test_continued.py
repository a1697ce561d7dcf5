"""Groups that are continued, held, retired, weighted: what a judge may say beyond keep and drop."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

import edgewise
from edgewise.errors import DegradedWarning, MethodError
from edgewise.method import Method, StepView
from edgewise.types import Groups, MethodState, Outcome, Requests, Setting, Ticket, Verdicts


class Scripted(Method):
    """Asks for the next prompts with 2 rollouts each; `judge` is a function given by the test."""

    name: ClassVar[str] = "scripted"

    def __init__(self, judge: Any, *, pilot: int = 2, limit: int | None = None, scope: Any = "group") -> None:
        self._judge, self.pilot, self.max_staleness, self.scope = judge, pilot, limit, scope

    def start(self, setting: Setting) -> None:
        self.visits = np.zeros(setting.pool_size, dtype=np.int64)
        self.seen: list[tuple[list[int], list[int], np.ndarray]] = []
        self.rooms: list[int] = []

    def propose(self, room: int, step: StepView) -> Requests:
        self.rooms.append(room)
        return Requests.of(step.draw(room), self.pilot)

    def judge(self, groups: Groups, step: StepView) -> Verdicts:
        verdicts: Verdicts = self._judge(groups, step)
        return verdicts

    def observe(self, groups: Groups, step: StepView) -> None:
        self.visits[groups.rows] += 1
        self.seen.append((groups.rows.tolist(), groups.asked.tolist(), np.array(groups.rewards)))

    def parameters(self) -> dict[str, bool | int | float | str | None]:
        return {}

    def state(self) -> MethodState:
        return MethodState(prompts={"visits": self.visits})

    def restore(self, state: MethodState) -> None:
        self.visits = state.prompts["visits"].copy()


def screening(groups: Groups, step: StepView) -> Verdicts:
    """Two more for every pilot, then keep."""
    pilot = groups.asked == 2
    return Verdicts(~pilot, ("",) * len(groups), more=np.where(pilot, 2, 0))


def holding(groups: Groups, step: StepView) -> Verdicts:
    pilot = groups.asked == 2
    return Verdicts(~pilot, ("",) * len(groups), hold=np.where(pilot, 2, 0))


def selector(method: Method, *, pool: int = 12, batch: int = 3, strict: bool = True, **settings: Any) -> edgewise.Selector:
    return edgewise.Selector(
        method, edgewise.PromptPool.from_ids(range(pool)), batch_size=batch, group_size=4,
        on_problem="strict" if strict else "degrade", **settings,
    )  # fmt: skip


def answer(ticket: Ticket) -> Outcome:
    """Rewards that tell where they came from: row + seq/1000."""
    return Outcome(ticket=ticket, rewards=[ticket.row + ticket.seq / 1000] * ticket.rollouts, response_tokens=7)


def run_step(s: edgewise.Selector, version: int = 0) -> tuple[list[list[Ticket]], Groups | None]:
    rounds = []
    with s.step(policy_version=version) as step:
        for tickets in step.requests():
            rounds.append(tickets)
            step.report([answer(t) for t in tickets])
        batch = step.training_batch if step.missing < s.batch_size else None
    return rounds, batch


def test_more_continues_the_same_group_in_the_next_round_and_teaches_once():
    method = Scripted(screening)
    s = selector(method)
    rounds, batch = run_step(s)
    assert [len(r) for r in rounds] == [3, 3]
    assert [t.continues for t in rounds[1]] == [t.seq for t in rounds[0]]
    assert [t.row for t in rounds[1]] == [t.row for t in rounds[0]]
    assert batch is not None
    assert batch.asked.tolist() == [4, 4, 4]
    assert batch.tickets == tuple(rounds[0])
    expected = [[t.row + t.seq / 1000] * 2 + [u.row + u.seq / 1000] * 2 for t, u in zip(*rounds, strict=True)]
    assert batch.rewards.tolist() == expected
    assert len(method.seen) == 1
    assert method.seen[0][1] == [4, 4, 4]
    assert method.rooms == [3], "the method is not asked for new prompts while the batch is being completed"
    m = s.metrics
    assert (m["responses"], m["rolled_out"], m["continued"], m["response_tokens"]) == (12, 3, 3, 42)
    assert len(s._waiting) == 0


def test_more_and_new_prompts_share_a_round():
    def judge(groups: Groups, step: StepView) -> Verdicts:
        pilot, odd = groups.asked == 2, groups.rows % 2 == 1
        reasons = tuple("odd" if p and o else "" for p, o in zip(pilot, odd, strict=True))
        return Verdicts(~pilot, reasons, more=np.where(pilot & ~odd, 2, 0))

    method = Scripted(judge)
    s = selector(method, pool=40, batch=4)
    rounds, batch = run_step(s)
    assert batch is not None
    assert (batch.rows % 2 == 0).all()
    assert len(batch) == 4
    mixed = [tickets for tickets in rounds[1:] if {t.continues is None for t in tickets} == {True, False}]
    assert mixed, "no round carried both"
    for tickets in rounds[1:]:
        assert len(tickets) <= 4, "continuations take up room"
    assert s.metrics["dropped_odd"] == s.metrics["rolled_out"] - 4


def test_held_groups_come_first_in_the_next_step_and_their_prompts_are_not_offered_meanwhile():
    method = Scripted(holding)
    s = selector(method, pool=6)
    rounds, batch = run_step(s, 0)
    assert batch is None
    held = [t for tickets in rounds for t in tickets]
    assert len(s._waiting) == len(held) == 6, "every prompt was piloted and is held; none is offered twice"
    assert method.seen == []
    rounds, batch = run_step(s, 1)
    assert [t.continues for t in rounds[0]] == [t.seq for t in held[:3]], "the oldest first"
    assert batch is not None
    assert batch.policy_versions.tolist() == [[0, 0, 1, 1]] * 3
    assert s.metrics["waiting"] == 3


def test_groups_that_waited_too_long_are_dropped_and_learned_from():
    method = Scripted(holding, limit=1)
    s = selector(method, pool=6, batch=2)
    run_step(s, 0)
    assert len(s._waiting) == 6
    run_step(s, 1)
    assert len(s._waiting) == 4
    rounds, _ = run_step(s, 2)
    assert s.metrics["dropped_stale"] == 4
    assert sorted(method.visits.tolist()) == [1] * 6
    assert all(t.continues is None for t in rounds[0]), "their prompts are free again"


def test_an_unreported_continuation_leaves_the_group_judged_on_what_there_is():
    def judge(groups: Groups, step: StepView) -> Verdicts:
        pilot = groups.asked == 2
        return Verdicts(groups.valid.sum(axis=1) >= 2, ("",) * len(groups), more=np.where(pilot, 2, 0))

    s = selector(Scripted(judge), strict=False, batch=2)
    with s.step(policy_version=0) as step:
        rounds = step.requests()
        step.report([answer(t) for t in next(rounds)])
        step.report([answer(next(rounds)[0])])
        with pytest.warns(DegradedWarning, match="never reported"):
            assert list(rounds) == []
        batch = step.training_batch
    assert batch.asked.tolist() == [4, 4]
    assert batch.valid.sum(axis=1).tolist() == [4, 2]


def test_a_step_that_fails_leaves_waiting_groups_as_they_were():
    method = Scripted(holding)
    s = selector(method, pool=6)
    run_step(s, 0)
    before = [s._waiting[seq] for seq in s._waiting.seqs]
    blocked = s._blocked.copy()

    def fail() -> None:
        with s.step(policy_version=1) as step:
            for tickets in step.requests():
                step.report([answer(t) for t in tickets])
                raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert [s._waiting[seq] for seq in s._waiting.seqs] == before
    assert (s._blocked == blocked).all()
    assert method.visits.sum() == 0


def test_waiting_groups_survive_a_save(tmp_path):
    s = selector(Scripted(holding), pool=7)
    run_step(s, 0)
    s.save(tmp_path / "state.safetensors")
    twin = selector(Scripted(holding), pool=7)
    twin.restore(tmp_path / "state.safetensors")
    for version in (1, 2, 3):
        (a, batch_a), (b, batch_b) = run_step(s, version), run_step(twin, version)
        assert a == b
        assert (batch_a is None) == (batch_b is None)
        if batch_a is not None and batch_b is not None:
            assert batch_a.rewards.tolist() == batch_b.rewards.tolist()
            assert batch_a.policy_versions.tolist() == batch_b.policy_versions.tolist()


def test_streaming_hands_out_continuations_first_and_resumes_with_them_in_flight(tmp_path):
    s = selector(Scripted(screening), pool=8)
    first = s.take(3)
    assert len(s.report([answer(t) for t in first]).groups) == 0
    second = s.take(4)
    assert [t.continues for t in second] == [0, 1, 2, None]
    s.save(tmp_path / "state.safetensors")
    twin = selector(Scripted(screening), pool=8)
    twin.restore(tmp_path / "state.safetensors")
    assert twin.take(4) == second, "what was in flight comes first"
    for one in (s, twin):
        judged = one.report([answer(t) for t in second[:3]])
        assert judged.groups.asked.tolist() == [4, 4, 4]
        assert judged.groups.rows.tolist() == [t.row for t in first]
        assert len(one._waiting) == 0
        assert one._blocked.sum() == 1


def test_retired_prompts_wait_for_the_next_pass():
    def judge(groups: Groups, step: StepView) -> Verdicts:
        return Verdicts(np.ones(len(groups), dtype=bool), ("",) * len(groups), retire=groups.rows < 4)

    s = selector(Scripted(judge, pilot=4), pool=10, batch=2)
    passes: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while s._stream.epoch < 3:
        before = s._stream.position // 10
        rounds, _ = run_step(s)
        passes.setdefault(before, []).extend(t.row for t in rounds[0])
    for rows in passes.values():
        low = [row for row in rows if row < 4]
        assert len(low) == len(set(low)), "a retired prompt came again in the same pass"


def test_a_pool_of_retired_prompts_comes_back_rather_than_starving_the_run(tmp_path):
    def judge(groups: Groups, step: StepView) -> Verdicts:
        return Verdicts(np.ones(len(groups), dtype=bool), ("",) * len(groups), retire=np.ones(len(groups), dtype=bool))

    s = selector(Scripted(judge, pilot=4), pool=7, batch=3)
    for _ in range(8):
        rounds, batch = run_step(s)
        assert batch is not None
        assert len(batch) == 3
    s.save(tmp_path / "s.safetensors")
    twin = selector(Scripted(judge, pilot=4), pool=7, batch=3)
    twin.restore(tmp_path / "s.safetensors")
    assert (twin._blocked == s._blocked).all()
    assert [run_step(s)[0] for _ in range(5)] == [run_step(twin)[0] for _ in range(5)]


def test_a_pool_that_runs_dry_in_mid_step_does_not_offer_what_the_step_rolled_out():
    def judge(groups: Groups, step: StepView) -> Verdicts:
        return Verdicts(np.zeros(len(groups), dtype=bool), ("solved",) * len(groups), retire=np.ones(len(groups), dtype=bool))

    s = selector(Scripted(judge, pilot=4), pool=7, batch=3)
    for _ in range(3):
        rounds, batch = run_step(s)
        rows = [t.row for tickets in rounds for t in tickets]
        assert len(rows) == len(set(rows)) == 7
        assert batch is None


def test_the_training_batch_says_what_trains_and_how_much_and_never_exceeds_the_budget():
    def judge(groups: Groups, step: StepView) -> Verdicts:
        trained = np.zeros(groups.rewards.shape, dtype=bool)
        trained[:, :3] = True
        weights = np.full(groups.rewards.shape, 2.0)
        return Verdicts(groups.rows >= 0, ("",) * len(groups), trained=trained, weights=weights)

    s = selector(Scripted(judge, pilot=6), batch=3)
    _, batch = run_step(s)
    assert batch is not None
    assert batch.trained.sum(axis=1).tolist() == [3, 3, 3]
    assert batch.weights.tolist() == [[2.0] * 3 + [0.0] * 3] * 3
    s = selector(Scripted(lambda g, _: Verdicts.of(g.rows >= 0, ""), pilot=6), batch=3)
    _, batch = run_step(s)
    assert batch is not None
    assert len(batch) == 2, "three groups of six would train 18 rollouts where the trainer takes 12"


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        (lambda n, g: Verdicts(np.ones(n, dtype=bool), ("",) * n, more=np.full(n, -1)), "`more` must be finite and at least 0"),
        (lambda n, g: Verdicts(np.ones(n, dtype=bool), ("",) * n, hold=np.full(n, 1.5)), "`hold` must be"),
        (lambda n, g: Verdicts(np.ones(n, dtype=bool), ("",) * n, hold=np.full(n, 10**12)), "`hold` must be at most 65,536"),
        (lambda n, g: Verdicts(np.ones(n, dtype=bool), ("",) * n, weights=np.full((n, g), np.nan)), "`weights` must be finite"),
        (
            lambda n, g: Verdicts(np.ones(n, dtype=bool), ("",) * n, trained=np.ones((n, g + 1), dtype=bool)),
            "`trained` must be",
        ),
        (lambda n, g: Verdicts(np.ones(n, dtype=bool), ("",) * n, more=np.ones(n, int), hold=np.ones(n, int)), "not both"),
        (lambda n, g: Verdicts(np.ones(n, dtype=int), ("",) * n), "with booleans and reasons"),
        (lambda n, g: Verdicts(np.zeros(n, dtype=bool), (["easy"],) * n), "its reasons in words"),  # type: ignore[arg-type]
    ],
)
def test_nonsense_verdicts_are_refused_in_strict_mode_and_contained_otherwise(verdicts, text):
    def judge(groups: Groups, step: StepView) -> Verdicts:
        found: Verdicts = verdicts(len(groups), groups.rewards.shape[1])
        return found

    with pytest.raises(MethodError, match=text):
        run_step(selector(Scripted(judge)))
    s = selector(Scripted(judge), strict=False)
    with pytest.warns(DegradedWarning, match="judge failed"):
        _, batch = run_step(s)
    assert batch is not None
    assert len(batch) == 3
