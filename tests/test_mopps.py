"""MoPPS: pick for pick the released sampler, written here a second time from its description; and what it must not repeat."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise.beliefs.beta import PASS_RATE_PRIOR
from edgewise.errors import ConfigError
from edgewise.methods import make
from edgewise.methods.mopps import Mopps
from edgewise.prediction import Prediction, Visits
from edgewise.types import Groups, Requests, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import assert_resumes_exactly

GOLDEN_ALPHA = np.array([1.0, 1, 3, 9, 1, 5])
GOLDEN_BETA = np.array([1.0, 9, 3, 1, 1, 5])


def started(pool_size: int = 6, batch_size: int = 3, group_size: int = 8, **parameters: Any) -> Mopps:
    method = Mopps(**parameters)
    method.start(Setting(pool_size=pool_size, batch_size=batch_size, group_size=group_size))
    return method


def believing(alpha: np.ndarray, beta: np.ndarray, **parameters: Any) -> Mopps:
    """A method whose belief of prompt i is Beta(alpha[i], beta[i])."""
    method = started(pool_size=len(alpha), **parameters)
    method.counts.passed[:], method.counts.failed[:] = alpha - 1.0, beta - 1.0
    method.counts.visits[:] = alpha + beta > 2.0
    return method


class ReferenceStep(FakeStep):
    """A step whose draws come from one global `RandomState`, as in the released code; ties from elsewhere."""

    def __init__(self, stream: Any, generator: np.random.RandomState, **given: Any) -> None:
        super().__init__(stream, **given)
        self.generator = generator

    def rng(self, purpose: str) -> Any:
        return self.generator if purpose == "thompson" else super().rng(purpose)


class Reference:
    """The released sampler from its description: one vector of draws, the nearest to one half, counts that are forgotten."""

    def __init__(self, size: int, decay: float, seed: int) -> None:
        self.alpha, self.beta, self.decay = np.ones(size), np.ones(size), decay
        self.generator = np.random.RandomState(seed)

    def sample(self, candidates: np.ndarray, batch: int) -> np.ndarray:
        draws = self.generator.beta(self.alpha[candidates], self.beta[candidates])
        return candidates[np.argsort((draws - 0.5) ** 2)[:batch]]

    def train(self, rows: np.ndarray, rates: np.ndarray, n: int) -> None:
        self.alpha[rows] = self.alpha[rows] * self.decay + 1.0 * (1 - self.decay) + rates * n
        self.beta[rows] = self.beta[rows] * self.decay + 1.0 * (1 - self.decay) + (1 - rates) * n


def test_draws_and_picks_golden() -> None:
    """RandomState(0), six beliefs, B = 3: the draws are known to six digits, the picks are rows 0, 4, 2."""
    draws = np.random.RandomState(0).beta(GOLDEN_ALPHA, GOLDEN_BETA)
    assert draws.round(6).tolist() == [0.449125, 0.002004, 0.610286, 0.929740, 0.557226, 0.677105]
    method = believing(GOLDEN_ALPHA, GOLDEN_BETA)
    requests = method.propose(3, ReferenceStep(range(6), np.random.RandomState(0)))
    assert requests.rows.tolist() == [0, 4, 2]
    assert requests.rollouts.tolist() == [8, 8, 8]
    assert requests.predicted_pass_rate is not None
    assert requests.predicted_pass_rate.tolist() == [0.5, 0.5, 0.5]  # the mean is predicted, not the draw


@pytest.mark.parametrize("decay", [0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_updates_pick_for_pick(decay: float, seed: int) -> None:
    """200 steps of 8 of 64 candidates from a pool of 150: the same rows in the same order, the same counts."""
    size, batch, n = 150, 8, 8
    reference, twin = Reference(size, decay, seed), np.random.RandomState(seed)
    method = started(pool_size=size, batch_size=batch, decay=decay)
    world = np.random.default_rng(seed)
    rates = world.random(size)
    for number in range(200):
        stream = world.permutation(size)
        step = ReferenceStep(stream, twin, number=number)
        requests = method.propose(batch, step)
        assert requests.rows.tolist() == reference.sample(stream[: 8 * batch], batch).tolist()
        passes = world.binomial(n, rates[requests.rows])
        reference.train(requests.rows, passes / n, n)
        method.observe(passing(requests.rows.tolist(), passes.tolist(), n), step)
    alpha, beta = method.counts.predict(np.arange(size), FakeStep([])).as_beta()
    assert alpha == pytest.approx(reference.alpha, rel=1e-12)
    assert beta == pytest.approx(reference.beta, rel=1e-12)


def test_candidates_are_the_next_of_the_stream() -> None:
    step = FakeStep(range(100))
    started(pool_size=100).propose(3, step)
    assert step.draws == [24]  # 8 for each group wanted
    math = make("mopps-math").parameters()
    assert (math["decay"], math["spread"]) == (1.0, 16.0)


# -- strategies --------------------------------------------------------------------------------------------------------


def picks(rates: list[float], times: int, **parameters: Any) -> Counter[int]:
    """How often each candidate is picked when its rate is taken for certain."""
    method = started(pool_size=len(rates), batch_size=2, thompson=False, **parameters)
    method.counts.predict = lambda rows, step: Prediction.of_rates(np.array(rates)[rows])  # type: ignore[method-assign]
    proposals = (method.propose(2, FakeStep(range(len(rates)), number=number)) for number in range(times))
    return Counter(row for requests in proposals for row in requests.rows.tolist())


def test_threshold_draws_within_the_band() -> None:
    """Three of the six lie in [0.3, 0.7]; two are picked: each 2 times in 3. 1,500 steps, sigma 18.3, 6 sigma = 110."""
    counted = picks([0.0, 0.3, 0.5, 0.7, 0.71, 1.0], 1500, strategy="threshold")
    assert set(counted) == {1, 2, 3}
    assert all(abs(times - 1000) < 110 for times in counted.values())


def test_threshold_fills_up_with_the_nearest() -> None:
    assert picks([0.0, 0.25, 0.5, 0.8, 1.0], 50, strategy="threshold") == {2: 50, 1: 50}


def test_threshold_golden_band() -> None:
    """The six golden draws: rows 0, 2, 4 and 5 lie in the band, the released code shuffles them and takes 4, 2, 5."""
    chosen = believing(GOLDEN_ALPHA, GOLDEN_BETA, strategy="threshold").propose(
        3, ReferenceStep(range(6), np.random.RandomState(0))
    )
    assert set(chosen.rows.tolist()) < {0, 2, 4, 5}


def test_uniform_takes_anybody() -> None:
    """Two of five each time: 0.4 · 1,500 = 600 times each, sigma 19, 6 sigma = 114."""
    counted = picks([0.0, 0.0, 0.5, 1.0, 1.0], 1500, strategy="uniform")
    assert all(abs(counted[row] - 600) < 114 for row in range(5))


def test_without_the_draw_the_unseen_tie_at_the_target() -> None:
    """A prompt with 4 of 8 passes ties with those never visited; one with 3 of 8 comes after all of them."""
    method = started(thompson=False)
    method.observe(passing([0, 1], [4, 3], 8), FakeStep([]))
    chosen = [set(method.propose(3, FakeStep(range(6), number=n)).rows.tolist()) for n in range(60)]
    assert not any(1 in rows for rows in chosen)
    assert {frozenset(rows) for rows in chosen} >= {frozenset({0, 2, 3}), frozenset({2, 3, 4})}


# -- what it learns from -----------------------------------------------------------------------------------------------


def test_it_learns_from_every_group_that_ran_and_from_no_missing_rollout() -> None:
    method = started(decay=0.5)
    method.observe(groups_of([0, 1, 2], [[1, None, None, None], [None] * 4, [1, 1, 0, 0]]), FakeStep([]))
    alpha, beta = method.counts.predict(np.arange(4), FakeStep([])).as_beta()
    assert list(zip(alpha.tolist(), beta.tolist(), strict=True)) == [(2.0, 1.0), (1.0, 1.0), (3.0, 3.0), (1.0, 1.0)]


def test_the_verdict_comes_before_the_reward() -> None:
    method = started()
    method.observe(groups_of([0], [[0.2, 0.1, 0.1, 0.2]], correct=[[True, False, False, True]]), FakeStep([]))
    assert method.counts.passed[0] == 2.0


def test_a_gate_is_optional() -> None:
    """Its papers train on every group; with a gate, zero variance goes, and is learned from all the same."""
    groups = passing([0, 1], [8, 4], 8)
    assert started().judge(groups, FakeStep([])).keep.tolist() == [True, True]
    assert started(gate="reward").judge(groups, FakeStep([])).keep.tolist() == [False, True]


@pytest.mark.parametrize("thompson", [True, False])
def test_proposing_is_a_read(thompson: bool) -> None:
    method = started(thompson=thompson)
    method.observe(passing([0, 1], [4, 3], 8), FakeStep([]))
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    first = method.propose(3, FakeStep(range(6)))
    second: Requests = method.propose(3, FakeStep(range(6)))
    np.testing.assert_equal(method.state().prompts, before)
    assert first.rows.tolist() == second.rows.tolist()


def test_it_does_not_change_what_it_is_told() -> None:
    groups: Groups = passing([0, 1], [4, 3], 8)
    rewards = groups.rewards.copy()
    started().observe(groups, FakeStep([]))
    assert groups.rewards.tolist() == rewards.tolist()
    assert Visits.of(groups, 0.5).successes.tolist() == [4.0, 3.0]


def test_predictions_are_measured_against_passes_as_the_belief_counts_them() -> None:
    """One rollout of four was judged, and failed: not a verdict on the group, so all four pass by their reward."""
    selector = edgewise.Selector("mopps", [{"prompt": str(i)} for i in range(4)], batch_size=1, group_size=4)
    with selector.step(policy_version=0) as step:
        for tickets in step.requests():
            step.report([edgewise.Outcome(ticket=t, rewards=[1.0] * 4, correct=[False, None, None, None]) for t in tickets])
    assert selector.method.counts.passed.sum() == 4.0  # type: ignore[attr-defined]
    assert selector.metrics["predicted_gap"] == 0.5 - 1.0


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("mopps", {}),
        ("mopps-mean", {"strategy": "threshold"}),
        ("mopps", {"prior": "signal", "gate": "reward", "max_rounds": 4}),
    ],
)
def test_a_real_run_resumes_exactly(method: str, parameters: dict[str, Any], tmp_path: Path) -> None:
    """12 steps and 40 takes under a strict selector, with ragged, missing and lost groups."""
    assert_resumes_exactly(method, tmp_path, {PASS_RATE_PRIOR: lambda rows: (rows + 1) / 42}, parameters)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strategy": "top"}, r"Mopps\(strategy=...\) must be one of 'topk', 'threshold', 'uniform', got 'top'"),
        ({"low": 0.8}, r"Mopps\(low=...\) must be a number of at least 0 and at most 0.7, got 0.8. It must not exceed high."),
        ({"target_rate": 1.5}, r"Mopps\(target_rate=...\) must be a number of at least 0 and at most 1, got 1.5"),
        ({"decay": 2}, r"Mopps\(decay=...\) must be a number of at least 0 and at most 1, got 2"),
        ({"prior_strength": 0}, r"Mopps\(prior_strength=...\) must be a number above 0, got 0"),
    ],
)
def test_what_cannot_be_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Mopps(**parameters)
