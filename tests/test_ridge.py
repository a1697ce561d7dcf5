"""The regressions, the features they read, and the belief that puts own counts on a shared prior."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgewise.beliefs.features import PromptFeatures, ask_for_features
from edgewise.beliefs.ridge import Logistic, Ridge, with_one
from edgewise.beliefs.shared import Batch, Predictor, SharedPriorBelief
from edgewise.errors import ConfigError, MethodError, SignalError, StateMismatchError
from edgewise.prediction import Visits
from edgewise.types import EMBEDDING, Setting
from tests.fakes import FakeStep

RAW = np.array([(1, 0), (0, 1), (1, 1)], dtype=np.float64)


def batch(features: np.ndarray, rates: list[float], weights: list[float] | None = None) -> Batch:
    w = np.ones(len(rates)) if weights is None else np.array(weights)
    return Batch(features=features, rates=np.array(rates), weights=w)


def started(model: Predictor, dimension: int) -> Predictor:
    model.start(dimension, np.random.default_rng(0))
    return model


def visits(rows: list[int], successes: list[float], trials: list[int]) -> Visits:
    return Visits(rows=np.array(rows), successes=np.array(successes, dtype=np.float64), trials=np.array(trials))


class Told(Predictor):
    """Predicts what it was told, and notes what it learns from."""

    def __init__(self, rate: float = 0.7) -> None:
        self.rate, self.batches = rate, []

    def start(self, dimension, rng):
        pass

    def learn(self, batch, step):
        self.batches.append(batch)

    def predict(self, features, *, spread):
        return np.full(len(features), self.rate), np.zeros(len(features))

    def state(self):
        return {}

    def restore(self, arrays):
        pass


def serving(vectors: np.ndarray, **given) -> FakeStep:
    return FakeStep(range(len(vectors)), signals={EMBEDDING: lambda rows: vectors[rows]}, **given)


# -- ridge -------------------------------------------------------------------------------------------------------------


def test_ridge_golden() -> None:
    ridge = Ridge(forget=0.97, ridge=1.0)
    started(ridge, 2)
    assert ridge.predict(RAW)[0].tolist() == [0.5, 0.5, 0.5]  # before the first update
    ridge.add(batch(RAW[[0, 1]], [1.0, 0.0]))
    ridge.add(batch(RAW[[0, 2]], [0.5, 0.75]))
    np.testing.assert_allclose(ridge.coefficients, [0.25656416, -0.13156416, -0.05117696], atol=5e-9)
    np.testing.assert_allclose(ridge.predict(RAW)[0], [0.70538721, 0.31725888, 0.57382304], atol=5e-9)


@given(st.integers(0, 2**16), st.integers(1, 4), st.floats(0.5, 1.0), st.floats(0.1, 50.0))
@settings(max_examples=25, deadline=None)
def test_ridge_is_weighted_least_squares_over_the_whole_past(seed: int, batches: int, forget: float, pull: float) -> None:
    """Second way: stack every row ever seen, weighted by w·f^age, and solve the penalised problem by least squares."""
    rng = np.random.default_rng(seed)
    ridge = Ridge(forget=forget, ridge=pull)
    started(ridge, 3)
    rows, targets = [], []
    for age in range(batches - 1, -1, -1):
        x, y, w = rng.standard_normal((5, 3)), rng.random(5), rng.random(5) + 0.1
        ridge.add(batch(x, y.tolist(), w.tolist()))
        root = np.sqrt(w * forget**age)
        rows.append(with_one(x) * root[:, None])
        targets.append((y - 0.5) * root)
    a = np.concatenate([*rows, np.sqrt(pull) * np.eye(4)])
    b = np.concatenate([*targets, np.zeros(4)])
    np.testing.assert_allclose(ridge.coefficients, np.linalg.lstsq(a, b, rcond=None)[0], atol=1e-8)


def test_predictions_are_cut_and_the_spread_shrinks_where_it_has_looked() -> None:
    ridge = Ridge(ridge=0.1)
    started(ridge, 1)
    ridge.add(batch(np.array([[1.0]] * 50 + [[-1.0]] * 50), [1.0] * 50 + [0.0] * 50))
    far, near = np.array([[9.0], [-9.0]]), np.array([[1.0], [-1.0]])
    assert ridge.predict(far)[0].tolist() == [0.98, 0.02]
    g, variance = ridge.predict(np.concatenate([near, far]), spread=True)
    direct = [p @ np.linalg.inv(ridge.state()["a"] + 0.1 * np.eye(2)) @ p for p in with_one(np.concatenate([near, far]))]
    np.testing.assert_allclose(variance, np.minimum(direct, g * (1 - g)), rtol=1e-9)
    assert (variance <= g * (1 - g)).all()


def test_logistic_finds_the_maximum_of_its_objective() -> None:
    """One batch, no past: the gradient of the penalised likelihood vanishes, by central differences over the objective."""
    rng = np.random.default_rng(3)
    x, y, w = rng.standard_normal((40, 2)), rng.random(40), rng.random(40) + 0.5
    model = started(Logistic(ridge=2.0), 2)
    model.learn(batch(x, y.tolist(), w.tolist()), serving(x))
    theta = model.state()["theta"]

    def objective(t: np.ndarray) -> float:
        g = 1 / (1 + np.exp(-(with_one(x) @ t)))
        return float(w @ (y * np.log(g) + (1 - y) * np.log(1 - g)) - t @ t)

    for i in range(3):
        move = 1e-5 * np.eye(3)[i]
        assert (objective(theta + move) - objective(theta - move)) / 2e-5 == pytest.approx(0.0, abs=1e-5)
    g, variance = model.predict(x, spread=True)
    assert ((variance > 0) & (variance <= g * (1 - g))).all()
    assert model.predict(x, spread=False)[1].tolist() == [0.0] * 40


@pytest.mark.parametrize("kind", [Ridge, Logistic])
def test_regressions_learn_and_restore_exactly(kind: type) -> None:
    """300 groups of 8 whose logit is 2·x₀: predictions follow the first feature."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 4))
    y = rng.binomial(8, 1 / (1 + np.exp(-2 * x[:, 0]))) / 8
    model, other = started(kind(), 4), kind()
    for part in np.split(np.arange(300), 6):
        model.learn(batch(x[part], y[part].tolist()), serving(x))
    assert np.corrcoef(model.predict(x, spread=False)[0], x[:, 0])[0, 1] > 0.9
    other.restore({name: array.copy() for name, array in model.state().items()})
    np.testing.assert_array_equal(other.predict(x, spread=True), model.predict(x, spread=True))
    again = batch(x[:9], y[:9].tolist())
    for m in (model, other):
        m.learn(again, serving(x))
    np.testing.assert_array_equal(other.predict(x, spread=True), model.predict(x, spread=True))


def test_bad_hyper_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Ridge\(forget=...\) must be a number above 0 and at most 1, got 0"):
        Ridge(forget=0)
    with pytest.raises(ConfigError, match=r"Logistic\(ridge=...\) must be a number above 0, got -1"):
        Logistic(ridge=-1)
    with pytest.raises(
        ConfigError, match=r"SharedPriorBelief\(decay=...\) must be a number of at least 0 and at most 1, got 2"
    ):
        SharedPriorBelief(predictor=Told, decay=2)
    with pytest.raises(ConfigError, match="must be 'beta' or 'none', got 'both'"):
        SharedPriorBelief(predictor=Told, combine="both")  # type: ignore[arg-type]


# -- features ----------------------------------------------------------------------------------------------------------


def test_features_are_unit_vectors_z_scored_over_the_pool() -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, -2.0]])
    features = PromptFeatures.of(vectors)
    np.testing.assert_allclose(features.unit, [[0.6, 0.8], [0, 0], [1, 0], [0, -1]], atol=1e-7)
    scored = features.scored(np.arange(4))
    np.testing.assert_allclose(scored.mean(axis=0), 0, atol=1e-7)
    np.testing.assert_allclose(scored.std(axis=0), 1, atol=1e-6)
    assert np.isfinite(PromptFeatures.of(np.ones((3, 2))).scored(np.arange(3))).all()  # no spread at all


def test_embeddings_that_are_not_finite_are_reported_and_become_zero() -> None:
    vectors = np.array([[3.0, 4.0], [np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0]])
    step = serving(vectors)
    assert ask_for_features(4, step).unit[1:].tolist() == [[0, 0]] * 3
    assert "of prompt row 1 must be finite (2 of 4 prompts are not)" in str(step.problems[0])
    assert step.levels["embedding_zero"] == 3
    with pytest.raises(SignalError):
        ask_for_features(4, serving(vectors, strict=True))
    with pytest.raises(SignalError, match="shape"):
        ask_for_features(4, serving(np.zeros((4, 0))))


# -- shared prior and own counts ---------------------------------------------------------------------------------------


def belief(predictor=Told, pool: int = 4, **parameters) -> SharedPriorBelief:
    made = SharedPriorBelief(predictor=predictor, **parameters)
    made.start(Setting(pool_size=pool, batch_size=2, group_size=8))
    return made


POOL = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.5]])


def test_combination_golden() -> None:
    """g = .7, κ = 4, λ = .5, n = 8: no visit .7; k = 2 -> .4; 2 then 6 -> .6125; 4 for ever -> .54."""
    shared, step = belief(), serving(POOL)
    rows = np.arange(4)
    assert shared.predict(rows, step).mean == pytest.approx([0.7] * 4)
    shared.observe(visits([1], [2], [8]), step)
    assert shared.predict(rows, step).mean == pytest.approx([0.7, 0.4, 0.7, 0.7])
    shared.observe(visits([1], [6], [8]), step)
    assert shared.predict(rows, step).mean[1] == pytest.approx(0.6125)
    for _ in range(60):
        shared.observe(visits([2], [4], [8]), step)
    assert shared.predict(rows, step).mean[2] == pytest.approx(0.54)
    alpha, beta = shared.predict(rows, step).as_beta()
    assert alpha[0] == pytest.approx(2.8)
    assert (alpha + beta)[2] == pytest.approx(4 + 16)


def test_alone_the_model_has_no_memory_of_prompts() -> None:
    shared, step = belief(combine="none"), serving(POOL)
    shared.observe(visits([1], [0], [8]), step)
    assert shared.predict(np.arange(4), step).mean == pytest.approx([0.7] * 4)
    assert shared.state().prompts == {}


def test_the_model_learns_once_a_step_in_ticket_order() -> None:
    shared = belief()
    first = serving(POOL)
    shared.predict(np.arange(4), first)
    shared.observe(visits([2, 0], [8, 2], [8, 4]), first, np.array([5, 3]))
    shared.observe(visits([1], [4], [8]), first, np.array([4]))
    shared.predict(np.arange(4), first)
    assert shared._model.batches == []  # not before the next step
    assert not shared.trained
    second = serving(POOL, number=1)
    shared.predict(np.arange(4), second)
    shared.predict(np.arange(4), second)
    (learned,) = shared._model.batches
    assert learned.rates.tolist() == [0.5, 0.5, 1.0]
    assert learned.weights.tolist() == [0.5, 1.0, 1.0]  # ragged: 4 of 8 rollouts
    np.testing.assert_allclose(learned.features, PromptFeatures.of(POOL).scored(np.array([0, 1, 2])))
    assert shared.trained
    assert len(first.asked) == 1  # the embedding of the whole pool, once
    assert second.asked == []


def test_a_stream_learns_when_a_batch_is_in_and_the_policy_has_moved() -> None:
    shared = belief()

    def at(version: int, number: int) -> FakeStep:
        return serving(POOL, streaming=True, policy_version=version, number=number)

    def observe(row: int, step: FakeStep) -> None:
        shared.observe(visits([row], [4], [8]), step)
        shared.predict(np.arange(4), step)

    observe(0, at(0, 0))
    assert shared._model.batches == []  # one group of two
    observe(1, at(0, 1))
    assert len(shared._model.batches) == 1
    observe(2, at(0, 2))
    observe(3, at(0, 3))
    assert len(shared._model.batches) == 1  # the policy has not moved
    shared.predict(np.arange(4), at(1, 4))
    assert [len(b.rates) for b in shared._model.batches] == [2, 2]
    for number in range(50):
        shared.observe(visits([number % 4], [4], [8]), at(1, 5 + number))
    assert len(shared._pending) == 8  # 4·B, however long the host stays at one version
    shared.predict(np.arange(4), at(1, 56))
    assert [len(b.rates) for b in shared._model.batches] == [2, 2, 8]  # a version that stands still is not waited for for ever
    for number in range(7):
        shared.observe(visits([number % 4], [4], [8]), at(1, 57 + number))
        shared.predict(np.arange(4), at(1, 57 + number))
    assert len(shared._model.batches) == 3


def test_stale_groups_count_for_their_prompt_only() -> None:
    shared, step = belief(), serving(POOL)
    shared.predict(np.arange(4), step)
    shared.observe(visits([0, 1], [8, 0], [8, 8]), step, np.array([0, 1]), np.array([False, True]))
    shared.predict(np.arange(4), serving(POOL, number=1))
    assert shared._model.batches[0].rates.tolist() == [0.0]
    assert shared.passed[0] == 8


@pytest.mark.parametrize("whole_pool", [False, True])
@pytest.mark.parametrize("combine", ["beta", "none"])
def test_belief_restores_exactly_and_predicting_is_a_read(whole_pool: bool, combine) -> None:
    rng = np.random.default_rng(5)
    pool = rng.standard_normal((30, 6))
    made = [belief(Ridge, 30, whole_pool=whole_pool, combine=combine) for _ in range(2)]
    one, other = made
    for number in range(4):
        one.predict(np.arange(30), serving(pool, number=number))
        one.observe(visits([number, number + 9], [8 - number, number], [8, 8]), serving(pool, number=number))
    copied = one.state()
    other.restore(
        type(copied)({k: v.copy() for k, v in copied.prompts.items()}, {k: v.copy() for k, v in copied.shared.items()})
    )
    for b in made:
        b.predict(np.arange(30), serving(pool, number=4))
    before = {k: v.copy() for k, v in one.state().shared.items()}
    found = [b.predict(np.array([7, 2, 29]), serving(pool, number=4)) for b in made]
    np.testing.assert_array_equal(found[0].mean, found[1].mean)
    np.testing.assert_array_equal(found[0].variance, found[1].variance)
    np.testing.assert_equal(one.state().shared, before)
    np.testing.assert_equal(one.state().shared, other.state().shared)
    with pytest.raises(StateMismatchError, match="lacks"):
        other.restore(type(copied)({}, {}))


def test_other_embeddings_than_the_saved_ones_are_reported() -> None:
    one, other = belief(Ridge), belief(Ridge)
    one.predict(np.arange(4), serving(POOL))
    other.restore(one.state())
    step = serving(POOL[::-1] + 3.0)
    assert np.isfinite(other.predict(np.arange(4), step).mean).all()
    assert "not the embeddings of the saved state" in str(step.problems[0])
    again = belief(Ridge)
    again.restore(one.state())
    with pytest.raises(SignalError, match="has 3 dimensions, and the saved state was made with 2"):
        again.predict(np.arange(4), serving(np.ones((4, 3))))


def test_a_prediction_that_is_not_finite_counts_as_one_half() -> None:
    shared, step = belief(lambda: Told(float("nan")), combine="none"), serving(POOL)
    assert shared.predict(np.arange(4), step).mean.tolist() == [0.5] * 4
    assert step.sums["predictions_missing"] == 4
    with pytest.raises(MethodError, match="4 of 4 predicted pass rates are not finite"):
        shared.predict(np.arange(4), serving(POOL, strict=True))
