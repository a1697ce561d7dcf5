"""The prompt predictive model of GPS: a Transformer over the last batch, a latent of its difficulty, a decoder. Needs torch.

    H = {(x_i, y_i)}    q_φ(z|H), p_η(z|H): diagonal Gaussians, two heads on one encoder      g = sigmoid(decoder(x, z))
    L = Σ w_i CE(y_i, g_i) / Σ w_i + β · KL(q_φ(z|H_t) ‖ p_η(z|H_{t-1})),   one reparameterised z            [GPS eq. 8]
    prediction: the mean of g over M draws z ~ p_η(z|H_t)                                                     [GPS eq. 10]

Source: GPS, arXiv 2602.01970, as its abstract and public summaries describe it; its text and code could not be read. Sizes,
rates and heads are reconstructed from the same authors' earlier code (MPTS, PDTS) or ours. CE with a soft target is the
binomial log-likelihood of the group. There is no positional encoding: H is a set.

Weights, moments and noise live in plain float32 arrays and come from the step's numpy generators: torch's own random state is
neither read nor moved, and a restored model goes on bit for bit on the same machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgewise.beliefs import checks
from edgewise.beliefs.shared import Batch, Predictor
from edgewise.errors import ConfigError, StateMismatchError
from edgewise.method import StepView
from edgewise.types import Array, Floats

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # Adam's
_LONGEST_GRADIENT = 1.0


class Shape(NamedTuple):
    """Sizes of the network."""

    width: int
    layers: int
    heads: int
    feed_forward: int
    summary: int
    latent: int
    decoder: int


SHAPES = {
    "ppm-small": Shape(width=128, layers=2, heads=4, feed_forward=256, summary=64, latent=32, decoder=256),
    "ppm": Shape(width=512, layers=6, heads=8, feed_forward=2048, summary=256, latent=64, decoder=512),
}
"""528,705 and 20,065,281 weights with embeddings of 256 numbers. GPS reports about 20 million; the split is ours. [choice]"""
LEARNING_RATES = {"ppm-small": 1e-3, "ppm": 1e-4}
"""[choice; the larger one was never trained by us]"""


Weights = dict[str, Tensor]
"""Every weight of the network by name."""


class Gaussian(NamedTuple):
    """Means and standard deviations, (z,) each."""

    mean: Tensor
    std: Tensor


class Head(nn.Module):
    """Linear, ReLU, then mean and σ = 0.1 + 0.9·sigmoid. [MPTS code]"""

    def __init__(self, summary: int, latent: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(summary, summary)
        self.mean = nn.Linear(summary, latent)
        self.std = nn.Linear(summary, latent)

    def forward(self, summary: Tensor) -> Gaussian:
        hidden = torch.relu(self.hidden(summary))
        return Gaussian(self.mean(hidden), 0.1 + 0.9 * torch.sigmoid(self.std(hidden)))


class Network(nn.Module):
    """Encoder with two heads, and decoder. What it computes is chosen by the first argument of `forward`."""

    def __init__(self, dimension: int, shape: Shape) -> None:
        super().__init__()
        self.token = nn.Linear(dimension + 1, shape.width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                shape.width, shape.heads, shape.feed_forward, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(shape.layers)
        )
        self.summary = nn.Linear(shape.width, shape.summary)
        self.posterior = Head(shape.summary, shape.latent)
        self.prior = Head(shape.summary, shape.latent)
        self.from_x = nn.Linear(dimension, shape.decoder)
        self.from_z = nn.Linear(shape.latent, shape.decoder, bias=False)
        self.deeper = nn.ModuleList(nn.Linear(shape.decoder, shape.decoder) for _ in range(2))
        self.logit = nn.Linear(shape.decoder, 1)

    def forward(self, part: Literal["posterior", "prior", "from_x", "decode"], *given: Tensor) -> Any:
        """What `part` names. "posterior" and "prior" make a Gaussian of x (n, d) and y (n,); "from_x" makes (n, h) of x;
        "decode" makes (n,) logits of that and z (z,).
        """
        if part == "from_x":
            return self.from_x(given[0])
        if part == "decode":
            hidden = torch.relu(given[0] + self.from_z(given[1]))  # W_x x + W_z z: x's half is the same for every z
            for layer in self.deeper:
                hidden = torch.relu(layer(hidden))
            return self.logit(hidden).squeeze(-1)
        tokens = self.token(torch.cat([given[0], given[1][:, None]], dim=1))[None]
        for layer in self.layers:
            tokens = layer(tokens)
        head = self.posterior if part == "posterior" else self.prior
        return head(self.summary(tokens).mean(dim=(0, 1)))


def kl_divergence(q: Gaussian, p: Gaussian) -> Tensor:
    """KL(q ‖ p) of diagonal Gaussians, nats, summed over dimensions."""
    ratio = (q.std / p.std).square()
    return 0.5 * (ratio + ((q.mean - p.mean) / p.std).square() - 1.0 - ratio.log()).sum()


@dataclass(kw_only=True, eq=False)
class Ppm(Predictor):
    """The model as a predictor: trained a few steps on each new batch, read through its history-conditioned prior."""

    size: Literal["ppm-small", "ppm"] = "ppm-small"
    """Which of SHAPES. [choice]"""
    latent: bool = True
    """Condition on z. False is the paper's ablation: a plain regression network. [GPS fig. 5b]"""
    prior: Literal["learned", "carryover"] = "learned"
    """learned: p_η with its own head [GPS eq. 8]. carryover: the posterior after the last batch, held fixed [MPTS code]."""
    loss: Literal["ce", "mse"] = "ce"
    """ce: binomial likelihood [choice]. mse: of the rates [MPTS code]."""
    kl_weight: float = 1e-4
    """β >= 0. [MPTS code; the unweighted ELBO is 1/(n·B) in these units]"""
    draws: int = 10
    """M: draws of z a prediction averages over. [choice, as simulated; MPTS code: 50]"""
    gradient_steps: int = 5
    """On each new batch. [choice, as simulated; GPS and MPTS code: 1]"""
    learning_rate: float | None = None
    """Adam's. None: of LEARNING_RATES. [choice; MPTS code: 5e-3]"""
    device: str = "cpu"
    """Where torch computes."""

    _flat: Tensor = field(init=False, repr=False)
    _moments: tuple[Tensor, Tensor] = field(init=False, repr=False)
    _counts: Array = field(init=False, repr=False)
    _context: tuple[Tensor, Tensor] | None = field(init=False, repr=False, default=None)
    _noise: Tensor = field(init=False, repr=False)
    _network: Network = field(init=False, repr=False)
    _drawn: Tensor | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.size not in SHAPES:
            raise ConfigError(f"Ppm(size=...) must be one of {', '.join(map(repr, SHAPES))}, got {self.size!r}.")
        checks.number(self, "kl_weight", low=0.0, advice="About 1e-4; 1 collapses z.")
        for name in ("draws", "gradient_steps"):
            checks.number(self, name, low=1)
        self._rate = LEARNING_RATES[self.size] if self.learning_rate is None else self.learning_rate

    def start(self, dimension: int, rng: np.random.Generator) -> None:
        self._build(dimension)
        pieces = []
        for name, weights in self._network.named_parameters():
            bound = 1.0 / math.sqrt(weights.shape[-1])
            if weights.dim() > 1:
                pieces.append(rng.uniform(-bound, bound, size=weights.numel()))
            else:  # scales of the layer norms are 1, their shifts and every bias 0
                pieces.append(np.full(weights.numel(), float(name.endswith(("norm1.weight", "norm2.weight")))))
        self._flat = self._tensor(np.concatenate(pieces))
        self._moments = (self._tensor(np.zeros(len(self._flat))), self._tensor(np.zeros(len(self._flat))))
        self._counts = np.zeros(2, dtype=np.int64)  # gradient steps taken, and skipped
        self._context = None
        self._noise = self._tensor(rng.standard_normal((self.draws, SHAPES[self.size].latent)))

    def _build(self, dimension: int) -> None:
        with torch.device("meta"):  # a plan of shapes: no memory, no random numbers
            self._network = Network(dimension, SHAPES[self.size])
        self._drawn = None

    def _tensor(self, values: Array) -> Tensor:
        with torch.inference_mode(False):  # a host that generates may call us inside of it
            return torch.from_numpy(np.array(values, dtype=np.float32)).to(self.device)

    def weights(self, flat: Tensor) -> Weights:
        """The weights (P,) by name, as views. One split for all: its gradient is one concatenation."""
        plans = dict(self._network.named_parameters())
        pieces = flat.split([plan.numel() for plan in plans.values()])
        return {name: piece.view(plan.shape) for (name, plan), piece in zip(plans.items(), pieces, strict=True)}

    def run(self, weights: Weights, part: str, *given: Tensor) -> Any:
        """A part of the network."""
        return functional_call(self._network, weights, (part, *given))

    # -- learning ------------------------------------------------------------------------------------------------------

    def learn(self, batch: Batch, step: StepView) -> None:
        rng = step.rng("model")
        noise = rng.standard_normal((self.gradient_steps, SHAPES[self.size].latent))
        x, y, w = self._tensor(batch.features), self._tensor(batch.rates), self._tensor(batch.weights)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            fixed = self._carried() if self.prior == "carryover" else None
            for number in range(self.gradient_steps):
                flat = self._flat.detach().requires_grad_()
                loss = self.loss_of(flat, x, y, w, self._tensor(noise[number]), fixed)
                (gradient,) = torch.autograd.grad(loss, flat)
                length = gradient.norm()
                if not (torch.isfinite(loss) and torch.isfinite(length)):
                    self._counts[1] += 1
                    step.log(model_steps_skipped=1)
                    continue
                self._adam(gradient * (_LONGEST_GRADIENT / length.clamp(min=_LONGEST_GRADIENT)))
                if number == 0:
                    step.gauge(model_loss=float(loss.detach()))
        self._context = (x, y)
        self._noise = self._tensor(rng.standard_normal((self.draws, SHAPES[self.size].latent)))
        self._drawn = None

    def loss_of(self, flat: Tensor, x: Tensor, y: Tensor, w: Tensor, noise: Tensor, fixed: Gaussian | None = None) -> Tensor:
        """L of the module at the weights `flat`. x: (n, d). y, w: (n,). noise: (z,). fixed: the prior, where it is held."""
        weights = self.weights(flat)
        q: Gaussian = self.run(weights, "posterior", x, y)
        z = q.mean + q.std * noise if self.latent else torch.zeros_like(noise)
        logits = self.run(weights, "decode", self.run(weights, "from_x", x), z)
        if self.loss == "ce":
            each = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        else:
            each = (torch.sigmoid(logits) - y).square()
        fit: Tensor = (w * each).sum() / w.sum()
        if not self.latent:
            return fit
        if fixed is None:
            fixed = standard(noise) if self._context is None else self.run(weights, "prior", *self._context)
        return fit + self.kl_weight * kl_divergence(q, fixed)

    def _carried(self) -> Gaussian:
        with torch.no_grad():
            if self._context is None:
                return standard(self._noise[0])
            carried: Gaussian = self.run(self.weights(self._flat), "posterior", *self._context)
            return carried

    def _adam(self, gradient: Tensor) -> None:
        self._counts[0] += 1
        t, (first, second) = int(self._counts[0]), self._moments
        with torch.no_grad():
            first.mul_(_BETAS[0]).add_(gradient, alpha=1.0 - _BETAS[0])
            second.mul_(_BETAS[1]).addcmul_(gradient, gradient, value=1.0 - _BETAS[1])
            scale = (second / (1.0 - _BETAS[1] ** t)).sqrt_().add_(_EPSILON)
            self._flat.addcdiv_(first, scale, value=-self._rate / (1.0 - _BETAS[0] ** t))

    # -- reading -------------------------------------------------------------------------------------------------------

    def predict(self, features: Floats, *, spread: bool = False) -> tuple[Floats, Floats]:
        with torch.no_grad(), torch.autocast(self._flat.device.type, enabled=False):
            if self._drawn is None:
                self._drawn = self._draw()
            weights = self.weights(self._flat)
            from_x = self.run(weights, "from_x", self._tensor(features))
            logits = torch.stack([self.run(weights, "decode", from_x, z) for z in self._drawn])
            rates = torch.sigmoid(logits).double()
            variance = rates.var(dim=0, correction=0) if spread else torch.zeros_like(rates[0])
            return rates.mean(dim=0).cpu().numpy(), variance.cpu().numpy()

    def _draw(self) -> Tensor:
        """(M, z) draws from p(z|H); one row of zeros without the latent."""
        if not self.latent:
            return torch.zeros_like(self._noise[:1])
        if self.prior == "carryover" or self._context is None:
            belief = self._carried()
        else:
            belief = self.run(self.weights(self._flat), "prior", *self._context)
        return belief.mean + belief.std * self._noise

    # -- state ---------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        given = {
            "weights": self._flat,
            "first_moment": self._moments[0],
            "second_moment": self._moments[1],
            "noise": self._noise,
        }
        dimension = self._network.from_x.in_features
        x, y = self._context if self._context is not None else (torch.zeros(0, dimension), torch.zeros(0))
        arrays: dict[str, Array] = {n: t.detach().cpu().numpy() for n, t in (given | {"context_x": x, "context_y": y}).items()}
        return arrays | {"counts": self._counts}

    def restore(self, arrays: dict[str, Array]) -> None:
        self._build(arrays["context_x"].shape[1])
        wanted = sum(plan.numel() for plan in self._network.parameters())
        draws = (self.draws, SHAPES[self.size].latent)
        if arrays["weights"].shape != (wanted,) or arrays["noise"].shape != draws:
            raise StateMismatchError(
                f"Ppm.restore: a {self.size!r} model has {wanted} weights and noise {draws}, the state has "
                f"{arrays['weights'].shape} and {arrays['noise'].shape}. Use a state of a model of this size and these draws."
            )
        self._flat, self._noise = self._tensor(arrays["weights"]), self._tensor(arrays["noise"])
        self._moments = (self._tensor(arrays["first_moment"]), self._tensor(arrays["second_moment"]))
        self._counts = np.array(arrays["counts"], dtype=np.int64)
        x, y = self._tensor(arrays["context_x"]), self._tensor(arrays["context_y"])
        self._context = (x, y) if len(y) else None


def standard(like: Tensor) -> Gaussian:
    """N(0, I) of the shape of `like`."""
    return Gaussian(torch.zeros_like(like), torch.ones_like(like))
