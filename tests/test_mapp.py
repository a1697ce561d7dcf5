"""MaPP: in proportion to the chance of a mixed group, and its advantage against enumeration of every group."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats

from edgewise.beliefs.beta import PASS_RATE_PRIOR
from edgewise.errors import ConfigError
from edgewise.methods.mapp import Mapp, MappTopK, advantage
from edgewise.scores import expected_prob_mixed
from edgewise.types import Setting
from tests.fakes import FakeStep, passing
from tests.whole_runs import assert_resumes_exactly


def started(kind: type[Mapp] = Mapp, pool_size: int = 6, batch_size: int = 1, group_size: int = 8, **parameters: Any) -> Mapp:
    method = kind(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def at(number: int, **given: Any) -> FakeStep:
    return FakeStep([], number=number, **given)


# -- selection ---------------------------------------------------------------------------------------------------------


def test_it_draws_in_proportion_to_the_chance_of_a_mixed_group() -> None:
    """Beta(1, 1) has V_8 = 7/9, the other, after a group of none, V_8 of Beta(1, 9) = .4705: first .6231 of 4,000 times.

    Expectation 2,492, sigma 30.6: outside ±184 (6 sigma) about twice in 1e9 runs.
    """
    method = started(pool_size=2, candidates="pool")
    method.observe(passing([1], [0], 8), at(0))
    scores = expected_prob_mixed(np.array([1.0, 1.0]), np.array([1.0, 9.0]), 8)
    first = sum(int(method.propose(1, at(number)).rows[0] == 0) for number in range(4000))
    assert abs(first - 4000 * scores[0] / scores.sum()) < 184


def test_top_k_takes_the_highest() -> None:
    """V_8: four of eight passes, (5, 5), over three, (4, 6), over the unseen; none and all come last. One belief each."""
    method = started(MappTopK, batch_size=3)
    method.observe(passing([0, 1, 2, 3], [4, 3, 0, 8], 8), at(0))
    for number in range(20):
        rows = method.propose(3, at(number)).rows.tolist()
        assert rows[:2] == [0, 1]
        assert rows[2] in (4, 5)


def test_a_visit_halves_what_was_known() -> None:
    method = started()
    for passes in (8, 0):
        method.observe(passing([0], [passes], 8), at(0))
    assert (method.counts.passed[0], method.counts.failed[0]) == (4.0, 8.0)


def test_the_draw_has_the_chance_it_is_an_expectation_of() -> None:
    """thompson scores 1 - p^8 - (1-p)^8 at a draw; over 4,000 draws of one belief the mean is V_8. Sd < .33, 6 sigma .031."""
    method = started(pool_size=4000, thompson=True)
    method.observe(passing(list(range(4000)), [2] * 4000, 8), at(0))
    rows = np.arange(4000)
    scores = method.scores(rows, method.counts.predict(rows, at(0)), at(0))
    expected = expected_prob_mixed(np.array([3.0]), np.array([7.0]), 8)[0]
    assert scores.std() < 0.33
    assert scores.mean() == pytest.approx(expected, abs=0.031)


def test_candidates_are_eight_a_group() -> None:
    method = started(pool_size=400, batch_size=4)
    step = at(0)
    assert len(method.candidate_rows(4, step)) == 32
    assert step.draws == []


def test_proposing_is_a_read() -> None:
    method = started(batch_size=3)
    method.observe(passing([0, 1], [4, 3], 8), at(0))
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    rows = method.propose(3, at(1)).rows.tolist()
    np.testing.assert_equal(method.state().prompts, before)
    assert method.propose(3, at(1)).rows.tolist() == rows


@pytest.mark.parametrize(
    ("method", "parameters"),
    [("mapp", {}), ("mapp-topk", {"prior": "signal"}), ("mapp", {"thompson": True, "gate": "reward", "max_rounds": 4})],
)
def test_a_real_run_resumes_exactly(method: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    """12 steps and 40 takes under a strict selector, with ragged, missing and lost groups."""
    assert_resumes_exactly(method, tmp_path, {PASS_RATE_PRIOR: lambda rows: (rows + 1) / 42}, parameters)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ConfigError, match=re.escape("Mapp(rule=...) must be one of 'proportional', 'top_k', got 'topk'.")):
        Mapp(rule="topk")  # type: ignore[arg-type]


# -- advantage ---------------------------------------------------------------------------------------------------------


def of_group(passes: int, size: int, prior: tuple[float, float] = (1.0, 1.0), **given: Any) -> list[float]:
    """Advantages of one group, passes first, under the belief after it."""
    passed = np.arange(size)[None, :] < passes
    alpha, beta = np.array([prior[0] + passes]), np.array([prior[1] + size - passes])
    return advantage(passed, np.ones((1, size), dtype=bool), alpha, beta, **given)[0].tolist()


@pytest.mark.parametrize(
    ("passes", "success", "failure"),
    [
        (0, None, -0.2400067300),
        (1, 2.1012657676, -0.4494592990),
        (2, 1.6800471101, -0.6477644607),
        (4, 1.0796074345, -1.0796074345),
        (8, 0.2400067300, None),
    ],
)
def test_advantage_golden(passes: int, success: float | None, failure: float | None) -> None:
    """Prior (1, 1), G = 8."""
    expected = [success] * passes + [failure] * (8 - passes)
    assert of_group(passes, 8) == pytest.approx(expected, abs=5e-11)


def grpo(outcomes: tuple[int, ...]) -> list[float]:
    """(r - mean) / population std, 0 for a constant group: what the trainers compute."""
    rewards = np.array(outcomes, dtype=np.float64)
    return ((rewards - rewards.mean()) / rewards.std()).tolist() if rewards.std() > 0 else [0.0] * len(outcomes)


def chance(outcomes: tuple[int, ...], alpha: Fraction, beta: Fraction) -> Fraction:
    """Of these outcomes in this order under Beta(α, β), by Pólya's urn."""
    product = Fraction(1)
    for outcome in outcomes:
        product *= (alpha if outcome else beta) / (alpha + beta)
        alpha, beta = alpha + outcome, beta + 1 - outcome
    return product


@given(st.integers(0, 5), st.integers(1, 40), st.integers(1, 40))
def test_advantage_is_that_of_every_group_there_could_have_been(passes: int, tenths: int, other: int) -> None:
    """Enumerates the 16 outcomes of four siblings, with their exact chances after this rollout is left out of the belief."""
    size, alpha, beta = 5, Fraction(tenths, 10), Fraction(other, 10)
    expected = []
    for own in [1] * passes + [0] * (size - passes):
        left_out = (alpha + passes - own, beta + size - passes - (1 - own))
        groups = itertools.product((0, 1), repeat=size - 1)
        expected.append(sum(float(chance(siblings, *left_out)) * grpo((own, *siblings))[0] for siblings in groups))
    assert of_group(passes, size, (float(alpha), float(beta))) == pytest.approx(expected, rel=1e-11, abs=1e-13)


def test_advantage_is_the_integral_over_pass_rates() -> None:
    """G = 8, prior (2.5, 0.7), three passes: one pass and one fail by quadrature."""

    def integral(alpha: float, beta: float) -> float:
        s = np.arange(1, 8)

        def integrand(p: float) -> float:
            return float(stats.beta.pdf(p, alpha, beta) * stats.binom.pmf(s - 1, 7, p) @ np.sqrt((8 - s) / s))

        return float(integrate.quad(integrand, 0.0, 1.0)[0])

    got = of_group(3, 8, (2.5, 0.7))
    assert (got[0], got[-1]) == pytest.approx((integral(4.5, 5.7), -integral(4.7, 5.5)), rel=1e-7)


@pytest.mark.parametrize(("p", "value"), [(0.5, 0.9278279748), (0.1, 2.0949201469)])
def test_advantage_at_a_known_pass_rate(p: float, value: float) -> None:
    """n₀ -> ∞ gives μ_8(p): here n₀ = 1e9."""
    passed, ones = np.array([[True] + [False] * 7]), np.ones((1, 8), dtype=bool)
    assert advantage(passed, ones, np.array([p * 1e9]), np.array([(1 - p) * 1e9]))[0, 0] == pytest.approx(value, rel=1e-7)


@given(
    st.integers(2, 12).flatmap(lambda size: st.tuples(st.just(size), st.integers(0, size))),
    st.floats(0.1, 20),
    st.floats(0.1, 20),
)
def test_advantage_mirrors_when_passes_and_fails_trade_places(group: tuple[int, int], alpha: float, beta: float) -> None:
    size, passes = group
    mirrored = [-value for value in reversed(of_group(size - passes, size, (beta, alpha)))]
    assert of_group(passes, size, (alpha, beta)) == pytest.approx(mirrored, rel=1e-12)


def test_a_constant_group_teaches_and_a_group_does_not_sum_to_zero() -> None:
    """All fail: all negative. One pass of eight: the sum is -1.045. The host must not centre them again."""
    assert max(of_group(0, 8)) < 0.0 < min(of_group(8, 8))
    assert sum(of_group(1, 8)) == pytest.approx(-1.045, abs=5e-4)


def test_advantage_for_a_trainer_that_divides_by_the_sample_deviation() -> None:
    assert of_group(3, 8, sample_std=True) == pytest.approx([value * math.sqrt(7 / 8) for value in of_group(3, 8)])


def test_ragged_groups_have_advantages_of_their_own_size() -> None:
    """Missing rollouts get 0, and so does a lone one: a group of one has no advantage."""
    passed = np.array([[True, False, False, False], [True, True, False, False], [True, False, False, False]])
    valid = np.array([[True, True, True, True], [True, False, True, False], [True, False, False, False]])
    before = passed.copy()
    got = advantage(passed, valid, np.array([2.0, 2.0, 2.0]), np.array([4.0, 2.0, 1.0]))
    pair = of_group(1, 2)
    assert got[0].tolist() == pytest.approx(of_group(1, 4))
    assert got[1].tolist() == pytest.approx([pair[0], 0.0, pair[1], 0.0])
    assert got[2].tolist() == [0.0] * 4
    assert passed.tolist() == before.tolist()


def test_a_belief_that_did_not_learn_from_the_group_is_refused_by_position() -> None:
    passed, ones = np.array([[False, False], [True, False]]), np.ones((2, 2), dtype=bool)
    message = r"advantage\(alpha=...\) at position 1 must be finite and above 1, got 1.0"
    with pytest.raises(ConfigError, match=message):
        advantage(passed, ones, np.array([1.0, 1.0]), np.array([3.0, 2.0]))
    with pytest.raises(ConfigError, match=r"advantage\(beta=...\) at position 0 must be finite and above 1, got nan"):
        advantage(passed, ones, np.array([1.0, 2.0]), np.array([math.nan, 2.0]))
