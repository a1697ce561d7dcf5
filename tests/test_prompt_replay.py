"""Prompt Replay: medium prompts come again, after a cool-down, up to a cap, beside fresh ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgewise.errors import ConfigError
from edgewise.methods.prompt_replay import PromptReplay
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import POOL, answered, selector_of


def started(group_size: int = 8, batch_size: int = 4, **parameters: Any) -> PromptReplay:
    method = PromptReplay(**({"cooldown": 2} | parameters))
    method.start(Setting(pool_size=100, batch_size=batch_size, group_size=group_size))
    return method


def held(method: PromptReplay) -> list[int]:
    return method.state().shared["memory_rows"].tolist()


def test_prompts_of_the_band_enter_ends_included() -> None:
    method = started()
    method.observe(passing(range(9), range(9), 8), FakeStep([]))
    assert held(method) == [2, 3, 4, 5, 6]


def test_the_nearest_to_one_half_comes_first_and_takes_at_most_its_share() -> None:
    method = started(replay_share=0.5)
    method.observe(passing([90, 91, 92, 93], [2, 5, 4, 6], 8), FakeStep([]))
    step = FakeStep(range(20), number=3)
    assert method.propose(4, step).rows.tolist() == [92, 91, 0, 1]
    assert step.sums["replayed"] == 2


def test_nothing_is_replayed_within_the_cool_down() -> None:
    """Rolled out in step 4, cool-down 2: not in 5 and 6, in 7."""
    method = started(replay_share=1.0)
    method.observe(passing([90], [4], 8), FakeStep([], number=4))
    found = [90 in method.propose(4, FakeStep(range(20), number=number)).rows for number in (5, 6, 7)]
    assert found == [False, False, True]


def test_the_cool_down_of_a_stream_is_counted_in_policy_versions() -> None:
    """Calls of `take` say nothing: a host may make one for each prompt."""
    method = started(replay_share=1.0)
    method.observe(passing([90], [4], 8), FakeStep([], number=40, policy_version=4, streaming=True))
    stream = [FakeStep(range(20), number=41 + 10 * version, policy_version=version, streaming=True) for version in (5, 6, 7)]
    assert [90 in method.propose(4, step).rows for step in stream] == [False, False, True]


def test_a_prompt_is_replayed_at_most_so_often_in_the_whole_run() -> None:
    method = started(max_reuse=2, replay_share=1.0)
    method.observe(passing([90], [4], 8), FakeStep([]))
    for number in (10, 20):
        step = FakeStep(range(20), number=number)
        assert 90 in method.propose(4, step).rows
        method.observe(passing([90], [4], 8), step)
    assert held(method) == []
    method.observe(passing([90], [4], 8), FakeStep([], number=30))  # the stream brings it again
    assert held(method) == []
    assert int(method.state().prompts["reused"][90]) == 2


def test_visits_of_the_stream_renew_and_do_not_count() -> None:
    method = started()
    for number in range(5):
        method.observe(passing([90], [4], 8), FakeStep([], number=number))
    assert int(method.state().prompts["reused"][90]) == 0
    assert method.state().shared["memory_last"].tolist() == [4]


def test_a_prompt_that_leaves_the_band_leaves_the_buffer() -> None:
    method = started()
    method.observe(passing([90, 91], [4, 4], 8), FakeStep([]))
    method.observe(passing([90], [8], 8), FakeStep([], number=1))
    assert held(method) == [91]


def test_missing_rollouts_are_no_failures_and_single_ones_teach_nothing() -> None:
    method, nan = started(), np.nan
    method.observe(groups_of([0, 1], [[1, 0] + [nan] * 6, [1] + [nan] * 7]), FakeStep([]))
    assert held(method) == [0]


def test_single_requests_of_a_stream_replay_their_share_too() -> None:
    """One place at a time, share 1/2, a buffer that never empties: 400 requests, sigma 10, ±60 is 6 sigma."""
    method = started(replay_share=0.5, cooldown=0, max_reuse=10_000)
    method.observe(passing([90], [4], 8), FakeStep([]))
    replays = 0
    for number in range(1, 401):
        step = FakeStep([number % 80], number=number, policy_version=number, streaming=True)
        rows = method.propose(1, step).rows.tolist()
        replays += rows == [90]
        method.observe(passing(rows, [4 if rows == [90] else 0], 8), step)
    assert abs(replays - 200) < 60


def test_a_saved_method_goes_on_as_it_was() -> None:
    method = started()
    method.observe(passing(range(60, 80), [4, 3] * 10, 8), FakeStep([]))
    other = started()
    other.restore(method.state())
    for number in (5, 9):
        one, two = (m.propose(4, FakeStep(range(40), number=number)).rows.tolist() for m in (method, other))
        assert one == two


def test_whole_runs_keep_the_cool_down_and_the_cap() -> None:
    selector = selector_of("prompt-replay", {"cooldown": 3, "max_reuse": 2})
    replays = np.zeros(POOL, dtype=np.int64)
    answered_at = np.full(POOL, -100)
    for number in range(30):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                rows = np.array([t.row for t in tickets])
                assert len(np.unique(rows)) == len(rows) == 4
                again = rows[: int(step._stage.metrics.get("replayed"))]  # replays stand in front
                assert len(again) <= 2
                assert (number - answered_at[again] > 3).all()
                outcomes = [answered(ticket) for ticket in tickets]
                scored = [sum(r is not None for r in o.rewards) >= 2 for o in outcomes]
                answered_at[rows[scored]] = number
                replays[[row for row, good in zip(rows, scored, strict=True) if good and row in again]] += 1
                step.report(outcomes)
    assert replays.sum() > 5
    assert replays.max() <= 2
    assert selector.method.state().prompts["reused"].tolist() == replays.tolist()


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"PromptReplay\(low=...\) must be a number of at least 0 and at most 0.75, got 0.8"):
        PromptReplay(low=0.8)
    with pytest.raises(ConfigError, match=r"PromptReplay\(cooldown=...\) must be a whole number of at least 0, got -1"):
        PromptReplay(cooldown=-1)
