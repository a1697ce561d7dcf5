"""Angles between the hidden states of a prompt's tokens (GAIN-RL): within the question, and between it and its prefix.

    u_i = h_i / |h_i|         h_i = the decoder's last hidden state of token i, after the final norm
    intra = mean of u_i · u_j over pairs i != j of question tokens
    inter = mean of u_i · u_j over question tokens i and tokens j of the prefix before them (system prompt, examples, template)

After GAIN-RL, arXiv 2506.02281; the paper's formulas could not be read. Its script takes the input of the last layer's MLP
instead of the last hidden state, a fixed prefix of 110 tokens instead of a mask, half of a symmetric block with zeros for the
rest, and slices rows twice where it means rows and columns: this is what it sets out to compute, not what it computes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgewise.errors import ConfigError, SignalError
from edgewise.signals.forward import PaddingSide, hidden_states, micro_batches, token_arrays, undisturbed
from edgewise.signals.head import find_parts
from edgewise.types import Bools, Floats


class HiddenAngles:
    """The signal `hidden_angles`, by one forward of the decoder; linear in the tokens, without a table of pairs.

    Args:
        model: a Hugging Face causal language model, as for `PromptEntropy`.
        tokens_per_forward: padded tokens sent through the decoder at once.
        padding_side: where shorter sequences of a forward are padded.
    """

    def __init__(self, model: nn.Module, *, tokens_per_forward: int = 8192, padding_side: PaddingSide = "right") -> None:
        if tokens_per_forward < 1:
            raise ConfigError(f"HiddenAngles(tokens_per_forward=...) must be >= 1, got {tokens_per_forward}.")
        find_parts(model, owner="HiddenAngles")
        self._model = model
        self._tokens_per_forward = tokens_per_forward
        self._padding_side: PaddingSide = padding_side

    def __call__(self, prompt_ids: Sequence[Any], masks: Sequence[Any]) -> Floats:
        """Both angles of each prompt.

        Args:
            prompt_ids: n prompts as flat sequences of token ids, rendered as for the rollouts, without padding.
            masks: n flat sequences of true and false, as long as their prompt: the tokens of the question. What stands before
                the first of them is the prefix; unmarked tokens after it count for nothing.

        Returns:
            (n, 2) intra and inter, cosines in [-1, 1]; NaN for an intra of fewer than two question tokens, and for an inter
            without question or prefix.
        """
        parts = find_parts(self._model, owner="HiddenAngles")
        arrays = token_arrays(prompt_ids, parts.model.get_input_embeddings().weight.shape[0], owner="HiddenAngles")
        marked = _checked(masks, [len(ids) for ids in arrays])
        angles = np.full((len(arrays), 2), np.nan)
        some = np.flatnonzero([mask.any() for mask in marked])
        inputs = [arrays[i] for i in some]
        with undisturbed(self._model):
            for batch in micro_batches(np.array([len(ids) for ids in inputs], dtype=np.int64), self._tokens_per_forward):
                hidden, first = hidden_states(parts, [inputs[k] for k in batch], self._padding_side)
                for start, k in zip(first.tolist(), batch.tolist(), strict=True):
                    states = hidden[start : start + len(inputs[k])]
                    angles[some[k]] = _angles(states, torch.from_numpy(marked[some[k]]).to(hidden.device))
        return angles


def _angles(states: Tensor, question: Tensor) -> tuple[float, float]:
    """(intra, inter) of hidden states (L, d). A sum over pairs of unit vectors is the product of their sums."""
    units = nn.functional.normalize(states.float(), dim=1).double()
    prefix = torch.arange(len(question), device=question.device) < question.int().argmax()
    asked, before = int(question.sum()), int(prefix.sum())
    total = units[question].sum(dim=0)
    intra = float((total @ total - (units[question] ** 2).sum()) / (asked * (asked - 1))) if asked > 1 else float("nan")
    inter = float(total @ units[prefix].sum(dim=0) / (asked * before)) if before else float("nan")
    return intra, inter


def _checked(masks: Sequence[Any], lengths: list[int]) -> list[Bools]:
    if len(masks) != len(lengths):
        raise SignalError(f"HiddenAngles: one mask a prompt is needed, got {len(masks)} for {len(lengths)}.")
    checked = []
    for i, (given, length) in enumerate(zip(masks, lengths, strict=True)):
        mask = np.asarray(given)
        if mask.shape != (length,) or not np.isin(mask, (0, 1)).all():
            raise SignalError(
                f"HiddenAngles: mask {i} must hold true or false for each of its {length} tokens, got shape {mask.shape} of "
                f"{mask.dtype}. Build it from the tokenizer's offsets of the same text."
            )
        checked.append(mask.astype(np.bool_))
    return checked
