"""DUMP: upper confidence bounds of the mean advantage in a window, by source."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.errors import ConfigError, StateMismatchError
from edgewise.methods.dump import Dump, upper_bounds
from edgewise.testing.drive import Size, selector_of, steps, stream
from edgewise.testing.world import World
from edgewise.types import CATEGORY, Setting
from tests.fakes import FakeStep, passing

THREE = np.arange(18) % 3


def started(**parameters: Any) -> Dump:
    method = Dump(**parameters)
    method.start(Setting(pool_size=18, batch_size=4, group_size=4))
    return method


def step_of(number: int = 0, **given: Any) -> FakeStep:
    return FakeStep(range(18), signals={CATEGORY: lambda rows: THREE[rows]}, number=number, **given)


def test_golden_upper_bounds() -> None:
    """N = 8 + 4 + 0 = 12, ln 13 = 2.564949: bonuses √(2·2.564949/9), /5, /1."""
    got = upper_bounds(np.array([0.5, 0.25, 0.0]), np.array([8, 4, 0]))
    log = 2.5649493574615367
    assert got.tolist() == pytest.approx([0.5 + math.sqrt(2 * log / 9), 0.25 + math.sqrt(2 * log / 5), math.sqrt(2 * log)])
    assert upper_bounds(np.zeros(2), np.zeros(2, dtype=np.int64)).tolist() == pytest.approx([math.sqrt(2 * math.log(2))] * 2)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.floats(0, 3)), max_size=60),
    st.integers(1, 12),
    st.integers(1, 25),
)
@settings(max_examples=100)
def test_the_window_holds_the_last_rollouts_of_each_source(heard: list[tuple[int, float]], window: int, at_once: int) -> None:
    method = started(window=window)
    method.begin(3)
    plain = [deque([], maxlen=window) for _ in range(3)]
    counts = [0, 0, 0]
    for start in range(0, len(heard), at_once):
        part = heard[start : start + at_once]
        method.credit(np.array([a for a, _ in part], dtype=np.int64), np.array([v for _, v in part]), 0)
        for arm, value in part:
            plain[arm].append(value)
            counts[arm] += 1
    means = [sum(one) / len(one) if one else 0.0 for one in plain]
    total = max(1, sum(counts))
    expected = [m + math.sqrt(2 * math.log(total + 1) / (n + 1)) for m, n in zip(means, counts, strict=True)]
    assert method.values().tolist() == pytest.approx(expected)


def test_a_source_never_drawn_comes_before_one_that_is_learned() -> None:
    """4 rollouts each of two sources: bonuses √(2 ln 9 / 5) = .93749 and, for the third, √(2 ln 9) = 2.09629; |A| √.75 and 0.

    Chance of the third at τ = 0.1: 1 / (1 + e^-2.9278 + e^-11.588) = 0.9492.
    """
    method = started()
    method.propose(4, step_of())
    method.observe(passing([0, 1], [2, 4]), step_of())
    step = step_of(1)
    method.propose(4, step)
    assert step.levels["arm_top"] == 2
    assert step.levels["arm_top_chance"] == pytest.approx(0.9492, abs=1e-4)


def test_the_source_with_larger_advantages_is_preferred_when_all_are_known() -> None:
    """1,600 rollouts each: the bonus is 0.10 for all; mean |A| of 2 in 4 is .87, of 1 in 4 .75, of 4 in 4 none."""
    method = started()
    method.propose(4, step_of())
    for _ in range(400):
        method.observe(passing([0, 1, 2], [1, 2, 4]), step_of())
    method.propose(1, step_of(1))
    assert method.values() == pytest.approx([0.75 + 0.1029, math.sqrt(0.75) + 0.1029, 0.1029], abs=1e-4)


def test_large_values_do_not_overflow() -> None:
    method = started(exploration=1e6, temperature=1e-3)
    assert len(method.propose(4, step_of())) == 4


def test_a_window_of_another_length_is_refused() -> None:
    method = started()
    method.propose(4, step_of())
    with pytest.raises(StateMismatchError, match=r"must have shape \(3, 10\), got \(3, 300\)"):
        started(window=10).restore(method.state())


@pytest.mark.parametrize("run", [steps, stream])
def test_a_selector_runs_it_over_missing_rewards_and_goes_on_alike_after_a_restore(run: Any, tmp_path: Any) -> None:
    world = World(60, missing=0.2)
    size = Size(batch_size=6, group_size=2)
    one, other = (selector_of(Dump(window=20), world, size) for _ in range(2))
    run(one, world, 8)
    one.save(tmp_path / "state")
    other.restore(tmp_path / "state")
    assert run(one, world, 8) == run(other, world, 8)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"window": 0}, r"Dump\(window=...\) must be a whole number of at least 1"),
        ({"exploration": -1.0}, r"Dump\(exploration=...\) must be a number of at least 0"),
    ],
)
def test_what_cannot_work_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Dump(**parameters)
