"""The oracle: the exact score, proportional choice, and the rounds it shares with HIVE."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError, ShortfallError, SignalError
from edgewise.methods import make
from edgewise.methods.oracle import Oracle
from edgewise.scores import prob_mixed
from edgewise.types import PASS_RATE, Ints, Setting
from tests.fakes import FakeStep, passing, run_step


def started(pool_size: int = 12, batch_size: int = 3, group_size: int = 2, **parameters: Any) -> Oracle:
    oracle = Oracle(**parameters)
    oracle.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return oracle


def serving(*rates: float, **given: Any) -> FakeStep:
    def serve(rows: Ints) -> Any:
        return np.array(rates)[rows]

    return FakeStep(range(len(rates)), signals={PASS_RATE: serve}, **given)


def test_probability_of_a_mixed_group_by_hand() -> None:
    """G = 2: 2p(1-p). G = 8 at 1/2: 1 - 2/256. G = 3 at 1/4: 1 - 1/64 - 27/64 = 36/64."""
    assert prob_mixed(np.array([0.0, 0.25, 0.5, 1.0]), 2).tolist() == [0.0, 0.375, 0.5, 0.0]
    assert prob_mixed(np.array([0.5]), 8).tolist() == [1 - 2 / 256]
    assert prob_mixed(np.array([0.25]), 3).tolist() == [0.5625]


@given(st.floats(0.0, 1.0), st.integers(1, 64))
def test_probability_of_a_mixed_group_is_a_probability_and_symmetric(p: float, group_size: int) -> None:
    here, there = prob_mixed(np.array([p, 1.0 - p]), group_size)
    assert -1e-15 <= here <= 1.0
    assert here == pytest.approx(there, abs=1e-12)


def test_it_asks_for_exactly_the_batch_and_never_for_a_hopeless_prompt() -> None:
    step = serving(0, 1, 0.5, 0, 1, 0.5, 0, 1, 0.5, 0, 0, 0)
    assert sorted(started().propose(3, step).rows.tolist()) == [2, 5, 8]
    assert step.asked == [(PASS_RATE, list(range(12)))]
    assert step.draws == []  # it consumes nothing of the stream


def test_chances_are_proportional_to_the_score() -> None:
    """Scores 0.375 and 0.125 (2p(1-p) at p = 1/4 and p = .0669873): the first is first 3 times in 4.

    4,000 steps, expectation 3,000, sigma 27.4: outside ±165 (6 sigma) about twice in 1e9 runs.
    """
    small = (1 - np.sqrt(0.75)) / 2
    assert 2 * small * (1 - small) == pytest.approx(0.125)
    oracle = started(pool_size=2, batch_size=1)
    first = Counter(int(oracle.propose(1, serving(0.25, small, number=n)).rows[0]) for n in range(4000))
    assert abs(first[0] - 3000) < 165


def test_without_a_gate_the_batch_is_filled_even_with_hopeless_prompts() -> None:
    step = serving(0, 1, 0.5, 0)
    oracle = started(pool_size=4, gate=False)
    rows = oracle.propose(3, step).rows.tolist()
    assert rows[0] == 2
    assert len(set(rows)) == 3
    assert oracle.judge(passing(rows, [1, 0, 0], 2), step).keep.all()


def test_rows_in_flight_or_offered_are_left_alone() -> None:
    step = serving(*[0.5] * 6, shut=[0, 1])
    trace = run_step(started(pool_size=6), step, 3, lambda row: 2 if row == 5 else 1, group_size=2)
    assert not {0, 1} & set(trace.observed)
    assert len(set(trace.observed)) == len(trace.observed)


def test_top_up_is_the_rule_of_hive() -> None:
    """B = 8 asks for 8. Six of them mixed: two missing, ρ̂ = (2 + 1)/(8 + 2), 2.5 / 0.7 = 3.6 -> 4."""
    oracle = started(pool_size=40, batch_size=8)
    step = serving(*[0.5] * 40)
    rows = oracle.propose(8, step).rows.tolist()
    assert len(rows) == 8
    step.offered += rows
    oracle.observe(passing(rows, [2, 2] + [1] * 6, 2), step)
    step.round = 1
    assert len(oracle.propose(2, step)) == 4


def test_a_hopeless_pool_ends_at_once() -> None:
    assert len(started(pool_size=4).propose(3, serving(0, 1, 0, 1))) == 0
    with pytest.raises(
        ShortfallError, match=r"Oracle\(on_short='error'\): 3 groups are missing and no prompt is left to ask for"
    ):
        started(pool_size=4, on_short="error").propose(3, serving(0, 1, 0, 1))
    assert len(started(pool_size=4).propose(3, serving(*[0.5] * 4, shut=range(4)))) == 0


def test_rounds_end() -> None:
    trace = run_step(started(pool_size=200), serving(*[0.5] * 200), 3, lambda row: 2, group_size=2)
    assert len(trace.rounds) == 8


def test_a_pass_rate_that_is_no_probability_is_reported_by_row() -> None:
    step = serving(0.5, float("nan"), 1.5, 0.5)
    assert sorted(started(pool_size=4).propose(3, step).rows.tolist()) == [0, 3]
    message = "signal('pass_rate') of prompt row 1 must be in [0, 1], got nan (2 of 4 prompts). The oracle takes it for 0."
    assert [str(problem) for problem in step.problems] == [message]
    with pytest.raises(SignalError, match=re.escape(message)):
        started(pool_size=4).propose(3, serving(0.5, float("nan"), 1.5, 0.5, strict=True))


def test_it_restores_exactly_and_keeps_nothing_per_prompt() -> None:
    oracle = started()
    oracle.observe(passing([0, 1], [2, 1], 2), serving(0.5))
    other = started()
    other.restore(oracle.state())
    np.testing.assert_equal(other.state().shared, oracle.state().shared)
    assert oracle.state().prompts == {}


def test_it_needs_the_pass_rate_and_a_group_that_can_vary() -> None:
    assert make("oracle").needs == {PASS_RATE}
    with pytest.raises(ConfigError, match="Oracle: group_size must be at least 2, got 1"):
        started(group_size=1)
