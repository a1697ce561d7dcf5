"""Choosing by score: exact without chance, in proportion by chi-square, and never a NaN before a number."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.choosers.rank import CHOOSERS, InOrder, Proportional, Softmax, TopK
from edgewise.errors import ConfigError, MethodError
from edgewise.types import Floats

RANKING = (TopK(), Proportional(), Proportional(0.25), Softmax(), Softmax(0.01))


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def chance_of_pair(weights: Floats, first: int, second: int) -> float:
    """Drawing one at a time without replacement."""
    return float(weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first]))


def pairs_drawn(chooser: Any, scores: Floats, draws: int) -> Counter[tuple[int, int]]:
    """How often each ordered pair was drawn; one generator, for 20 times the speed."""
    generator = rng(7)
    return Counter(tuple(chooser(scores, 2, generator).tolist()) for _ in range(draws))


def chi_square(counts: Counter[tuple[int, int]], weights: Floats) -> float:
    pairs = list(itertools.permutations(range(len(weights)), 2))
    total = sum(counts.values())
    expected = [total * chance_of_pair(weights, *pair) for pair in pairs]
    return sum((counts[pair] - e) ** 2 / e for pair, e in zip(pairs, expected, strict=True))


def test_top_k_takes_the_highest_best_first() -> None:
    assert TopK()(np.array([0.5, 2.0, -1.0, 1.0]), 3, rng(0)).tolist() == [1, 3, 0]


def test_top_k_breaks_ties_at_random() -> None:
    """2,000 draws of 1 of 4 equals: 500 each, sigma 19.4; outside ±120 (6 sigma) about once in 1e8 runs."""
    generator = rng(1)
    counts = Counter(int(TopK()(np.array([1.0, 1.0, 0.0, 1.0, 1.0]), 1, generator)[0]) for _ in range(2000))
    assert counts[2] == 0
    assert max(abs(counts[i] - 500) for i in (0, 1, 3, 4)) < 120


WEIGHTS = np.array([1.0, 2.0, 3.0, 6.0])


@pytest.mark.parametrize(
    ("chooser", "scores"),
    [
        (Proportional(), WEIGHTS),
        (Proportional(), 1e-200 * WEIGHTS),
        (Proportional(2.0), WEIGHTS**2),
        (Proportional(0.5), WEIGHTS**0.5),
        (Softmax(), np.log(WEIGHTS)),
        (Softmax(0.1), 0.1 * np.log(WEIGHTS) + 5.0),
        (Softmax(100.0), 100.0 * np.log(WEIGHTS) - 1e5),
    ],
)
def test_pairs_come_as_from_drawing_one_at_a_time(chooser: Any, scores: Floats) -> None:
    """12 ordered pairs, 11 degrees of freedom: chi-square above 45 about 5 times in 1e6 runs of one case."""
    assert chi_square(pairs_drawn(chooser, scores, 6000), WEIGHTS) < 45.0


def test_the_chi_square_above_would_see_a_wrong_temperature() -> None:
    assert chi_square(pairs_drawn(Proportional(1.3), WEIGHTS, 6000), WEIGHTS) > 45.0


def test_proportional_puts_zeros_last_in_random_order() -> None:
    """400 draws of the first of two zeros: 200, sigma 10; outside ±60 (6 sigma) about twice in 1e9 runs."""
    generator = rng(2)
    orders = [Proportional()(np.array([0.0, 1.0, 0.0, 1e-300]), 4, generator).tolist() for _ in range(400)]
    assert all(set(order[:2]) == {1, 3} for order in orders)
    assert abs(sum(order[2] == 0 for order in orders) - 200) < 60


def test_proportional_refuses_a_negative_score_by_name() -> None:
    with pytest.raises(MethodError, match=r"every score must be at least 0, got -0.25 at position 1 \(2 of 3 are below 0\)"):
        Proportional()(np.array([1.0, -0.25, -1.0]), 1, rng(0))


def test_softmax_goes_from_the_best_to_uniform() -> None:
    scores = np.array([0.0, 1.0, 3.0, 2.0])
    assert Softmax(1e-300)(scores, 4, rng(0)).tolist() == [2, 3, 1, 0]
    assert Softmax(0.01)(scores, 4, rng(0)).tolist() == [2, 3, 1, 0]
    assert chi_square(pairs_drawn(Softmax(1e12), scores, 6000), np.ones(4)) < 45.0


def test_in_order_takes_candidates_as_they_come() -> None:
    assert InOrder()(np.array([0.0, np.nan, 5.0]), 2, rng(0)).tolist() == [0, 1]


@pytest.mark.parametrize("chooser", RANKING)
@settings(max_examples=50)
@given(
    values=st.lists(st.one_of(st.floats(0.0, 1e6), st.sampled_from([np.nan, -np.inf, np.inf, 0.0])), max_size=12),
    most=st.integers(0, 15),
    seed=st.integers(0, 99),
)
def test_positions_are_distinct_and_what_is_unknown_comes_last(chooser: Any, values: list[float], most: int, seed: int) -> None:
    scores = np.array(values, dtype=np.float64)
    before = scores.copy()
    chosen = chooser(scores, most, rng(seed))
    assert chosen.dtype == np.int64
    assert len(chosen) == min(most, len(scores)) == len(set(chosen.tolist()))
    known = ~(np.isnan(scores[chosen]) | (scores[chosen] == -np.inf))
    assert not np.any(~known[:-1] & known[1:])
    np.testing.assert_array_equal(scores, before)
    np.testing.assert_array_equal(chosen, chooser(scores, most, rng(seed)))


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf, True, "1"])
@pytest.mark.parametrize("kind", [Proportional, Softmax])
def test_a_temperature_must_be_above_zero(kind: Any, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"temperature=...\) must be a number above 0, got"):
        kind(value)


def test_the_table_builds_each_by_its_name() -> None:
    assert {name: build().name for name, build in CHOOSERS.items()} == {name: name for name in CHOOSERS}  # type: ignore[attr-defined]
