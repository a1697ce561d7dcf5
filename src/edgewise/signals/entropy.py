"""Prompt entropy V(x) (HIVE, stage 2) and response entropy (HIVE, lambda < 1), exact and over the full vocabulary.

    V(x) = 1/(L-1) * sum over l = 2..L of H(p(. | x_<l))        nats

Position 1 has no context, and the distribution after the last prompt token (it predicts the first response token) is not used.
Both entropies are one thing, the mean of token entropies over a span of predicted tokens; `TokenEntropy` computes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from edgewise.errors import ConfigError, SignalError
from edgewise.signals.forward import (
    Blocks,
    Cost,
    PaddingSide,
    head_entropies,
    hidden_states,
    micro_batches,
    token_arrays,
    undisturbed,
)
from edgewise.signals.head import LogitTransform, Parts, find_parts
from edgewise.signals.self_check import SelfCheck, self_check
from edgewise.types import Floats, Ints

Span = Literal["all", "content"]


class TokenEntropy:
    """Mean token entropy over spans of sequences, under one model.

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
        if not (temperature > 0 and np.isfinite(temperature)):
            raise ConfigError(f"TokenEntropy(temperature=...) must be finite and > 0, got {temperature}.")
        for name, value in (("tokens_per_forward", tokens_per_forward), ("rows", rows), ("tile", tile)):
            if value is not None and value < 1:
                raise ConfigError(f"TokenEntropy({name}=...) must be >= 1, got {value}. Leave it out for the default.")
        if padding_side not in ("right", "left"):
            raise ConfigError(f"TokenEntropy(padding_side=...) must be 'right' or 'left', got {padding_side!r}.")
        find_parts(model, transform)  # refuse here what cannot work, before a run starts
        self._model = model
        self._temperature = temperature
        self._tokens_per_forward, self._rows, self._tile = tokens_per_forward, rows, tile
        self._transform = transform
        self._padding_side: PaddingSide = padding_side
        self._check = check
        self._measure_memory = measure_memory
        self.last_cost: Cost | None = None
        """Cost of the last call that returned; the self-check of the first call is included in its seconds."""
        self.last_check: SelfCheck | None = None
        """What the self-check found; None before first use."""

    def mean_over(self, sequences: Sequence[Any], start: npt.ArrayLike, stop: npt.ArrayLike) -> Floats:
        """Mean entropy of the distributions that predict tokens start..stop-1 of each sequence, each from all tokens before it.

        Args:
            sequences: n flat sequences of token ids, without padding.
            start: (n,) or scalar, index of the first predicted token; at least 1, since token 0 has no context.
            stop: (n,) or scalar, one past the last predicted token; at most the sequence's length.

        Returns:
            (n,) nats; NaN where the span is empty.
        """
        begin = time.perf_counter()
        parts = find_parts(self._model, self._transform)
        arrays = token_arrays(sequences, parts.model.get_input_embeddings().weight.shape[0])
        n = len(arrays)
        lengths = np.array([len(ids) for ids in arrays], dtype=np.int64)
        starts = np.broadcast_to(np.asarray(start, dtype=np.int64), (n,))
        stops = np.broadcast_to(np.asarray(stop, dtype=np.int64), (n,))
        if bool(np.any(starts < 1)) or bool(np.any(stops > lengths)):
            bad = int(np.flatnonzero((starts < 1) | (stops > lengths))[0])
            raise SignalError(
                f"TokenEntropy.mean_over: spans must lie in [1, length], got [{starts[bad]}, {stops[bad]}) for sequence {bad} "
                f"of {lengths[bad]} tokens. Token 0 has no context; a sequence must hold all tokens that are predicted."
            )
        values = np.full(n, np.nan)
        scored = np.flatnonzero(stops > starts)
        # A token is predicted from those before it, so the last one needed is the one before `stop`.
        inputs = [arrays[i][: stops[i] - 1] for i in scored]
        cost = self._run(parts, inputs, scored, starts, values, begin) if len(scored) else _no_cost(begin)
        self.last_cost = cost
        return values

    def _run(self, parts: Parts, inputs: list[Ints], scored: Ints, starts: Ints, values: Floats, begin: float) -> Cost:
        device = parts.model.get_input_embeddings().weight.device
        blocks = self._blocks(device)
        measured = self._measure_memory and device.type == "cuda"
        before = 0
        if measured:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        lengths = np.array([len(ids) for ids in inputs], dtype=np.int64)
        batches = micro_batches(lengths, blocks.tokens)
        entropies, counted, padded = [], 0, 0
        with undisturbed(self._model):
            if self._check and self.last_check is None:
                longest = inputs[int(np.argmax(lengths))]
                self.last_check = self_check(parts, longest, rows=blocks.rows, tile=blocks.tile)
            for batch in batches:
                hidden, first = hidden_states(parts, [inputs[i] for i in batch], self._padding_side)
                padded += len(hidden)
                where = np.concatenate(
                    [np.arange(first[k] + starts[scored[i]] - 1, first[k] + lengths[i]) for k, i in enumerate(batch)]
                )
                wanted = hidden.index_select(0, torch.from_numpy(where).to(hidden.device))
                held = (hidden.numel() + wanted.numel()) * hidden.element_size()
                counted = max(counted, held + parts.head.block_bytes(blocks.rows, blocks.tile, wanted))
                del hidden
                entropies.append(
                    head_entropies(wanted, parts.head, temperature=self._temperature, rows=blocks.rows, tile=blocks.tile)
                )
            flat = torch.cat(entropies).cpu().numpy().astype(np.float64)  # the only wait for the device
        order = np.concatenate(batches)
        counts = lengths[order] - starts[scored[order]] + 1
        offsets = np.concatenate(([0], np.cumsum(counts)[:-1]))
        values[scored[order]] = np.add.reduceat(flat, offsets) / counts
        return Cost(
            elapsed_s=time.perf_counter() - begin,
            prompts=len(inputs),
            tokens=int(lengths.sum()),
            padding_factor=padded / int(lengths.sum()),
            forwards=len(batches),
            peak_bytes=torch.cuda.max_memory_allocated(device) - before if measured else counted,
        )

    def _blocks(self, device: torch.device) -> Blocks:
        rows, tile = (1024, 1024) if device.type == "cpu" else (8192, 2048)
        return Blocks(tokens=self._tokens_per_forward, rows=self._rows or rows, tile=self._tile or tile)


def _no_cost(begin: float) -> Cost:
    return Cost(elapsed_s=time.perf_counter() - begin, prompts=0, tokens=0, padding_factor=1.0, forwards=0, peak_bytes=0)


class PromptEntropy:
    """V(x), the mean full-vocabulary token entropy over a prompt, in nats (HIVE, stage 2).

    Args:
        model: see `TokenEntropy`, which takes all options not named here.
        temperature: 1.0, as in the paper; or the temperature of the rollouts.
        span: "all" is the paper's V. "content" leaves out the distributions whose context lies inside the prefix that all
            prompts share (system prompt, chat header): they are the same constant for every prompt and pull the V of short
            questions towards it. This changes V and its ranking: an option, never a silent saving.
        shared_prefix: for span="content", how many leading tokens all prompts share; see `shared_prefix_length`.
        **options: passed to `TokenEntropy`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        span: Span = "all",
        shared_prefix: int | None = None,
        **options: Any,
    ) -> None:
        if span not in ("all", "content"):
            raise ConfigError(f"PromptEntropy(span=...) must be 'all' or 'content', got {span!r}.")
        if (span == "content") != (shared_prefix is not None) or (shared_prefix or 0) < 0:
            raise ConfigError(
                f"PromptEntropy(span={span!r}, shared_prefix={shared_prefix}): 'content' needs shared_prefix >= 0, the number "
                "of leading tokens that all prompts share (shared_prefix_length(prompt_ids) computes it); 'all' takes none."
            )
        self.tokens = TokenEntropy(model, temperature=temperature, **options)
        """The machinery, shared with `response_entropy`."""
        self._shared_prefix = shared_prefix or 0

    @property
    def last_cost(self) -> Cost | None:
        """Cost of the last call; None before the first."""
        return self.tokens.last_cost

    def __call__(self, prompt_ids: Sequence[Any]) -> Floats:
        """V of each prompt.

        Args:
            prompt_ids: n prompts as flat sequences of token ids, rendered and truncated as for the rollouts, without padding.

        Returns:
            (n,) nats. NaN where nothing can be averaged: fewer than two tokens, or with span="content" fewer than two tokens
            after the shared prefix.
        """
        lengths = np.array([len(ids) for ids in prompt_ids], dtype=np.int64)
        prefix = self._shared_prefix
        if prefix and len(prompt_ids):
            common = shared_prefix_length(prompt_ids)
            if common < prefix:
                raise SignalError(
                    f"PromptEntropy(span='content', shared_prefix={prefix}): these prompts share only {common} "
                    "leading tokens. Compute the prefix over the whole data set with shared_prefix_length(prompt_ids), and do "
                    "not truncate prompts on the left."
                )
        return self.tokens.mean_over(prompt_ids, prefix + 1, lengths)


def response_entropy(tokens: TokenEntropy, prompt_ids: Sequence[Any], completion_ids: Sequence[Any]) -> Floats:
    """Mean token entropy over each rollout's response, in nats: (1/L) sum over l of H(p(. | x, o_<l)) (HIVE, lambda < 1).

    The rollout entropy of a group is the mean of these values over its rollouts.

    Args:
        tokens: the machinery; `PromptEntropy(...).tokens`, or a `TokenEntropy` with a temperature of its own.
        prompt_ids: n prompts, one per rollout (repeated inside a group), flat and without padding; at least one token each.
        completion_ids: n responses, without padding.

    Returns:
        (n,) nats; NaN for an empty response.
    """
    if len(prompt_ids) != len(completion_ids):
        raise SignalError(
            f"response_entropy: one prompt per completion is needed, got {len(prompt_ids)} prompts and {len(completion_ids)} "
            "completions. Repeat a group's prompt once per rollout."
        )
    prompts = [np.asarray(ids, dtype=np.int64) for ids in prompt_ids]
    sequences = [np.concatenate([p, np.asarray(c, dtype=np.int64)]) for p, c in zip(prompts, completion_ids, strict=True)]
    starts = np.array([len(p) for p in prompts], dtype=np.int64)
    return tokens.mean_over(sequences, starts, np.array([len(s) for s in sequences], dtype=np.int64))


def shared_prefix_length(prompt_ids: Sequence[Any]) -> int:
    """How many leading tokens all prompts have in common. Give it the whole data set, rendered as for the rollouts.

    >>> shared_prefix_length([[7, 7, 1, 2], [7, 7, 3], [7, 7, 1]])
    2
    """
    arrays = [np.asarray(ids, dtype=np.int64) for ids in prompt_ids]
    if not arrays:
        return 0
    prefix = arrays[0]
    for ids in arrays[1:]:
        length = min(len(prefix), len(ids))
        differs = np.flatnonzero(prefix[:length] != ids[:length])
        prefix = prefix[: int(differs[0]) if len(differs) else length]
    return len(prefix)
