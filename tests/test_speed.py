"""SPEED-RL and the two phases it shares with Pilot-Commit: screening, continuing, carrying over, cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.errors import ConfigError
from edgewise.methods.speed import Speed
from edgewise.outcomes import continued, joined
from edgewise.pool import PromptPool
from edgewise.selector import Selector
from edgewise.types import Groups, Outcome, Setting, Ticket
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(group_size: int = 8, batch_size: int = 4, **parameters: Any) -> Speed:
    method = Speed(**parameters)
    method.start(Setting(pool_size=200, batch_size=batch_size, group_size=group_size))
    return method


def whole(rows: list[int], pilots: list[list[float]], rests: list[list[float]]) -> Groups:
    """Groups that were piloted and then continued."""
    return joined(
        [continued(groups_of([row], [p]), groups_of([row], [r])) for row, p, r in zip(rows, pilots, rests, strict=True)]
    )


@pytest.mark.parametrize(("group_size", "pilot"), [(2, 2), (3, 2), (4, 2), (6, 3), (8, 4), (24, 4), (64, 4)])
def test_the_default_pilot_is_four_but_at_most_half(group_size: int, pilot: int) -> None:
    requests = started(group_size).propose(4, FakeStep(range(200)))
    assert (len(requests), set(requests.rollouts.tolist())) == (16, {pilot})


def test_a_mixed_pilot_gets_the_rest_and_the_others_go() -> None:
    """4 + 20, as in the paper's script."""
    nan = np.nan
    rewards = [[1, 0, 0, 0], [0] * 4, [1] * 4, [1, nan, 0, nan], [1, nan, nan, nan], [nan] * 4]
    verdicts = started(24).judge(groups_of(list(range(6)), rewards), FakeStep([]))
    assert verdicts.more is not None
    assert verdicts.more.tolist() == [20, 0, 0, 20, 0, 0]
    assert verdicts.reasons == ("", "zero_variance", "zero_variance", "", "incomplete", "incomplete")
    assert verdicts.keep.tolist() == [True, False, False, True, False, False]


def test_pilot_and_rest_may_be_of_equal_size() -> None:
    """The released code tells phases by counting rollouts and could not: here the second judgement is final."""
    method = started(8, pilot=4)
    groups = joined([passing([0], [2], 4), whole([1], [[1, 0, 0, 0]], [[0, 0, 0, 0]]), passing([2], [4], 4)])
    verdicts = method.judge(groups, FakeStep([]))
    assert verdicts.more is not None
    assert verdicts.more.tolist() == [4, 0, 0]
    assert verdicts.keep.tolist() == [True, True, False]


def test_a_rest_that_never_came_leaves_a_group_of_its_pilot() -> None:
    nan = np.nan
    verdicts = started(8).judge(whole([0], [[1, 0, 0, 1]], [[nan] * 4]), FakeStep([]))
    assert verdicts.more is not None
    assert (verdicts.keep.tolist(), verdicts.more.tolist()) == ([True], [0])


def test_a_pilot_of_the_whole_group_is_dynamic_sampling() -> None:
    verdicts = started(2).judge(passing([0, 1, 2], [0, 1, 2], 2), FakeStep([]))
    assert verdicts.more is not None
    assert (verdicts.keep.tolist(), verdicts.more.tolist()) == ([False, True, False], [0, 0, 0])


def test_the_verifier_decides_where_it_judged_every_rollout() -> None:
    shaped = groups_of([0, 1], [[0.1, 0.2, 0.3, 0.4]] * 2, correct=[[0, 0, 0, 0], [1, 0, 0, 0]])
    assert started(8).judge(shaped, FakeStep([])).keep.tolist() == [False, True]
    assert started(8, gate="reward").judge(shaped, FakeStep([])).keep.tolist() == [True, True]


def world(rate: Any, *, batch_size: int, group_size: int, n: int = 4000, **parameters: Any) -> tuple[Selector, Any]:
    """A selector over prompts with given pass rates, and what answers a ticket."""
    rates = np.broadcast_to(rate, n)
    pool = PromptPool.from_ids([f"p{i}" for i in range(n)])
    selector = Selector("speed", pool, batch_size=batch_size, group_size=group_size, parameters=parameters, on_problem="strict")

    def answer(ticket: Ticket) -> Outcome:
        draws = np.random.default_rng([5, ticket.seq]).random(ticket.rollouts)
        return Outcome(ticket=ticket, rewards=(draws < rates[ticket.row]).astype(float).tolist())

    return selector, answer


@pytest.mark.parametrize(("rate", "cost"), [(0.5, 24.571428571428573), (0.1, 31.634671320535197)])
def test_a_trained_group_costs_what_the_formula_says(rate: float, cost: float) -> None:
    """n/(1 - pⁿ - qⁿ) + N_cont with 4 + 20. The pilots needed for A accepted ones are negative binomial:

    the mean cost of a pilot has a deviation of 4 sqrt(A (1-f))/(f A), f = 1 - p⁴ - q⁴; 6 of these, twice in 1e9 runs.
    """
    f = 1 - rate**4 - (1 - rate) ** 4
    assert 4 / f + 20 == pytest.approx(cost, abs=1e-12)
    selector, answer = world(rate, batch_size=32, group_size=24)
    pilots = accepted = 0
    for number in range(8):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                pilots += sum(t.continues is None for t in tickets)
                assert {t.rollouts for t in tickets if t.continues is not None} <= {20}
                step.report([answer(t) for t in tickets])
            accepted += len(step.training_batch)
    accepted += int(selector.metrics.get("waiting", 0))
    assert accepted >= 256
    assert abs(4 * pilots / accepted + 20 - cost) < 6 * 4 * np.sqrt(accepted * (1 - f)) / (f * accepted)


def test_both_phases_share_a_generation_call_and_leftovers_carry_over() -> None:
    """Rates of which few pilots are mixed: rounds hold new pilots and rests. Then rates of which most are: some wait."""
    selector, answer = world(0.06, batch_size=8, group_size=8)
    with selector.step(policy_version=0) as step:
        phases = []
        for tickets in step.requests({}):
            phases.append({t.continues is None for t in tickets})
            step.report([answer(t) for t in tickets])
        assert len(step.training_batch) == 8
    assert phases[0] == {True}
    assert {True, False} in phases

    selector, answer = world(0.5, batch_size=8, group_size=8)
    for number in range(3):
        with selector.step(policy_version=number) as step:
            rounds = []
            for tickets in step.requests({}):
                rounds.append([t.continues is None for t in tickets])
                step.report([answer(t) for t in tickets])
            batch = step.training_batch
        if number == 0:
            assert list(map(len, rounds)) == [32, 8]
        else:
            assert rounds == [[False] * 8]  # what waited fills the batch: no prompt is screened
        assert batch.policy_versions[:, :4].tolist() == [[0] * 4] * 8
        assert batch.policy_versions[:, 4:].tolist() == [[number] * 4] * 8


def test_whole_runs_with_missing_rollouts_fill_the_batch() -> None:
    selector = selector_of("speed")
    for number in range(12):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                step.report([answered(ticket) for ticket in tickets])
            batch = step.training_batch
        assert len(batch) == 4
        assert set(batch.asked.tolist()) == {4}
        assert (np.nanmax(batch.rewards[:, :2], axis=1) > np.nanmin(batch.rewards[:, :2], axis=1)).all()  # selected so


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"pilot": 9}, r"Speed\(pilot=...\) must be at most group_size = 8, got 9"),
        ({"pilot": 1}, r"Speed\(pilot=...\) must be a whole number of at least 2, got 1"),
    ],
)
def test_a_pilot_that_cannot_work_is_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        started(**parameters)
