"""VIP: the Gaussian process against a dense second computation, its allocation, and whole runs in stream order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edgewise
from edgewise.beliefs.gaussian import GaussianBelief
from edgewise.errors import ConfigError, SignalError, StateMismatchError
from edgewise.methods import make
from edgewise.methods.vip import Vip
from edgewise.prediction import Prediction, Visits
from edgewise.types import EMBEDDING, Floats, Ints, MethodState, Setting
from tests.allocated_runs import (
    BATCH,
    GROUP,
    POOL,
    RATES,
    answered,
    asked_in_steps,
    assert_budgets_hold,
    assert_proposing_is_a_read,
    assert_resumes_exactly,
    assert_top_ups_fill_the_batch,
    selector_of,
    served,
)
from tests.fakes import FakeStep, passing

VECTORS = np.random.default_rng(0).normal(size=(30, 4))


def step_over(vectors: Floats = VECTORS, **given: Any) -> FakeStep:
    def serve(rows: Ints) -> Any:
        return vectors[rows]

    return FakeStep(range(len(vectors)), signals={EMBEDDING: serve}, **given)


def belief_over(vectors: Floats = VECTORS, **parameters: Any) -> GaussianBelief:
    belief = GaussianBelief(**parameters)
    belief.start(Setting(pool_size=len(vectors), batch_size=1, group_size=8))
    return belief


def visits(rows: Any, successes: Any, trials: int = 8) -> Visits:
    return Visits(
        rows=np.array(rows), successes=np.array(successes, dtype=np.float64), trials=np.full(len(rows), trials, dtype=np.int64)
    )


def rounds(count: int, size: int = 7, pool: int = 30) -> list[Visits]:
    generator = np.random.default_rng(1)
    return [visits(generator.permutation(pool)[:size], generator.integers(0, 9, size)) for _ in range(count)]


def logit(p: Any) -> Any:
    return np.log(p / (1.0 - p))


class Dense:
    """The recursion as the paper has it: one mean for the whole pool, changed everywhere in every round."""

    def __init__(self, vectors: Floats, prior: float, amplitude: float, length: float) -> None:
        squares = ((vectors[:, None] - vectors[None, :]) ** 2).sum(axis=2)
        self.covariance = amplitude * np.exp(-squares / (2 * length**2))
        self.mean = np.full(len(vectors), prior)

    def fit(self, seen: Visits) -> None:
        passes, fails = seen.successes + 0.5, seen.trials - seen.successes + 0.5
        inner = self.covariance[np.ix_(seen.rows, seen.rows)] + np.diag(1 / passes + 1 / fails)
        self.mean = self.mean + self.covariance[:, seen.rows] @ np.linalg.inv(inner) @ (
            np.log(passes / fails) - self.mean[seen.rows]
        )


def test_one_group_by_hand() -> None:
    """m = 0, A = 2, 3 of 4 passes: z = ln 3.5/1.5, R = 1/3.5 + 1/1.5, w = z/(2 + R); at distance ℓ the kernel is e^-½."""
    vectors = np.array([[0.0], [1.0], [100.0]])
    belief = belief_over(vectors, prior_logit=0.0, amplitude=2.0, bandwidth=1.0)
    belief.observe(visits([0], [3], 4), step_over(vectors))
    weight = np.log(3.5 / 1.5) / (2.0 + 1 / 3.5 + 1 / 1.5)
    expected = [2.0 * weight, 2.0 * weight * np.exp(-0.5), 0.0]
    np.testing.assert_allclose(logit(belief.predict(np.arange(3), step_over(vectors)).mean), expected, atol=1e-12)


@pytest.mark.parametrize("parameters", [{}, {"prior_logit": 0.5, "amplitude": 1.0, "bandwidth": 0.7}])
def test_it_is_the_recursion_over_the_whole_pool(parameters: dict[str, Any]) -> None:
    """Twelve rounds of 7 of 30 prompts, so that most are visited again, some several rounds later."""
    belief, step = belief_over(**parameters), step_over()
    dense: Dense | None = None
    for seen in [visits(range(0), []), *rounds(12)]:
        length = belief._length[0]
        belief.observe(seen, step)
        if dense is None and len(seen):
            belief._counters[2] = 64  # the length scale is settled
            length = belief._length[0]
            dense = Dense(VECTORS, belief.prior_logit, belief.amplitude, length)
        if dense is not None:
            assert belief._length[0] == length
            dense.fit(seen)
            predicted = belief.predict(np.arange(30), step)
            np.testing.assert_allclose(logit(predicted.mean), dense.mean, atol=1e-9)
            assert np.all(predicted.variance > 0.0)
            assert np.all(predicted.variance <= predicted.mean * (1.0 - predicted.mean))
    assert dense is not None


def test_the_length_scale_is_the_median_distance_until_enough_groups_are_in() -> None:
    vectors = np.arange(100.0)[:, None] ** 1.5
    belief, step = belief_over(vectors), step_over(vectors)
    seen: list[int] = []
    for start in range(0, 100, 20):
        rows = list(range(start, start + 20))
        belief.observe(visits(rows, [4] * 20), step)
        if len(seen) < 64:
            seen += rows
        points = vectors[seen, 0]
        gaps = np.abs(points[:, None] - points[None, :])[np.triu_indices(len(seen), k=1)]
        assert belief._length[0] == pytest.approx(np.median(gaps), rel=1e-9)


def test_equal_embeddings_are_one_prompt_seen_twice() -> None:
    vectors = np.zeros((3, 2))
    belief, step = belief_over(vectors), step_over(vectors)
    belief.observe(visits([0, 1], [8, 8]), step)
    means = belief.predict(np.arange(3), step).mean
    np.testing.assert_allclose(means, means[0])
    assert means[0] > 0.8
    assert belief._length[0] == 1.0  # no two of them differ


def test_what_is_forgotten_is_influence_never_a_prompt_s_own_result() -> None:
    """Rows 0 and 3 read alike; rows 10 to 12 are far away and push row 0 out of a memory of three."""
    vectors = VECTORS.copy()
    vectors[3] = vectors[0]
    vectors[10:13] += 1e3
    belief, step, both = belief_over(vectors, memory=3, bandwidth=1.0), step_over(vectors), np.array([0, 3])
    belief.observe(visits([0, 1, 2], [8, 0, 4]), step)
    seen, alike = logit(belief.predict(both, step).mean)
    assert seen == pytest.approx(alike)
    assert seen > 0.0
    belief.observe(visits([10, 11, 12], [1, 2, 3]), step)
    np.testing.assert_allclose(logit(belief.predict(both, step).mean), [seen, -1.0])


def test_a_round_larger_than_the_memory_keeps_its_last_groups() -> None:
    belief, step = belief_over(memory=4), step_over()
    belief.observe(visits(range(10), [4] * 10), step)
    assert sorted(belief._rows.tolist()) == [6, 7, 8, 9]
    belief.observe(visits([20], [4]), step)
    assert sorted(belief._rows.tolist()) == [7, 8, 9, 20]


def test_the_order_of_groups_says_nothing() -> None:
    seen = rounds(1)[0]
    turned = Visits(rows=seen.rows[::-1], successes=seen.successes[::-1], trials=seen.trials[::-1])
    answers = []
    for one in (seen, turned):
        belief, step = belief_over(), step_over()
        belief.observe(one, step)
        answers.append(belief.predict(np.arange(30), step).mean)
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-12)
    assert Vip().scope == "batch"  # so that a round is observed as one


def test_a_pass_rate_of_neighbours_is_predicted_better_than_by_the_mean() -> None:
    """Over two passes of the made-up pool: squared error of the predictions against that of one number for all."""
    selector = selector_of(lambda: make("vip"))
    errors: list[float] = []
    for number in range(2 * POOL // BATCH):
        with selector.step(policy_version=number) as step:
            for tickets in step.requests(served()):
                predicted = np.array([ticket.predicted_pass_rate for ticket in tickets], dtype=np.float64)
                errors += ((predicted - RATES[[ticket.row for ticket in tickets]]) ** 2).tolist()
                step.report([answered(ticket) for ticket in tickets])
    first_pass, second_pass = np.mean(errors[BATCH:POOL]), np.mean(errors[POOL:])
    assert second_pass < first_pass < RATES.var()


# -- the signal --------------------------------------------------------------------------------------------------------------


def test_embeddings_are_asked_for_once_a_prompt() -> None:
    belief, step = belief_over(), step_over()
    for seen in rounds(6):
        belief.predict(seen.rows, step)
        belief.observe(seen, step)
    asked = [row for name, rows in step.asked for row in rows]
    assert {name for name, _ in step.asked} == {EMBEDDING}
    assert len(asked) == len(set(asked))


def test_embeddings_at_hand_are_bounded() -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 2))
    belief, step = belief_over(vectors, memory=5), step_over(vectors)
    for start in range(0, 500, 10):
        rows = np.arange(start, start + 10)
        belief.predict(rows, step)
        belief.observe(visits(rows, [4] * 10), step)
        assert len(belief._vectors) <= 4 * 5 + 20


def test_a_prompt_without_an_embedding_learns_from_itself_and_is_reported() -> None:
    vectors = VECTORS.copy()
    vectors[3, 1] = np.nan
    belief, step = belief_over(vectors, bandwidth=1.0), step_over(vectors)
    belief.observe(visits([3, 4], [8, 0]), step)
    alone = belief_over(vectors, bandwidth=1.0)
    alone.observe(visits([4], [0]), step)
    rows = np.array([0, 1, 4])
    np.testing.assert_allclose(belief.predict(rows, step).mean, alone.predict(rows, step).mean, rtol=1e-12)
    assert belief.predict(np.array([3]), step).mean[0] > 0.7
    assert len(step.problems) == 1
    assert str(step.problems[0]).startswith("signal('embedding') of prompt row 3 must be finite (1 of 2 are not).")
    with pytest.raises(SignalError):
        belief_over(vectors).predict(np.array([3]), step_over(vectors, strict=True))


# -- state, hyper-parameters ---------------------------------------------------------------------------------------------------


def test_it_restores_exactly_and_refuses_what_is_not_its_own() -> None:
    belief, step = belief_over(memory=9), step_over()
    for seen in rounds(5):
        belief.observe(seen, step)
    other = belief_over(memory=9)
    other.restore(belief.state())
    np.testing.assert_array_equal(other.predict(np.arange(30), step).mean, belief.predict(np.arange(30), step).mean)
    other.observe(rounds(6)[5], step)
    assert not np.array_equal(other.latent, belief.latent)  # it copied what it keeps
    with pytest.raises(StateMismatchError, match=r"'rows' must have shape \(4096,\), got \(9,\)"):
        belief_over().restore(belief.state())
    with pytest.raises(StateMismatchError, match=r"'latent' must have shape \(30,\), got nothing"):
        belief_over().restore(MethodState())


@pytest.mark.parametrize(("method", "signal"), [("vip", "embedding"), ("bots", "anchor_rates")])
def test_what_was_in_flight_at_a_restart_teaches_though_signals_are_no_state(method: str, signal: str, tmp_path: Path) -> None:
    def begun() -> edgewise.Selector:
        pool = [{"prompt": str(i)} for i in range(20)]
        return edgewise.Selector(method, pool, batch_size=4, group_size=4, on_problem="strict")

    def answers(tickets: list[edgewise.Ticket]) -> list[edgewise.Outcome]:
        return [edgewise.Outcome(ticket=t, rewards=[1.0, 0.0, 1.0, 1.0]) for t in tickets]

    signals = {signal: lambda rows: np.stack([rows / 40, (rows + 1) / 22], axis=1)}
    first = begun()
    first.report(answers(first.take(4, signals=signals, policy_version=0)))
    flying = first.take(4, signals=signals, policy_version=1)
    first.save(tmp_path / "state")
    again = begun()
    again.restore(tmp_path / "state")
    assert again.take(4, signals=signals, policy_version=1) == flying
    for selector in (first, again):
        selector.report(answers(flying))
    np.testing.assert_equal(again.method.state().prompts, first.method.state().prompts)


def test_nobody_is_predicted_and_nothing_learned_from_nothing() -> None:
    belief, step = belief_over(), step_over()
    assert len(belief.predict(np.empty(0, dtype=np.int64), step)) == 0
    belief.observe(visits(range(0), []), step)
    assert belief._counters.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"amplitude": 0.0}, r"GaussianBelief\(amplitude=...\) must be above 0, got 0.0"),
        ({"bandwidth": -1.0}, r"GaussianBelief\(bandwidth=...\) must be above 0, got -1.0. None measures it."),
        ({"amplitude": "1"}, r"GaussianBelief\(amplitude=...\) must be above 0, got '1'"),
        ({"bandwidth": True}, r"GaussianBelief\(bandwidth=...\) must be above 0, got True"),
        ({"prior_logit": None}, r"GaussianBelief\(prior_logit=...\) must be finite, got None"),
        ({"memory": 0}, r"GaussianBelief\(memory=...\) must be a whole number >= 1, got 0"),
        ({"prior_logit": float("nan")}, r"GaussianBelief\(prior_logit=...\) must be finite, got nan"),
        ({"floor_factor": 1.5}, r"Vip\(floor_factor=...\) must be a number of at least 0 and at most 1, got 1.5"),
        ({"cap_factor": 0.5}, r"Vip\(cap_factor=...\) must be a number of at least 1, got 0.5"),
    ],
)
def test_hyper_parameters_are_checked_when_built(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make("vip", **parameters)


# -- the method ----------------------------------------------------------------------------------------------------------------


def started(**parameters: Any) -> Vip:
    method = Vip(**parameters)
    method.start(Setting(pool_size=30, batch_size=7, group_size=8))
    return method


def test_golden_allocation() -> None:
    believed = Prediction.of_rates(np.array([0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95]))
    rows = np.arange(7)
    assert started(floor_factor=0.0).share_out(rows, believed, 56, step_over()).tolist() == [5, 8, 10, 10, 10, 8, 5]
    assert started(floor_factor=0.75).share_out(rows, believed, 56, step_over()).min() == 6
    assert started(cap_factor=1.125).share_out(rows, believed, 56, step_over()).max() == 9


def test_the_floor_is_half_a_group_and_two_at_least() -> None:
    for group_size, floor in ((8, 4), (16, 8), (4, 2), (3, 2), (2, 2)):
        method = Vip()
        method.start(Setting(pool_size=30, batch_size=7, group_size=group_size))
        assert method.least == floor


def test_prompts_that_read_like_failures_get_fewer_rollouts() -> None:
    """Rows 0-9 around one point all failed, rows 10-19 around another came out mixed; 20-22 and 23-25 read like them."""
    generator = np.random.default_rng(3)
    centres = np.repeat([0, 1, 0, 1, 0], [10, 10, 3, 3, 4])
    vectors = np.array([[0.0, 0.0], [9.0, 9.0]])[centres] + 0.1 * generator.normal(size=(30, 2))
    method = started(bandwidth=1.0)
    method.observe(passing(range(20), [0] * 10 + [4] * 10, 8), step_over(vectors))
    step = step_over(vectors)
    step.left = list(range(20, 27))
    requests = method.propose(7, step)
    assert requests.rows.tolist() == list(range(20, 27))
    assert requests.rollouts[3:6].min() > 8 > requests.rollouts[[0, 1, 2, 6]].max()
    assert requests.rollouts.sum() == 56


@pytest.mark.parametrize("parameters", [{}, {"memory": 7, "bandwidth": 0.4, "floor_factor": 0.0}])
def test_whole_runs(parameters: dict[str, Any], tmp_path: Path) -> None:
    assert_resumes_exactly(lambda: make("vip", **parameters), tmp_path)
    assert_budgets_hold(lambda: make("vip", **parameters), 2, 4 * GROUP)
    assert_proposing_is_a_read(lambda: make("vip", **parameters))
    assert assert_top_ups_fill_the_batch(lambda: make("vip", max_rounds=8, **parameters)) > 0


def test_prompts_come_in_the_order_of_uniform() -> None:
    plain = [[row for row, _ in round_] for round_ in asked_in_steps(selector_of(lambda: make("uniform")), range(9))]
    sized = [[row for row, _ in round_] for round_ in asked_in_steps(selector_of(lambda: make("vip")), range(9))]
    assert plain == sized
