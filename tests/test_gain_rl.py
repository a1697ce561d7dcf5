"""GAIN-RL: the angles against a loop over pairs, the bell over ranks, its moves by hand, and a run under the selector."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from edgewise import Outcome, PromptPool, Selector
from edgewise.errors import ConfigError, SignalError
from edgewise.methods import make
from edgewise.methods.gain_rl import GainRl
from edgewise.types import HIDDEN_ANGLES, Setting
from tests.fakes import FakeStep, groups_of, passing


def started(batch_size: int = 4, pool_size: int = 50, group_size: int = 4, **parameters: Any) -> GainRl:
    method = GainRl(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def angles_of(rows: np.ndarray) -> np.ndarray:
    """Row r: intra .5, inter falling with r; 8·inter decides."""
    return np.column_stack([np.full(len(rows), 0.5), 0.4 - rows / 1000])


def serving(serve: Any = angles_of, pool_size: int = 50, **given: Any) -> FakeStep:
    return FakeStep(range(pool_size), signals={HIDDEN_ANGLES: serve}, **given)


# -- the order ---------------------------------------------------------------------------------------------------------


def test_the_order_is_by_intra_plus_eight_inter_and_asked_for_once() -> None:
    method = started(pool_size=4, deviation=1e-3)
    step = serving(lambda rows: np.array([[0.9, 0.0], [0.1, 0.2], [0.5, 0.1], [0.0, 0.2]])[rows], 4)
    assert method.propose(4, step).rows.tolist() == [1, 3, 2, 0]  # .9, 1.7, 1.3, 1.6
    assert method._rank.tolist() == [3, 0, 2, 1]
    assert [rows for _, rows in step.asked] == [[0, 1, 2, 3], [1, 3, 2, 0]]
    method.propose(2, serving(lambda rows: np.zeros((len(rows), 2)), 4, number=1))
    assert method._rank.tolist() == [3, 0, 2, 1]


def test_prompts_without_an_angle_rank_last_unless_the_prefix_is_left_out() -> None:
    angles = np.array([[0.9, math.nan], [0.1, 0.2], [math.inf, 0.1], [0.2, 0.2]])
    method, step = started(batch_size=2, pool_size=4, deviation=1e-3), serving(lambda rows: angles[rows], 4)
    assert method.propose(2, step).rows.tolist() == [3, 1]
    assert "row 0 must be finite, got [0.9, nan] (2 of 4 prompts). They rank last" in str(step.problems[0])
    alone = started(batch_size=3, pool_size=4, deviation=1e-3, inter_weight=0.0)
    assert alone.propose(3, serving(lambda rows: angles[rows], 4)).rows.tolist() == [0, 3, 1]


def test_ties_are_drawn() -> None:
    def same(rows: np.ndarray) -> np.ndarray:
        return np.full((len(rows), 2), 0.5)

    first = {int(started(pool_size=4, deviation=1e-3).propose(1, serving(same, 4, seed=s)).rows[0]) for s in range(60)}
    assert first == {0, 1, 2, 3}


# -- the bell ----------------------------------------------------------------------------------------------------------


def test_ranks_are_drawn_from_a_bell_without_replacement() -> None:
    """First draws of 8,000 steps against exp(-(rank - μ)²/2σ²); a cell is off by 6 sigma about once in 5e8 runs."""
    method = started(batch_size=1, pool_size=8, deviation=2.0)
    method._centre = 3.0
    first = Counter(int(method.propose(1, serving(pool_size=8, number=n)).rows[0]) for n in range(8000))
    bell = np.exp(-0.5 * ((np.arange(8) - 3.0) / 2.0) ** 2)
    expected = 8000 * bell / bell.sum()
    assert all(abs(first[i] - expected[i]) < 6 * math.sqrt(expected[i]) for i in range(8))
    rows = started(batch_size=8, pool_size=8).propose(8, serving(pool_size=8)).rows
    assert sorted(rows.tolist()) == list(range(8))


def test_a_centre_far_away_draws_the_nearest_ranks_instead_of_nan() -> None:
    method = started(deviation=0.01)
    method._centre = 49.0
    assert sorted(method.propose(4, serving()).rows.tolist()) == [46, 47, 48, 49]


# -- the moves ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "concentration", "expected"), [
    (2, 0.0, 0.0),
    (2, 0.5, 500 * math.tanh(1.0)),
    (4, 0.5, 500 * math.tanh(1.0) + 500 * math.tanh(1.0)),
    (0, 0.5, 0.0),
    (0, 0.9, 500 * (math.tanh(1.8) - math.tanh(1.0))),
    (4, 9.0, 500 * math.tanh(1.0) + 500),
])  # fmt: skip
def test_moves_by_hand(passes: int, concentration: float, expected: float) -> None:
    """500·tanh(2(acc - ½)) + 500·tanh(2C), within 0 … 1000."""
    method = started()
    step = serving(lambda rows: np.full((len(rows), 2), concentration))
    rows = method.propose(4, step).rows.tolist()
    method.observe(passing(rows, [passes] * 4), step)
    assert method.moved() == pytest.approx(expected, abs=1e-9)
    assert 0 <= method.moved() <= 1000


def test_the_bell_moves_after_a_loop_and_stays_within_the_pool() -> None:
    method = started(loop=8, pool_size=400, move=100)
    once = 100 * math.tanh(1.0) + 100 * math.tanh(2 * 0.45)
    for number, centre in enumerate((0.0, 0.0, once, once, 2 * once)):
        step = serving(lambda rows: np.full((len(rows), 2), 0.45), 400, number=number)
        rows = method.propose(4, step).rows.tolist()
        assert step.levels["centre"] == pytest.approx(centre)
        method.observe(passing(rows, [4] * 4), step)
    for number in range(5, 30):
        step = serving(lambda rows: np.full((len(rows), 2), 0.45), 400, number=number)
        method.observe(passing(method.propose(4, step).rows.tolist(), [4] * 4), step)
    assert step.levels["centre"] == 399.0


def test_missing_rollouts_are_no_failures_and_a_loop_without_data_does_not_move() -> None:
    method, step = started(), serving()
    assert method.moved() == 0.0
    nan = math.nan
    method.observe(groups_of([0, 1], [[1, nan, nan], [1, 1, 0]]), step)
    assert method.moved() == pytest.approx(500 * math.tanh(2 * (3 / 4 - 0.5)))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"deviation": 0}, "deviation=...\\) must be a number above 0"),
    ({"goal": 2}, "goal=...\\) must be a number of at least 0 and at most 1"),
    ({"least_move": 5.0, "most_move": 1.0}, "most_move=...\\) must be a number of at least 5"),
    ({"loop": 0}, "loop=...\\) must be a whole number of at least 1"),
])  # fmt: skip
def test_bad_hyper_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GainRl(**wrong)
    assert make("gain-rl").needs == {HIDDEN_ANGLES}


def test_a_table_of_another_width_is_refused() -> None:
    with pytest.raises(SignalError, match=r"must answer with \(intra, inter\), \(50, 2\), got \(50, 3\)"):
        started().propose(4, serving(lambda rows: np.zeros((len(rows), 3))))


# -- under the selector ------------------------------------------------------------------------------------------------


def rows_of(selector: Selector, steps: int) -> list[list[int]]:
    """Steps with ragged and missing rollouts, and angles that change with the policy."""
    found = []
    for _ in range(steps):
        number = selector.step_number
        draw = np.random.default_rng([4, number])
        signals = {HIDDEN_ANGLES: lambda rows, n=number: np.column_stack([0.2 + 0 * rows, np.sin(rows * (n + 1)) / 9])}
        with selector.step(policy_version=number) as step:
            for tickets in step.requests(signals):
                found.append([t.row for t in tickets])
                step.report([
                    Outcome(ticket=t, rewards=[math.nan if i == 2 else float(draw.random() < 0.7) for _ in range(4 - i % 2)])
                    for i, t in enumerate(tickets)
                ])  # fmt: skip
    return found


def selector_of() -> Selector:
    parameters = {"deviation": 6.0, "move": 5.0, "loop": 8}
    return Selector("gain-rl", PromptPool.from_ids(range(60)), batch_size=4, group_size=4, on_problem="strict",
                    parameters=parameters)  # fmt: skip


def test_a_run_moves_down_the_ranks_and_a_cut_changes_nothing(tmp_path: Any) -> None:
    """The ranks are those of the first policy, also after a resume: they are saved."""
    through = rows_of(selector_of(), 14)
    rank = np.argsort(np.argsort(-np.sin(np.arange(60))))
    assert np.mean([rank[rows] for rows in through[-4:]]) > np.mean([rank[rows] for rows in through[:4]]) + 4
    first = selector_of()
    begun = rows_of(first, 7)
    first.save(tmp_path / "state")
    second = selector_of()
    second.restore(tmp_path / "state")
    assert begun + rows_of(second, 7) == through
