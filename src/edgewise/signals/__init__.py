"""Signals about prompts and rollouts: measured on the policy itself, with torch; and embeddings, which need none.

entropy = PromptEntropy(model)                        # any Hugging Face causal language model
values = entropy(prompt_ids)                          # (n,) nats, NaN for prompts of fewer than two tokens
entropy.last_cost                                     # seconds, tokens, padding, memory of that call
response_entropy(entropy.tokens, prompt_ids, completion_ids)     # (n,) nats, one a rollout: HIVE with lambda < 1, PREPO, DEPO
PromptPerplexity(model)(prompt_ids)                   # (n,) >= 1, for PREPO
vectors = PromptEmbedding()(texts)                    # (n, 256), for GPS and PCL

Each name is imported when it is first used, so that `edgewise.signals.embedding` loads without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgewise.signals.embedding import PromptEmbedding, embedding_signal, prompt_texts
    from edgewise.signals.entropy import PromptEntropy, TokenEntropy, response_entropy, shared_prefix_length
    from edgewise.signals.forward import Cost
    from edgewise.signals.head import LogitTransform
    from edgewise.signals.hidden import HiddenAngles
    from edgewise.signals.perplexity import PromptPerplexity, TokenSurprisal, span_masks

__all__ = [
    "Cost", "HiddenAngles", "LogitTransform", "PromptEmbedding", "PromptEntropy", "PromptPerplexity", "TokenEntropy",
    "TokenSurprisal", "embedding_signal", "prompt_texts", "response_entropy", "shared_prefix_length", "span_masks",
]  # fmt: skip

_HOME = {
    "Cost": "forward", "HiddenAngles": "hidden", "LogitTransform": "head", "PromptEmbedding": "embedding",
    "PromptEntropy": "entropy", "PromptPerplexity": "perplexity", "TokenEntropy": "entropy", "TokenSurprisal": "perplexity",
    "embedding_signal": "embedding", "prompt_texts": "embedding", "response_entropy": "entropy",
    "shared_prefix_length": "entropy", "span_masks": "perplexity",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"edgewise.signals.{name} measures the policy with torch, which is not installed. Install it with: "
            "pip install 'edgewise[trl]'",
            name="torch",
        ) from error
