"""Prompt and response entropy as a host uses them: golden values, spans, edge cases, cost, and no trace left in the run."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from edgewise.errors import ConfigError, SignalError
from edgewise.signals import PromptEntropy, TokenEntropy, response_entropy, shared_prefix_length
from edgewise.signals.forward import micro_batches


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def llama(**more: Any) -> Any:
    torch.manual_seed(1)
    config = {
        "vocab_size": 101, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 256,
    }  # fmt: skip
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**config, **more}))


class Bigram(nn.Module):
    """A language model whose next-token logits after token i are row i of a table: entropies can be worked out by hand."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        vocabulary = table.shape[1]
        self.config = hf.LlamaConfig(vocab_size=vocabulary)
        self.lm_head = nn.Linear(vocabulary, vocabulary, bias=False)
        self.lm_head.weight.data = table.T.contiguous()
        self.base_model = Bigram.OneHot(vocabulary)

    class OneHot(nn.Module):
        def __init__(self, vocabulary: int) -> None:
            super().__init__()
            self.embed = nn.Embedding.from_pretrained(torch.eye(vocabulary))

        def forward(self, input_ids: Tensor) -> Any:
            return SimpleNamespace(last_hidden_state=self.embed(input_ids))

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        return self.base_model.embed

    def forward(self, input_ids: Tensor, **kwargs: Any) -> Any:
        return SimpleNamespace(logits=self.lm_head(self.base_model(input_ids).last_hidden_state))


def bigram() -> Bigram:
    """Entropies after tokens 0, 1, 2, 3: ln 4, 1.039721 (.5, .25, .25), 0 and something else."""
    impossible = -1e9
    return Bigram(
        torch.tensor(
            [[0.0] * 4, [np.log(0.5), np.log(0.25), np.log(0.25), impossible], [50.0, 0, 0, 0], [3.0, 1, 0, 0]],
            dtype=torch.float32,
        )
    )


@pytest.mark.parametrize("third", [0, 1, 2, 3])
def test_golden_v_of_three_tokens_does_not_use_the_last_position(third: int) -> None:
    assert PromptEntropy(bigram())([[0, 1, third]])[0] == pytest.approx(1.213008, abs=1e-6)


def test_golden_response_entropy_uses_the_last_prompt_position_and_not_the_last_of_the_response() -> None:
    tokens = PromptEntropy(bigram()).tokens
    got = response_entropy(tokens, [[2, 0], [2, 0], [1], [0, 0]], [[1, 3], [1], [2, 1, 1], []])
    np.testing.assert_allclose(got, [1.213008, 1.386294, (1.039721 + 0 + 1.039721) / 3, np.nan], atol=1e-5)


def test_prompts_too_short_to_have_an_entropy_are_nan_and_do_not_disturb_the_others() -> None:
    entropy = PromptEntropy(llama())
    got = entropy([[5], [5, 6, 7], [], [8, 9]])
    assert np.isnan(got).tolist() == [True, False, True, False]
    np.testing.assert_allclose(got[[1, 3]], PromptEntropy(llama())([[5, 6, 7], [8, 9]]), atol=1e-6)
    assert entropy.last_cost is not None
    assert entropy.last_cost.prompts == 2


@pytest.mark.parametrize("prompts", [[], [[]], [[3], [4]]], ids=str)
def test_nothing_to_score_runs_no_forward(prompts: list[list[int]]) -> None:
    model = llama()
    model.model.forward = None  # would fail if called
    entropy = PromptEntropy(model)
    got = entropy(prompts)
    assert got.shape == (len(prompts),)
    assert got.dtype == np.float64
    assert np.isnan(got).all()
    assert entropy.last_cost is not None
    assert entropy.last_cost.forwards == 0


def test_arrays_and_tensors_are_token_ids_too() -> None:
    entropy = PromptEntropy(llama())
    expected = entropy([[5, 6, 7], [8, 9]])
    np.testing.assert_array_equal(entropy([np.array([5, 6, 7]), np.array([8, 9], dtype=np.int32)]), expected)
    np.testing.assert_array_equal(entropy([torch.tensor([5, 6, 7]), torch.tensor([8, 9])]), expected)


def test_the_content_span_averages_only_what_the_shared_prefix_leaves_open() -> None:
    model = bigram()
    prompts = [[2, 2, 0, 1, 3], [2, 2, 1, 0]]
    assert shared_prefix_length(prompts) == 2
    got = PromptEntropy(model, span="content", shared_prefix=2)(prompts)
    np.testing.assert_allclose(got, [(1.386294 + 1.039721) / 2, 1.039721], atol=1e-5)
    np.testing.assert_array_equal(PromptEntropy(model, span="content", shared_prefix=0)(prompts), PromptEntropy(model)(prompts))
    np.testing.assert_array_equal(
        np.isnan(PromptEntropy(model, span="content", shared_prefix=3)([[2, 2, 0, 1], [2, 2, 0, 1, 1]])), [True, False]
    )


def test_a_prefix_that_is_not_shared_is_refused() -> None:
    entropy = PromptEntropy(bigram(), span="content", shared_prefix=2)
    with pytest.raises(SignalError, match="share only 1 leading tokens"):
        entropy([[2, 2, 0, 1], [2, 0, 0, 1]])


@pytest.mark.parametrize(
    ("prompts", "length"), [([], 0), ([[1, 2]], 2), ([[1, 2], [1, 2, 3]], 2), ([[1], [2]], 0), ([[1, 2], []], 0)]
)
def test_shared_prefix_length(prompts: list[list[int]], length: int) -> None:
    assert shared_prefix_length(prompts) == length


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": 0.0}, r"temperature=\.\.\.\) must be finite and > 0, got 0\.0"),
    ({"temperature": float("inf")}, "must be finite"),
    ({"tokens_per_forward": 0}, r"tokens_per_forward=\.\.\.\) must be >= 1, got 0"),
    ({"rows": 0}, "rows="), ({"tile": -3}, "got -3"),
    ({"padding_side": "middle"}, "'right' or 'left', got 'middle'"),
    ({"span": "question"}, "'all' or 'content', got 'question'"),
    ({"span": "content"}, "needs shared_prefix >= 0"),
    ({"span": "all", "shared_prefix": 3}, "'all' takes none"),
    ({"span": "content", "shared_prefix": -1}, "shared_prefix=-1"),
])  # fmt: skip
def test_unusable_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PromptEntropy(bigram(), **options)


@pytest.mark.parametrize(("ids", "message"), [
    ([[1, 2], [1, 101]], r"sequence 1 must be a flat list of token ids in \[0, 101\).*values from 1 to 101"),
    ([[-1, 2]], "from -1 to 2"), ([[0.5, 1.0]], "float64"), ([[[1, 2]]], r"shape \(1, 2\)"),
])  # fmt: skip
def test_ids_that_are_no_token_ids_are_refused_before_the_device_sees_them(ids: Any, message: str) -> None:
    with pytest.raises(SignalError, match=message):
        PromptEntropy(llama())(ids)


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (1, 4)])
def test_spans_outside_the_sequence_are_refused(start: int, stop: int) -> None:
    with pytest.raises(SignalError, match=rf"got \[{start}, {stop}\) for sequence 0 of 3 tokens"):
        TokenEntropy(llama()).mean_over([[1, 2, 3]], start, stop)


def test_prompts_and_completions_must_pair_up() -> None:
    with pytest.raises(SignalError, match="got 1 prompts and 2 completions"):
        response_entropy(TokenEntropy(llama()), [[1]], [[2], [3]])


# --- no trace in the run ----------------------------------------------------------------------------------------------

PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [20, 21, 22, 23, 24, 25, 26]]


def test_training_flags_gradients_and_random_states_are_as_before() -> None:
    model = llama(attention_dropout=0.5).train()
    model.model.layers[0].eval()  # a partly frozen model stays partly frozen
    model.lm_head.weight.requires_grad_(False)
    flags = [(m.training) for m in model.modules()]
    wants = [p.requires_grad for p in model.parameters()]
    weights = [p.clone() for p in model.parameters()]
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    random.seed(7)
    before = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())  # noqa: NPY002
    first = PromptEntropy(model)(PROMPTS)
    np.testing.assert_array_equal(first, PromptEntropy(model)(PROMPTS))  # dropout would make them differ
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert random.getstate() == before[2]
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == wants
    assert all(p.grad is None and torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))
    assert torch.is_grad_enabled()
    np.testing.assert_array_equal(first, PromptEntropy(model.eval())(PROMPTS))


def test_flags_come_back_when_the_forward_fails() -> None:
    model = llama().train()
    entropy = PromptEntropy(model)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("out of memory")

    model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        entropy(PROMPTS)
    assert all(m.training for m in model.modules())
    assert torch.is_grad_enabled()
    assert entropy.last_cost is None


def test_a_training_step_after_the_pass_is_the_same_as_without_it() -> None:
    def step(score: bool) -> list[Tensor]:
        model = llama(attention_dropout=0.3).train()
        torch.manual_seed(3)
        if score:
            PromptEntropy(model)(PROMPTS)
        ids = torch.tensor([PROMPTS[2]])
        model(input_ids=ids, labels=ids).loss.backward()
        return [p.grad for p in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(step(True), step(False), strict=True))


@pytest.mark.filterwarnings("ignore")
def test_gradient_checkpointing_does_not_interfere() -> None:
    model = llama()
    expected = PromptEntropy(model)(PROMPTS)
    model.gradient_checkpointing_enable()
    model.train()
    np.testing.assert_array_equal(PromptEntropy(model)(PROMPTS), expected)
    ids = torch.tensor([PROMPTS[2]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None


class KeepsWhatItMakes(nn.Module):
    """Makes a tensor in its first forward and keeps it, as models do with masks and positions."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.kept = nn.Parameter(torch.ones(32)), None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = torch.linspace(0.5, 1.5, 32) if self.kept is None else self.kept
        return x * (self.kept * self.weight)


def test_what_a_model_makes_in_the_pass_and_keeps_can_be_trained_through() -> None:
    model = llama()
    model.model.norm = KeepsWhatItMakes()
    PromptEntropy(model)(PROMPTS)
    ids = torch.tensor([PROMPTS[2]])
    model(input_ids=ids, labels=ids).loss.backward()
    assert model.model.norm.weight.grad is not None


def test_values_follow_the_weights_and_the_model_is_checked_once() -> None:
    model = llama()
    entropy = PromptEntropy(model)
    first = entropy(PROMPTS)
    check = entropy.tokens.last_check
    calls = []
    hook = model.lm_head.register_forward_hook(lambda *_: calls.append(1))  # called by the model's own forward only
    with torch.no_grad():
        model.lm_head.weight.mul_(2.0)
    assert np.abs(entropy(PROMPTS) - first).min() > 1e-3
    assert entropy.tokens.last_check is check
    assert calls == []
    hook.remove()


# --- cost -------------------------------------------------------------------------------------------------------------


def test_micro_batches_are_sorted_complete_and_within_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 90, size=200)
    batches = micro_batches(lengths, 128)
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    assert all(len(b) * lengths[b].max() <= 128 for b in batches)
    tops = [lengths[b].max() for b in batches]
    assert tops == sorted(tops, reverse=True)  # the largest forward comes first: memory trouble shows at once


def test_the_cost_counts_tokens_padding_and_forwards() -> None:
    entropy = PromptEntropy(llama(), tokens_per_forward=12)
    entropy([[1] * 7, [2] * 5, [3] * 5, [4] * 3])  # the last token of a prompt is not sent: 6, 4, 4, 2 tokens
    cost = entropy.last_cost
    assert cost is not None
    assert (cost.prompts, cost.tokens, cost.forwards) == (4, 16, 2)  # [6, 4] and [4, 2]
    assert cost.padding_factor == pytest.approx((2 * 6 + 2 * 4) / 16)
    assert cost.elapsed_s > 0
    assert cost.peak_bytes > 0


class Largest(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not func.is_view:
            self.numel = max(self.numel, out.numel())
        return out


def test_full_logits_never_exist_and_memory_does_not_grow_with_the_number_of_tokens() -> None:
    model = llama(vocab_size=20_000)
    entropy = PromptEntropy(model, tokens_per_forward=128, rows=64, tile=256)
    entropy([[1, 2, 3]])  # the self-check alone may hold 64 rows of logits
    peaks, largest = [], []
    for n in (8, 64):
        with Largest() as seen:
            entropy([[7] * 17] * n)
        assert entropy.last_cost is not None
        peaks.append(entropy.last_cost.peak_bytes)
        largest.append(seen.numel)
    assert peaks[0] == peaks[1] <= 2 * 4 * 64 * 256 + 2 * 4 * 128 * 32
    assert largest[0] == largest[1] == 64 * 256  # 128 x 20,000 logits would be 156 times as many
