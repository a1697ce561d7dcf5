"""Prompt perplexity: equal to the likelihood of the model's own logits, whatever the batching, padding or mask."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from edgewise.errors import ConfigError, SignalError
from edgewise.signals import PromptEntropy, PromptPerplexity, TokenSurprisal, response_entropy, span_masks
from edgewise.signals.online_entropy import surprisal_of_tiles
from tests.test_signals_entropy import Largest, bigram
from tests.test_signals_entropy import llama as llama_of
from tests.test_signals_models import FAMILIES, PROMPTS, llama, lora, sharpened


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def own(model: Any, ids: list[int], temperature: float = 1.0) -> np.ndarray:
    """(L-1,) surprisals of tokens 2..L from the model's own logits of this prompt alone, float64."""
    log_p = (model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double() / temperature).log_softmax(-1)
    return -log_p.gather(1, torch.tensor(ids[1:])[:, None])[:, 0].numpy()


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma2-soft-cap", "cohere", "granite", "gpt2-learned-positions", "mamba"]
)
def test_it_is_the_likelihood_of_the_models_own_logits(family: str) -> None:
    model = FAMILIES[family]()
    expected = [mean(own(model, ids)) for ids in PROMPTS]
    assert np.nanstd(expected) > 1e-2  # the prompts differ, so agreement means something
    perplexity = PromptPerplexity(model)
    np.testing.assert_allclose(perplexity.surprisal(PROMPTS), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(perplexity(PROMPTS), np.exp(expected), rtol=3e-5)
    warm = PromptPerplexity(model, temperature=0.7).surprisal(PROMPTS)
    np.testing.assert_allclose(warm, [mean(own(model, ids, 0.7)) for ids in PROMPTS], rtol=1e-5, atol=1e-5)


def test_batching_padding_and_blocks_change_nothing() -> None:
    model = llama()
    alone = np.concatenate([PromptPerplexity(model)([ids]) for ids in PROMPTS])
    for options in ({}, {"padding_side": "left"}, {"tokens_per_forward": 8}, {"rows": 3, "tile": 17}):
        np.testing.assert_allclose(PromptPerplexity(model, **options)(PROMPTS), alone, rtol=1e-5, err_msg=str(options))
    order = [3, 0, 5, 2, 1, 4]
    np.testing.assert_allclose(PromptPerplexity(model)([PROMPTS[i] for i in order]), alone[order], rtol=1e-5)


def test_golden_of_a_bigram_table() -> None:
    """p(1|0) = 1/4, p(0|1) = 1/2, p(2|0) = 1/4: ln 32 over 3; p(1|1) = 1/4 alone."""
    got = PromptPerplexity(bigram())([[0, 1, 0, 2], [1, 1]])
    np.testing.assert_allclose(got, [32 ** (1 / 3), 4.0], rtol=1e-6)


def test_a_mask_scores_only_what_it_marks_and_still_reads_all_before_it() -> None:
    model = llama()
    marks = [[0, 0, 1, 0, 1], [1, 1], [1], [0] * 11, [1, 0, 0], [0, 1, 1, 0]]
    expected = [mean(own(model, ids)[np.flatnonzero(mark[1:])]) if any(mark[1:]) else math.nan
                for ids, mark in zip(PROMPTS, marks, strict=True)]  # fmt: skip
    for options in ({}, {"tokens_per_forward": 8}, {"padding_side": "left", "rows": 2}):
        got = PromptPerplexity(model, **options).surprisal(PROMPTS, masks=marks)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    assert np.isnan(expected).tolist() == [False, False, True, True, True, False]


def test_a_full_mask_is_no_mask_and_spans_are_masks() -> None:
    perplexity = PromptPerplexity(llama())
    lengths = [len(ids) for ids in PROMPTS]
    np.testing.assert_array_equal(perplexity(PROMPTS, masks=[np.ones(n, dtype=bool) for n in lengths]), perplexity(PROMPTS))
    start, stop = [2, 0, 0, 4, 1, 3], [5, 2, 1, 9, 3, 3]
    by_span = perplexity.tokens.mean_over(PROMPTS, np.maximum(start, 1), stop)
    np.testing.assert_array_equal(perplexity.surprisal(PROMPTS, masks=span_masks(PROMPTS, start, stop)), by_span)


@pytest.mark.parametrize(("masks", "message"), [
    ([[1, 1]], "one mask a sequence is needed, got 1 for 2"),
    ([[1, 1], [1, 1]], r"mask 1 must hold true or false for each of its 3 tokens, got shape \(2,\)"),
    ([[1, 2], [1, 1, 1]], "mask 0 must hold true or false for each of its 2 tokens"),
], ids=["too few", "too short", "not a mask"])  # fmt: skip
def test_masks_that_do_not_fit_are_refused(masks: list[list[int]], message: str) -> None:
    with pytest.raises(SignalError, match=message):
        PromptPerplexity(bigram())([[0, 1], [0, 1, 2]], masks=masks)


def test_short_prompts_are_nan_and_cost_no_forward() -> None:
    model = llama()
    model.model.forward = None  # would fail if called
    perplexity = PromptPerplexity(model)
    assert np.isnan(perplexity([[], [3]])).all()
    assert perplexity([]).shape == (0,)
    assert perplexity.last_cost is not None
    assert perplexity.last_cost.forwards == 0


def test_an_impossible_token_is_infinitely_surprising() -> None:
    logits = torch.tensor([[0.0, -torch.inf, 0.0], [-torch.inf] * 3, [torch.nan, 0.0, 0.0], [1e4, 0.0, 0.0]])
    got = surprisal_of_tiles(logits.split(2, dim=1), torch.tensor([1, 0, 1, 2])).tolist()
    assert got[0] == math.inf
    assert math.isnan(got[1])
    assert math.isnan(got[2])
    assert got[3] == 1e4
    assert PromptPerplexity(bigram())([[1, 3]]).tolist() == [math.inf]  # surprisal 1e9: beyond exp


@pytest.mark.parametrize("width", [1, 7, 50, 101])
def test_tiles_of_any_width_give_the_exact_surprisal(width: int) -> None:
    torch.manual_seed(0)
    logits = 30 * torch.randn(64, 101) + 1000 * torch.randn(64, 1)
    targets = torch.randint(101, (64,))
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    got = surprisal_of_tiles(logits.clone().split(width, dim=1), targets)
    np.testing.assert_allclose(got.numpy(), exact.numpy(), rtol=1e-5, atol=5e-4)  # float32 logits near 3,000 resolve 2.4e-4


def test_full_logits_never_exist() -> None:
    perplexity = PromptPerplexity(llama_of(vocab_size=20_000), tokens_per_forward=128, rows=64, tile=256)
    perplexity([[1, 2, 3]])  # the self-check alone may hold 64 rows of logits
    with Largest() as seen:
        perplexity([[7] * 17] * 64)
    assert seen.numel == 64 * 256  # 128 x 20,000 logits would be 156 times as many


@pytest.mark.filterwarnings("ignore")
def test_adapters_count_and_the_training_state_is_left_alone() -> None:
    model = lora(llama()).train()
    before = torch.get_rng_state()
    got = PromptPerplexity(model).surprisal(PROMPTS)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_allclose(got, [mean(own(model.eval(), ids)) for ids in PROMPTS], rtol=1e-5, atol=1e-5)
    assert np.nanmax(np.abs(got - PromptPerplexity(llama()).surprisal(PROMPTS))) > 1e-2


def test_errors_name_the_perplexity() -> None:
    with pytest.raises(SignalError, match=r"PromptPerplexity\(model=Sharpened\): the self-check failed"):
        PromptPerplexity(sharpened())(PROMPTS)
    with pytest.raises(SignalError, match=r"PromptPerplexity\(model=Linear\): a Hugging Face causal language model"):
        PromptPerplexity(torch.nn.Linear(2, 2))
    with pytest.raises(SignalError, match=r"TokenSurprisal: sequence 0 must be a flat list of token ids in \[0, 4\)"):
        PromptPerplexity(bigram())([[0, 4]])
    with pytest.raises(ConfigError, match=r"TokenSurprisal\(temperature=...\) must be finite and > 0, got 0"):
        TokenSurprisal(bigram(), temperature=0)


def test_response_entropies_come_one_a_rollout() -> None:
    model = llama()
    got = response_entropy(PromptEntropy(model).tokens, [[5, 6]] * 3, [[7, 8], [9], []])
    assert got.shape == (3,)
    assert got[0] != got[1]
    assert np.isnan(got[2])
