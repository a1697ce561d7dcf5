"""Knapsack RL: who gets what, the surplus by hand and against the released rule, and whole runs in stream order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgewise.errors import ConfigError
from edgewise.methods import make
from edgewise.methods.knapsack import Knapsack
from edgewise.types import Setting
from tests.allocated_runs import (
    asked_in_steps,
    assert_budgets_hold,
    assert_proposing_is_a_read,
    assert_resumes_exactly,
    assert_top_ups_fill_the_batch,
    selector_of,
)
from tests.fakes import FakeStep, groups_of, passing

UNKNOWN = float("nan")
RATES = [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]


def having(rates: list[float], group_size: int = 8, **parameters: Any) -> Knapsack:
    """A method whose prompts had these pass rates at their last visits; NaN = never visited. B = the pool."""
    method = Knapsack(**parameters)
    method.start(Setting(pool_size=len(rates), batch_size=len(rates), group_size=group_size))
    known = ~np.isnan(rates)
    method._last.rate[:] = np.where(known, rates, 0.0)
    method._last.trials[:] = 8 * known
    return method


def rollouts(method: Knapsack) -> list[int]:
    requests = method.propose(method.batch_size, FakeStep(range(method.pool_size)))
    assert requests.rows.tolist() == list(range(method.pool_size))  # the stream as it comes
    return np.asarray(requests.rollouts).tolist()


def test_golden_allocation() -> None:
    assert rollouts(having(RATES, most=24)) == [10, 14, 9, 7, 7, 7, 2]


def test_unknown_prompts_get_a_plain_group_and_certain_ones_the_floor() -> None:
    """Budget 48: 8 + 8 for the unknown, 2 + 2 for the certain; 28 are left for .1 and .5, whose needs are 21 + 3."""
    method = having([UNKNOWN, 0.1, 0.0, 0.5, 1.0, UNKNOWN])
    got = rollouts(method)
    assert (got[0], got[4], got[5]) == (8, 2, 8)
    assert sum(got) == 48
    # free beyond floors: 48 - (8+8+2+2+2+2) = 24 = 21 + 3: no surplus
    assert method.enough(np.array([0.1, 0.5])).tolist() == [21, 3]
    assert got[2] == 2
    gains = {n: 0.1 * 0.81 * (0.1**n * 0.9 + 0.9**n * 0.1) for n in range(40)}
    other = {n: 0.125 * 2 * 0.5 ** (n + 1) for n in range(40)}
    assert gains[got[1] - 1] >= other[got[3]]  # no exchange of one rollout helps
    assert other[got[3] - 1] >= gains[got[1]]


def test_the_surplus_goes_to_prompts_that_failed() -> None:
    """Budget 32, floors 8: 24 to share out. One open prompt needs 3; 21 are surplus: 11 and 10 for those with p = 0."""
    assert rollouts(having([0.5, 0.0, 0.0, 1.0])) == [5, 13, 12, 2]


def test_the_surplus_is_that_of_the_released_code() -> None:
    """Its rule once more: need = int(min(cap, ln .1 / ln max(p, q))), to all with p = 0; here none is unknown."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        rates = generator.choice([0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0], 8)
        rates[0] = 0.0
        left = 8 * 8 - 2 * 8
        need = sum(int(min(128, np.log(1 - 0.9) / np.log(max(p, 1 - p)))) for p in rates if 0 < p < 1)
        failed = np.flatnonzero(rates == 0.0)
        extra = np.zeros(8, dtype=int)
        spare = max(0, left - need)
        extra[failed] = spare // len(failed)
        extra[failed[: spare % len(failed)]] += 1
        got = np.array(rollouts(having(rates.tolist())))
        np.testing.assert_array_equal(got[failed], 2 + extra[failed])
        assert (got[rates == 1.0] == 2).all()
        assert got.sum() == 64


def test_without_failures_the_surplus_stays_with_the_open_then_goes_to_unknown_then_to_solved() -> None:
    assert rollouts(having([0.5, UNKNOWN, 1.0])) == [14, 8, 2]
    assert rollouts(having([0.5, UNKNOWN, 1.0], most=10)) == [10, 10, 4]
    assert rollouts(having([0.5, 0.5, 0.5])) == [8, 8, 8]  # every prompt is open: the code divides by zero


def test_batches_of_one_kind() -> None:
    assert rollouts(having([UNKNOWN] * 3)) == [8, 8, 8]
    assert rollouts(having([1.0] * 3)) == [8, 8, 8]
    assert rollouts(having([0.0] * 3)) == [8, 8, 8]
    assert rollouts(having([0.0, 0.0, 1.0])) == [11, 11, 2]
    assert rollouts(having([0.0, 0.0, 1.0], most=10)) == [10, 10, 4]


@given(
    rates=st.lists(st.sampled_from([0.0, 1e-12, 0.1, 0.5, 0.875, 1.0 - 1e-12, 1.0, UNKNOWN]), min_size=1, max_size=9),
    most=st.integers(2, 40),
    group_size=st.integers(2, 9),
    floor=st.integers(2, 12),
    data=st.data(),
)
def test_there_is_an_allocation_for_every_batch_and_budget(
    rates: list[float], most: int, group_size: int, floor: int, data: Any
) -> None:
    method = having(rates, group_size=group_size, most=most, floor=floor)
    count = len(rates)
    budget = data.draw(st.integers(count * method.least, count * method.cap))
    rows = np.arange(count)
    step = FakeStep(rows)
    got = method.share_out(rows, method._last.predict(rows, step), budget, step)
    assert got.sum() == budget
    assert got.min() >= method.least >= 2
    assert got.max() <= method.cap == max(most, group_size)


def test_beta_means_are_never_certain() -> None:
    method = Knapsack(belief="beta")
    method.start(Setting(pool_size=4, batch_size=4, group_size=8))
    method.observe(passing([0, 1, 2], [8, 0, 4], 8), FakeStep(range(4)))
    got = rollouts(method)
    assert got[3] == 8  # unknown
    assert sum(got) == 32
    assert got[1] > got[2] > got[0] == 2  # Beta means .1, .5, .9: hard prompts are worth most


def test_small_groups_may_be_kept_from_teaching() -> None:
    for least, rate in ((1, 1.0), (3, 0.25)):
        method = having([UNKNOWN], min_trials=least)
        method.observe(passing([0], [2], 8), FakeStep([0]))
        method.observe(groups_of([0], [[1.0, 1.0]]), FakeStep([0]))
        assert method._last.rate[0] == rate


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"belief": "bets"}, r"Knapsack\(belief=...\) must be one of 'last', 'beta', got 'bets'. Did you mean 'beta'\?"),
        ({"most": 1}, r"Knapsack\(most=...\) must be a whole number of at least 2, got 1"),
        ({"confidence": 1.0}, r"Knapsack\(confidence=...\) must be a number above 0 and at most 0.999, got 1.0"),
        ({"min_trials": 0}, r"Knapsack\(min_trials=...\) must be a whole number of at least 1, got 0"),
    ],
)
def test_hyper_parameters_are_checked_when_built(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("knapsack", **parameters)


@pytest.mark.parametrize("parameters", [{}, {"belief": "beta", "decay": 0.5}, {"min_trials": 3, "most": 9}])
def test_whole_runs(parameters: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_exactly(lambda: make("knapsack", **parameters), tmp_path)
    assert_budgets_hold(lambda: make("knapsack", **parameters), 2, 128)
    assert_proposing_is_a_read(lambda: make("knapsack", **parameters))
    assert assert_top_ups_fill_the_batch(lambda: make("knapsack", max_rounds=8, **parameters)) > 0


def test_prompts_come_in_the_order_of_uniform() -> None:
    plain = [[row for row, _ in round_] for round_ in asked_in_steps(selector_of(lambda: make("uniform")), range(9))]
    sized = [[row for row, _ in round_] for round_ in asked_in_steps(selector_of(lambda: make("knapsack")), range(9))]
    assert plain == sized
