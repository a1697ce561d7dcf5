"""Does our way to the entropy agree with the model's own logits? Asked once, on a few rows, before a value is used."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgewise.errors import SignalError
from edgewise.signals.forward import head_entropies, hidden_states
from edgewise.signals.head import Parts
from edgewise.types import Ints

ROWS = 64
TOLERANCE = 2e-3
"""Largest allowed |mean error| in nats over the checked rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfCheck:
    """rows: rows compared.  mean_error: ours minus the model's own, nats.  rounded_error: the same after rounding our logits
    as a 16-bit model rounds its own (equal to `mean_error` in float32); the smaller of the two has to pass."""

    rows: int
    mean_error: float
    rounded_error: float


def self_check(parts: Parts, ids: Ints, *, rows: int, tile: int, owner: str = "PromptEntropy") -> SelfCheck:
    """Compare on the first at most 64 tokens of one prompt. Raises SignalError if |mean error| > 2e-3 nats.

    The reference is the float64 entropy of the logits that the model class's own forward gives: without what a trainer has
    patched onto the instance (TRL's fused head, Accelerate's autocast), with PEFT's adapters, which live in the modules.

    owner: the class that asks, for the messages.
    """
    ids = ids[:ROWS]
    device = parts.model.get_input_embeddings().weight.device
    batch = torch.from_numpy(ids)[None].to(device)
    outputs = type(parts.model).forward(parts.model, input_ids=batch, attention_mask=torch.ones_like(batch), use_cache=False)
    own: Tensor = (outputs.logits if hasattr(outputs, "logits") else outputs[0])[0]
    hidden, _ = hidden_states(parts, [ids], "right")
    head = parts.head
    if own.shape != (len(ids), head.vocabulary):
        raise SignalError(
            f"{owner}(model={type(parts.model).__name__}): the self-check expected logits of shape "
            f"{(len(ids), head.vocabulary)}, the model's own forward gave {tuple(own.shape)}. Its head is not the one found "
            "here. Pass transform=LogitTransform(vocabulary=...) if the model cuts its logits, or use a method that needs no "
            "such signal, for example 'greso'."
        )
    expected = _exact(own)
    ours = head_entropies(hidden, head, temperature=1.0, rows=rows, tile=tile).to(expected.device)
    mean_error = float((ours.double() - expected).mean())
    rounded_error = mean_error
    low = own.dtype if own.element_size() < 4 else None if head.weight is None else head.weight.dtype
    if head.weight is not None and low is not None and low.itemsize < 4:
        raw = type(head).of_weight(head.weight, head.bias)
        logits = torch.cat([z.to(low) for z in raw.tiles(hidden, tile)], dim=1)[:, : head.vocabulary]
        rounded_error = float((_exact(head.transform.apply_(logits)) - expected).mean())
    check = SelfCheck(rows=len(ids), mean_error=mean_error, rounded_error=rounded_error)
    if not min(abs(mean_error), abs(rounded_error)) <= TOLERANCE:  # also refuses NaN
        raise SignalError(
            f"{owner}(model={type(parts.model).__name__}): the self-check failed. Over {check.rows} rows our entropy "
            f"differs from that of the model's own logits by {mean_error:+.4f} nats on average; |mean error| <= {TOLERANCE} is "
            f"required. Most likely this model transforms its logits in a way not known here (assumed: {head.transform}). Pass "
            "transform=LogitTransform(multiply=..., divide=..., soft_cap=...) with what its forward does after the output "
            "head, or use a method that needs no such signal, for example 'greso'."
        )
    return check


def _exact(logits: Tensor) -> Tensor:
    """(rows,) float64 entropies of softmax(logits), eight rows at a time."""
    values = []
    for start in range(0, len(logits), 8):
        log_p = logits[start : start + 8].double().log_softmax(dim=-1)
        p = log_p.exp()
        values.append(-(p * log_p.masked_fill(p == 0, 0.0)).sum(dim=-1))
    return torch.cat(values)
