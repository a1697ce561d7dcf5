"""KGPS: the logit Kalman belief by hand, its quadrature against adaptive integration, and the warm-up pass."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.beliefs.logit_kalman import LogitKalman, measured, moments
from edgewise.errors import ConfigError, StateMismatchError
from edgewise.methods import make
from edgewise.prediction import Visits
from edgewise.scores import ExpectedVariance
from edgewise.types import MethodState, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import BATCH, POOL, assert_resumes_exactly, rows_of_steps, selector_of


class Later(FakeStep):
    """A step after the warm-up."""

    epoch = 1.0  # type: ignore[assignment]


def belief_of(size: int, **parameters: Any) -> LogitKalman:
    belief = LogitKalman(**parameters)
    belief.start(Setting(pool_size=size, batch_size=1, group_size=8))
    return belief


def visit(rows: list[int], successes: list[float], trials: int = 8) -> Visits:
    return Visits(rows=np.array(rows), successes=np.array(successes, dtype=float), trials=np.full(len(rows), trials))


def at(number: int, **given: Any) -> FakeStep:
    return FakeStep([], number=number, **given)


@pytest.mark.parametrize(
    ("mean", "variance", "score", "exact"),
    [
        (0.0, 0.0, 0.25, 0.25),
        (0.0, 1.0, 0.2068630368, 0.2066209641),
        (2.0, 1.0, 0.1158041800, None),
        (-3.0, 4.0, 0.0798598423, 0.0779077881),
    ],
)
def test_scores_of_the_specification_and_the_exact_integrals(mean: float, variance: float, score: float, exact: float) -> None:
    first, second = moments(np.array([mean]), np.array([variance]))
    assert first[0] - second[0] == pytest.approx(score, abs=5e-11)
    if exact is not None and variance > 0:
        from scipy.integrate import quad

        def integrand(x: float) -> float:
            p = 1 / (1 + math.exp(-x))
            return p * (1 - p) * math.exp(-((x - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)

        assert quad(integrand, -40, 40, limit=200, points=[mean])[0] == pytest.approx(exact, abs=5e-11)


def test_the_score_of_the_method_is_the_quadrature() -> None:
    """E[p(1-p)] = m(1-m) - var exactly, whatever the quadrature."""
    belief = belief_of(3)
    belief.observe(visit([0, 1], [0, 7]), at(0))
    mean, variance = belief.at(np.arange(3), 2)
    first, second = moments(mean, variance)
    np.testing.assert_allclose(ExpectedVariance()(belief.predict(np.arange(3), at(2)), 8), first - second, atol=1e-15)


def test_the_prior_has_the_moments_of_the_log_odds_of_a_uniform_rate() -> None:
    """The logistic distribution: mean 0, variance π²/3 = 3.28987."""
    from scipy.integrate import quad

    second = quad(lambda p: math.log(p / (1 - p)) ** 2, 0, 1)[0]
    assert belief_of(1).variance[0] == pytest.approx(second, rel=1e-8) == pytest.approx(math.pi**2 / 3)


def test_one_look_by_hand() -> None:
    """2 of 8: p̂ = 1/4, z = -ln 3, R = 1/(8·3/16) = 2/3; K = P/(P + 2/3), μ = Kz, P' = (1-K)P, and Q a step from then on."""
    belief = belief_of(1, process_noise=0.1)
    belief.observe(visit([0], [2]), at(5))
    gain = (math.pi**2 / 3) / (math.pi**2 / 3 + 2 / 3)
    mean, variance = belief.at(np.array([0]), 5)
    assert (mean[0], variance[0]) == (pytest.approx(-gain * math.log(3)), pytest.approx((1 - gain) * math.pi**2 / 3))
    assert belief.at(np.array([0]), 8)[1][0] == pytest.approx(variance[0] + 0.3)
    belief.observe(visit([0], [4]), at(8))
    gain = (variance[0] + 0.3) / (variance[0] + 0.3 + 0.5)
    assert belief.mean[0] == pytest.approx((1 - gain) * mean[0])


def test_constant_groups_are_clipped_and_a_single_rollout_still_says_which() -> None:
    """0 of 8: p̂ = 1/16, z = -ln 15, R = 1/(8·15/256) = 32/15. 1 of 1: as if 3/4, z = ln 3, R = 16/3."""
    z, noise = measured(np.array([0.0, 8.0, 1.0, 0.0]), np.array([8, 8, 1, 1]))
    np.testing.assert_allclose(z, [-math.log(15), math.log(15), math.log(3), -math.log(3)])
    np.testing.assert_allclose(noise, [32 / 15, 32 / 15, 16 / 3, 16 / 3])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 20)), min_size=1, max_size=10))
def test_passes_and_fails_are_mirror_images_and_looking_never_widens(history: list[tuple[int, int]]) -> None:
    belief = belief_of(2)
    number = 0
    for successes, gap in history:
        number += gap
        before = belief.at(np.array([0]), number)[1][0]
        belief.observe(visit([0, 1], [successes, 8 - successes]), at(number))
        assert belief.variance[0] < before
    believed = belief.predict(np.array([0, 1]), at(number))
    assert believed.mean.sum() == pytest.approx(1.0)
    assert believed.variance[0] == pytest.approx(believed.variance[1])
    assert ((believed.mean > 0) & (believed.mean < 1) & (believed.variance < believed.mean * (1 - believed.mean))).all()


def test_the_score_of_a_prompt_solved_64_times_grows_while_nobody_looks() -> None:
    """Not so after 8 of 8, where μ = 1.6 and more doubt only lowers E[p(1-p)]; an unseen prompt's score does not move."""
    belief = belief_of(2)
    belief.observe(visit([0], [64], trials=64), at(0))
    scores = [ExpectedVariance()(belief.predict(np.arange(2), at(number)), 8) for number in (0, 20, 60)]
    assert scores[0][0] < scores[1][0] < scores[2][0]
    assert scores[0][1] == scores[2][1]


def test_a_stream_ages_by_policy_version_and_never_backwards() -> None:
    belief = belief_of(1)
    belief.observe(visit([0], [3]), at(90, streaming=True, policy_version=4))
    variance = belief.variance[0]
    assert belief.at(np.array([0]), 6)[1][0] == pytest.approx(variance + 0.1)
    belief.observe(visit([0], [3]), at(99, streaming=True, policy_version=0))  # a restored stream, not aimed yet
    assert belief.seen[0] == 4
    assert belief.variance[0] < variance


def test_the_first_pass_is_the_stream_and_afterwards_the_best_of_the_pool() -> None:
    method = make("kgps")
    method.start(Setting(pool_size=20, batch_size=2, group_size=8))
    method.observe(passing(range(18), [8] * 9 + [0] * 9, 8), at(0))
    method.observe(passing([18, 19], [4, 4], 8), at(0))
    first = FakeStep(range(20), number=1)
    assert sorted(method.propose(2, first).rows.tolist()) == [0, 1]
    assert first.draws == [2]
    second = Later(range(20), number=1)
    requests = method.propose(2, second)
    assert sorted(requests.rows.tolist()) == [18, 19]
    assert requests.predicted_pass_rate == pytest.approx(0.5)
    assert second.draws == []


def test_in_a_real_run_every_prompt_comes_once_before_any_comes_twice() -> None:
    rounds = rows_of_steps(selector_of("kgps"), {}, range(POOL // BATCH + 3))
    asked = [row for rows in rounds for row in rows]
    assert sorted(asked[:POOL]) == list(range(POOL))
    assert len(asked) == POOL + 3 * BATCH


def test_proposing_is_a_read_and_only_visited_rows_are_written() -> None:
    method = make("kgps")
    method.start(Setting(pool_size=8, batch_size=2, group_size=4))
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    method.observe(groups_of([5, 7], [[1, 1, 0, None], [None] * 4]), at(3))
    for name, array in method.state().prompts.items():
        assert {row for row in range(8) if array[row] != before[name][row]} == {5}, name
    held = {name: array.copy() for name, array in method.state().prompts.items()}
    method.propose(2, Later(range(8), number=9))
    np.testing.assert_equal(method.state().prompts, held)


@pytest.mark.parametrize("parameters", [{}, {"warmup_epochs": 0.0}])
def test_a_resumed_run_asks_for_the_same_prompts(parameters: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_exactly("kgps", tmp_path, {}, parameters)


@pytest.mark.parametrize("name", ["process_noise", "prior_variance", "warmup_epochs"])
def test_hyper_parameters_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"Kgps\({name}=...\) must be a number"):
        make("kgps", **{name: -1.0})
    if name != "warmup_epochs":
        with pytest.raises(ConfigError, match=rf"LogitKalman\({name}=...\) must be a number"):
            LogitKalman(**{name: -1.0})


def test_foreign_states_are_refused() -> None:
    with pytest.raises(StateMismatchError, match=r"LogitKalman.restore: 'mean' must have shape \(3,\), got \(2,\)"):
        belief_of(3).restore(belief_of(2).state())
    with pytest.raises(StateMismatchError, match=r"LogitKalman.restore: the state lacks 'time'"):
        belief_of(3).restore(MethodState(prompts=belief_of(3).state().prompts))
