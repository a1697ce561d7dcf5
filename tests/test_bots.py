"""BOTS: the anchored Beta belief against the released numbers and an eager pool-wide loop, and the method around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgewise.beliefs.anchored import AnchoredBeta, implied_rate, moved_cap
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.methods import make
from edgewise.prediction import Visits
from edgewise.types import ANCHOR_RATES, Ints, MethodState, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import POOL, assert_resumes_exactly


def belief_of(size: int, *, batch: int = 2, group: int = 16, **parameters: Any) -> AnchoredBeta:
    belief = AnchoredBeta(**parameters)
    belief.start(Setting(pool_size=size, batch_size=batch, group_size=group))
    return belief


def visit(rows: list[int], rates: list[float], trials: int = 16) -> Visits:
    return Visits(
        rows=np.array(rows, dtype=np.int64), successes=trials * np.array(rates, dtype=float), trials=np.full(len(rows), trials)
    )


def at(number: int, anchors: Any = None, **given: Any) -> FakeStep:
    serve = {} if anchors is None else {ANCHOR_RATES: lambda rows: np.asarray(anchors)[rows]}
    return FakeStep([], number=number, signals=serve, **given)


def counts(belief: AnchoredBeta, step: FakeStep) -> tuple[np.ndarray, np.ndarray]:
    believed = belief.predict(np.arange(len(belief.alpha)), step)
    assert believed.alpha is not None
    assert believed.beta is not None
    return believed.alpha, believed.beta


class Eager:
    """The released estimator, written anew: every prompt is updated at every step."""

    def __init__(self, anchors: np.ndarray, m: int, lamb: float, rho: float, *, adaptive: bool = False) -> None:
        self.anchors, self.m, self.lamb, self.rho, self.adaptive = anchors, m, lamb, rho, adaptive
        self.alpha, self.beta, self.cap = np.ones(len(anchors)), np.ones(len(anchors)), None

    def update(self, rows: list[int], rates: np.ndarray) -> None:
        f0, f1 = self.anchors.T
        estimate = (rates.mean() - f0[rows].mean()) / (f1[rows].mean() - f0[rows].mean() + 1e-6)
        self.cap = estimate if self.cap is None else 0.9 * self.cap + 0.1 * estimate
        implied = np.clip(f0 + (f1 - f0) * self.cap, 0, 1)
        if self.adaptive and np.abs(implied[rows] - rates).mean() >= 0.25:
            self.rho /= 2
        implied[rows] = rates
        passes, fails = np.zeros(len(f0)), np.zeros(len(f0))
        passes[rows], fails[rows] = rates * self.m, (1 - rates) * self.m
        self.alpha = (1 - self.lamb) * self.alpha + self.lamb + (1 - self.rho) * passes + self.rho * self.m * implied
        self.beta = (1 - self.lamb) * self.beta + self.lamb + (1 - self.rho) * fails + self.rho * self.m * (1 - implied)


def test_the_numbers_of_the_specification() -> None:
    """m = 16, λ = ρ = 0.1: cap = (.375 - .15)/(.6 - .15 + 1e-6); prompt 2 gets .9 + .1 + 1.6·(.6 + .3·cap)."""
    anchors = [[0.1, 0.5], [0.2, 0.7], [0.6, 0.9]]
    belief = belief_of(3)
    belief.observe(visit([0, 1], [0.25, 0.5]), at(0, anchors))
    alpha, beta = counts(belief, at(1, anchors))
    np.testing.assert_allclose(alpha, [5, 9, 2.19999947], atol=5e-9)
    np.testing.assert_allclose(beta, [13, 9, 1.40000053], atol=5e-9)
    belief.observe(visit([0], [0.25]), at(1, anchors))  # closes the first update
    assert belief._caps[-1] == pytest.approx(0.49999889, abs=5e-9)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(("lamb", "rho"), [(0.1, 0.1), (0.2, 0.2), (0.5, 1.0), (1.0, 0.3), (0.02, 0.1), (0.1, 0.0), (0.0, 0.0)])
def test_two_hundred_lazy_steps_are_the_eager_loop(lamb: float, rho: float, adaptive: bool) -> None:
    """40 prompts, four a step, 20 of them never before step 150. Rates make cap leave [0, 1] at both ends."""
    rng = np.random.default_rng(2)
    low = rng.uniform(0, 0.7, 40)
    anchors = np.stack([low, np.minimum(low + rng.uniform(0.05, 0.5, 40), 1.0)], axis=1)
    belief = belief_of(40, batch=4, decay=lamb, rho=rho, adaptive_rho=adaptive)
    eager = Eager(anchors, 16, lamb, rho, adaptive=adaptive)
    caps = []
    for number in range(200):
        rows = rng.choice(40 if number > 150 else 20, size=4, replace=False).tolist()
        rates = rng.binomial(16, [0.02, 0.5, 0.98][number // 20 % 3], size=4) / 16
        if number % 3 == 0:
            np.testing.assert_allclose(counts(belief, at(number, anchors)), (eager.alpha, eager.beta), rtol=1e-12, atol=1e-12)
        belief.observe(visit(rows, rates.tolist()), at(number, anchors))
        eager.update(rows, rates)
        caps.append(eager.cap)
    assert min(caps) < 0 < 1 < max(caps)
    np.testing.assert_allclose(counts(belief, at(200, anchors)), (eager.alpha, eager.beta), rtol=1e-12, atol=1e-12)
    assert not adaptive or rho == 0 or eager.rho < rho


def test_the_history_is_bounded_and_what_is_dropped_is_nothing() -> None:
    """λ = 0.5: 57 updates are kept of 300, and a prompt never visited still agrees with the eager loop to the last bits."""
    anchors = np.array([[0.1, 0.8], [0.2, 0.7], [0.3, 0.9]])
    belief, eager = belief_of(3, batch=1, decay=0.5), Eager(anchors, 16, 0.5, 0.1)
    rng = np.random.default_rng(0)
    for number in range(300):
        rate = rng.binomial(16, 0.4) / 16
        belief.observe(visit([0], [rate]), at(number, anchors))
        eager.update([0], np.array([rate]))
    assert len(belief._caps) == len(belief._rhos) == 57
    np.testing.assert_allclose(counts(belief, at(300, anchors)), (eager.alpha, eager.beta), rtol=1e-14)


def test_evidence_tends_to_18_unvisited_and_162_always_visited() -> None:
    """m = 16, λ = ρ = .1: 2 + .1·16/.1 = 18 and 2 + 16/.1 = 162."""
    anchors = np.array([[0.1, 0.8], [0.2, 0.7]])
    belief = belief_of(2, batch=1)
    for number in range(400):
        belief.observe(visit([0], [0.5]), at(number, anchors))
    alpha, beta = counts(belief, at(400, anchors))
    np.testing.assert_allclose(alpha + beta, [162, 18], rtol=1e-12)


def test_without_anchors_it_is_beta_counts_that_every_step_discounts() -> None:
    """λ = .5: (1, 1) -> visit 4 of 16 -> (5, 13) -> two updates elsewhere -> (2, 4)."""
    belief = belief_of(2, batch=1, rho=0.0, decay=0.5)
    assert belief.needs == frozenset()
    belief.observe(visit([0], [0.25]), at(0))
    belief.observe(visit([1], [1.0]), at(1))
    belief.observe(visit([1], [1.0]), at(2))
    alpha, beta = counts(belief, at(3))
    assert (alpha[0], beta[0]) == (2.0, 4.0)
    assert len(belief._caps) == 0


def test_ragged_groups_count_the_rollouts_they_have() -> None:
    belief = belief_of(3, rho=0.0, decay=0.0)
    belief.observe(Visits(rows=np.array([0, 1]), successes=np.array([3.0, 1.0]), trials=np.array([5, 1])), at(0))
    alpha, beta = counts(belief, at(1))
    assert (alpha.tolist(), beta.tolist()) == ([4, 2, 1], [3, 1, 1])


def test_groups_of_a_stream_make_one_update_of_about_a_batch() -> None:
    """Batch of 4: one group a version closes an update every second version; twice in one update is discounted once."""
    anchors = np.array([[0.1, 0.8]] * 3)
    belief = belief_of(3, batch=4)
    for version in range(6):
        belief.observe(visit([0], [0.5]), at(99, anchors, streaming=True, policy_version=version))
    assert belief._updates == 2
    alpha, _ = counts(belief, at(99, anchors, streaming=True, policy_version=6))
    expected = 1.0
    for _ in range(3):
        expected = 0.9 * expected + 0.1 + 16
    assert alpha[0] == pytest.approx(expected, rel=1e-12)
    assert belief._updates == 2  # reading closed the third for itself only


def test_a_stream_whose_version_stands_still_still_learns_and_stays_small() -> None:
    anchors = np.array([[0.1, 0.8]] * 3)
    belief = belief_of(3, batch=2)
    for _ in range(100):
        belief.observe(visit([1], [0.5]), at(0, anchors, streaming=True))
    assert belief._updates == 6
    assert len(belief._open_rows) <= 16


def test_cap_ignores_batches_that_say_nothing_of_it() -> None:
    assert moved_cap(0.3, np.empty((0, 2)), np.empty(0), 0.9) == 0.3
    assert moved_cap(0.3, np.array([[0.5, 0.505]]), np.array([1.0]), 0.9) == 0.3
    assert moved_cap(float("nan"), np.array([[0.2, 0.7]]), np.array([0.45]), 0.9) == pytest.approx(0.5, abs=1e-5)
    assert moved_cap(1.0, np.array([[0.2, 0.7]]), np.array([0.45]), 0.9) == pytest.approx(0.95, abs=1e-5)
    assert implied_rate(np.array([[0.2, 0.7]]), -3.0).tolist() == [0.0]


def test_anchors_are_asked_for_once_and_bad_ones_are_reported_by_row() -> None:
    anchors = np.array([[0.1, 0.8], [0.2, 1.7], [np.nan, 0.5], [0.3, 0.4]])
    belief = belief_of(4, batch=1)
    belief.observe(visit([0], [0.5]), at(0, anchors))
    step = at(1, anchors)
    alpha, beta = counts(belief, step)
    assert len(step.problems) == 1
    assert "prompt row 1 must be two numbers in [0, 1], got [0.2, 1.7] (2 of 3 prompts)" in str(step.problems[0])
    assert (alpha[1], beta[1], alpha[2], beta[2]) == (1.0, 1.0, 1.0, 1.0)
    assert alpha[3] > 1
    again = at(2, anchors)
    counts(belief, again)
    assert again.asked == []
    narrow = belief_of(4, batch=1)
    narrow.observe(visit([0], [0.5]), at(0))
    with pytest.raises(SignalError, match="two pass rates a prompt"):
        counts(narrow, at(1, anchors[:, :1]))


def started(name: str = "bots", **parameters: Any) -> Any:
    method = make(name, **parameters)
    method.start(Setting(pool_size=64, batch_size=2, group_size=4))
    return method


def test_the_method_takes_draws_nearest_to_the_target_over_the_whole_pool() -> None:
    """60 prompts known to pass always, four known to pass half the time: sd .05 and less, so no draw is out of place."""
    method = started("bots-no-anchors", decay=0.0)
    groups = passing(range(64), [50 if row in (5, 9, 30, 63) else 100 for row in range(64)], 100)
    method.observe(groups, at(0))
    step = FakeStep([], number=1)
    assert set(method.propose(2, step).rows.tolist()) <= {5, 9, 30, 63}
    assert step.draws == []
    picks = {tuple(method.propose(2, FakeStep([], number=1, seed=seed)).rows.tolist()) for seed in range(20)}
    assert len(picks) > 3  # Thompson draws differ


def test_softmax_is_by_distance_not_its_square() -> None:
    """Two prompts, certain at .5 and 0, τ = 1: the first is first with 1/(1 + e^-.5) = .622, squared it would be .562.

    2,000 steps, sd 21.7: expectation 1244, the other's 1124. Outside 1244 ± 60 about 6 in 1000 runs; the seed is fixed.
    """
    method = make("bots-no-anchors", temperature=1.0, thompson=False, decay=0.0)
    method.start(Setting(pool_size=2, batch_size=1, group_size=4))
    method.observe(groups_of([0, 1], [[1.0, 0.0] * 5000, [0.0] * 10000]), at(0))
    first = sum(int(method.propose(1, FakeStep([], number=number)).rows[0]) == 0 for number in range(2000))
    assert abs(first - 1244) < 60


def test_proposing_is_a_read_and_only_visited_rows_are_written() -> None:
    anchors = np.full((64, 2), [0.2, 0.7])
    method = started()
    method.propose(2, at(0, anchors))
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    method.observe(groups_of([5, 7], [[1, 0, None, None], [None, None, None, None]]), at(0, anchors))
    for name, array in method.state().prompts.items():
        assert {row for row in range(64) if not np.array_equal(array[row], before[name][row])} <= {5}, name
    held = {name: np.array(array) for name, array in {**method.state().shared, **method.state().prompts}.items()}
    assert held["belief_open_rows"].tolist() == [5]
    method.propose(2, at(9, anchors))
    now = {**method.state().shared, **method.state().prompts}
    np.testing.assert_equal({k: v for k, v in now.items() if k != "rounds"}, {k: v for k, v in held.items() if k != "rounds"})


def serve(rows: Ints) -> Any:
    low = (rows + 1) / (2 * POOL)
    return np.stack([low, low + 0.3], axis=1)


@pytest.mark.parametrize("parameters", [{}, {"adaptive_rho": True, "temperature": 0.1, "candidates": "stream"}])
def test_a_resumed_run_asks_for_the_same_prompts(parameters: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_exactly("bots", tmp_path, {ANCHOR_RATES: serve}, parameters)


def test_a_resumed_run_without_anchors_asks_for_the_same_prompts(tmp_path: Path) -> None:
    assert_resumes_exactly("bots-no-anchors", tmp_path, {})


def test_only_the_method_of_the_paper_needs_anchors() -> None:
    assert make("bots").needs == {ANCHOR_RATES}
    assert make("bots-no-anchors").needs == frozenset()
    assert make("bots", rho=0.0).needs == frozenset()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"decay": 0.0}, r"Bots\(decay=...\) must be a number of at least 0.001 and at most 1, got 0.0. With rho > 0"),
        ({"rho": 2.0}, r"Bots\(rho=...\) must be a number of at least 0 and at most 1, got 2.0"),
        ({"implied_rollouts": 0}, r"Bots\(implied_rollouts=...\) must be a whole number of at least 1, got 0"),
        ({"momentum": 1.0}, r"Bots\(momentum=...\)"),
        ({"adaptive_rho": 1}, r"Bots\(adaptive_rho=...\) must be True or False, got 1"),
        ({"target_rate": -1.0}, r"Bots\(target_rate=...\)"),
        ({"temperature": -1.0}, r"Bots\(temperature=...\)"),
    ],
)
def test_hyper_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("bots", **parameters)


def test_the_belief_by_itself_is_checked_and_refuses_foreign_states() -> None:
    with pytest.raises(ConfigError, match=r"AnchoredBeta\(rollouts=...\) must be a whole number of at least 1, got 0"):
        AnchoredBeta(rollouts=0)
    with pytest.raises(ConfigError, match=r"AnchoredBeta\(adaptive_rho=...\) must be True or False"):
        AnchoredBeta(adaptive_rho=1)  # type: ignore[arg-type]
    with pytest.raises(StateMismatchError, match=r"AnchoredBeta.restore: 'alpha' must have shape \(3,\), got \(2,\)"):
        belief_of(3).restore(belief_of(2).state())
    with pytest.raises(StateMismatchError, match=r"AnchoredBeta.restore: the state lacks 'clock'"):
        belief_of(3).restore(MethodState(prompts=belief_of(3).state().prompts))
