"""What needs torch: signals about prompts and rollouts, measured on the policy itself.

entropy = PromptEntropy(model)                        # any Hugging Face causal language model
values = entropy(prompt_ids)                          # (n,) nats, NaN for prompts of fewer than two tokens
entropy.last_cost                                     # seconds, tokens, padding, memory of that call
response_entropy(entropy.tokens, prompt_ids, completion_ids)     # (n,) nats, one a rollout: HIVE with lambda < 1, PREPO, DEPO
PromptPerplexity(model)(prompt_ids)                   # (n,) >= 1, for PREPO
"""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:  # pragma: no cover - exercised only where torch is absent
    raise ModuleNotFoundError(
        "edgewise.signals measures the policy with torch, which is not installed. Install it with: pip install 'edgewise[trl]'",
        name="torch",
    ) from error

from edgewise.signals.entropy import PromptEntropy, TokenEntropy, response_entropy, shared_prefix_length
from edgewise.signals.forward import Cost
from edgewise.signals.head import LogitTransform
from edgewise.signals.perplexity import PromptPerplexity, TokenSurprisal, span_masks

__all__ = [
    "Cost", "LogitTransform", "PromptEntropy", "PromptPerplexity", "TokenEntropy", "TokenSurprisal", "response_entropy",
    "shared_prefix_length", "span_masks",
]  # fmt: skip
