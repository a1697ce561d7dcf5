"""Prompt entropy across model families, wrappers and trainers' patches: equal to the entropy of the model's own logits."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf

from edgewise.errors import SignalError
from edgewise.signals import LogitTransform, PromptEntropy
from edgewise.signals.head import find_parts

PROMPTS = [[5, 6, 7, 8, 9], [11, 12], [3], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30], [5, 6, 7], [9, 9, 9, 9]]
COMMON = {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.3}
ROPE = {**COMMON, "intermediate_size": 48, "num_key_value_heads": 2}


def llama(**more: Any) -> Any:
    return build("Llama", **ROPE, **more)


def build(family: str, **config: Any) -> Any:
    torch.manual_seed(1)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = getattr(hf, f"{family}ForCausalLM")(getattr(hf, f"{family}Config")(**{**ids, **config})).eval()
    with torch.no_grad():  # some families ignore initializer_range in places; make all distributions far from uniform
        model.get_output_embeddings().weight.normal_(0, 0.4)
    return model


def gpt2() -> Any:
    torch.manual_seed(1)
    config = hf.GPT2Config(
        vocab_size=101, n_embd=32, n_layer=2, n_head=4, n_positions=32, initializer_range=0.3, bos_token_id=1, eos_token_id=2
    )
    return hf.GPT2LMHeadModel(config).eval()


MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama-tied": lambda: llama(tie_word_embeddings=True),
    "qwen2": lambda: build("Qwen2", **ROPE),
    "qwen3": lambda: build("Qwen3", **ROPE, head_dim=8),
    "qwen3-moe": lambda: build("Qwen3Moe", **ROPE, **MOE, head_dim=8),
    "mistral-sliding-window": lambda: build("Mistral", **ROPE, sliding_window=4),
    "gemma2-soft-cap": lambda: build("Gemma2", **ROPE, head_dim=8, final_logit_softcapping=4.0, sliding_window=4),
    "gemma3-soft-cap": lambda: gemma3(),
    "cohere": lambda: build("Cohere", **ROPE, logit_scale=0.25),
    "granite": lambda: build("Granite", **ROPE, logits_scaling=3.0),
    "minicpm3": lambda: build("MiniCPM3", **{**ROPE, "num_key_value_heads": 4}, q_lora_rank=16, kv_lora_rank=16, v_head_dim=8,
                              qk_nope_head_dim=8, qk_rope_head_dim=8, dim_model_base=8),
    "falcon-h1": lambda: build("FalconH1", **ROPE, lm_head_multiplier=0.5, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8,
                               mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=8),
    "phi-bias-on-the-head": lambda: build("Phi", **ROPE),
    "gpt-neox": lambda: build("GPTNeoX", **COMMON, intermediate_size=48),
    "gpt2-learned-positions": gpt2,
    "opt-learned-positions": lambda: build("OPT", vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
                                           ffn_dim=48, word_embed_proj_dim=16, max_position_embeddings=32),
    "bloom-alibi": lambda: build("Bloom", vocab_size=101, hidden_size=32, n_layer=2, n_head=4),
    "mpt-ignores-its-logit-scale": lambda: build("Mpt", vocab_size=101, d_model=32, n_layers=2, n_heads=4, expansion_ratio=2,
                                                 max_seq_len=32, logit_scale=0.2),
    "mamba": lambda: build("Mamba", vocab_size=101, hidden_size=32, num_hidden_layers=2, state_size=4),
}  # fmt: skip


def gemma3() -> Any:
    torch.manual_seed(1)
    config = hf.Gemma3TextConfig(**ROPE, head_dim=8, final_logit_softcapping=3.0, sliding_window=4)
    model = hf.Gemma3ForCausalLM(config).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0, 0.4)
    return model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def own(model: Any, ids: list[int], temperature: float = 1.0) -> float:
    """V from the model's own logits of one prompt alone, float64; the last position is left out."""
    if len(ids) < 2:
        return float("nan")
    log_p = (model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].double() / temperature).log_softmax(-1)
    return float(-(log_p.exp() * log_p).sum(-1).mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_v_is_the_entropy_of_the_models_own_logits(family: str) -> None:
    model = FAMILIES[family]()
    expected = [own(model, ids) for ids in PROMPTS]
    assert np.nanstd(expected) > 1e-3  # the prompts differ, so agreement means something
    entropy = PromptEntropy(model)
    np.testing.assert_allclose(entropy(PROMPTS), expected, atol=1e-5)
    assert entropy.tokens.last_check is not None
    assert abs(entropy.tokens.last_check.mean_error) < 1e-5
    np.testing.assert_allclose(
        PromptEntropy(model, temperature=0.7)(PROMPTS), [own(model, ids, 0.7) for ids in PROMPTS], atol=1e-5
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "mamba"])
def test_alone_padded_left_padded_right_chunked_and_permuted_agree(family: str) -> None:
    model = FAMILIES[family]()
    alone = np.concatenate([PromptEntropy(model)([ids]) for ids in PROMPTS])
    for options in ({}, {"padding_side": "left"}, {"tokens_per_forward": 8}, {"rows": 3, "tile": 17}):
        np.testing.assert_allclose(PromptEntropy(model, **options)(PROMPTS), alone, atol=1e-5, err_msg=str(options))
    order = [3, 0, 5, 2, 1, 4]
    np.testing.assert_allclose(PromptEntropy(model)([PROMPTS[i] for i in order]), alone[order], atol=1e-5)


def test_tied_and_untied_heads_are_both_found() -> None:
    tied, untied = find_parts(llama(tie_word_embeddings=True)), find_parts(llama())
    assert tied.head.weight is tied.model.get_input_embeddings().weight
    assert untied.head.weight is not untied.model.get_input_embeddings().weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2-soft-cap", "cohere"])
def test_a_sixteen_bit_model_is_scored_from_its_hidden_states_in_float32(family: str, dtype: torch.dtype) -> None:
    model = FAMILIES[family]().to(dtype)
    entropy = PromptEntropy(model)
    got = entropy(PROMPTS)
    parts = find_parts(model)
    for ids, v in zip(PROMPTS, got, strict=True):
        if len(ids) > 1:
            with torch.no_grad():
                hidden = parts.decoder(input_ids=torch.tensor([ids])).last_hidden_state[0, :-1].double()
            z = parts.head.transform.apply_(hidden @ model.get_output_embeddings().weight.detach().double().T)
            log_p = z.log_softmax(-1)
            # the model itself rounds differently alone and in a padded batch; our own error is far below 2e-3
            assert v == pytest.approx(float(-(log_p.exp() * log_p).sum(-1).mean()), abs=2e-3)
    check = entropy.tokens.last_check
    assert check is not None
    assert abs(check.rounded_error) < 1e-4  # like with like: rounded as the model rounds


# --- wrappers and patches ---------------------------------------------------------------------------------------------


def lora(model: Any, **more: Any) -> Any:
    peft = pytest.importorskip("peft")
    torch.manual_seed(2)
    config = peft.LoraConfig(
        r=4, lora_alpha=64, target_modules=more.pop("target_modules", ["q_proj", "v_proj"]), init_lora_weights=False, **more
    )
    return peft.get_peft_model(model, config)


@pytest.mark.parametrize("more", [{}, {"target_modules": ["q_proj", "lm_head"]}, {"modules_to_save": ["lm_head"]}], ids=str)
@pytest.mark.filterwarnings("ignore")
def test_lora_adapters_stay_active_and_disabling_them_gives_the_base_model(more: dict[str, Any]) -> None:
    plain = PromptEntropy(llama())(PROMPTS)
    model = lora(llama(), **more)
    if "modules_to_save" in more:
        with torch.no_grad():
            model.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.2 * torch.randn(101, 32))
    entropy = PromptEntropy(model)
    got = entropy(PROMPTS)
    np.testing.assert_allclose(got, [own(model.eval(), ids) for ids in PROMPTS], atol=1e-5)
    assert np.nanmax(np.abs(got - plain)) > 1e-2
    with model.disable_adapter():
        np.testing.assert_allclose(entropy(PROMPTS), plain, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21 on transformers 5.23
def test_prompt_learning_adapters_are_refused_by_name() -> None:
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama(), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(SignalError, match="virtual tokens.*'greso'"):
        PromptEntropy(model)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft 0.21 on transformers 5.23
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "peft"])
def test_trls_fused_head_changes_nothing(wrapped: bool) -> None:
    trl_utils = pytest.importorskip("trl.trainer.utils")
    model = llama()
    expected = PromptEntropy(lora(llama()) if wrapped else model)(PROMPTS)
    trl_utils.add_fused_lm_head(model, temperature=0.5, cast_lm_head_to_fp32=True, outputs=("log_probs", "entropy"))
    model = lora(model) if wrapped else model
    np.testing.assert_array_equal(PromptEntropy(model)(PROMPTS), expected)
    ids = torch.tensor([PROMPTS[3]])
    fused = model(input_ids=ids, labels=ids, fused_lm_head=True)  # the patch is in place and still works
    assert fused.entropy.shape == (1, 10)


@pytest.mark.parametrize("wrap", ["data-parallel", "compile", "accelerate-bf16"])
@pytest.mark.filterwarnings("ignore")
def test_wrapped_models_give_the_same_values(wrap: str) -> None:
    model = llama()
    expected = PromptEntropy(model)(PROMPTS)
    if wrap == "data-parallel":
        model = torch.nn.DataParallel(model)
    elif wrap == "compile":
        model = torch.compile(model, backend="eager")
    else:
        accelerate = pytest.importorskip("accelerate")
        model = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
        assert hasattr(model, "_original_forward")  # Accelerate patched an autocast onto the instance
    np.testing.assert_allclose(PromptEntropy(model)(PROMPTS), expected, atol=1e-6)


def test_an_ambient_autocast_is_followed_and_its_weight_cache_is_left_alone() -> None:
    model = llama()
    plain = PromptEntropy(model)(PROMPTS)
    ids = torch.tensor([PROMPTS[0]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        entropy = PromptEntropy(model)
        got = entropy(PROMPTS)
        assert torch.is_autocast_cache_enabled()
        model(input_ids=ids, labels=ids).loss.backward()  # weights cast without gradients would break this
    assert model.lm_head.weight.grad is not None
    assert model.model.layers[0].mlp.up_proj.weight.grad is not None
    assert 0 < np.nanmax(np.abs(got - plain)) < 0.1
    assert entropy.tokens.last_check is not None
    assert abs(entropy.tokens.last_check.rounded_error) < 1e-4


# --- the self-check ----------------------------------------------------------------------------


class Sharpened(hf.LlamaForCausalLM):
    """A head of its own kind: its forward sharpens the logits, and no config value says so."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits * 1.05
        return outputs


def sharpened() -> Any:
    torch.manual_seed(1)
    return Sharpened(hf.LlamaConfig(**ROPE)).eval()


def test_the_self_check_rejects_a_head_with_an_unknown_transform_and_says_what_to_do() -> None:
    entropy = PromptEntropy(sharpened())
    with pytest.raises(SignalError, match=r"model=Sharpened.*\+0\.\d+ nats.*<= 0\.002.*LogitTransform\(multiply=.*'greso'"):
        entropy(PROMPTS)
    assert entropy.tokens.last_check is None
    with pytest.raises(SignalError):
        entropy(PROMPTS)  # a second call does not slip through


def test_an_explicit_transform_makes_such_a_model_usable() -> None:
    model = sharpened()
    got = PromptEntropy(model, transform=LogitTransform(multiply=1.05))(PROMPTS)
    np.testing.assert_allclose(got, [own(model, ids) for ids in PROMPTS], atol=1e-5)


def test_a_soft_cap_we_are_told_to_ignore_is_noticed() -> None:
    with pytest.raises(SignalError, match="self-check failed"):
        PromptEntropy(FAMILIES["gemma2-soft-cap"](), transform=LogitTransform())(PROMPTS)


def test_a_head_of_another_width_is_noticed() -> None:
    with pytest.raises(SignalError, match=r"expected logits of shape \(10, 90\).*gave \(10, 101\)"):
        PromptEntropy(llama(), transform=LogitTransform(vocabulary=90))(PROMPTS)


def test_not_a_number_weights_fail_the_self_check() -> None:
    model = llama()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(SignalError, match="nan nats"):
        PromptEntropy(model)(PROMPTS)


@pytest.mark.parametrize("model", [
    lambda: torch.nn.Linear(2, 2),
    lambda: llama().model,
    lambda: hf.T5ForConditionalGeneration(hf.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
], ids=["no language model", "bare decoder", "encoder-decoder"])  # fmt: skip
def test_what_has_no_prompt_entropy_is_refused_at_construction(model: Callable[[], Any]) -> None:
    with pytest.raises(SignalError, match=r"PromptEntropy\(model="):
        PromptEntropy(model())


def test_sharded_weights_are_refused_by_name() -> None:
    model = llama()
    model.lm_head.weight.ds_id = 3  # what DeepSpeed ZeRO-3 puts on each parameter
    with pytest.raises(SignalError, match=r"whole weights.*DeepSpeed ZeRO-3.*'greso'"):
        PromptEntropy(model)
