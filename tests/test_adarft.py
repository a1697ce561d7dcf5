"""AdaRFT: the target follows the mean reward of a batch, and the batch is what lies nearest it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.methods.adarft import AdaRft, moved_target
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World
from edgewise.types import DIFFICULTY, Setting
from tests.fakes import FakeStep, groups_of, passing

PAPER = {"step": 50.0, "sensitivity": 2.0, "goal": 0.5, "low": 0.0, "high": 100.0}


def started(pool_size: int = 11, batch_size: int = 3, **parameters: Any) -> AdaRft:
    method = AdaRft(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=4))
    return method


def at(difficulties: Any, **given: Any) -> FakeStep:
    values = np.asarray(difficulties, dtype=np.float64)
    return FakeStep(range(len(values)), signals={DIFFICULTY: lambda rows: values[rows]}, **given)


TENS = np.arange(11) * 10.0


@pytest.mark.parametrize(("reward", "moved"), [(0.0, -38.0797), (0.25, -23.1059), (0.5, 0.0), (0.75, 23.1059), (1.0, 38.0797)])
def test_golden_moves_of_the_target(reward: float, moved: float) -> None:
    assert moved_target(50.0, reward, **PAPER) - 50.0 == pytest.approx(moved, abs=5e-5)
    by_exponentials = 50.0 * (math.exp(4 * (reward - 0.5)) - 1) / (math.exp(4 * (reward - 0.5)) + 1)
    assert moved_target(50.0, reward, **PAPER) - 50.0 == pytest.approx(by_exponentials, abs=1e-12)


@given(st.floats(0.0, 100.0), st.floats(-10.0, 10.0), st.floats(-10.0, 10.0))
def test_the_target_stays_on_the_scale_and_rises_with_the_reward(target: float, reward: float, other: float) -> None:
    low, high = sorted((reward, other))
    before, after = moved_target(target, low, **PAPER), moved_target(target, high, **PAPER)
    assert 0.0 <= before <= after <= 100.0


def test_it_begins_with_the_easiest_and_asks_for_the_nearest() -> None:
    method = started()
    assert method.propose(3, at(TENS)).rows.tolist() == [0, 1, 2]
    middle = started(first_target=52.0)
    assert middle.propose(3, at(TENS)).rows.tolist() == [5, 6, 4]


def test_the_target_moves_once_a_policy_version_by_the_mean_of_all_rewards() -> None:
    """12 passes of 16 in two reports: R̄ = .75. Nothing moves within the version, nor in a version without a report."""
    method = started(first_target=40.0)
    step = at(TENS)
    method.propose(3, step)
    method.observe(passing([0, 1], [4, 4]), step)
    method.observe(passing([2, 3], [4, 0]), step)
    method.propose(3, step)
    assert step.levels["target_difficulty"] == 40.0
    later = at(TENS, number=1, policy_version=1)
    method.propose(3, later)
    assert later.levels["target_difficulty"] == pytest.approx(63.1059, abs=5e-5)
    again = at(TENS, number=2, policy_version=2)
    method.propose(3, again)
    assert again.levels["target_difficulty"] == later.levels["target_difficulty"]


def test_missing_rewards_are_not_failures() -> None:
    method = started(first_target=50.0)
    method.propose(3, at(TENS))
    method.observe(groups_of([0, 1], [[1.0, None, None, 1.0], [None, None, None, 0.0]]), at(TENS))
    later = at(TENS, number=1, policy_version=1)
    method.propose(3, later)
    assert later.levels["target_difficulty"] == pytest.approx(moved_target(50.0, 2 / 3, **PAPER))


def test_a_floored_target_returns_to_the_same_prompts_unless_they_rest() -> None:
    def asked(rest: int) -> list[list[int]]:
        method, made = started(rest=rest), []
        for number in range(4):
            step = at(TENS, number=number, policy_version=number)
            rows = sorted(method.propose(3, step).rows.tolist())
            method.observe(passing(rows, [0] * 3), step)
            made.append(rows)
        return made

    assert asked(0) == [[0, 1, 2]] * 4
    assert asked(2) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 1, 2]]  # two steps out, then back
    assert asked(9)[3] == [0, 9, 10]  # too few are rested: the nearest of the others fill the batch


def test_in_a_stream_prompts_rest_for_policy_versions_and_not_for_calls() -> None:
    method = started(rest=2)
    method.observe(passing([0, 1, 2], [0] * 3), at(TENS, number=30, policy_version=3, streaming=True))
    asked = [
        sorted(method.propose(3, at(TENS, number=30 + 10 * v, policy_version=v, streaming=True)).rows.tolist())
        for v in (3, 5, 6)
    ]
    assert asked == [[3, 4, 5], [3, 4, 5], [0, 1, 2]]


def test_ties_go_at_random() -> None:
    """Nine prompts at one distance, 3 drawn: 2,000 steps, each expected 667 times, sigma 21; outside ±126 (6 sigma) about
    twice in 1e9."""
    method = started(pool_size=9)
    counts = np.zeros(9)
    for number in range(2000):
        counts[method.propose(3, at([5.0] * 9, number=number)).rows] += 1
    assert np.abs(counts - 2000 / 3).max() < 126


def test_difficulties_are_asked_for_once_and_those_that_are_no_number_come_last_and_are_reported() -> None:
    method, step = started(pool_size=5), at([50.0, np.nan, 0.0, np.inf, 100.0])
    assert method.propose(3, step).rows.tolist() == [2, 0, 4]
    method.propose(3, step)
    assert step.asked == [(DIFFICULTY, [0, 1, 2, 3, 4])]
    assert [str(p) for p in step.problems] == [
        "signal('difficulty') of prompt row 1 must be finite, got nan (2 of 5 prompts). These prompts come last."
    ]
    with pytest.raises(SignalError):
        started(pool_size=5).propose(3, at([0.0, np.nan, 50.0, 70.0, 100.0], strict=True))
    everything = started(pool_size=4, batch_size=2).propose(2, at([np.nan] * 4)).rows
    assert len(set(everything.tolist())) == 2


def test_difficulties_on_another_scale_are_reported() -> None:
    step = at(np.linspace(0, 1, 11))
    started().propose(3, step)
    assert "span 1 of that scale, from 0 to 1. Serve 100 · (1 - pass rate)" in str(step.problems[0])
    fitting = at(np.linspace(0, 1, 11))
    started(hardest=1.0, step_size=0.5).propose(3, fitting)
    assert fitting.problems == []


def test_rows_that_cannot_be_asked_for_are_left_alone() -> None:
    assert started().propose(3, at(TENS, shut=[0, 2])).rows.tolist() == [1, 3, 4]
    assert len(started().propose(3, at(TENS, shut=range(11)))) == 0


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"step_size": 0}, r"AdaRft\(step_size=...\) must be a number above 0, got 0"),
        ({"easiest": 5.0, "hardest": 5.0}, r"AdaRft\(hardest=...\) must be a number above 5, got 5.0"),
        ({"first_target": 101.0}, r"AdaRft\(first_target=...\) must be a number of at least 0 and at most 100"),
        ({"rest": -1}, r"AdaRft\(rest=...\) must be a whole number of at least 0"),
    ],
)
def test_what_cannot_work_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AdaRft(**parameters)


@pytest.mark.parametrize("rest", [0, 2])
@pytest.mark.parametrize("run", [steps, stream])
def test_a_selector_runs_it_over_missing_rewards_and_goes_on_alike_after_a_restore(rest: int, run: Any, tmp_path: Any) -> None:
    world = World(60, missing=0.2)
    size = Size(batch_size=6, group_size=2)
    one, other = (selector_of(AdaRft(rest=rest), world, size) for _ in range(2))
    run(one, world, 6)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    assert run(one, world, 6) == run(other, world, 6)


def test_a_state_of_another_pool_is_refused() -> None:
    with pytest.raises(StateMismatchError, match="must hold last_step"):
        started(rest=2).restore(started(pool_size=12, rest=2).state())
