"""A tiny random causal LM, a tokenizer built in process, and a real GRPOTrainer around them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer

torch.set_num_threads(1)
LETTERS = "abcdefghijklmnopqrst"
G = 4


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "<eos>", "<unk>", *LETTERS]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", padding_side="left"
    )


def model(seed: int = 0) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=3 + len(LETTERS), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, eos_token_id=1, pad_token_id=0, bos_token_id=1,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def dataset(n: int = 24) -> Dataset:
    """Prompts of unequal length. The easy third (0) always pays, the hard third (2) never, the rest by what was generated."""
    rows = [
        {"prompt": (LETTERS[i % 20] * (2 + i % 4)) + LETTERS[(i // 20) % 20], "prompt_id": f"p{i}", "kind": i % 3}
        for i in range(n)
    ]
    return Dataset.from_list(rows)


def pays(completions: list[str], kind: list[int], completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Deterministic in what was generated: an early-alphabet majority pays for prompts of kind 1."""
    answer = []
    for k, ids in zip(kind, completion_ids, strict=True):
        low = sum(i < 13 for i in ids) * 2 > len(ids)
        answer.append(1.0 if k == 0 else 0.0 if k == 2 else float(low))
    return answer


def config(out: Path, **given: Any) -> GRPOConfig:
    plain = {
        "per_device_train_batch_size": 8,
        "num_generations": G,
        "max_completion_length": 5,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 5,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": [],
        "disable_tqdm": True,
        "temperature": 1.0,
    }
    return GRPOConfig(output_dir=str(out), **(plain | given))


def trainer(
    out: Path,
    *,
    rewards: Any = pays,
    data: Dataset | None = None,
    net: Any = None,
    cls: Any = GRPOTrainer,
    peft: Any = None,
    eval_data: Dataset | None = None,
    words: Any = None,
    **given: Any,
) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cls(
            model=net if net is not None else model(),
            reward_funcs=rewards,
            args=config(out, **given),
            train_dataset=dataset() if data is None else data,
            processing_class=tokenizer() if words is None else words,
            peft_config=peft,
            eval_dataset=eval_data,
        )
