"""CurES: its softmax, its variances, its allocation, and whole runs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.allocators import largest_remainder
from edgewise.errors import ConfigError, SignalError
from edgewise.methods import make
from edgewise.methods.cures import GRADIENT_DEVIATION, Cures, CuresReleased, gradient_deviation, gvm_shares
from edgewise.types import Floats, Ints, Setting
from tests.allocated_runs import (
    assert_budgets_hold,
    assert_proposing_is_a_read,
    assert_resumes_exactly,
    assert_top_ups_fill_the_batch,
)
from tests.fakes import FakeStep, passing


def having(passes: list[int], rollouts: list[int], kind: type[Cures] = Cures, **parameters: Any) -> Any:
    """A method that saw so many passes in so many rollouts of each prompt of its pool; G = 8, B = the pool."""
    method = kind(**parameters)
    method.start(Setting(pool_size=len(passes), batch_size=len(passes), group_size=8))
    counts = method._parts.belief
    counts.passed[:], counts.failed[:] = passes, np.array(rollouts) - passes  # type: ignore[attr-defined]
    counts.visits[:] = np.array(rollouts) > 0  # type: ignore[attr-defined]
    return method


def chances(method: Cures) -> Floats:
    """ρ* by the method's own score and temperature."""
    pool = np.arange(method.pool_size)
    step = FakeStep(pool)
    scores = method.scores(pool, method._parts.belief.predict(pool, step), step)
    temperature = method._parts.chooser.temperature  # type: ignore[attr-defined]
    weights = np.exp(scores / temperature)
    return np.asarray(weights / weights.sum())


SEEN = ([0, 4, 8, 12, 16], [16] * 5)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.1, [0.0286843, 0.2558955, 0.4308402, 0.2558955, 0.0286843]),
        (0.2, [0.0843938, 0.2520691, 0.3270742, 0.2520691, 0.0843938]),
    ],
)
def test_golden_chances(temperature: float, expected: list[float]) -> None:
    np.testing.assert_allclose(chances(having(*SEEN, temperature=temperature)), expected, atol=5e-8)


def test_golden_chances_of_the_released_code() -> None:
    released = chances(having(*SEEN, kind=CuresReleased))
    np.testing.assert_allclose(released, [0.200289, 0.200010, 0.199942, 0.199900, 0.199858], atol=5e-7)
    assert released.max() / released.min() == pytest.approx(1.0022, abs=5e-5)


def test_prompts_come_as_often_as_the_softmax_says() -> None:
    """3,000 steps for one group each: chi-square of 5 cells, 4 degrees of freedom, above 33 about once in 1e6 runs."""
    method = having(*SEEN)
    method._most = 1
    counts = Counter(int(method.propose(1, FakeStep(range(5), number=n)).rows[0]) for n in range(3000))
    expected = 3000 * chances(method)
    assert sum((counts[i] - e) ** 2 / e for i, e in enumerate(expected)) < 33.0


def test_a_high_temperature_is_uniform_and_an_unknown_prompt_counts_as_one_half() -> None:
    np.testing.assert_allclose(chances(having(*SEEN, temperature=1e9)), 0.2, rtol=1e-8)
    half, unknown = chances(having([8, 0], [16, 0]))
    assert half == unknown


@pytest.mark.parametrize(
    ("p", "up", "down", "expected"),
    [
        (0.25, [2.0], [1.0, 1.0, 1.0], 0.7577722283),
        (0.5, [3.0, 1.0], [1.0, 2.0], 0.9601432185),
        (0.25, [1.0], [1.0], 0.4330127019),
    ],
)
def test_golden_gradient_deviations(p: float, up: list[float], down: list[float], expected: float) -> None:
    columns = [np.mean(np.square(up)), np.mean(np.square(down)), np.mean(up), np.mean(down)]
    assert gradient_deviation(np.array([p]), *(np.array([c]) for c in columns))[0] == pytest.approx(expected, abs=1e-10)


def test_the_deviation_is_that_of_the_weighted_gradients_on_one_line() -> None:
    """Scalar gradients of one sign: A·g with A = q for a pass and -p for a fail has exactly this variance."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        p, up, down = generator.random(), generator.random(4), generator.random(7)
        first = p * (1 - p) * up.mean() - (1 - p) * p * down.mean()
        second = p * (1 - p) ** 2 * np.mean(up**2) + (1 - p) * p**2 * np.mean(down**2)
        columns = [np.mean(up**2), np.mean(down**2), up.mean(), down.mean()]
        got = gradient_deviation(np.array([p]), *(np.array([c]) for c in columns))[0]
        assert got == pytest.approx(np.sqrt(second - first**2), rel=1e-12)


def test_golden_gvm_shares() -> None:
    shares = gvm_shares(np.array([0.125, 0.25, 0.5, 1.0]), np.ones(4))
    np.testing.assert_allclose(shares / shares.sum(), [0.38419421, 0.27800959, 0.19775377, 0.14004242], atol=5e-9)
    none = gvm_shares(np.array([0.0, 0.5, 0.5]), np.array([1.0, 0.0, 1.0]))
    assert none[:2].tolist() == [0.0, 0.0]
    assert largest_remainder(none, 12, 2, 12).tolist() == [2, 2, 8]


TWENTIETHS = [0, 3, 6, 9, 12, 15, 18], [18] * 7
"""Beta means .05, .2, .35, .5, .65, .8, .95."""


def rollouts_by_row(method: Cures, **given: Any) -> list[int]:
    requests = method.propose(method.batch_size, FakeStep(range(method.pool_size), **given))
    return np.asarray(requests.rollouts[np.argsort(requests.rows)]).tolist()


def test_golden_allocation() -> None:
    assert rollouts_by_row(having(*TWENTIETHS)) == [5, 8, 10, 10, 10, 8, 5]


def test_the_cap_and_the_floor_hold() -> None:
    capped = rollouts_by_row(having(*TWENTIETHS, cap_factor=1.125))
    assert (max(capped), sum(capped)) == (9, 56)
    floored = rollouts_by_row(having(*TWENTIETHS, floor=7))
    assert (min(floored), sum(floored)) == (7, 56)
    assert rollouts_by_row(having(*TWENTIETHS, floor=99)) == [8] * 7


def test_the_released_allocation_rounds_shares_of_raw_rates_and_loses_nobody() -> None:
    """Raw rates 0, 1/4, 1/2, 3/4, 1: of 40, both ends get 2, the rest 36 · (.433, .5, .433) / 1.366 = 11.4, 13.2, 11.4."""
    got = rollouts_by_row(having(*SEEN, kind=CuresReleased))
    assert (got[0], got[2], got[4]) == (2, 13, 2)
    assert sorted(got[1:4:2]) == [11, 12]


# -- the signal ------------------------------------------------------------------------------------------------------------


def serving(values: Any) -> dict[str, Any]:
    def serve(rows: Ints) -> Any:
        return np.asarray(values)[rows]

    return {GRADIENT_DEVIATION: serve}


BELIEVED = np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
SIGMA = np.sqrt(BELIEVED * (1.0 - BELIEVED))


def test_measured_deviations_take_the_place_of_equal_norms() -> None:
    method = having(*TWENTIETHS, gradient_signal=True)
    assert method.needs == {GRADIENT_DEVIATION}
    assert rollouts_by_row(method, signals=serving(17.0 * SIGMA)) == [5, 8, 10, 10, 10, 8, 5]
    falling = np.array([7.0, 6, 5, 4, 3, 2, 1])
    got = rollouts_by_row(method, signals=serving(falling))
    assert got == sorted(got, reverse=True)
    assert got[0] > got[-1]


def test_what_was_not_measured_counts_in_the_scale_of_the_rest() -> None:
    method = having(*TWENTIETHS, gradient_signal=True)
    some = np.where(np.arange(7) % 2, np.nan, 17.0 * SIGMA)
    assert rollouts_by_row(method, signals=serving(some)) == [5, 8, 10, 10, 10, 8, 5]
    assert rollouts_by_row(method, signals=serving(np.full(7, np.nan))) == [5, 8, 10, 10, 10, 8, 5]


@pytest.mark.parametrize("bad", [-1.0, np.inf])
def test_a_measurement_that_cannot_be_is_reported_and_not_used(bad: float) -> None:
    method = having(*TWENTIETHS, gradient_signal=True)
    values = 17.0 * SIGMA
    values[3] = bad
    step = FakeStep(range(7), signals=serving(values))
    requests = method.propose(7, step)
    assert requests.rollouts[np.argsort(requests.rows)].tolist() == [5, 8, 10, 10, 10, 8, 5]
    assert [str(problem) for problem in step.problems] == [
        f"signal('gradient_deviation') of prompt row 3 must be finite and >= 0, or NaN, got {bad} (1 of 7 prompts). "
        "They count as not measured."
    ]
    with pytest.raises(SignalError):
        method.propose(7, FakeStep(range(7), signals=serving(values), strict=True))


# -- belief and hyper-parameters ---------------------------------------------------------------------------------------------


def test_it_learns_from_every_group_and_can_start_anew() -> None:
    method = having([0] * 4, [0] * 4, reset_every=10)
    method.observe(passing([0, 1], [8, 0], 8), FakeStep(range(4), number=9))
    rates = method._parts.belief.predict(np.arange(4), FakeStep(range(4), number=9)).mean
    assert rates.tolist() == [0.9, 0.1, 0.5, 0.5]
    assert method._parts.belief.predict(np.arange(4), FakeStep(range(4), number=10)).mean.tolist() == [0.5] * 4


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"temperature": 0.0}, r"Cures\(temperature=...\) must be a number above 0, got 0.0"),
        ({"decay": 1.5}, r"Cures\(decay=...\) must be a number of at least 0 and at most 1, got 1.5"),
        ({"reset_every": 0}, r"Cures\(reset_every=...\) must be a whole number of at least 1, got 0"),
        ({"gradient_signal": 1}, r"Cures\(gradient_signal=...\) must be True or False, got 1"),
        ({"cap_factor": 0.9}, r"Cures\(cap_factor=...\) must be a number of at least 1, got 0.9"),
        ({"floor": 1}, r"Cures\(floor=...\) must be a whole number of at least 2, got 1"),
    ],
)
def test_hyper_parameters_are_checked_when_built(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("cures", **parameters)


# -- whole runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cures", "cures-released"])
@pytest.mark.parametrize("parameters", [{}, {"gradient_signal": True, "decay": 0.5, "reset_every": 3}])
def test_whole_runs(name: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_exactly(lambda: make(name, **parameters), tmp_path)
    assert_budgets_hold(lambda: make(name, **parameters), 2, 24)
    assert_proposing_is_a_read(lambda: make(name, **parameters))
    assert assert_top_ups_fill_the_batch(lambda: make(name, max_rounds=8, **parameters)) > 0


def test_a_gate_may_be_added() -> None:
    assert assert_top_ups_fill_the_batch(lambda: make("cures", gate="reward", max_rounds=40)) > 0
