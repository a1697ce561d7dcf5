"""DPS: the hidden Markov belief against the paper's numbers and an eager pool-wide loop, and the method around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.beliefs.markov import PRIORS, Markov3
from edgewise.errors import ConfigError, StateMismatchError
from edgewise.methods import make
from edgewise.methods.dps import MixedAndUnsure
from edgewise.prediction import Visits
from edgewise.types import MethodState, Setting
from tests.fakes import FakeStep, groups_of, passing
from tests.whole_runs import assert_resumes_exactly


def belief_of(size: int, **parameters: Any) -> Markov3:
    belief = Markov3(**parameters)
    belief.start(Setting(pool_size=size, batch_size=1, group_size=8))
    return belief


def visit(rows: list[int], successes: list[int], trials: int = 8) -> Visits:
    return Visits(
        rows=np.array(rows, dtype=np.int64), successes=np.array(successes, dtype=float), trials=np.full(len(rows), trials)
    )


def at(number: int, **given: Any) -> FakeStep:
    return FakeStep([], number=number, **given)


def predicted(belief: Markov3, rows: list[int], number: int) -> np.ndarray:
    """(n, 3) π at a step, from what the prediction says."""
    believed = belief.predict(np.array(rows), at(number))
    assert believed.mixed is not None
    right = believed.mean - believed.mixed / 2
    return np.stack([1 - believed.mixed - right, believed.mixed, right], axis=1)


class Eager:
    """The released sampler, written anew: every prompt of the pool is advanced in every step, one by one."""

    def __init__(self, size: int, gamma: float, prior: np.ndarray) -> None:
        self.gamma, self.prior = gamma, prior
        self.counts = [prior.copy() for _ in range(size)]
        self.before = [np.full(3, 1 / 3) for _ in range(size)]
        self.expected = [np.full(3, 1 / 3) for _ in range(size)]

    def step(self, observed: dict[int, int]) -> None:
        for i, counts in enumerate(self.counts):
            now = np.eye(3)[observed[i]] if i in observed else self.expected[i]
            decayed = self.gamma * counts + (1 - self.gamma) * self.prior
            if i in observed:
                joint = np.outer(now, self.before[i]) * counts / counts.sum(axis=0)
                decayed = decayed + joint / joint.sum()
            self.counts[i], self.before[i] = decayed, now
            self.expected[i] = decayed / decayed.sum(axis=0) @ now


def test_the_numbers_of_the_specification() -> None:
    """λ = 0.7, one prompt: mixed, all wrong, mixed, nothing, all right."""
    belief = belief_of(1, decay=0.7)
    golden = [
        (3, [0.3, 0.4, 0.3]),
        (0, [0.30927835, 0.3814433, 0.30927835]),
        (5, [0.44003451, 0.30112166, 0.25884383]),
        (None, [0.3229582, 0.39502032, 0.28202148]),
        (8, [0.29631909, 0.32003449, 0.38364642]),
    ]
    for number, (successes, expected) in enumerate(golden):
        if successes is not None:
            belief.observe(visit([0], [successes]), at(number))
        np.testing.assert_allclose(predicted(belief, [0], number + 1)[0], expected, atol=5e-9)


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 0.7, 1.0])
def test_two_hundred_lazy_steps_are_the_eager_loop(gamma: float, prior: str) -> None:
    """30 prompts, a random few observed in each of 200 steps, some not at all for the first 150; read at random times."""
    rng = np.random.default_rng(5)
    belief = belief_of(30, decay=gamma, prior=prior)  # type: ignore[arg-type]
    eager = Eager(30, gamma, np.array(PRIORS[prior]))
    for number in range(200):
        rows = rng.choice(30 if number > 150 else 20, size=rng.integers(0, 5), replace=False).tolist()
        states = rng.integers(0, 3, size=len(rows)).tolist()
        belief.observe(visit(rows, [[0, 3, 8][s] for s in states]), at(number))
        eager.step(dict(zip(rows, states, strict=True)))
        if number % 17 == 0 or number == 199:
            np.testing.assert_allclose(predicted(belief, list(range(30)), number + 1), eager.expected, atol=1e-12)
            counts, before = belief.at(np.arange(30), number + 1)
            np.testing.assert_allclose(counts, eager.counts, atol=1e-11)
            np.testing.assert_allclose(before, eager.before, atol=1e-12)


def test_a_gap_of_a_million_steps_costs_nothing_and_ends_at_the_stationary_distribution() -> None:
    """With λ < 1 all is forgotten: π is the eigenvector of the prior's P; with λ = 1 that of the prompt's own P."""
    for gamma in (0.7, 1.0):
        belief = belief_of(1, decay=gamma, prior="progress")
        belief.observe(visit([0], [8]), at(0))
        counts = belief.at(np.array([0]), 1_000_000)[0][0]
        if gamma < 1:
            np.testing.assert_allclose(counts, PRIORS["progress"])
        values, vectors = np.linalg.eig(counts / counts.sum(axis=0))
        stationary = np.real(vectors[:, np.argmax(np.real(values))])
        np.testing.assert_allclose(predicted(belief, [0], 1_000_000)[0], stationary / stationary.sum(), atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(1, 30)), max_size=8), st.sampled_from(sorted(PRIORS)))
def test_states_stay_a_distribution_and_counts_above_zero(history: list[tuple[int, int]], prior: str) -> None:
    belief = belief_of(1, prior=prior)  # type: ignore[arg-type]
    number = 0
    for successes, gap in history:
        belief.observe(visit([0], [successes]), at(number))
        number += gap
        believed = belief.predict(np.array([0]), at(number))
        assert (predicted(belief, [0], number) > 0).all()
        assert 0 <= believed.mean[0] <= 1
        assert 0 <= believed.variance[0] <= believed.mean[0] * (1 - believed.mean[0]) + 1e-12
        assert (belief.counts > 0).all()


def test_the_moments_of_the_predicted_pass_rate() -> None:
    """π = (.3, .4, .3): mean .3 + .2; E p² = .3 + .4/3, variance .433333 - .25 = .183333."""
    belief = belief_of(1, decay=0.7)
    belief.observe(visit([0], [3]), at(0))
    believed = belief.predict(np.array([0]), at(1))
    assert believed.mean[0] == pytest.approx(0.5)
    assert believed.variance[0] == pytest.approx(0.3 + 0.4 / 3 - 0.25)


def test_a_single_rollout_teaches_nothing_and_fractions_of_a_pass_are_mixed() -> None:
    belief, untouched = belief_of(3), belief_of(3)
    belief.observe(visit([0], [1], trials=1), at(0))
    np.testing.assert_array_equal(belief.states, untouched.states)
    belief.observe(Visits(rows=np.array([1]), successes=np.array([0.5]), trials=np.array([8])), at(0))
    assert belief.states[1].tolist() == [0.0, 1.0, 0.0]


def test_a_second_group_at_the_same_time_is_no_transition() -> None:
    """Only a stream can bring it. The counts learn from the first group, the state is that of the last."""
    belief, once = belief_of(1), belief_of(1)
    for one in (belief, once):
        one.observe(visit([0], [0]), at(0, streaming=True))
    belief.observe(visit([0], [8]), at(0, streaming=True))
    np.testing.assert_array_equal(belief.counts, once.counts)
    assert belief.states[0].tolist() == [0.0, 0.0, 1.0]


def test_a_stream_ages_by_policy_version_and_never_backwards() -> None:
    belief = belief_of(1, decay=0.7)
    belief.observe(visit([0], [3]), at(90, streaming=True, policy_version=4))
    here = belief.predict(np.array([0]), at(91, streaming=True, policy_version=5))
    np.testing.assert_array_equal(here.mean, belief.predict(np.array([0]), at(99, streaming=True, policy_version=5)).mean)
    before = belief.at(np.array([0]), 4)[1]
    belief.observe(visit([], []), at(99, streaming=True, policy_version=0))  # a restored stream that was not aimed yet
    np.testing.assert_array_equal(belief.at(np.array([0]), 4)[1], before)
    assert belief._last == 4


def test_the_likeliest_mixed_are_taken_and_uncertainty_counts_where_asked() -> None:
    belief = belief_of(3, decay=0.7)
    belief.observe(visit([0], [0]), at(0))
    belief.observe(visit([1], [3]), at(0))
    believed = belief.predict(np.arange(3), at(1))
    plain = MixedAndUnsure()(believed, 8)
    np.testing.assert_array_equal(plain, believed.mixed)
    states = predicted(belief, [0, 1, 2], 1)
    entropy = -(states * np.log(states)).sum(axis=1)
    np.testing.assert_allclose(MixedAndUnsure(entropy_weight=0.3)(believed, 8), plain + 0.3 * entropy, atol=1e-12)


def test_the_method_takes_the_best_of_its_candidates_and_breaks_ties_at_random() -> None:
    method = make("dps", decay=0.7)
    method.start(Setting(pool_size=64, batch_size=2, group_size=4))
    method.observe(passing([9, 3], [2, 2]), at(0))
    step = FakeStep(range(64), number=1)
    requests = method.propose(2, step)
    assert step.draws == [16]
    assert sorted(requests.rows.tolist()) == [3, 9]
    firsts = {int(make_started().propose(2, FakeStep(range(64), seed=seed)).rows[0]) for seed in range(20)}
    assert len(firsts) > 1  # nobody was seen: all tie. The same one of 16 twenty times: 16 ** -19


def make_started() -> Any:
    method = make("dps")
    method.start(Setting(pool_size=64, batch_size=2, group_size=4))
    return method


def test_proposing_is_a_read_and_inputs_are_left_alone() -> None:
    method = make_started()
    method.observe(passing([0, 1], [2, 4]), at(0))
    held = {name: array.copy() for name, array in method.state().prompts.items()}
    step = FakeStep(range(64), number=7)
    method.propose(2, step)
    for name, array in method.state().prompts.items():
        np.testing.assert_array_equal(array, held[name])
    visits = visit([2, 3], [1, 8])
    rows, successes = visits.rows.copy(), visits.successes.copy()
    belief_of(4).observe(visits, at(0))
    np.testing.assert_array_equal(visits.rows, rows)
    np.testing.assert_array_equal(visits.successes, successes)


def test_only_visited_rows_are_written() -> None:
    method = make_started()
    before = {name: array.copy() for name, array in method.state().prompts.items()}
    method.observe(groups_of([5, 7], [[1, 0, None, None], [1, None, None, None]]), at(3))
    for name, array in method.state().prompts.items():
        changed = [row for row in range(64) if not np.array_equal(array[row], before[name][row])]
        assert set(changed) <= {5}, name


@pytest.mark.parametrize("name", ["dps", "dps-math"])
def test_a_resumed_run_asks_for_the_same_prompts(name: str, tmp_path: Path) -> None:
    assert_resumes_exactly(name, tmp_path, {})


def test_the_two_presets_are_the_two_kinds_of_script() -> None:
    small, large = make("dps").parameters(), make("dps-math").parameters()
    assert (small["decay"], small["spread"]) == (0.5, 8.0)
    assert (large["decay"], large["spread"]) == (0.7, 32.0)
    assert {k for k in small if small[k] != large[k]} == {"decay", "spread"}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"decay": 1.5}, r"Dps\(decay=...\) must be a number of at least 0 and at most 1, got 1.5"),
        ({"prior": "locl"}, r"Dps\(prior=...\) must be one of .*Did you mean 'local'"),
        ({"prior_count": 0.0}, r"Dps\(prior_count=...\) must be a number above 0, got 0.0"),
        ({"entropy_weight": -1.0}, r"Dps\(entropy_weight=...\) must be a number of at least 0, got -1.0"),
    ],
)
def test_hyper_parameters_are_checked(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("dps", **parameters)


def test_the_belief_by_itself_is_checked_and_refuses_foreign_states() -> None:
    with pytest.raises(ConfigError, match=r"Markov3\(decay=...\) must be a number of at least 0 and at most 1, got -0.1"):
        Markov3(decay=-0.1)
    with pytest.raises(ConfigError, match=r"Markov3\(prior=...\) must be one of"):
        Markov3(prior="flat")  # type: ignore[arg-type]
    with pytest.raises(StateMismatchError, match=r"Markov3.restore: 'counts' must have shape \(3, 3, 3\), got \(2, 3, 3\)"):
        belief_of(3).restore(belief_of(2).state())
    with pytest.raises(StateMismatchError, match=r"Markov3.restore: the state lacks 'time'"):
        belief_of(3).restore(MethodState(prompts=belief_of(3).state().prompts))
