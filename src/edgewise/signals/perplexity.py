"""Prompt perplexity (PREPO): how surprising the prompt's own tokens are to the policy, exact over the full vocabulary.

    PPL(x) = exp( -1/(L-1) * sum over l = 2..L of ln p(x_l | x_<l) )        >= 1

Position 1 has no context. PREPO, arXiv 2511.00794 (as reported; no public code) writes 1/|x| before the sum; the first token
has no probability without a context, so the mean here is over the tokens that have one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgewise.signals.forward import Blocks, Cost, head_surprisals
from edgewise.signals.head import OutputHead
from edgewise.signals.token_means import TokenMeans
from edgewise.types import Floats, Ints


class TokenSurprisal(TokenMeans):
    """Mean surprisal -ln p of the tokens of sequences, in nats, under one model. All options are those of `TokenMeans`."""

    serves = "PromptPerplexity"

    def per_token(self, hidden: Tensor, targets: Ints, head: OutputHead, blocks: Blocks) -> Tensor:
        """(T,) surprisals of `targets` (T,) as predicted from `hidden` (T, d), nats."""
        return head_surprisals(hidden, targets, head, temperature=self.temperature, rows=blocks.rows, tile=blocks.tile)


class PromptPerplexity:
    """exp of the mean surprisal of a prompt's tokens: the signal `prompt_perplexity`.

    Perplexity follows language and length as well as difficulty, and a chat template that all prompts share pulls all values
    together: score the question alone by masking the rest.

    Args:
        model: see `TokenMeans`, which takes all options not named here.
        temperature: 1.0, as in the paper.
        **options: passed to `TokenSurprisal`, which takes those of `TokenMeans`.
    """

    def __init__(self, model: nn.Module, *, temperature: float = 1.0, **options: Any) -> None:
        self.tokens = TokenSurprisal(model, temperature=temperature, **options)
        """The machinery."""

    @property
    def last_cost(self) -> Cost | None:
        """Cost of the last call; None before the first."""
        return self.tokens.last_cost

    def __call__(self, prompt_ids: Sequence[Any], *, masks: Sequence[Any] | None = None) -> Floats:
        """The perplexity of each prompt.

        Args:
            prompt_ids: n prompts as flat sequences of token ids, rendered and truncated as for the rollouts, without padding.
            masks: n flat sequences of true and false, as long as their prompt: the tokens that count, such as the question
                without the chat template. They are still predicted from all tokens before them. None: all.

        Returns:
            (n,) >= 1. NaN where nothing can be averaged: fewer than two tokens, or no marked token after the first. +inf
            where a token is impossible or the mean surprisal is beyond exp's range.
        """
        with np.errstate(over="ignore"):
            return np.exp(self.surprisal(prompt_ids, masks=masks))

    def surprisal(self, prompt_ids: Sequence[Any], *, masks: Sequence[Any] | None = None) -> Floats:
        """(n,) mean surprisals in nats, the logarithms of the perplexities; NaN as there."""
        if masks is not None:
            return self.tokens.mean_where(prompt_ids, masks)
        lengths = np.array([len(ids) for ids in prompt_ids], dtype=np.int64)
        return self.tokens.mean_over(prompt_ids, 1, lengths)


def span_masks(prompt_ids: Sequence[Any], start: Sequence[int], stop: Sequence[int]) -> list[np.ndarray]:
    """Masks that mark tokens start..stop-1 of each prompt, for `PromptPerplexity`.

    >>> span_masks([[5, 6, 7, 8]], [1], [3])[0].tolist()
    [False, True, True, False]
    """
    masks = []
    for ids, first, end in zip(prompt_ids, start, stop, strict=True):
        at = np.arange(len(ids))
        masks.append((at >= first) & (at < end))
    return masks
