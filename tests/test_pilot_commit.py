"""Pilot-Commit: the band of the pilot, eviction, and pilots that waited too long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.errors import ConfigError
from edgewise.methods.pilot_commit import PilotCommit
from edgewise.pool import PromptPool
from edgewise.selector import Selector
from edgewise.types import Outcome, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(group_size: int = 16, batch_size: int = 4, pool_size: int = 200, **parameters: Any) -> PilotCommit:
    method = PilotCommit(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


@pytest.mark.parametrize(
    ("group_size", "pilot"), [(2, 2), (3, 2), (4, 2), (8, 4), (16, 8), (24, 8), (32, 8), (64, 16), (128, 32)]
)
def test_the_default_pilot_by_group_size(group_size: int, pilot: int) -> None:
    requests = started(group_size).propose(4, FakeStep(range(200)))
    assert (len(requests), set(requests.rollouts.tolist())) == (4, {pilot})


def test_pilots_in_the_band_commit_ends_included() -> None:
    """Pilot of 8, band 1/4 … 3/4: k = 2 … 6 get the other 8."""
    counts = list(range(9))
    verdicts = started(16).judge(passing(counts, counts, 8), FakeStep([]))
    assert verdicts.more is not None
    assert verdicts.more.tolist() == [0, 0, 8, 8, 8, 8, 8, 0, 0]
    assert verdicts.reasons == ("too_hard",) * 2 + ("",) * 5 + ("too_easy",) * 2


def test_the_other_band_of_the_scripts() -> None:
    counts = list(range(9))
    verdicts = started(16, lower=0.125, upper=0.25).judge(passing(counts, counts, 8), FakeStep([]))
    assert np.flatnonzero(verdicts.keep).tolist() == [1, 2, 3, 4, 5, 6]


def test_solved_pilots_are_evicted_and_hard_ones_come_again() -> None:
    method = started(16, pool_size=6)
    method.observe(passing([0, 1, 2], [8, 7, 0], 8), FakeStep([]))
    assert method.state().prompts["evicted"].tolist() == [True, False, False, False, False, False]
    step = FakeStep(range(6))
    assert sorted(method.propose(4, step).rows.tolist()) == [1, 2, 3, 4]
    assert step.sums["skipped"] == 1


def test_one_scored_rollout_does_not_evict_and_missing_ones_do_not_save() -> None:
    method, nan = started(8, pool_size=3, batch_size=1), np.nan
    method.observe(groups_of([0, 1], [[1, nan, nan, nan], [1, nan, 1, nan]]), FakeStep([]))
    assert method.state().prompts["evicted"].tolist() == [False, True, False]


def test_eviction_can_be_switched_off() -> None:
    method = started(16, pool_size=6, evict_at=None)
    method.observe(passing([0, 1], [8, 8], 8), FakeStep([]))
    assert not method.state().prompts["evicted"].any()


def test_a_pool_that_is_evicted_is_asked_for_all_the_same_and_can_come_back() -> None:
    method = started(16, pool_size=6)
    method.observe(passing(range(6), [8] * 6, 8), FakeStep([]))
    assert len(method.propose(4, FakeStep(range(6)))) == 4
    method.observe(passing([2], [7], 8), FakeStep([]))
    assert np.flatnonzero(~method.state().prompts["evicted"]).tolist() == [2]


def test_pilots_that_waited_too_long_are_dropped_and_observed() -> None:
    """Every pilot passes. Three a batch: the first step pilots 6, asks for the rest of 3, and 3 wait."""
    pool = PromptPool.from_ids([f"p{i}" for i in range(60)])

    def run(jump: int) -> Selector:
        parameters = {"oversample": 2.0}
        selector = Selector("pilot-commit", pool, batch_size=3, group_size=8, parameters=parameters, on_problem="strict")
        for version in (0, jump):
            with selector.step(policy_version=version) as step:
                for tickets in step.requests({}):
                    step.report([Outcome(ticket=t, rewards=[1.0, 0.0] * (t.rollouts // 2)) for t in tickets])
                assert len(step.training_batch) == 3
                ages = version - step.training_batch.policy_versions[:, 0]
                assert ages.tolist() == [version if version and jump <= 4 else 0] * 3
        return selector

    assert run(4).metrics.get("dropped_stale", 0) == 0
    assert run(5).metrics["dropped_stale"] == 3


def test_whole_runs_commit_and_evict_for_good() -> None:
    """No prompt that was solved in its pilot is ever asked for again while others are left."""
    selector = selector_of("pilot-commit")
    solved: set[int] = set()
    for number in range(8):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                if not step._stage.metrics.get("relaxed"):
                    assert not solved & {t.row for t in tickets}
                outcomes = [answered(ticket) for ticket in tickets]
                step.report(outcomes)
                for outcome in outcomes:
                    scored = [r for r in outcome.rewards if r is not None]
                    if outcome.ticket.continues is None and len(scored) >= 2:
                        (solved.add if min(scored) == 1.0 else solved.discard)(outcome.ticket.row)
            assert len(step.training_batch) == 4
    assert solved
    assert solved == set(np.flatnonzero(selector.method.state().prompts["evicted"]).tolist())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"lower": 0.6, "upper": 0.6}, "must leave a band lower <= p <= 1 - upper, got 0.6 and 0.6"),
        ({"evict_at": 0.75}, "must be above the band that is trained, 1 - upper = 0.75, got 0.75"),
        ({"upper": 0.0}, "= 1, got 1.0. Raise it, or set it to None, which evicts no prompt"),
        ({"max_staleness": -1}, "must be a whole number of at least 0, got -1"),
        ({"pilot": 32}, "must be at most group_size = 16, got 32"),
    ],
)
def test_what_cannot_work_is_refused(parameters: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        started(**parameters)
