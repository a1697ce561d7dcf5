"""Allocations: the golden values, brute force over every objective, dynamic programming at full size, and refusals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, special

from edgewise.allocators import ALLOCATORS, OBJECTIVES, Greedy, Uniform, greedy, largest_remainder, variance_gains
from edgewise.errors import ConfigError
from edgewise.prediction import Prediction
from edgewise.scores import expected_prob_mixed, mixed_gain, mutual_information
from edgewise.types import Floats, Ints

RATES = np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95])
EXACT_FROM = {
    "mixed_at_rate": 1, "knapsack": 1, "expected_mixed": 1, "information": 0, "hora": 0, "vip_loo": 2, "cures": 1,
}  # fmt: skip
"""The least n at which V is defined: the objectives below are the papers' formulas, not sums of gains."""


def value(objective: str, n: int, p: float, a: float, b: float) -> float:
    """V(n), written down a second time: at rate p, or under Beta(a, b) by Beta functions and entropies."""
    q = 1.0 - p
    if objective == "mixed_at_rate":
        return 1 - p**n - q**n
    if objective == "knapsack":
        return (1 - p**n - q**n) * p * q * q
    if objective == "expected_mixed":
        return float(
            1
            - np.exp(special.betaln(a + n, b) - special.betaln(a, b))
            - np.exp(special.betaln(a, b + n) - special.betaln(a, b))
        )
    if objective == "hora":
        return float(1 - np.exp(special.betaln(a, b + n) - special.betaln(a, b)))
    if objective == "information":
        s = np.arange(n + 1)
        chance = special.binom(n, s) * np.exp(special.betaln(a + s, b + n - s) - special.betaln(a, b))
        return float(entropy(a, b) - chance @ entropy(a + s, b + n - s))
    if objective == "vip_loo":
        return -4 * p * q / (n - 1)
    return -p * q / n


def entropy(a: Any, b: Any) -> Any:
    psi = special.digamma
    return special.betaln(a, b) - (a - 1) * psi(a) - (b - 1) * psi(b) + (a + b - 2) * psi(a + b)


def total(objective: str, allocation: Any, rates: Floats, alpha: Floats, beta: Floats) -> float:
    return sum(
        value(objective, int(n), float(p), float(a), float(b))
        for n, p, a, b in zip(allocation, rates, alpha, beta, strict=True)
    )


@pytest.mark.parametrize(
    ("objective", "low", "expected", "at_best", "at_uniform"),
    [
        ("knapsack", 2, [10, 14, 9, 7, 7, 7, 2], 0.5095096420, 0.4933666122),
        ("mixed_at_rate", 2, [10, 9, 6, 6, 6, 9, 10], 5.3483253290, 5.2656178597),
        ("vip_loo", 2, [5, 8, 10, 10, 10, 8, 5], -0.5911904762, -0.64),
        ("cures", 1, [5, 8, 10, 10, 10, 8, 5], -0.1295, -0.14),
    ],
)
def test_golden_allocations(objective: str, low: int, expected: list[int], at_best: float, at_uniform: float) -> None:
    best = greedy(OBJECTIVES[objective](Prediction.of_rates(RATES), 24), 56, low, 24)
    assert best.tolist() == expected
    assert total(objective, best, RATES, RATES, RATES) == pytest.approx(at_best, abs=1e-9)
    assert total(objective, [8] * 7, RATES, RATES, RATES) == pytest.approx(at_uniform, abs=1e-9)


def test_golden_allocation_of_hora() -> None:
    believed = Prediction.of_beta(np.array([1.0, 2, 3, 5, 9]), np.array([9.0, 8, 7, 5, 1]))
    assert greedy(OBJECTIVES["hora"](believed, 20), 20, 0, 20).tolist() == [4, 5, 5, 4, 2]


def test_golden_shares_of_cures() -> None:
    shares = np.sqrt(RATES * (1 - RATES))
    np.testing.assert_allclose((56 * shares / shares.sum())[:4], [4.5374, 8.3277, 9.9301, 10.4096], atol=5e-5)
    assert largest_remainder(shares, 56, 1, 56).tolist() == [5, 8, 10, 10, 10, 8, 5]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_greedy_is_the_best_of_all_allocations(objective: str) -> None:
    """Every allocation of 40 random problems of 2 to 4 prompts, by the objectives' own formulas."""
    generator = np.random.default_rng(sum(objective.encode()))
    for _ in range(40):
        count = int(generator.integers(2, 5))
        rates = generator.choice([generator.random(count), generator.integers(0, 5, count) / 4])
        alpha, beta = generator.uniform(0.2, 6.0, (2, count))
        low = generator.integers(max(EXACT_FROM[objective], 0), 4, count)
        high = low + generator.integers(0, 6, count)
        budget = int(generator.integers(low.sum(), high.sum() + 1))
        by_rate = objective in ("mixed_at_rate", "knapsack", "vip_loo", "cures")
        believed = Prediction.of_rates(rates) if by_rate else Prediction.of_beta(alpha, beta)
        chosen = greedy(OBJECTIVES[objective](believed, int(high.max())), budget, low, high)
        assert chosen.sum() == budget
        assert np.all((low <= chosen) & (chosen <= high))
        every = itertools.product(*(range(a, b + 1) for a, b in zip(low, high, strict=True)))
        best = max(total(objective, n, rates, alpha, beta) for n in every if sum(n) == budget)
        assert total(objective, chosen, rates, alpha, beta) == pytest.approx(best, abs=1e-11)


def test_greedy_equals_dynamic_programming_at_full_size() -> None:
    """256 prompts, 2,048 rollouts, floor 2, cap 32: best[w] over the first i prompts, by exhaustion."""
    rates = np.random.default_rng(0).beta(0.6, 0.6, 256)
    n = np.arange(2, 33)
    values = (1 - rates[:, None] ** n - (1 - rates[:, None]) ** n) * (rates * (1 - rates) ** 2)[:, None]
    spare = 2048 - 2 * 256
    best = np.full(spare + 1, -np.inf)
    best[0] = 0.0
    for row in values:
        longer = np.full(spare + 1, -np.inf)
        for k, v in enumerate(row):
            longer[k:] = np.maximum(longer[k:], best[: spare + 1 - k] + v)
        best = longer
    chosen = greedy(OBJECTIVES["knapsack"](Prediction.of_rates(rates), 32), 2048, 2, 32)
    assert values[np.arange(256), chosen - 2].sum() == pytest.approx(best[spare], abs=1e-10)


@given(
    data=st.data(),
    rates=st.lists(st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=8),
    objective=st.sampled_from(sorted(OBJECTIVES)),
)
def test_greedy_is_the_loop_that_gives_one_rollout_at_a_time(data: Any, rates: list[float], objective: str) -> None:
    low, high = 2, data.draw(st.integers(2, 9))
    budget = data.draw(st.integers(low * len(rates), high * len(rates)))
    gains = OBJECTIVES[objective](Prediction.of_rates(np.array(rates)), high)
    flat = np.minimum.accumulate(gains[:, low:], axis=1)  # gains of p near 0 or 1 differ by rounding only
    given = [low] * len(rates)
    for _ in range(budget - sum(given)):
        open_ = [i for i, n in enumerate(given) if n < high]
        i = min(open_, key=lambda i: (-flat[i, given[i] - low], given[i], i))
        given[i] += 1
    assert greedy(gains, budget, low, high).tolist() == given


def test_equal_gains_go_to_fewer_rollouts_then_to_the_earlier_row() -> None:
    assert greedy(np.ones((3, 9)), 11, np.array([1, 3, 1]), 9).tolist() == [4, 4, 3]
    assert greedy(np.ones((3, 9)), 10, 1, 9).tolist() == [4, 3, 3]


def test_no_input_is_changed() -> None:
    gains, low, high = np.ones((2, 4)), np.array([1, 1]), np.array([4, 4])
    greedy(gains, 2, low, high)[:] = 99
    assert (gains == 1).all()
    assert (low.tolist(), high.tolist()) == ([1, 1], [4, 4])


def test_nobody_gets_nothing() -> None:
    assert greedy(np.empty((0, 5)), 0, 2, 5).tolist() == []
    assert largest_remainder(np.empty(0), 0, 2, 5).tolist() == []


@pytest.mark.parametrize(
    "share_out",
    [lambda b, lo, hi: greedy(np.ones((3, 9)), b, lo, hi), lambda b, lo, hi: largest_remainder(np.ones(3), b, lo, hi)],
)
@pytest.mark.parametrize(("budget", "low", "high"), [(5, 2, 4), (13, 2, 4)])
def test_an_impossible_budget_is_refused_with_both_sums(
    share_out: Callable[..., Ints], budget: int, low: int, high: int
) -> None:
    message = f"got a budget of {budget} for floors that sum to 6 and caps that sum to 12"
    with pytest.raises(ConfigError, match=message):
        share_out(budget, low, high)


def test_bounds_out_of_order_are_refused_by_row() -> None:
    with pytest.raises(ConfigError, match=r"0 <= low <= high, got low 5 and high 4 in row 1"):
        greedy(np.ones((3, 9)), 9, np.array([1, 5, 1]), 4)
    with pytest.raises(ConfigError, match=r"a column for every rollout below high, got 9 for 12"):
        greedy(np.ones((3, 9)), 9, 1, 12)


@pytest.mark.parametrize(("bad", "seen"), [(2.5, "2.5 after 2.0 at 3 rollouts"), (np.nan, "nan after 2.0 at 3 rollouts")])
def test_gains_that_rise_are_refused_by_row(bad: float, seen: str) -> None:
    gains = np.tile([5.0, 3.0, 2.0, 1.0, 0.0], (4, 1))
    gains[2, 3] = bad
    with pytest.raises(ConfigError, match=rf"row 2 has {seen} \(1 of 4\)"):
        greedy(gains, 10, 1, 5)
    assert greedy(gains, 10, 1, 3).sum() == 10  # beyond the cap nobody looks


def test_the_mean_baseline_of_vip_is_refused_below_three() -> None:
    """V = -a(n-1)/n²: 0, -.25, -.2222, -.1875: two are worse than one."""
    n = np.arange(1, 12)
    gains = np.concatenate([[np.inf], np.diff(-(n - 1) / n**2)])[None, :]
    with pytest.raises(ConfigError, match="row 0"):
        greedy(gains, 5, 1, 9)
    assert greedy(gains, 5, 3, 9).tolist() == [5]


# -- gains ---------------------------------------------------------------------------------------------------------------


def test_gains_under_a_beta_belief_are_integrals() -> None:
    """Against quadrature of p^n q + q^n p and q^n p over the density."""
    for a, b in [(1.0, 1.0), (3.2, 17.8), (0.5, 0.5), (40.0, 5.0)]:
        believed = Prediction.of_beta(np.array([a]), np.array([b]))
        for n in (0, 1, 5, 15):

            def weighted(f: Callable[[float], float], a: float = a, b: float = b) -> float:
                whole = integrate.quad(lambda p: f(p), 0, 1, weight="alg", wvar=(a - 1, b - 1))[0]
                return float(whole) / float(special.beta(a, b))

            mixed = weighted(lambda p: p**n * (1 - p) + (1 - p) ** n * p)  # noqa: B023 - used at once
            hit = weighted(lambda p: (1 - p) ** n * p)  # noqa: B023
            assert OBJECTIVES["expected_mixed"](believed, 16)[0, n] == pytest.approx(mixed, rel=1e-7)
            assert OBJECTIVES["hora"](believed, 16)[0, n] == pytest.approx(hit, rel=1e-7)


def test_gains_add_up_to_the_scores_of_whole_groups() -> None:
    alpha, beta = np.array([1, 1, 5, 0.5, 33, 3.2, 1e3, 1e6]), np.array([1, 9, 4, 0.5, 33, 17.8, 1e6, 1e6])
    believed = Prediction.of_beta(alpha, beta)
    told, mixed = OBJECTIVES["information"](believed, 16), OBJECTIVES["expected_mixed"](believed, 16)
    for size in (1, 2, 8, 16):
        np.testing.assert_allclose(told[:, :size].sum(axis=1), mutual_information(alpha, beta, size), rtol=1e-9)
        np.testing.assert_allclose(
            mixed[:, 1:size].sum(axis=1), expected_prob_mixed(alpha, beta, size), rtol=1e-12, atol=1e-300
        )
    np.testing.assert_allclose(mixed[:, 7], mixed_gain(alpha, beta, 7), rtol=1e-12)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4, 1e8])
def test_information_gains_fall_even_where_they_hardly_do(size: float) -> None:
    gains = OBJECTIVES["information"](Prediction.of_beta(np.array([size, 0.1 * size]), np.array([size, size])), 32)
    assert np.all(gains > 0)
    assert np.all(np.diff(gains, axis=1) < 1e-9 * gains[:, :-1])


def test_certain_prompts_have_nothing_to_gain() -> None:
    believed = Prediction.of_rates(np.array([0.0, 1.0]))
    for objective in ("knapsack", "vip_loo", "cures"):
        assert OBJECTIVES[objective](believed, 6)[:, 2:].max() == 0.0
    assert variance_gains(np.array([0.0, 1.0]), 3).tolist() == [[0, 0, 0], [np.inf, 0.5, 1 / 6]]


# -- shares --------------------------------------------------------------------------------------------------------------


@given(
    data=st.data(),
    shares=st.lists(st.one_of(st.floats(0.0, 1e6), st.sampled_from([0.0, 1.0])), min_size=1, max_size=9),
)
def test_shares_are_rounded_within_bounds_and_to_the_budget(data: Any, shares: list[float]) -> None:
    count = len(shares)
    low = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    high = low + np.array(data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count)))
    budget = data.draw(st.integers(int(low.sum()), int(high.sum())))
    got = largest_remainder(np.array(shares), budget, low, high)
    assert got.sum() == budget
    assert np.all((low <= got) & (got <= high))


@given(st.lists(st.floats(0.01, 10.0), min_size=1, max_size=9), st.integers(0, 200))
def test_without_bounds_a_share_is_off_by_less_than_one(shares: list[float], budget: int) -> None:
    exact = budget * np.array(shares) / sum(shares)
    assert np.all(np.abs(largest_remainder(np.array(shares), budget, 0, 200) - exact) < 1.0 + 1e-6)


def test_bounds_give_back_what_they_take() -> None:
    """(1, 1, 8) of 20 with at most 9: 9 for the last, the others share 11."""
    assert largest_remainder(np.array([1.0, 1.0, 8.0]), 20, 2, 9).tolist() == [6, 5, 9]
    assert largest_remainder(np.array([0.0, 1.0, 1.0]), 20, 2, 9).tolist() == [2, 9, 9]
    assert largest_remainder(np.array([0.0, 1.0, 1.0]), 23, 2, 9).tolist() == [5, 9, 9]
    assert largest_remainder(np.zeros(3), 7, 0, 9).tolist() == [3, 2, 2]


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_bad_share_is_refused_by_row(bad: float) -> None:
    with pytest.raises(ConfigError, match=r"finite and at least 0, got .* in row 1 \(1 of 2 rows\)"):
        largest_remainder(np.array([1.0, bad]), 5, 0, 9)


def test_largest_remainder_is_close_to_the_optimum_but_below() -> None:
    """Shares in proportion to σ, against greedy on Σ σ²/n: 300 random batches of 16; 2,000 others lost 0.25 % at most."""
    generator = np.random.default_rng(3)
    for _ in range(300):
        rates = generator.random(16)
        spread = rates * (1 - rates)
        exact = greedy(variance_gains(spread, 128), 128, 1, 128)
        rounded = largest_remainder(np.sqrt(spread), 128, 1, 128)
        ratio = float((spread / rounded).sum() / (spread / exact).sum())
        assert 1.0 - 1e-12 <= ratio < 1.004


# -- allocators ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("group_size", [2, 3, 8])
def test_every_objective_keeps_to_budget_floor_and_cap(objective: str, group_size: int) -> None:
    rates = np.concatenate([[0.0, 1.0], np.random.default_rng(0).random(10)])
    believed = Prediction(mean=rates, variance=np.full(12, 0.01))
    got = Greedy(objective)(believed, 12 * group_size, group_size)
    assert got.sum() == 12 * group_size
    assert got.min() >= 2
    assert got.max() <= 4 * group_size
    assert (group_size == 2) == (len(set(got.tolist())) == 1)


def test_uniform_gives_all_the_same() -> None:
    believed = Prediction.of_rates(RATES)
    assert Uniform()(believed, 56, 8).tolist() == [8] * 7
    assert Uniform()(believed, 58, 8).tolist() == [9, 9, 8, 8, 8, 8, 8]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"objective": "knapsak"}, r"objective=...\) must be one of .*, got 'knapsak'. Did you mean 'knapsack'\?"),
        ({"objective": "cures", "floor": 1}, r"floor=...\) must be a whole number of at least 2, got 1"),
        ({"objective": "cures", "cap_factor": 0.5}, r"cap_factor=...\) must be a number of at least 1, got 0.5"),
        ({"objective": "cures", "cap_factor": math.inf}, r"cap_factor=...\) must be a number of at least 1, got inf"),
    ],
)
def test_allocators_are_checked_when_built(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Greedy(**parameters)


def test_the_table_builds_each_by_its_name() -> None:
    assert set(ALLOCATORS) == {"uniform", "greedy"}
    assert ALLOCATORS["greedy"]("knapsack") == Greedy("knapsack")
