"""VCRL: the variance score, the threshold that rises, and the memory that fills short batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.methods.vcrl import Vcrl, variance_score
from edgewise.types import Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import answered, selector_of


def started(group_size: int = 8, batch_size: int = 4, **parameters: Any) -> Vcrl:
    method = Vcrl(**parameters)
    method.start(Setting(pool_size=100, batch_size=batch_size, group_size=group_size))
    return method


def remembered(method: Vcrl) -> dict[int, float]:
    shared = method.state().shared
    return dict(zip(shared["memory_rows"].tolist(), shared["memory_priority"].round(9).tolist(), strict=True))


def test_the_table_of_the_paper() -> None:
    eight = variance_score(np.arange(9.0), np.full(9, 8))
    assert eight.tolist() == [0, 0.4375, 0.75, 0.9375, 1, 0.9375, 0.75, 0.4375, 0]
    assert variance_score(np.array([1.0]), np.array([16])).round(4).tolist() == [0.2344]
    assert variance_score(np.array([0.0, 1.0, 2.0]), np.array([5, 5, 5])).round(4).tolist() == [0, 0.6667, 1]
    assert variance_score(np.array([1.0]), np.array([1])).tolist() == [0]


@given(st.integers(2, 40), st.integers(0, 40))
def test_the_score_is_the_unbiased_variance_over_its_maximum(trials: int, k: int) -> None:
    """By numpy's variance of the rewards themselves, and the largest of all counts."""
    k = min(k, trials)

    def variance(passes: int) -> float:
        return float(np.var([1.0] * passes + [0.0] * (trials - passes), ddof=1))

    found = variance_score(np.array([float(k)]), np.array([trials]))[0]
    assert found == pytest.approx(variance(k) / max(variance(j) for j in range(trials + 1)), abs=1e-12)


@pytest.mark.parametrize(("number", "kept"), [(0, [1, 2, 3, 4, 5, 6, 7]), (19, [1, 2, 3, 4, 5, 6, 7]), (20, [3, 4, 5])])
def test_the_threshold_rises_after_twenty_steps(number: int, kept: list[int]) -> None:
    counts = list(range(9))
    verdicts = started().judge(passing(counts, counts, 8), FakeStep([], number=number))
    assert np.flatnonzero(verdicts.keep).tolist() == kept
    assert set(verdicts.reasons) == {"", "low_variance"}


@pytest.mark.parametrize(("version", "kept"), [(0, [1, 2, 3, 4, 5, 6, 7]), (19, [1, 2, 3, 4, 5, 6, 7]), (20, [3, 4, 5])])
def test_in_a_stream_the_threshold_rises_by_policy_versions_and_not_by_calls(version: int, kept: list[int]) -> None:
    counts = list(range(9))
    step = FakeStep([], number=5000, policy_version=version, streaming=True)
    assert np.flatnonzero(started().judge(passing(counts, counts, 8), step).keep).tolist() == kept


def test_the_early_threshold_drops_one_of_sixteen() -> None:
    verdicts = started(16).judge(passing([0, 1], [1, 2], 16), FakeStep([]))
    assert verdicts.keep.tolist() == [False, True]


def test_the_score_is_over_rollouts_that_came_back() -> None:
    nan = np.nan
    groups = groups_of([0, 1, 2], [[1, 0] + [nan] * 6, [1] + [nan] * 7, [nan] * 8])
    verdicts = started().judge(groups, FakeStep([], number=20))
    assert (verdicts.keep.tolist(), verdicts.reasons) == ([True, False, False], ("", "incomplete", "incomplete"))


def test_kept_prompts_are_remembered_and_their_priority_follows_slowly() -> None:
    """v = .75, then 1: .9 · .75 + .1 · 1 = .775; then 0: .6975. A prompt below the threshold does not enter."""
    method = started()
    method.observe(passing([3, 5], [2, 0], 8), FakeStep([]))
    assert remembered(method) == {3: 0.75}
    method.observe(passing([3], [4], 8), FakeStep([]))
    assert remembered(method) == {3: 0.775}
    method.observe(passing([3], [8], 8), FakeStep([]))
    assert remembered(method) == {3: 0.6975}


def test_a_short_step_replays_the_best_of_the_memory_and_then_draws() -> None:
    method = started()
    method.observe(passing([90, 91, 92], [2, 4, 3], 8), FakeStep([]))
    step = FakeStep(range(20), number=1)
    rows = method.propose(4, step).rows.tolist()
    assert rows == [0, 1, 2, 3]
    step.offered += rows
    step.round = 1
    assert method.propose(2, step).rows.tolist() == [91, 92]
    assert step.sums["replayed"] == 2
    method.observe(passing([91, 92], [4, 3], 8), step)

    step = FakeStep(range(20), number=2)
    step.offered += method.propose(4, step).rows.tolist()
    step.round = 1
    assert method.propose(4, step).rows.tolist() == [91, 92, 90, 4]
    step.round = 2
    assert len(method.propose(4, step)) == 0


def test_a_prompt_leaves_after_two_replays_and_visits_of_the_stream_do_not_count() -> None:
    method = started()
    method.observe(passing([90], [4], 8), FakeStep([]))
    method.observe(passing([90], [4], 8), FakeStep([]))
    for number in (1, 2):
        assert 90 in remembered(method)
        step = FakeStep(range(20), number=number)
        step.offered += method.propose(1, step).rows.tolist()
        step.round = 1
        assert method.propose(1, step).rows.tolist() == [90]
        method.observe(passing([90], [4], 8), step)
    assert 90 not in remembered(method)
    method.observe(passing([90], [4], 8), FakeStep([], number=3))
    assert 90 in remembered(method)


def test_a_replay_that_came_to_nothing_leaves_the_memory() -> None:
    method = started()
    method.observe(passing([90, 91], [4, 3], 8), FakeStep([]))
    step = FakeStep(range(20), number=1)
    step.offered += method.propose(1, step).rows.tolist()
    step.round = 1
    assert method.propose(1, step).rows.tolist() == [90]
    assert remembered(method).keys() == {90, 91}
    method.propose(1, FakeStep(range(20, 40), number=2))  # the next step begins, and nothing was scored
    assert remembered(method).keys() == {91}


def test_the_memory_is_bounded() -> None:
    method = started(memory_size=3)
    for first in range(0, 40, 4):
        method.observe(passing(range(first, first + 4), [1, 2, 3, 4], 8), FakeStep([], number=first))
    assert sorted(remembered(method).values()) == [1.0, 1.0, 1.0]


def test_streams_replay_one_prompt_for_each_group_dropped() -> None:
    method, step = started(), FakeStep(range(20), streaming=True)
    method.observe(passing([90, 91, 92], [4, 3, 0], 8), step)
    assert method.propose(3, step).rows.tolist() == [90, 0, 1]
    assert method.propose(2, step).rows.tolist() == [2, 3]
    method.observe(passing([3], [0], 8), step)  # another place, while nothing was heard of 90
    assert method.propose(2, step).rows.tolist() == [91, 4]


def test_a_saved_method_goes_on_as_it_was() -> None:
    method = started()
    step = FakeStep(range(40), streaming=True)
    method.observe(passing(range(60, 70), [0, 1, 2, 3, 4, 5, 6, 7, 8, 4], 8), step)
    method.propose(1, step)
    other = started()
    other.restore(method.state())
    assert other.propose(3, FakeStep(range(40), streaming=True)).rows.tolist() == (
        method.propose(3, FakeStep(range(40), streaming=True)).rows.tolist()
    )
    assert remembered(other) == remembered(method)


def test_whole_runs_replay_and_train_above_the_threshold() -> None:
    selector = selector_of("vcrl", {"early_steps": 5})
    replayed = 0.0
    for number in range(12):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests({}):
                step.report([answered(ticket) for ticket in tickets])
            if step.missing < 4:
                batch = step.training_batch
                score = variance_score(np.nansum(batch.rewards, axis=1), batch.valid.sum(axis=1))
                assert score.min() >= (0.3 if number < 5 else 0.8)
        replayed += selector.metrics.get("replayed", 0.0)
    assert replayed > 0


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Vcrl\(late_threshold=...\) must be a number of at least 0 and at most 1, got 2"):
        Vcrl(late_threshold=2)
    with pytest.raises(ConfigError, match=r"Vcrl\(memory_size=...\) must be a whole number of at least 1, got 0"):
        Vcrl(memory_size=0)
