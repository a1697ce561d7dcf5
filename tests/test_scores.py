"""The scores: golden values, and every formula a second time: by exact fractions, 50 digits or quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from edgewise.errors import ConfigError
from edgewise.prediction import Prediction
from edgewise.scores import (
    SCORES,
    ExpectedVariance,
    HardVariance,
    NearTarget,
    ProbMixed,
    WeightedInformation,
    expected_prob_mixed,
    expected_variance_reduction,
    information_weight,
    mixed_gain,
    mutual_information,
    near_target,
    prob_mixed,
)

counts = st.floats(0.01, 200.0)
groups = st.integers(1, 24)


def at(formula: Callable[..., np.ndarray], alpha: float, beta: float, size: int) -> float:
    return float(formula(np.array([alpha]), np.array([beta]), size)[0])


# -- chance of a mixed group -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "beta", "size", "value"),
    [
        (1, 1, 5, 2 / 3), (1, 1, 8, 7 / 9), (1, 1, 16, 15 / 17), (5, 4, 8, 0.9487179487), (1, 9, 8, 0.4705471000),
        (0.5, 0.5, 8, 0.6072387695), (33, 33, 8, 0.9885576605), (3.2, 17.8, 16, 0.8598556328), (1e-3, 1e-3, 8, 0.0025872395),
        (1e6, 1e6, 8, 0.9921873906),
    ],
)  # fmt: skip
def test_mixed_chance_golden(alpha: float, beta: float, size: int, value: float) -> None:
    assert at(expected_prob_mixed, alpha, beta, size) == pytest.approx(value, abs=5e-11)


def exact_mixed(alpha: Fraction, beta: Fraction, size: int) -> Fraction:
    """1 - Π (α+j)/(n₀+j) - Π (β+j)/(n₀+j), as the definition has it, without rounding."""
    both = [math.prod((own + j) / (alpha + beta + j) for j in range(size)) for own in (alpha, beta)]
    return 1 - both[0] - both[1]


@given(
    st.fractions(Fraction(1, 100), 500, max_denominator=100), st.fractions(Fraction(1, 100), 500, max_denominator=100), groups
)
def test_mixed_chance_is_that_of_exact_fractions(alpha: Fraction, beta: Fraction, size: int) -> None:
    """To 1e-13 of the value, also where the definition would cancel; its gain is the difference of neighbours."""
    here = at(expected_prob_mixed, float(alpha), float(beta), size)
    assert here == pytest.approx(float(exact_mixed(alpha, beta, size)), rel=1e-13)
    gain = exact_mixed(alpha, beta, size + 1) - exact_mixed(alpha, beta, size)
    assert at(mixed_gain, float(alpha), float(beta), size) == pytest.approx(float(gain), rel=1e-13)


def test_mixed_chance_of_a_weak_or_one_sided_belief_keeps_its_digits() -> None:
    """Where 1 - a - b would round to 0: Beta(1e-18, 1), G = 2, is 2αβ/(n₀(n₀+1)) = 1e-18."""
    assert at(expected_prob_mixed, 1e-18, 1.0, 2) == pytest.approx(1e-18, rel=1e-12)


@given(counts, counts, groups)
def test_mixed_chance_has_its_properties(alpha: float, beta: float, size: int) -> None:
    """In [0, 1); symmetric; grows with G, by less and less; at most its value at the mean (Jensen)."""
    here = at(expected_prob_mixed, alpha, beta, size)
    assert 0.0 <= here < 1.0
    assert here == pytest.approx(at(expected_prob_mixed, beta, alpha, size), rel=1e-12)
    assert 0.0 < at(mixed_gain, alpha, beta, size + 1) <= at(mixed_gain, alpha, beta, size) * (1 + 1e-12)
    assert here <= prob_mixed(np.array([alpha / (alpha + beta)]), size)[0] + 1e-12


@given(st.floats(0.0, 1.0), groups)
def test_mixed_chance_at_a_rate_is_never_negative(p: float, size: int) -> None:
    assert 0.0 <= prob_mixed(np.array([p]), size)[0] <= 1.0


def test_group_sizes_may_differ_between_prompts() -> None:
    sizes = np.array([2, 8, 1, 8])
    alpha, beta = np.array([1.0, 1.0, 3.0, 0.5]), np.array([1.0, 1.0, 2.0, 0.5])
    for formula in (expected_prob_mixed, mixed_gain, mutual_information, expected_variance_reduction):
        one_by_one = [at(formula, a, b, int(k)) for a, b, k in zip(alpha, beta, sizes, strict=True)]
        assert formula(alpha, beta, sizes) == pytest.approx(one_by_one, rel=1e-13)
    assert prob_mixed(np.array([0.5, 0.25]), np.array([3, 2])).tolist() == [0.75, 0.375]


# -- information -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "beta", "rollouts", "value"),
    [
        (1, 1, 1, 0.193147180560), (1, 1, 4, 0.522307550728), (1, 1, 8, 0.766390213695), (1, 1, 16, 1.04980914199),
        (1, 9, 1, 0.0421861479946), (1, 9, 8, 0.263366982076), (4, 6, 8, 0.292321464961), (5, 4, 8, 0.316605845358),
        (0.5, 0.5, 8, 0.964051211940), (3.2, 17.8, 16, 0.275937354027), (33, 33, 1, 0.0075183720576),
        (33, 33, 8, 0.0572008724724), (120, 40, 8, 0.0243614732752), (10, 9990, 8, 3.9320447534e-4),
        (1e4, 1e4, 8, 1.99960010497e-4), (1e6, 1e6, 8, 1.99999600001e-6), (1e8, 1e8, 8, 1.99999996e-8),
        (1e3, 1e6, 16, 7.99061612987e-6),
    ],
)  # fmt: skip
def test_information_golden(alpha: float, beta: float, rollouts: int, value: float) -> None:
    assert at(mutual_information, alpha, beta, rollouts) == pytest.approx(value, rel=2e-11)


def digamma(x: Decimal) -> Decimal:
    """ψ(x) by ψ(x) = ψ(x+1) - 1/x up to 60, then the asymptotic series, whose first left-out term is below 1e-36."""
    bernoulli = [(1, 6), (-1, 30), (1, 42), (-1, 30), (5, 66), (-691, 2730), (7, 6), (-3617, 510), (43867, 798), (-174611, 330)]
    low = Decimal(0)
    while x < 60:
        low, x = low + 1 / x, x + 1
    series = sum(
        (Decimal(top) / (bottom * 2 * k * x ** (2 * k)) for k, (top, bottom) in enumerate(bernoulli, 1)), start=Decimal(0)
    )
    return x.ln() - 1 / (2 * x) - series - low


def exact_information(alpha: float, beta: float, rollouts: int) -> float:
    """I_K = K·e - Σ P(s) ln r(s) in 50 digits: the likelihood route, which shares nothing with the code but the definition."""
    with localcontext() as context:
        context.prec = 50
        a, b = Decimal(alpha), Decimal(beta)
        mean = a / (a + b)
        start = mean * digamma(a + 1) + (1 - mean) * digamma(b + 1) - digamma(a + b + 1)
        lost = Decimal(0)
        for s in range(rollouts + 1):
            ratio = math.prod([a + j for j in range(s)] + [b + j for j in range(rollouts - s)], start=Decimal(1))
            ratio /= math.prod([a + b + j for j in range(rollouts)], start=Decimal(1))
            lost += math.comb(rollouts, s) * ratio * ratio.ln()
        return float(rollouts * start - lost)


magnitudes = st.floats(-2.0, 8.0).map(lambda power: 10.0**power)


@settings(max_examples=40, deadline=None)
@given(magnitudes, magnitudes, st.sampled_from([1, 2, 5, 8, 16, 32]))
def test_information_is_that_of_fifty_digits(alpha: float, beta: float, rollouts: int) -> None:
    assert at(mutual_information, alpha, beta, rollouts) == pytest.approx(exact_information(alpha, beta, rollouts), rel=1e-11)


def test_information_across_the_switch_of_its_series() -> None:
    """δ changes its formula at 50: each side within 1e-11 of 50 digits."""
    for alpha in (49.99, 50.0, 50.01, 51.0):
        for beta in (0.3, 49.5, 400.0):
            assert at(mutual_information, alpha, beta, 8) == pytest.approx(exact_information(alpha, beta, 8), rel=1e-11)


@pytest.mark.parametrize(("alpha", "beta", "rollouts"), [(3.0, 2.0, 1), (3.0, 2.0, 8), (1.5, 6.0, 5)])
def test_information_is_the_mean_divergence_from_the_mixture(alpha: float, beta: float, rollouts: int) -> None:
    """I_K = E_p[KL(Binomial(K, p) ‖ beta-binomial)], by quadrature."""
    s = np.arange(rollouts + 1)
    mixture = stats.betabinom.logpmf(s, rollouts, alpha, beta)

    def integrand(p: float) -> float:
        log = stats.binom.logpmf(s, rollouts, p)
        return float(stats.beta.pdf(p, alpha, beta) * np.sum(np.exp(log) * (log - mixture)))

    expected, _ = integrate.quad(integrand, 0.0, 1.0, epsabs=1e-11)
    assert at(mutual_information, alpha, beta, rollouts) == pytest.approx(expected, abs=1e-9)


@given(counts, counts, groups)
def test_information_has_its_properties(alpha: float, beta: float, rollouts: int) -> None:
    """In [0, ln(K+1)]; symmetric; grows with K, by less and less; the chain rule over one more outcome."""
    here, more, most = (at(mutual_information, alpha, beta, rollouts + k) for k in (0, 1, 2))
    assert 0.0 < here <= math.log(rollouts + 1)
    assert here == pytest.approx(at(mutual_information, beta, alpha, rollouts), rel=1e-11)
    assert 0.0 < most - more <= (more - here) * (1 + 1e-9) + 1e-13
    s = np.arange(rollouts + 1)
    chances = stats.betabinom.pmf(s, rollouts, alpha, beta)
    told = float(chances @ mutual_information(alpha + s, beta + rollouts - s, 1))
    assert more - here == pytest.approx(told, rel=1e-8, abs=1e-13)


def test_information_does_not_simply_fall_with_the_evidence() -> None:
    """At m = 1/2, K = 8 it peaks near n₀ = 0.38; one outcome at a time it falls everywhere."""
    evidence = np.linspace(0.05, 5.0, 991)
    of_eight = mutual_information(evidence / 2, evidence / 2, 8)
    assert evidence[of_eight.argmax()] == pytest.approx(0.38, abs=0.01)
    assert np.all(np.diff(mutual_information(evidence / 2, evidence / 2, 1)) < 0.0)


def test_information_of_weak_priors_and_large_groups_is_finite() -> None:
    """Products of 64 factors of 1e6 overflow unless they stay logarithms."""
    values = mutual_information(np.array([1e-6, 1e-6, 1e8]), np.array([1.0, 1e-6, 1.0]), np.array([64, 2000, 2000]))
    assert np.all(np.isfinite(values))
    assert np.all(values > 0.0)


def test_equal_beliefs_get_the_same_bits_and_order_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    alpha, beta = rng.integers(1, 6, 400) / 2.0, rng.integers(1, 6, 400) / 2.0
    scores = mutual_information(alpha, beta, 8)
    assert len(np.unique(scores)) <= len({(a, b) for a, b in zip(alpha, beta, strict=True)})
    shuffled = rng.permutation(400)
    assert mutual_information(alpha[shuffled], beta[shuffled], 8).tolist() == scores[shuffled].tolist()


@pytest.mark.parametrize(
    ("alpha", "beta", "rollouts", "message"),
    [
        ([1, 0, -1], [1, 1, 1], 8, r"alpha at position 1 must be finite and above 0, got 0.0"),
        ([1, 1, 1], [1, 1, math.nan], 8, r"beta at position 2 must be finite and above 0, got nan"),
        ([math.inf, 1, 1], [1, 1, 1], 8, r"alpha at position 0 must be finite and above 0, got inf"),
        ([1, 1, 1], [1, 1, 1], 0, r"rollouts at position 0 must be at least 1, got 0"),
    ],
)
def test_a_belief_that_is_none_is_named_by_position(alpha: list, beta: list, rollouts: int, message: str) -> None:
    for formula in (mutual_information, expected_prob_mixed, mixed_gain):
        with pytest.raises(ConfigError, match=message):
            formula(np.array(alpha, dtype=float), np.array(beta, dtype=float), rollouts)


def test_no_prompts_no_scores() -> None:
    for formula in (mutual_information, expected_prob_mixed, mixed_gain, expected_variance_reduction):
        assert formula(np.empty(0), np.empty(0), 8).shape == (0,)


# -- the simple ones ---------------------------------------------------------------------------------------------------


def test_variance_reduction_golden_and_by_enumeration() -> None:
    """Var - E[Var | S], the expectation over S taken one by one."""
    assert at(expected_variance_reduction, 1, 1, 8) == pytest.approx(0.0666666667, abs=1e-10)
    assert at(expected_variance_reduction, 5, 4, 8) == pytest.approx(0.0116194626, abs=1e-10)
    alpha, beta, rollouts = 2.5, 6.0, 7
    s = np.arange(rollouts + 1)
    left = stats.betabinom.pmf(s, rollouts, alpha, beta) @ stats.beta.var(alpha + s, beta + rollouts - s)
    assert at(expected_variance_reduction, alpha, beta, rollouts) == pytest.approx(
        stats.beta.var(alpha, beta) - left, rel=1e-12
    )


@pytest.mark.parametrize(("mu", "best"), [(0.1, 0.3392), (0.3, 0.4157), (0.5, 0.5), (0.7, 0.5843)])
def test_the_weight_peaks_between_its_target_and_one_half(mu: float, best: float) -> None:
    means = np.linspace(0.0, 1.0, 100_001)
    assert means[information_weight(means, 3.0, mu).argmax()] == pytest.approx(best, abs=5e-5)


@pytest.mark.parametrize(
    ("alpha", "beta", "value"),
    [
        (1, 1, 0.1699317858), (4, 6, 0.0680836944), (5, 5, 0.0649741389), (3, 7, 0.0608528223), (9, 9, 0.0407287434),
        (33, 33, 0.0126831557), (1, 9, 0.0210227003), (9, 1, 0.0080494424), (2, 2, 0.1199273399),
    ],
)  # fmt: skip
def test_weighted_information_golden(alpha: float, beta: float, value: float) -> None:
    belief = Prediction.of_beta(np.array([float(alpha)]), np.array([float(beta)]))
    assert WeightedInformation()(belief, 8)[0] == pytest.approx(value, abs=5e-11)


def test_nearest_to_the_target_by_hand() -> None:
    assert near_target(np.array([0.2, 0.5, 0.9]), 0.5).round(12).tolist() == [-0.09, -0.0, -0.16]


# -- parts -------------------------------------------------------------------------------------------------------------


BELIEF = Prediction.of_beta(np.array([1.0, 4.0, 1.0]), np.array([1.0, 6.0, 9.0]))
BY_HAND = {
    "prob_mixed": lambda m: 1 - m**4 - (1 - m) ** 4,
    "variance": lambda m: m * (1 - m),
    "sqrt_variance": lambda m: np.sqrt(m * (1 - m)),
    "hard_variance": lambda m: m * (1 - m) ** 2,
    "near_target": lambda m: -((m - 0.5) ** 2),
}


@pytest.mark.parametrize("name", SCORES)
def test_every_score_is_finite_one_a_prompt_and_changes_nothing(name: str) -> None:
    before = (BELIEF.mean.copy(), BELIEF.alpha.copy())
    scores = SCORES[name]()(BELIEF, 4)
    assert scores.shape == (3,)
    assert np.all(np.isfinite(scores))
    assert (BELIEF.mean.tolist(), BELIEF.alpha.tolist()) == (before[0].tolist(), before[1].tolist())
    assert SCORES[name]()(Prediction.of_rates(np.array([0.0, 0.5, 1.0])), 4).shape == (3,)


@pytest.mark.parametrize("name", BY_HAND)
def test_scores_of_the_mean_follow_a_draw(name: str) -> None:
    drawn = Prediction(mean=np.array([0.2, 0.5, 0.9]), variance=BELIEF.variance, alpha=BELIEF.alpha, beta=BELIEF.beta)
    for prediction in (BELIEF, drawn):
        assert SCORES[name]()(prediction, 4) == pytest.approx(BY_HAND[name](prediction.mean), abs=1e-15)


def test_expected_variance_is_the_mean_of_p_times_one_minus_p() -> None:
    """αβ / (n₀(n₀+1)), and never negative where a draw stands for the mean."""
    assert ExpectedVariance()(BELIEF, 4) == pytest.approx(np.array([1 / 6, 24 / 110, 9 / 110]), rel=1e-14)
    assert ExpectedVariance()(Prediction(mean=np.array([0.0]), variance=np.array([0.1])), 4).tolist() == [0.0]


def test_hard_variance_peaks_at_one_third() -> None:
    rates = np.linspace(0.0, 1.0, 3001)
    assert rates[HardVariance()(Prediction.of_rates(rates), 8).argmax()] == pytest.approx(1 / 3, abs=1e-3)


def test_a_belief_that_models_the_mixed_group_itself_is_believed() -> None:
    own = Prediction(mean=np.array([0.5]), variance=np.array([0.1]), mixed=np.array([0.123]))
    assert [SCORES[name]()(own, 8).tolist() for name in ("prob_mixed", "expected_mixed")] == [[0.123], [0.123]]


def test_a_certain_belief_expects_what_it_knows() -> None:
    """V_G of a belief without variance is the chance at its rate, to the evidence that `as_beta` allows it."""
    certain = Prediction.of_rates(np.array([0.2, 0.5, 0.7]))
    assert SCORES["expected_mixed"]()(certain, 8) == pytest.approx(ProbMixed()(certain, 8), abs=1e-9)


@pytest.mark.parametrize("wrong", [{"eta": -1.0}, {"mu": math.nan}, {"eta": math.inf}])
def test_a_weight_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"WeightedInformation\(eta=..., mu=...\) must be finite, eta >= 0"):
        WeightedInformation(**wrong)


def test_a_target_that_is_no_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"NearTarget\(target=...\) must be in \[0, 1\], got 3.0"):
        NearTarget(target=3.0)
