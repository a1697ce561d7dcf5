"""Means over the tokens of given sequences under a model: the machinery that prompt entropy and perplexity share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from edgewise.errors import ConfigError, SignalError
from edgewise.signals.forward import Blocks, Cost, PaddingSide, hidden_states, micro_batches, token_arrays, undisturbed
from edgewise.signals.head import LogitTransform, OutputHead, Parts, find_parts
from edgewise.signals.self_check import SelfCheck, self_check
from edgewise.types import Floats, Ints


class TokenMeans(ABC):
    """Mean over chosen tokens of sequences of a number that the model's prediction of each token gives.

    The model is used as it is at the time of the call: current weights, active adapters, an ambient `torch.autocast`. It is
    evaluated without gradients or dropout, and its training flags and torch's random state are left as they were.

    Args:
        model: a Hugging Face causal language model, possibly wrapped by PEFT, DDP, Accelerate, torch.compile or patched by TRL.
        temperature: the logits are divided by it; > 0.
        tokens_per_forward: padded tokens sent through the decoder at once.
        rows: hidden states sent through the head at once; None for 1,024 (8,192 on an accelerator).
        tile: logits of a row held at once; None for 1,024 (2,048 on an accelerator).
        transform: what the model does to its logits after the head; None reads it from the model's config.
        padding_side: where shorter sequences of a forward are padded. Like the batching, it changes no value beyond the
            rounding of the model's own forward: 1e-6 nats with float32 weights; some 1e-3 with 16-bit weights, whose
            hidden states depend on the shape of the batch.
        check: compare with the model's own logits at first use, and refuse a model whose logits we do not reproduce.
        measure_memory: on CUDA, measure the peak (resets torch's peak-memory statistic) instead of counting it.
    """

    serves: ClassVar[str]
    """The signal's class that users know, for error messages."""

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        tokens_per_forward: int = 8192,
        rows: int | None = None,
        tile: int | None = None,
        transform: LogitTransform | None = None,
        padding_side: PaddingSide = "right",
        check: bool = True,
        measure_memory: bool = False,
    ) -> None:
        owner = type(self).__name__
        if not (temperature > 0 and np.isfinite(temperature)):
            raise ConfigError(f"{owner}(temperature=...) must be finite and > 0, got {temperature}.")
        for name, value in (("tokens_per_forward", tokens_per_forward), ("rows", rows), ("tile", tile)):
            if value is not None and value < 1:
                raise ConfigError(f"{owner}({name}=...) must be >= 1, got {value}. Leave it out for the default.")
        if padding_side not in ("right", "left"):
            raise ConfigError(f"{owner}(padding_side=...) must be 'right' or 'left', got {padding_side!r}.")
        find_parts(model, transform, owner=self.serves)  # refuse here what cannot work, before a run starts
        self._model = model
        self.temperature = temperature
        """What the logits are divided by."""
        self._tokens_per_forward, self._rows, self._tile = tokens_per_forward, rows, tile
        self._transform = transform
        self._padding_side: PaddingSide = padding_side
        self._check = check
        self._measure_memory = measure_memory
        self.last_cost: Cost | None = None
        """Cost of the last call that returned; the self-check of the first call is included in its seconds."""
        self.last_check: SelfCheck | None = None
        """What the self-check found; None before first use."""

    @abstractmethod
    def per_token(self, hidden: Tensor, targets: Ints, head: OutputHead, blocks: Blocks) -> Tensor:
        """The number of each predicted token.

        Args:
            hidden: (T, d) hidden states from which the tokens are predicted.
            targets: (T,) the tokens that really follow.
            head: the model's output head.
            blocks: how many logits may be held at once.

        Returns:
            (T,) float32.
        """

    def mean_over(self, sequences: Sequence[Any], start: npt.ArrayLike, stop: npt.ArrayLike) -> Floats:
        """Mean over the predictions of tokens start..stop-1 of each sequence, each made from all tokens before it.

        Args:
            sequences: n flat sequences of token ids, without padding.
            start: (n,) or scalar, index of the first predicted token; at least 1, since token 0 has no context.
            stop: (n,) or scalar, one past the last predicted token; at most the sequence's length.

        Returns:
            (n,) the means; NaN where the span is empty.
        """
        begin = time.perf_counter()
        parts, arrays = self._opened(sequences)
        n = len(arrays)
        lengths = np.array([len(ids) for ids in arrays], dtype=np.int64)
        starts = np.broadcast_to(np.asarray(start, dtype=np.int64), (n,))
        stops = np.broadcast_to(np.asarray(stop, dtype=np.int64), (n,))
        if bool(np.any(starts < 1)) or bool(np.any(stops > lengths)):
            bad = int(np.flatnonzero((starts < 1) | (stops > lengths))[0])
            raise SignalError(
                f"{type(self).__name__}.mean_over: spans must lie in [1, length], got [{starts[bad]}, {stops[bad]}) for "
                f"sequence {bad} of {lengths[bad]} tokens. Token 0 has no context; a sequence must hold all tokens that are "
                "predicted."
            )
        return self._means(parts, arrays, [np.arange(a, b) for a, b in zip(starts, stops, strict=True)], begin)

    def mean_where(self, sequences: Sequence[Any], masks: Sequence[Any]) -> Floats:
        """The same over the tokens that a mask marks, which need not be neighbours.

        Args:
            sequences: n flat sequences of token ids, without padding.
            masks: n flat sequences of true and false, as long as their sequence. Token 0 has no context and never counts.

        Returns:
            (n,) the means; NaN where nothing is marked.
        """
        begin = time.perf_counter()
        parts, arrays = self._opened(sequences)
        if len(masks) != len(arrays):
            raise SignalError(f"{type(self).__name__}: one mask a sequence is needed, got {len(masks)} for {len(arrays)}.")
        positions = []
        for i, (ids, given) in enumerate(zip(arrays, masks, strict=True)):
            mask = np.asarray(given)
            if mask.shape != ids.shape or not np.isin(mask, (0, 1)).all():
                raise SignalError(
                    f"{type(self).__name__}: mask {i} must hold true or false for each of its {len(ids)} tokens, got shape "
                    f"{mask.shape} of {mask.dtype}. Build it from the tokenizer's offsets of the same text."
                )
            marked = np.flatnonzero(mask)
            positions.append(marked[marked > 0])
        return self._means(parts, arrays, positions, begin)

    def _opened(self, sequences: Sequence[Any]) -> tuple[Parts, list[Ints]]:
        parts = find_parts(self._model, self._transform, owner=self.serves)
        return parts, token_arrays(sequences, parts.model.get_input_embeddings().weight.shape[0], owner=type(self).__name__)

    def _means(self, parts: Parts, arrays: list[Ints], positions: list[Ints], begin: float) -> Floats:
        """(n,) means over the predictions of the tokens at `positions`, each sorted and >= 1."""
        values = np.full(len(arrays), np.nan)
        scored = [i for i, at in enumerate(positions) if len(at)]
        if scored:
            values[scored] = self._run(parts, [arrays[i] for i in scored], [positions[i] for i in scored], begin)
        else:
            self.last_cost = _no_cost(begin)
        return values

    def _run(self, parts: Parts, sequences: list[Ints], positions: list[Ints], begin: float) -> Floats:
        """The means of sequences of which at least one token counts; sets `last_cost`."""
        device = parts.model.get_input_embeddings().weight.device
        blocks = self._blocks(device)
        measured = self._measure_memory and device.type == "cuda"
        before = 0
        if measured:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        # A token is predicted from those before it, so the last one needed is the one before the last predicted.
        inputs = [ids[: at[-1]] for ids, at in zip(sequences, positions, strict=True)]
        lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
        batches = micro_batches(lengths, blocks.tokens)
        numbers, counted, padded = [], 0, 0
        with undisturbed(self._model):
            if self._check and self.last_check is None:
                longest = inputs[int(np.argmax(lengths))]
                self.last_check = self_check(parts, longest, rows=blocks.rows, tile=blocks.tile, owner=self.serves)
            for batch in batches:
                hidden, first = hidden_states(parts, [inputs[i] for i in batch], self._padding_side)
                padded += len(hidden)
                where = np.concatenate([first[k] + positions[i] - 1 for k, i in enumerate(batch)])
                targets = np.concatenate([sequences[i][positions[i]] for i in batch])
                wanted = hidden.index_select(0, torch.from_numpy(where).to(hidden.device))
                held = (hidden.numel() + wanted.numel()) * hidden.element_size()
                counted = max(counted, held + parts.head.block_bytes(blocks.rows, blocks.tile, wanted))
                del hidden
                numbers.append(self.per_token(wanted, targets, parts.head, blocks))
            flat = torch.cat(numbers).cpu().numpy().astype(np.float64)  # the only wait for the device
        order = np.concatenate(batches)
        counts = np.array([len(at) for at in positions], dtype=np.int64)[order]
        offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
        means = np.empty(len(inputs))
        means[order] = np.add.reduceat(flat, offsets) / counts
        self.last_cost = Cost(
            elapsed_s=time.perf_counter() - begin,
            prompts=len(inputs),
            tokens=int(lengths.sum()),
            padding_factor=padded / int(lengths.sum()),
            forwards=len(batches),
            peak_bytes=torch.cuda.max_memory_allocated(device) - before if measured else counted,
        )
        return means

    def _blocks(self, device: torch.device) -> Blocks:
        rows, tile = (1024, 1024) if device.type == "cpu" else (8192, 2048)
        return Blocks(tokens=self._tokens_per_forward, rows=self._rows or rows, tile=self._tile or tile)


def _no_cost(begin: float) -> Cost:
    return Cost(elapsed_s=time.perf_counter() - begin, prompts=0, tokens=0, padding_factor=1.0, forwards=0, peak_bytes=0)
