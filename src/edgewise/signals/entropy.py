"""Prompt entropy V(x) (HIVE, stage 2) and response entropy (HIVE, lambda < 1), exact and over the full vocabulary.

    V(x) = 1/(L-1) * sum over l = 2..L of H(p(. | x_<l))        nats

Position 1 has no context, and the distribution after the last prompt token (it predicts the first response token) is not used.
Both entropies are one thing, the mean of token entropies over a span of predicted tokens; `TokenEntropy` computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from edgewise.errors import ConfigError, SignalError
from edgewise.signals.forward import Blocks, Cost, head_entropies
from edgewise.signals.head import OutputHead
from edgewise.signals.token_means import TokenMeans
from edgewise.types import Floats, Ints

Span = Literal["all", "content"]


class TokenEntropy(TokenMeans):
    """Mean token entropy over spans of sequences, in nats, under one model. All options are those of `TokenMeans`."""

    serves = "PromptEntropy"

    def per_token(self, hidden: Tensor, targets: Ints, head: OutputHead, blocks: Blocks) -> Tensor:
        """(T,) entropies of the distributions at `hidden` (T, d), nats; which token followed does not matter."""
        del targets
        return head_entropies(hidden, head, temperature=self.temperature, rows=blocks.rows, tile=blocks.tile)


class PromptEntropy:
    """V(x), the mean full-vocabulary token entropy over a prompt, in nats (HIVE, stage 2).

    Args:
        model: see `TokenMeans`, which takes all options not named here.
        temperature: 1.0, as in the paper; or the temperature of the rollouts.
        span: "all" is the paper's V. "content" leaves out the distributions whose context lies inside the prefix that all
            prompts share (system prompt, chat header): they are the same constant for every prompt and pull the V of short
            questions towards it. This changes V and its ranking: an option, never a silent saving.
        shared_prefix: for span="content", how many leading tokens all prompts share; see `shared_prefix_length`.
        **options: passed to `TokenEntropy`, which takes those of `TokenMeans`.
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
