"""From a wrapped language model to its decoder, its output head and what it does to its logits.

Hidden states come from the decoder and logits from the head, apart: trainers patch the model's own forward (TRL gives it a
fused head that returns log-probabilities), and that forward would hold all logits at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgewise.errors import SignalError

_MULTIPLIERS = ("logit_scale", "output_multiplier", "lm_head_multiplier")  # Cohere; Muse; Falcon-H1
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")  # Granite, MiniCPM3 (on the hidden state: the same); Inkling
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")  # Gemma ...; RecurrentGemma; xLSTM
_MODELS_THAT_MULTIPLY_BY_LOGITS_SCALING = ("hyperclovax",)
_MODELS_THAT_IGNORE_LOGIT_SCALE = ("mpt",)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitTransform:
    """What a model does between the output head and its logits: soft_cap * tanh(z * multiply / divide / soft_cap).

    vocabulary: only the first so many logits count, None for all (some heads are padded, and the model cuts them).
    """

    multiply: float = 1.0
    divide: float = 1.0
    soft_cap: float | None = None
    vocabulary: int | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """Transform `logits` in place, in the order of the model's own forward (so in 16 bits it rounds alike)."""
        if self.multiply != 1.0:
            logits.mul_(self.multiply)
        if self.divide != 1.0:
            logits.div_(self.divide)
        if self.soft_cap is not None:
            logits.div_(self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Read the transform from a Hugging Face `config`: scales and caps of the families known to transformers 5.

        A model with a transform of its own is caught by the self-check, which then asks for an explicit `LogitTransform`.
        """
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        kind = getattr(text, "model_type", "")
        multipliers = () if kind in _MODELS_THAT_IGNORE_LOGIT_SCALE else _MULTIPLIERS
        divisors: tuple[str, ...] = _DIVISORS
        if kind in _MODELS_THAT_MULTIPLY_BY_LOGITS_SCALING:
            multipliers, divisors = (*multipliers, "logits_scaling"), ()
        return cls(
            multiply=_first_number(text, multipliers) or 1.0,
            divide=_first_number(text, divisors) or 1.0,
            soft_cap=_first_number(text, _SOFT_CAPS),
            vocabulary=getattr(text, "unpadded_vocab_size", None),
        )


def _first_number(config: Any, names: tuple[str, ...]) -> float | None:
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if isinstance(value, int | float) and value), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputHead:
    """hidden states -> logits, tile by tile. Either plain weights, or a module called as a whole (quantized, LoRA on the head).

    weight: (V, d), and bias: (V,) or None; used when `weight` is given, so that a tile is a slice of it.
    module: maps (rows, d) to (rows, V) at once; used when the head is no plain linear layer.
    """

    weight: Tensor | None = None
    bias: Tensor | None = None
    module: nn.Module | None = None
    transform: LogitTransform = LogitTransform()
    size: int

    @property
    def vocabulary(self) -> int:
        """Number of logits that count."""
        limit = self.transform.vocabulary
        return self.size if limit is None else min(limit, self.size)

    @classmethod
    def of_weight(cls, weight: Tensor, bias: Tensor | None = None, transform: LogitTransform | None = None) -> OutputHead:
        """The head z = hidden @ weight.T + bias. weight: (V, d); bias: (V,)."""
        return cls(weight=weight, bias=bias, transform=transform or LogitTransform(), size=len(weight))

    @classmethod
    def of_module(cls, module: nn.Module, transform: LogitTransform, size: int) -> OutputHead:
        """The head of a model: by its weights if it is a plain linear layer, as a module otherwise."""
        weight = getattr(module, "weight", None)
        if type(module) is nn.Linear and isinstance(weight, Tensor) and weight.is_floating_point() and not weight.is_meta:
            return cls(weight=weight, bias=module.bias, transform=transform, size=len(weight))
        return cls(module=module, transform=transform, size=size)

    def rows_at_once(self, rows: int, tile: int) -> int:
        """How many rows to send through the head together so that a block holds about rows x tile logits."""
        return rows if self.weight is not None else max(1, min(rows, max(16, rows * tile // self.size)))

    def block_bytes(self, rows: int, tile: int, hidden: Tensor) -> int:
        """Bytes of the temporaries of one block: logits and their exponentials in float32, plus casts of the operands."""
        rows = min(self.rows_at_once(rows, tile), len(hidden))
        if self.weight is None:
            return rows * self.size * (4 + 4 + hidden.element_size())
        tile = min(tile, self.vocabulary)
        cast = 4 * hidden.shape[1] * (tile * (self.weight.element_size() < 4) + rows * (hidden.element_size() < 4))
        return rows * tile * 4 * 2 + cast

    def tiles(self, hidden: Tensor, tile: int) -> Iterator[Tensor]:
        """The logits of `hidden` (rows, d), as fresh float32 tiles of at most `tile` columns, transformed."""
        if self.weight is None:
            assert self.module is not None
            logits = self.module(hidden)[:, : self.vocabulary].float()
            for start in range(0, self.vocabulary, tile):
                yield self.transform.apply_(logits[:, start : start + tile].clone())
            return
        device = hidden.device.type
        low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            if low is not None:
                hidden = hidden.to(low)
            for start in range(0, self.vocabulary, tile):
                stop = min(start + tile, self.vocabulary)
                weight = self.weight[start:stop]
                z = _product(hidden, weight if low is None else weight.to(low))
                if self.bias is not None:
                    z.add_(self.bias[start:stop])
                yield self.transform.apply_(z)


def _product(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden @ weight.T accumulated and returned in float32. Shapes: (rows, d), (tile, d) -> (rows, tile)."""
    cuda = hidden.is_cuda and torch.version.hip is None  # the only backend whose 16-bit product returns its float32 sums
    if cuda and hidden.dtype == weight.dtype and hidden.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(hidden, weight.T, out_dtype=torch.float32)
    return hidden.float() @ weight.float().T


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """model: the causal language model without wrappers. decoder: everything below its head."""

    model: Any
    decoder: Any
    head: OutputHead


def find_parts(model: nn.Module, transform: LogitTransform | None = None, *, owner: str = "PromptEntropy") -> Parts:
    """Look through wrappers (DDP, torch.compile, PEFT; adapters stay active) and find decoder and head.

    Looked up anew at each call, because trainers and PEFT replace modules. Raises SignalError naming what is missing.

    owner: the class that asks, for the messages.
    """
    inner = _unwrap(model, owner)
    where = f"{owner}(model={type(inner).__name__})"
    config = getattr(inner, "config", None)
    if config is None or not hasattr(inner, "get_output_embeddings"):
        raise SignalError(
            f"{where}: a Hugging Face causal language model is needed (with `config` and `get_output_embeddings()`), "
            f"got {type(model).__module__}.{type(model).__qualname__}. Pass the model that `AutoModelForCausalLM` gave you."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise SignalError(f"{where}: the signal is defined for decoder-only models; this one is an encoder-decoder.")
    _refuse_sharded(inner, where)
    module = inner.get_output_embeddings()
    decoder = getattr(inner, "base_model", inner)  # what the model's own forward calls; not `get_decoder`, which may go deeper
    if decoder is inner and hasattr(inner, "get_decoder"):
        decoder = inner.get_decoder()
    if module is None or decoder is inner or not isinstance(decoder, nn.Module):
        raise SignalError(
            f"{where}: no decoder below an output head was found (head {type(module).__name__}, decoder "
            f"{type(decoder).__name__}). Pass a ...ForCausalLM model, not the bare decoder."
        )
    size = getattr(module, "out_features", None) or config.get_text_config().vocab_size
    transform = LogitTransform.of(config) if transform is None else transform
    return Parts(model=inner, decoder=decoder, head=OutputHead.of_module(module, transform, size))


def _unwrap(model: nn.Module, owner: str) -> Any:
    inner: Any = model
    while True:
        if isinstance(inner, nn.parallel.DistributedDataParallel | nn.DataParallel):
            inner = inner.module
        elif hasattr(inner, "_orig_mod"):  # torch.compile
            inner = inner._orig_mod
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            if any(getattr(config, "is_prompt_learning", False) for config in inner.peft_config.values()):
                raise SignalError(
                    f"{owner}(model={type(inner).__name__}): prompt-learning adapters (prefix or prompt tuning) add "
                    "virtual tokens, for which this signal is not defined. Use LoRA-like adapters, or a method that "
                    "needs no such signal, for example 'greso'."
                )
            inner = inner.get_base_model()
        else:
            return inner


def _refuse_sharded(model: nn.Module, where: str) -> None:
    names = (type(module).__name__ for module in model.modules())
    kind = "FSDP" if "FullyShardedDataParallel" in names else None
    for parameter in model.parameters():
        if hasattr(parameter, "full_tensor"):
            kind = "FSDP2 or tensor-parallel (DTensor)"
        elif hasattr(parameter, "ds_id"):
            kind = "DeepSpeed ZeRO-3"
        if kind:
            break
    if kind:
        raise SignalError(
            f"{where}: every rank must hold whole weights (one device, DDP, ZeRO-1 or ZeRO-2), but these are sharded by "
            f"{kind}. Use a method that needs no such signal, for example 'greso', or gather the model first."
        )
