"""ARCUS: the arcsine Kalman belief by hand and by integration, the paced target by brute force, and the method around them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.beliefs.arcsine_kalman import ArcsineKalman, drifted, measured, mixed_bound
from edgewise.errors import ConfigError, StateMismatchError
from edgewise.methods import make
from edgewise.methods.pacing import closeness, expected_yield, inclusion, paced_target, target_grid
from edgewise.prediction import Visits
from edgewise.scores import prob_mixed
from edgewise.types import MethodState, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import BATCH, POOL, assert_resumes_exactly, rows_of_steps, selector_of

QUARTER, HALF = math.pi / 4, math.pi / 2
PRIOR = math.pi**2 / 48


class Later(FakeStep):
    """A step after the warm-up."""

    epoch = 1.0  # type: ignore[assignment]


def belief_of(size: int, *, batch: int = 4, group: int = 8, **parameters: Any) -> ArcsineKalman:
    belief = ArcsineKalman(**parameters)
    belief.start(Setting(pool_size=size, batch_size=batch, group_size=group))
    return belief


def visit(rows: list[int], successes: list[float], trials: int = 8) -> Visits:
    return Visits(rows=np.array(rows), successes=np.array(successes, dtype=float), trials=np.full(len(rows), trials))


def at(number: int, **given: Any) -> FakeStep:
    return FakeStep([], number=number, **given)


def gaussian(mean: float, variance: float, f: Any, low: float = -np.inf, high: float = np.inf) -> float:
    """E f(ψ) over [low, high], ψ ~ N(mean, variance), by trapezoids on 8 sigma either way (exponentially exact)."""
    x = np.linspace(max(low, mean - 8 * variance**0.5), min(high, mean + 8 * variance**0.5), 20001)
    density = np.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    return float(np.trapezoid(f(x) * density, x))


# -- belief ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passes", "mean", "variance", "score"),
    [
        (0, 0.1830821226, 0.0479307876, 0.1761525198),
        (1, 0.4548832746, 0.0257311395, 0.5770115414),
        (4, QUARTER, 0.0257311395, 0.9035854757),
        (7, HALF - 0.4548832746, 0.0257311395, 0.5770115414),
        (8, HALF - 0.1830821226, 0.0479307876, 0.1761525198),
    ],
)
def test_one_group_of_eight_from_the_prior(passes: int, mean: float, variance: float, score: float) -> None:
    belief = belief_of(1)
    belief.observe(visit([0], [passes]), at(0))
    assert (belief.mean[0], belief.variance[0]) == (pytest.approx(mean, abs=1e-10), pytest.approx(variance, abs=1e-10))
    s = closeness(belief.mean, belief.variance, QUARTER) * mixed_bound(belief.mean, belief.variance, 8)
    assert s[0] == pytest.approx(score, abs=1e-10)


def test_the_prior_and_the_drift_of_the_specification() -> None:
    """N(π/4, π²/48) has the moments of ψ uniform on [0, π/2]; three steps of v = .01 from .5."""
    x = (np.arange(100_000) + 0.5) / 100_000 * HALF
    belief = belief_of(1)
    assert (belief.mean[0], belief.variance[0]) == (pytest.approx(x.mean()), pytest.approx(x.var(), rel=1e-9))
    assert drifted(np.array([0.5]), 0.01, np.array([3]))[0] == pytest.approx(0.5255118405, abs=5e-11)


@pytest.mark.parametrize("rate", [0.02, -0.02, 0.25, 0.0])
def test_the_drift_is_the_loop_and_beyond_256_steps_its_differential_equation(rate: float) -> None:
    start = np.array([0.0, 0.1, 0.7, 1.2, HALF, 0.3, 0.3])
    steps = np.array([5, 1, 200, 256, 9, 0, 400])
    looped = start.copy()
    for i, n in enumerate(steps):
        for _ in range(n):
            looped[i] = min(max(looped[i] + rate * math.sin(2 * looped[i]), 0.0), HALF)
    np.testing.assert_allclose(drifted(start, rate, steps), looped, atol=1e-4)
    np.testing.assert_array_equal(drifted(start, rate, steps)[:6], looped[:6])
    far = drifted(np.array([0.0, 0.3, HALF]), rate, np.full(3, 10**12))
    assert ((far >= 0) & (far <= HALF)).all()
    assert start[1] == 0.1


@pytest.mark.parametrize("group_size", [2, 4, 8, 16])
def test_the_bound_is_its_integral_and_lies_below_the_chance_of_a_mixed_group(group_size: int) -> None:
    """For P <= 0.1 and at the prior, with p = sin² ψ for every ψ. No group leaves a wider belief: from the prior, R <= 1/2n."""

    def integrand(x: Any) -> Any:
        return 1 - np.exp(-group_size * x**2) - np.exp(-group_size * (HALF - x) ** 2)

    def mixed(x: Any) -> Any:
        return prob_mixed(np.sin(x) ** 2, group_size)

    inside = np.linspace(0, HALF, 1001)
    assert (integrand(inside) <= mixed(inside) + 1e-15).all()
    beliefs = [(mean, variance) for mean in np.linspace(0, HALF, 9) for variance in (0.001, 0.01, 0.05, 0.1)]
    for mean, variance in [*beliefs, (QUARTER, PRIOR)]:
        bound = mixed_bound(np.array([mean]), np.array([variance]), group_size)[0]
        assert bound == pytest.approx(max(0.0, gaussian(mean, variance, integrand)), abs=1e-9)
        assert bound <= gaussian(mean, variance, mixed)


def test_it_is_no_bound_where_angles_are_clipped_to_their_range() -> None:
    """At the prior, G = 8: .694 against .680."""
    inside = gaussian(QUARTER, PRIOR, lambda x: prob_mixed(np.sin(x) ** 2, 8), 0.0, HALF)
    assert inside == pytest.approx(0.6796, abs=1e-4)
    assert mixed_bound(np.array([QUARTER]), np.array([PRIOR]), 8)[0] > inside


@pytest.mark.parametrize(("passes", "gap"), [(0, 0), (3, 1), (8, 40)])
def test_the_predicted_pass_rate_has_the_moments_of_its_integral(passes: int, gap: int) -> None:
    belief = belief_of(1, drift=0.002, process_noise=1e-3, learning_rate=0.0)
    belief.observe(visit([0], [passes]), at(0))
    believed = belief.predict(np.array([0]), at(gap))
    mean, variance = (float(values[0]) for values in belief.at(np.array([0]), gap))
    first = gaussian(mean, variance, lambda x: np.sin(x) ** 2)
    assert believed.mean[0] == pytest.approx(first, abs=1e-9)
    assert believed.variance[0] == pytest.approx(gaussian(mean, variance, lambda x: (np.sin(x) ** 2 - first) ** 2), abs=1e-9)
    assert believed.mixed is not None
    assert believed.mixed[0] == mixed_bound(np.array([mean]), np.array([variance]), 8)[0]


@pytest.mark.parametrize(("p", "published"), [(0.2, 0.0271), (0.35, 0.0295), (0.5, 0.0297)])
def test_the_noise_of_the_angle_is_near_what_it_is_taken_for(p: float, published: float) -> None:
    """Var arcsin √((m+3/8)/(n+3/4)) of binomial m, exactly, n = 8: the paper's Table 4, against 1/(4n+2) = .0294."""
    k = np.arange(9)
    angles = np.arcsin(np.sqrt((k + 0.375) / 8.75))
    chance = np.array([math.comb(8, i) for i in k]) * p**k * (1 - p) ** (8 - k)
    variance = chance @ (angles - chance @ angles) ** 2
    assert variance == pytest.approx(published, abs=6e-5)
    assert measured(np.array([4.0]), np.array([8]))[1][0] == pytest.approx(variance, rel=0.1)


def test_a_prompt_seen_again_and_again_is_as_unsure_as_the_paper_proves() -> None:
    """Prop. 6: visits every Δ steps, all mixed, Q fixed: P -> (√(Q²Δ² + 4QΔR) - QΔ)/2, R = 1/(4G+2)."""
    belief = belief_of(1, learning_rate=0.0, process_noise=1e-3)
    for visited in range(200):
        belief.observe(visit([0], [1 + visited % 7]), at(5 * visited))
    wander, noise = 5e-3, 1 / 34
    assert belief.variance[0] == pytest.approx((math.sqrt(wander**2 + 4 * wander * noise) - wander) / 2, rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 30)), min_size=1, max_size=10), st.floats(-0.25, 0.25))
def test_passes_and_fails_are_mirror_images(history: list[tuple[int, int]], drift: float) -> None:
    one, other = (belief_of(1, drift=v, learning_rate=0.1) for v in (drift, -drift))
    number = 0
    for successes, gap in history:
        number += gap
        before = one.at(np.array([0]), number)[1][0]
        one.observe(visit([0], [successes]), at(number))
        other.observe(visit([0], [8 - successes]), at(number))
        assert one.variance[0] < before
        assert 0 <= one.mean[0] <= HALF
        assert one.mean[0] == pytest.approx(HALF - other.mean[0], abs=1e-9)
        assert one.variance[0] == pytest.approx(other.variance[0], rel=1e-9)


def test_drift_and_noise_learn_once_a_batch_by_the_rule() -> None:
    """Two prompts seen at step 0, again at step 2 together with a new one; worked out from the formulas."""
    belief = belief_of(4, batch=2, drift=0.01, process_noise=1e-3, learning_rate=0.1)
    belief.observe(visit([0, 1], [2, 5]), at(0))
    assert (belief.v, belief.q) == (0.01, 1e-3)  # nobody was seen before
    surprise, reach, excess = [], [], []
    for row, passes in ((0, 4), (1, 8)):
        mu = float(belief.mean[row])
        for _ in range(2):
            mu += 0.01 * math.sin(2 * mu)
        z = math.asin(math.sqrt(4.375 / 8.75)) if passes == 4 else HALF
        s = belief.variance[row] + 2e-3 + (1 / 34 if passes == 4 else 1 / 16)
        surprise.append(z - mu)
        reach.append(2 * max(math.sin(2 * mu), 0.05))
        excess.append((z - mu) ** 2 - s)
    belief.observe(visit([0, 1, 2], [4, 8, 0]), at(2))
    assert belief.v == pytest.approx(0.01 + 0.1 * sum(surprise) / sum(reach))
    assert belief.q == pytest.approx(max(1e-5, 0.9e-3 + 0.1 * max(1e-3 + sum(excess) / 2 / 2, 0)))


def test_groups_that_come_one_by_one_move_drift_as_often_as_batches_do() -> None:
    """Batch of 4: eight single groups fold four times by half of β; half a batch short of a fold changes nothing."""
    belief = belief_of(8, batch=4)
    for row in range(8):
        belief.observe(visit([row], [4]), at(0, streaming=True))
    drifts = [belief.v]
    for row in range(8):
        belief.observe(visit([row], [7]), at(0, streaming=True, policy_version=1))
        drifts.append(belief.v)
    assert [later != earlier for earlier, later in zip(drifts[:-1], drifts[1:], strict=True)] == [False, True] * 4
    whole = belief_of(8, batch=4)
    whole.observe(visit(list(range(8)), [4] * 8), at(0))
    whole.observe(visit([0, 1], [7] * 2), at(1))
    assert drifts[2] == pytest.approx(whole.v)  # two groups of a batch of four: half of β either way


def test_a_policy_that_improves_on_everything_is_found_out() -> None:
    """300 prompts whose ψ drifts by .01 sin 2ψ a step, 60 looked at in each of 60 steps: v ends within .004 of it."""
    rng = np.random.default_rng(1)
    truth = rng.uniform(0.1, 0.7, 300)
    belief = belief_of(300, batch=60)
    for number in range(60):
        rows = rng.choice(300, size=60, replace=False)
        successes = rng.binomial(8, np.sin(truth[rows]) ** 2)
        belief.observe(Visits(rows=rows, successes=successes.astype(float), trials=np.full(60, 8)), at(number))
        truth += 0.01 * np.sin(2 * truth)
    assert belief.v == pytest.approx(0.01, abs=0.004)


def test_unseen_prompts_get_the_empirical_prior_once_a_hundred_are_known() -> None:
    belief = belief_of(200, batch=200)
    belief.observe(visit(list(range(99)), [1] * 50 + [4] * 49), at(0))
    assert belief.at(np.array([150]), 5) == (pytest.approx(QUARTER), pytest.approx(PRIOR))
    belief.observe(visit([99], [8]), at(0))
    mean, variance = belief.at(np.array([150, 0]), 5)
    seen = belief.mean[:100]
    assert mean[0] == pytest.approx(seen.mean())
    assert variance[0] == pytest.approx(((seen - seen.mean()) ** 2).mean() + belief.variance[:100].mean())
    assert mean[1] == belief.mean[0]
    again = belief_of(200, batch=200)
    again.restore(belief.state())
    assert again.empirical_prior() == belief.empirical_prior()


# -- pacing ------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=30), st.integers(1, 12), st.floats(0.1, 6.0))
def test_inclusion_is_the_root_that_bisection_finds(scores: list[float], draws: int, power: float) -> None:
    weights = np.array(scores) ** power
    chances = inclusion(weights, draws)
    positive = int((weights > 0).sum())
    assert chances.sum() == pytest.approx(min(draws, positive), rel=1e-9)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert (chances[weights == 0] == 0).all()
    if positive > draws and weights[weights > 0].min() > 1e-9:
        low, high = 0.0, 1e12
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if np.minimum(1, middle * weights).sum() < draws else (low, middle)
        np.testing.assert_allclose(chances, np.minimum(1, high * weights), atol=1e-6)


def test_closeness_is_the_mean_of_a_bell_around_the_target() -> None:
    for mean, variance, target in ((0.3, 0.02, 0.6), (1.2, 0.1, 0.8), (QUARTER, PRIOR, QUARTER)):
        width = min(math.sin(target), math.cos(target)) ** 2 / 2
        expected = gaussian(mean, variance, lambda x, t=target, w=width: np.exp(-((x - t) ** 2) / (2 * w)))
        assert closeness(np.array([mean]), np.array([variance]), target)[0] == pytest.approx(expected, abs=1e-9)
    assert closeness(np.array([QUARTER]), np.array([PRIOR]), QUARTER)[0] == pytest.approx(0.7407474403, abs=5e-11)


def test_the_grid_runs_from_one_in_two_groups_to_its_complement() -> None:
    grid = target_grid(8)
    assert (len(grid), math.sin(grid[0]) ** 2, math.sin(grid[-1]) ** 2) == (41, pytest.approx(1 / 16), pytest.approx(15 / 16))
    assert grid[20] == pytest.approx(QUARTER)


def test_the_yield_is_that_of_a_real_draw() -> None:
    """Ŷ against 4,000 Gumbel draws of 10 of 200 (Σπ = M is an approximation of sampling without replacement): within .01."""
    rng = np.random.default_rng(0)
    mean, variance = rng.uniform(0, HALF, 200), rng.uniform(0.001, 0.05, 200)
    mixed = mixed_bound(mean, variance, 8)
    logs = np.log(closeness(mean, variance, 0.6) * mixed) / 0.3
    drawn = np.argpartition(-(logs + rng.gumbel(size=(4000, 200))), 10, axis=1)[:, :10]
    assert expected_yield(mean, variance, mixed, 0.6, 10, 0.3) == pytest.approx(mixed[drawn].mean(), abs=0.01)


@pytest.mark.parametrize("group_size", [2, 4, 8, 16])
def test_with_sure_beliefs_the_target_is_the_lowest_whose_best_prompt_costs_no_more_than_the_slack(group_size: int) -> None:
    """A dense pool and a cold draw of one: what is drawn at ψ* is the largest κŷ, worked out prompt by prompt."""
    angles = np.linspace(0.01, HALF - 0.01, 2001)
    mixed = np.array([max(0.0, 1 - math.exp(-group_size * a * a) - math.exp(-group_size * (HALF - a) ** 2)) for a in angles])
    yields = []
    for target in target_grid(group_size):
        width = min(math.sin(target), math.cos(target)) ** 2 / 2
        best = max(range(len(angles)), key=lambda i: math.exp(-((angles[i] - target) ** 2) / (2 * width)) * mixed[i])
        yields.append(mixed[best])
    lowest = next(i for i, y in enumerate(yields) if y >= max(yields) - 0.03)
    target = paced_target(
        angles, np.full(len(angles), 1e-12), mixed, group_size=group_size, draws=1, temperature=2e-4, slack=0.03
    )
    assert target == target_grid(group_size)[lowest]
    assert group_size == 2 or 0 < lowest < 20


def test_where_all_prompts_are_alike_the_lowest_target_is_taken() -> None:
    """No target yields more than another, be they hard or easy."""
    variance = np.full(100, 0.01)
    for mean in (np.full(100, 0.35), np.full(100, HALF - 0.35)):
        mixed = mixed_bound(mean, variance, 8)
        target = paced_target(mean, variance, mixed, group_size=8, draws=10, temperature=0.3, slack=0.03)
        assert target == target_grid(8)[0]


# -- method ------------------------------------------------------------------------------------------------------------


def started(size: int = 40, batch: int = 4, group: int = 8, **parameters: Any) -> Any:
    method = make("arcus", **parameters)
    method.start(Setting(pool_size=size, batch_size=batch, group_size=group))
    return method


def test_it_asks_for_a_quarter_more_and_keeps_the_best_mixed_groups() -> None:
    """Five of B = 4 asked for; of five mixed groups the one that came out farthest from the target is outranked."""
    method = started()
    step = at(0)
    rows = method.propose(4, step).rows.tolist()
    assert len(rows) == 5
    verdicts = method.judge(passing(rows, [4, 7, 3, 5, 4], 8), step)
    assert verdicts.keep.tolist() == [True, False, True, True, True]
    assert verdicts.reasons == ("", "outranked", "", "", "")
    verdicts = method.judge(passing(rows, [4, 7, 0, 8, 4], 8), step)
    assert verdicts.keep.tolist() == [True, True, False, False, True]
    assert verdicts.reasons == ("", "", "zero_variance", "zero_variance", "")


def test_equal_groups_are_outranked_at_random_and_a_stream_keeps_them_all() -> None:
    method = started()
    method.propose(4, at(0))
    out = {int(np.flatnonzero(~method.judge(passing(range(5), [4] * 5, 8), at(0, seed=s)).keep)[0]) for s in range(20)}
    assert len(out) > 1
    assert method.judge(passing(range(5), [4] * 5, 8), at(0, streaming=True)).keep.all()


def test_judging_and_proposing_are_reads_of_the_belief_and_only_visited_rows_are_written() -> None:
    method = started()
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    method.propose(4, Later([], number=3))
    method.judge(passing(range(5), [4] * 5, 8), at(3))
    np.testing.assert_equal(method.state().prompts, before)
    method.observe(groups_of([5, 7], [[1, 1, 0, None], [None] * 4]), at(3))
    for name, array in method.state().prompts.items():
        assert {row for row in range(40) if array[row] != before[name][row]} == {5}, name


def test_a_judge_ranks_ragged_groups_by_the_rollouts_they_have() -> None:
    method = started(batch=2)
    step = at(0)
    method.propose(2, step)
    groups = groups_of([0, 1, 2, 3], [[1, 0, None, None], [1, None, None, None], [1, 0, 0, 1], [None] * 4])
    verdicts = method.judge(groups, step)
    assert verdicts.keep.tolist() == [True, False, True, False]
    assert verdicts.reasons == ("", "incomplete", "", "incomplete")


def test_the_target_waits_for_the_warm_up_and_then_moves_once_a_step() -> None:
    """Sure beliefs all over the range: the paced target is below π/4, and comes nearer by .005 a step, however often asked."""
    method = started(size=200, batch=4)
    for number in range(40):
        angle = np.linspace(0.05, HALF - 0.05, 200)
        successes = np.round(8 * np.sin(angle) ** 2).astype(int).tolist()
        method._belief.observe(visit(list(range(200)), successes), at(number))
    method.propose(4, at(40))
    assert method._target == QUARTER
    for number in (41, 42):
        for _ in range(3):
            method.propose(4, Later([], number=number))
    assert method._target == pytest.approx(QUARTER - 0.01)


def test_chances_are_as_score_to_the_power_one_over_temperature() -> None:
    """Two prompts, B = 1, M = 1: the odds of the first are (s0/s1)^(1/.3). 3,000 steps; 6 sigma or less from it."""
    method = started(size=2, batch=1, oversample=1.0)
    method.observe(passing([0, 1], [4, 6], 8), at(0))
    s = method.utility(*method._belief.now(np.arange(2), at(0)))
    odds = (s[0] / s[1]) ** (1 / 0.3)
    share = odds / (1 + odds)
    first = sum(int(method.propose(1, at(0, seed=seed)).rows[0]) == 0 for seed in range(3000))
    assert abs(first - 3000 * share) < 6 * math.sqrt(3000 * share * (1 - share))
    assert 0.5 < share < 0.98


def test_a_real_run_trains_on_mixed_groups_only() -> None:
    selector = selector_of("arcus")
    rounds = rows_of_steps(selector, {}, range(12))
    assert [len(rows) for rows in rounds] == [math.ceil(1.25 * BATCH)] * 12
    assert set().union(*rounds) <= set(range(POOL))
    assert 0 < selector.metrics["target_rate"] < 1


@pytest.mark.parametrize("parameters", [{}, {"warmup_epochs": 0.0, "prior_after": 5, "pace": 0.1}])
def test_a_resumed_run_asks_for_the_same_prompts(parameters: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_exactly("arcus", tmp_path, {}, parameters)


@pytest.mark.parametrize(
    "parameters",
    [
        {"temperature": 0.0}, {"yield_slack": 2.0}, {"pace": -1.0}, {"warmup_epochs": -1.0}, {"learning_rate": 1.5},
        {"drift": 0.5}, {"process_noise": -1.0}, {"prior_after": 1}, {"thompson": True},
    ],
)  # fmt: skip
def test_hyper_parameters_are_checked(parameters: dict[str, Any]) -> None:
    name, value = next(iter(parameters.items()))
    with pytest.raises(ConfigError, match=rf"Arcus\({name}=...\) must be .*, got {value!r}\."):
        make("arcus", **parameters)


def test_the_belief_by_itself_is_checked_and_refuses_foreign_states() -> None:
    for name, value in (("learning_rate", 2.0), ("drift", 1.0), ("process_noise", -1.0), ("prior_after", 1)):
        with pytest.raises(ConfigError, match=rf"ArcsineKalman\({name}=...\) must be"):
            ArcsineKalman(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(StateMismatchError, match=r"ArcsineKalman.restore: 'mean' must have shape \(3,\), got \(2,\)"):
        belief_of(3).restore(belief_of(2).state())
    with pytest.raises(StateMismatchError, match=r"ArcsineKalman.restore: the state lacks 'time'"):
        belief_of(3).restore(MethodState(prompts=belief_of(3).state().prompts))
    with pytest.raises(StateMismatchError, match=r"Arcus.restore: the state lacks 'target'"):
        started().restore(MethodState(prompts=started().state().prompts))
