"""GPS: one small model predicts every prompt's pass rate; the batch is informative, diverse, and unlike the last one.

    g(prompt | history)   ->   u = g(1 - g)   ->   greedy max-sum diversification over the whole pool with a history anchor

Qu et al., "Small Generalizable Prompt Predictive Models Can Steer Efficient RL Post-Training of Large Reasoning Models", arXiv
2602.01970 (score: eq. 10; batch: eq. 12 to 14). Known to us from its abstract, public summaries and the same authors' earlier
code (MPTS, PDTS); its body and its code could not be read. The structure is the paper's; every default is *reconstructed*.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from edgewise.beliefs.ridge import Ridge
from edgewise.beliefs.shared import Predictor
from edgewise.errors import ConfigError
from edgewise.methods import checks
from edgewise.methods.entry import Entry
from edgewise.methods.shared_model import SharedModelSelection


@dataclass(kw_only=True, eq=False)
class Gps(SharedModelSelection):
    """GPS with a light model, in numpy: forgetful ridge regression on the embedding, as the prior of the prompt's own counts.

    Differs from the paper in: the model (a ridge regression, not a Transformer with a latent), own counts on top of it, a
    random share, a cool-down, and every number, which the paper's text was not there to give. GPS also runs with groups of
    one rollout (PPO); here a group has at least two.
    """

    name: ClassVar[str] = "gps"

    combine: Literal["beta", "none"] = "beta"
    """The model as the prior of own counts. [choice; best where prompts come back, in simulation]"""
    forget: float = 0.97
    """f: what a step leaves of the regression's evidence. [choice, as simulated]"""
    ridge: float = 30.0
    """ρ: pull of the regression towards 1/2. [choice, as simulated]"""

    def model(self) -> Callable[[], Predictor]:
        checks.number(self, "forget", low=0.0, high=1.0, above=True, advice="1 forgets nothing.")
        checks.number(self, "ridge", low=0.0, above=True)
        return lambda: Ridge(forget=self.forget, ridge=self.ridge)


@dataclass(kw_only=True, eq=False)
class GpsPpm(SharedModelSelection):
    """GPS nearest to the paper: a prompt predictive model with a latent difficulty, alone. Needs torch. See `beliefs.ppm`.

    Differs from the paper in: a 0.53 M model that a CPU can train (`gps-ppm-20m` has the paper's size), several gradient steps
    a batch, a random share, a cool-down, and every number, which the paper's text was not there to give. Groups have at least
    two rollouts.
    """

    name: ClassVar[str] = "gps-ppm"

    size: Literal["ppm-small", "ppm"] = "ppm-small"
    """0.53 M or 20 M weights. [choice; GPS: about 20 M]"""
    latent: bool = True
    """Condition on the latent; False is the ablation. [GPS fig. 5b, as reported]"""
    prior: Literal["learned", "carryover"] = "learned"
    """Of the latent: a head of its own that reads the last batch [GPS eq. 8], or the last posterior [MPTS code]."""
    loss: Literal["ce", "mse"] = "ce"
    """Binomial likelihood [choice] or squared error [MPTS code]."""
    kl_weight: float = 1e-4
    """β. [MPTS code]"""
    draws: int = 10
    """M: draws of the latent per prediction. [choice, as simulated; MPTS code: 50]"""
    gradient_steps: int = 5
    """On each new batch. [choice, as simulated; GPS: 1, as reported]"""
    learning_rate: float | None = None
    """Adam's; None: 1e-3, and 1e-4 for "ppm". [choice; MPTS code: 5e-3]"""
    device: str = "cpu"
    """Where torch computes the model; "cuda" for the large one."""

    def model(self) -> Callable[[], Predictor]:
        checks.one_of(self, "size", ("ppm-small", "ppm"))
        checks.switch(self, "latent")
        checks.one_of(self, "prior", ("learned", "carryover"))
        checks.one_of(self, "loss", ("ce", "mse"))
        checks.number(self, "kl_weight", low=0.0, advice="About 1e-4; 1 collapses the latent.")
        checks.whole(self, "draws", low=1)
        checks.whole(self, "gradient_steps", low=1)
        if self.learning_rate is not None:
            checks.number(self, "learning_rate", low=0.0, above=True)
        if not isinstance(self.device, str):
            raise ConfigError(f"{type(self).__name__}(device=...) must be a name torch knows, got {self.device!r}. Use 'cpu'.")
        return self._build

    def _build(self) -> Predictor:
        try:
            from edgewise.beliefs.ppm import Ppm
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{self.name} needs {error.name}, which is not installed. pip install 'edgewise[trl]', or use 'gps', which "
                "does without."
            ) from error
        names = ("size", "latent", "prior", "loss", "kl_weight", "draws", "gradient_steps", "learning_rate", "device")
        return Ppm(**{name: getattr(self, name) for name in names})


@dataclass(kw_only=True, eq=False)
class Gps20m(GpsPpm):
    """`gps-ppm` with a model of the paper's size, 20 million weights.

    Differs from the paper in: as `gps-ppm`, apart from the size. Never trained by us beyond tests.
    """

    name: ClassVar[str] = "gps-ppm-20m"

    size: Literal["ppm-small", "ppm"] = "ppm"


_COMMON = "group outcomes; a fixed embedding of each prompt's text"
_PAPER = "GPS, arXiv 2602.01970, reconstructed: text and code could not be read"

ENTRIES = {
    "gps": Entry(
        factory=Gps,
        summary="A regression on embeddings predicts all pass rates; asks for prompts near 1/2 and unlike each other.",
        signal=_COMMON,
        keeps="16 bytes, and 4 bytes per number of the embedding in memory",
        extra_rollouts="none",
        cost="one pass over the pool's embeddings, and a greedy choice",
        when="large pools in which most prompts are met once or twice, and texts that tell something of difficulty",
        paper=_PAPER,
    ),
    "gps-ppm": Entry(
        factory=GpsPpm,
        summary="As gps, with a small Transformer that reads the last batch; no counts of single prompts.",
        signal=_COMMON,
        keeps="nothing, and 4 bytes per number of the embedding in memory",
        extra_rollouts="none",
        cost="five gradient steps on 0.53 M weights and ten decodings of the pool, in torch",
        when="to run GPS as near to its paper as is known",
        paper=_PAPER,
    ),
    "gps-ppm-20m": Entry(
        factory=Gps20m,
        summary="As gps-ppm, with 20 M weights, the size that the paper reports.",
        signal=_COMMON,
        keeps="as gps-ppm",
        extra_rollouts="none",
        cost="as gps-ppm with 20 M weights, and 240 MB of state; give it a GPU (device='cuda')",
        when="to compare sizes",
        paper=_PAPER,
    ),
}
