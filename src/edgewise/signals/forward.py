"""Numbers of the tokens of given sequences under a model: batching, forward, cost. Leaves no trace in the model."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import SignalError
from edgewise.signals.head import OutputHead, Parts
from edgewise.signals.online_entropy import entropy_of_tiles, surprisal_of_tiles
from edgewise.types import Ints

PaddingSide = Literal["right", "left"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one call cost.

    elapsed_s: wall seconds, device work included.  prompts: sequences scored (too short ones are not).
    tokens: tokens sent through the decoder, padding not counted.  padding_factor: the same with padding, divided by `tokens`.
    forwards: micro-batches.  peak_bytes: with `measure_memory=True` on CUDA, the allocator's peak above what was allocated
    before the call; otherwise *counted*, not measured: hidden states of the largest micro-batch plus the temporaries of one
    head block (activations inside the decoder are not in it).
    """

    elapsed_s: float
    prompts: int
    tokens: int
    padding_factor: float
    forwards: int
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """How much is held at once: `tokens` padded tokens a forward; `rows` x `tile` logits in the head."""

    tokens: int
    rows: int
    tile: int


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate `model` inside, without gradients; every module's training flag is as before afterwards, also on exceptions.

    Flags are set one by one: a partly frozen model comes back as it was, and no `train()` override runs. `no_grad` rather than
    `inference_mode`: what a model makes in this forward and keeps (a buffer, a cached mask) must be fit for the next backward.
    An ambient autocast stays on, but without its weight cache: before pytorch#165068 a weight cast here, without a gradient,
    was reused by training inside the same autocast block.
    """
    flags = [(module, module.training) for module in model.modules()]
    cache = torch.is_autocast_cache_enabled()
    try:
        for module, _ in flags:
            module.training = False
        torch.set_autocast_cache_enabled(False)
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)
        for module, training in flags:
            module.training = training


def micro_batches(lengths: Ints, tokens: int) -> list[Ints]:
    """Positions of `lengths`, longest first, cut so that count x longest <= `tokens`; one longer sequence goes alone.

    >>> [batch.tolist() for batch in micro_batches(np.array([3, 9, 2, 4]), 8)]
    [[1], [3, 0], [2]]
    """
    order = np.argsort(-lengths, kind="stable")
    batches: list[Ints] = []
    start = 0
    while start < len(order):
        count = max(1, tokens // int(lengths[order[start]]))
        batches.append(order[start : start + count].astype(np.int64))
        start += count
    return batches


def hidden_states(parts: Parts, sequences: Sequence[Ints], padding_side: PaddingSide) -> tuple[Tensor, Ints]:
    """One forward of the decoder: (B * width, d) hidden states after the final norm, and (B,) each sequence's first row."""
    width = max(len(ids) for ids in sequences)
    ids = np.zeros((len(sequences), width), dtype=np.int64)
    mask, positions = np.zeros_like(ids), np.zeros_like(ids)
    first = np.zeros(len(sequences), dtype=np.int64)
    for i, sequence in enumerate(sequences):
        offset = width - len(sequence) if padding_side == "left" else 0
        place = slice(offset, offset + len(sequence))
        ids[i, place], mask[i, place], positions[i, place] = sequence, 1, np.arange(len(sequence))
        first[i] = i * width + offset
    device = parts.model.get_input_embeddings().weight.device
    inputs: dict[str, Any] = {
        name: torch.from_numpy(array).to(device)
        for name, array in (("input_ids", ids), ("attention_mask", mask), ("position_ids", positions))
    }
    inputs["use_cache"] = False
    accepted = inspect.signature(parts.decoder.forward).parameters  # Bloom, MPT: no position_ids; state-space models: neither
    outputs = parts.decoder(**{name: value for name, value in inputs.items() if name in accepted})
    hidden = outputs.last_hidden_state if hasattr(outputs, "last_hidden_state") else outputs[0]
    return hidden.reshape(-1, hidden.shape[-1]), first


def head_entropies(hidden: Tensor, head: OutputHead, *, temperature: float, rows: int, tile: int) -> Tensor:
    """Entropy in nats of softmax(logits / temperature) for each row of `hidden` (T, d). Returns (T,) float32.

    Exact, in blocks of `rows` x `tile` logits: the memory does not grow with T or with the vocabulary.
    """
    if head.weight is not None:
        hidden = hidden.to(head.weight.device)
    rows = head.rows_at_once(rows, tile)
    parts = []
    for start in range(0, len(hidden), rows):
        tiles = head.tiles(hidden[start : start + rows], tile)
        parts.append(entropy_of_tiles(z if temperature == 1.0 else z.div_(temperature) for z in tiles))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def head_surprisals(hidden: Tensor, targets: Ints, head: OutputHead, *, temperature: float, rows: int, tile: int) -> Tensor:
    """-ln softmax(logits / temperature)[target] in nats for each row of `hidden` (T, d). Returns (T,) float32.

    Exact and in blocks, like `head_entropies`. targets: (T,) token ids.
    """
    if head.weight is not None:
        hidden = hidden.to(head.weight.device)
    wanted = torch.from_numpy(targets).to(hidden.device)
    rows = head.rows_at_once(rows, tile)
    parts = []
    for start in range(0, len(hidden), rows):
        tiles = head.tiles(hidden[start : start + rows], tile)
        scaled = (z if temperature == 1.0 else z.div_(temperature) for z in tiles)
        parts.append(surprisal_of_tiles(scaled, wanted[start : start + rows]))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def token_arrays(sequences: Sequence[Any], vocabulary: int, *, owner: str = "TokenEntropy") -> list[Ints]:
    """The sequences as flat arrays. Refuses token ids outside the embedding, which would end a GPU process's CUDA context."""
    arrays = []
    for i, sequence in enumerate(sequences):
        ids = np.asarray(sequence)
        if ids.ndim != 1 or (len(ids) and not (ids.dtype.kind in "iu" and ids.min() >= 0 and ids.max() < vocabulary)):
            raise SignalError(
                f"{owner}: sequence {i} must be a flat list of token ids in [0, {vocabulary}), got shape {ids.shape} of "
                f"{ids.dtype}"
                + (f" with values from {ids.min()} to {ids.max()}" if ids.dtype.kind in "iuf" and ids.size else "")
                + ". Tokenize with the tokenizer that belongs to this model, and pass ids without padding."
            )
        arrays.append(ids.astype(np.int64))
    return arrays
