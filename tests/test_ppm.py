"""The prompt predictive model: sizes, symmetries, gradients, what it learns, and that it leaves torch's own state alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgewise.beliefs.ppm import SHAPES, Gaussian, Network, Ppm, kl_divergence, standard
from edgewise.beliefs.shared import Batch
from edgewise.errors import ConfigError
from tests.fakes import FakeStep

RNG = np.random.default_rng
D = 6


def started(dimension: int = D, seed: int = 0, **parameters) -> Ppm:
    model = Ppm(**parameters)
    model.start(dimension, RNG(seed))
    return model


def batch(n: int = 12, seed: int = 1, weights=None) -> Batch:
    rng = RNG(seed)
    return Batch(
        features=rng.standard_normal((n, D)),
        rates=rng.integers(0, 9, n) / 8,
        weights=np.ones(n) if weights is None else weights,
    )


def step(number: int = 0) -> FakeStep:
    return FakeStep([], number=number)


def predictions(model: Ppm, seed: int = 9) -> np.ndarray:
    return model.predict(RNG(seed).standard_normal((20, D)))[0]


@pytest.mark.parametrize(("size", "weights"), [("ppm-small", 528_705), ("ppm", 20_065_281)])
def test_parameter_counts_golden(size: str, weights: int) -> None:
    with torch.device("meta"):
        network = Network(256, SHAPES[size])
    assert sum(p.numel() for p in network.parameters()) == weights


def test_the_latent_divergence_golden() -> None:
    """KL(N(.5,.4²) ‖ N(0,1)) and KL(N(1,.55²) ‖ N(-.2,.55²)); the first also by quadrature."""

    def gaussian(mean: float, std: float) -> Gaussian:
        return Gaussian(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))

    assert float(kl_divergence(gaussian(0.5, 0.4), gaussian(0, 1))) == pytest.approx(0.621290731874, abs=1e-11)
    assert float(kl_divergence(gaussian(1, 0.55), gaussian(-0.2, 0.55))) == pytest.approx(2.380165289256, abs=1e-11)
    x = np.linspace(-4, 5, 200_001)
    q = np.exp(-((x - 0.5) ** 2) / 0.32) / (0.4 * np.sqrt(2 * np.pi))
    log_ratio = -((x - 0.5) ** 2) / 0.32 - np.log(0.4) + x**2 / 2
    assert np.trapezoid(q * log_ratio, x) == pytest.approx(0.621290731874, abs=1e-8)


def test_the_fit_is_the_binomial_likelihood_of_the_group() -> None:
    """CE(3/8, .6) golden, and (1/8)·-ln of .6³·.4⁵."""
    logit = torch.logit(torch.tensor([0.6], dtype=torch.float64))
    found = torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.tensor([3 / 8], dtype=torch.float64))
    assert float(found) == pytest.approx(0.764241316333, abs=1e-11)
    assert float(found) == pytest.approx(-np.log(0.6**3 * 0.4**5) / 8)


def test_the_order_of_the_context_does_not_matter() -> None:
    model, history = started(), batch()
    order = RNG(2).permutation(12)
    turned = Batch(features=history.features[order], rates=history.rates[order], weights=history.weights[order])
    x, y = model._tensor(history.features), model._tensor(history.rates)
    for part in ("posterior", "prior"):
        here = model.run(model.weights(model._flat), part, x, y)
        there = model.run(model.weights(model._flat), part, model._tensor(turned.features), model._tensor(turned.rates))
        torch.testing.assert_close(here, there, atol=1e-6, rtol=0)
    other = started()
    model.learn(history, step())
    other.learn(turned, step())
    np.testing.assert_allclose(predictions(model), predictions(other), atol=1e-3)  # five Adam steps apart in rounding


def test_the_halves_of_the_decoder_equal_one_layer_on_x_and_z() -> None:
    model = started()
    parts = model.weights(model._flat)
    x, z = (
        torch.from_numpy(RNG(3).standard_normal((7, D)).astype(np.float32)),
        torch.randn(32, generator=torch.Generator().manual_seed(0)),
    )
    whole = torch.cat([parts["from_x.weight"], parts["from_z.weight"]], dim=1)
    hidden = torch.relu(torch.cat([x, z.expand(7, -1)], dim=1) @ whole.T + parts["from_x.bias"])
    for i in range(2):
        hidden = torch.relu(hidden @ parts[f"deeper.{i}.weight"].T + parts[f"deeper.{i}.bias"])
    expected = (hidden @ parts["logit.weight"].T + parts["logit.bias"])[:, 0]
    found = model.run(model.weights(model._flat), "decode", model.run(model.weights(model._flat), "from_x", x), z)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_the_gradient_is_that_of_the_loss(loss) -> None:
    """Central differences in float64 along 4 random directions, relative error below 1e-6."""
    model = started(loss=loss, kl_weight=0.3)
    model.learn(batch(seed=4), step())  # so that the prior reads a context
    model._context = tuple(t.double() for t in model._context)
    flat = model._flat.double().requires_grad_()
    history = batch(seed=5, weights=RNG(6).random(12) + 0.1)
    given = [torch.from_numpy(a) for a in (history.features, history.rates, history.weights, RNG(7).standard_normal(32))]
    value = model.loss_of(flat, *given)
    (gradient,) = torch.autograd.grad(value, flat)
    for seed in range(4):
        direction = torch.from_numpy(RNG(seed).standard_normal(len(flat)))
        direction /= direction.norm()
        with torch.no_grad():
            numeric = (model.loss_of(flat + 1e-5 * direction, *given) - model.loss_of(flat - 1e-5 * direction, *given)) / 2e-5
        assert float(numeric) == pytest.approx(float(gradient @ direction), rel=1e-4, abs=1e-9)


def test_the_loss_is_weighted_by_rollouts() -> None:
    """A group of weight 2 counts as two equal groups: the fit alone (no latent), directly summed."""
    model = started(latent=False)
    history = batch(weights=np.array([2.0, 1.0, 0.25] * 4))
    x, y, w = (model._tensor(a) for a in (history.features, history.rates, history.weights))
    logits = (
        model.run(model.weights(model._flat), "decode", model.run(model.weights(model._flat), "from_x", x), torch.zeros(32))
        .double()
        .numpy()
    )
    g = 1 / (1 + np.exp(-logits))
    ce = -(history.rates * np.log(g) + (1 - history.rates) * np.log(1 - g))
    expected = (history.weights * ce).sum() / history.weights.sum()
    assert float(model.loss_of(model._flat, x, y, w, torch.zeros(32))) == pytest.approx(expected, rel=1e-5)


def test_before_any_history_the_latent_is_standard_normal() -> None:
    model = started()
    torch.testing.assert_close(model._draw(), model._noise)
    torch.testing.assert_close(standard(torch.ones(3)), Gaussian(torch.zeros(3), torch.ones(3)))
    assert model.predict(RNG(0).standard_normal((4, D)), spread=True)[1].min() > 0
    plain = started(latent=False)
    assert plain.predict(RNG(0).standard_normal((4, D)), spread=True)[1].tolist() == [0.0] * 4


@pytest.mark.parametrize("parameters", [{}, {"prior": "carryover"}, {"latent": False}, {"loss": "mse"}])
def test_it_learns_what_the_features_tell(parameters: dict) -> None:
    """Logit 2·x₀, 12 batches of 64 groups of 8: predictions rank unseen prompts (Spearman above .7)."""
    from edgewise.metrics import rank_correlation

    rng, model = RNG(0), started(**parameters)
    for number in range(12):
        x = rng.standard_normal((64, D))
        y = rng.binomial(8, 1 / (1 + np.exp(-2 * x[:, 0]))) / 8
        model.learn(Batch(features=x, rates=y, weights=np.ones(64)), step(number))
    fresh = rng.standard_normal((200, D))
    assert rank_correlation(model.predict(fresh)[0], fresh[:, 0]) > 0.7


@pytest.mark.parametrize("parameters", [{}, {"prior": "carryover"}])
def test_it_restores_bit_for_bit(parameters: dict) -> None:
    model = started(**parameters)
    for number in range(3):
        model.learn(batch(seed=number), step(number))
    other = Ppm(**parameters)
    other.restore({name: array.copy() for name, array in model.state().items()})
    for number in (3, 4):
        np.testing.assert_array_equal(predictions(model), predictions(other))
        for m in (model, other):
            m.learn(batch(seed=number), step(number))
    np.testing.assert_equal(model.state(), other.state())
    assert all(array.dtype == np.float32 for name, array in model.state().items() if name != "counts")


def test_torch_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    model = started()
    model.learn(batch(), step())
    predictions(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(8)
    again = started()
    again.learn(batch(), step())
    np.testing.assert_array_equal(predictions(model), predictions(again))


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    model, told = started(), step()
    before = model.state()["weights"].copy()
    broken = Batch(features=np.full((4, D), np.nan), rates=np.full(4, 0.5), weights=np.ones(4))
    model.learn(broken, told)
    np.testing.assert_array_equal(model.state()["weights"], before)
    assert told.sums["model_steps_skipped"] == 5
    assert model.state()["counts"].tolist() == [0, 5]


def test_a_host_that_generates_without_gradients_may_call_it() -> None:
    model, other = started(), started()
    other.learn(batch(), step())
    with torch.no_grad():
        model.learn(batch(), step())
    np.testing.assert_array_equal(predictions(model), predictions(other))
    with torch.inference_mode():
        inside = started()
        inside.learn(batch(), step())
        np.testing.assert_array_equal(predictions(inside), predictions(other))
        inside.learn(batch(), step(1))
    assert predictions(inside).shape == (20,)


def test_bad_hyper_parameters_are_named() -> None:
    with pytest.raises(ConfigError, match="must be one of 'ppm-small', 'ppm', got 'huge'"):
        Ppm(size="huge")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Ppm\(draws=...\) must be a number of at least 1"):
        Ppm(draws=0)
