"""The small policy of the laboratory: a character tokenizer and a three-layer causal language model (0.15 M parameters).

Both are ordinary Hugging Face objects, so everything that works here works on a large model. The shipped weights are made by
``python -m edgewise.lab.warmup``; `load_policy` refuses weights whose hash is not the one in their header.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from edgewise.errors import ConfigError, StateError
from edgewise.lab.arithmetic import CHARACTERS

ASSETS = Path(__file__).parent / "assets"
WEIGHTS = ASSETS / "policy.safetensors"
HEADER = ASSETS / "policy.json"


def make_tokenizer() -> Any:
    """One token a character, `<bos>` before every text, padding on the left as generation wants it."""
    tokens = ["<pad>", "<bos>", "<eos>", *CHARACTERS]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast: Any = PreTrainedTokenizerFast  # untyped in transformers
    return fast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left",
        clean_up_tokenization_spaces=False, model_max_length=64,
    )  # fmt: skip


def make_policy(seed: int = 0) -> Qwen2ForCausalLM:
    """The untrained policy; the seed decides its weights and leaves the global random state as it was.

    Qwen2 because its attention biases let a head look "so many characters back", which is how digits are lined up: the same
    model without them learned two-digit sums several times later. The short rotary period and the wide initialisation fit
    lines of twenty characters and a width of 64.
    """
    tokenizer = make_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=172, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        initializer_range=0.1, tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(config)


def load_policy(folder: str | Path | None = None) -> tuple[Any, Any]:
    """Model and tokenizer: the shipped warmed-up policy, or any Hugging Face causal language model saved in `folder`."""
    if folder is not None:
        if not (Path(folder) / "config.json").is_file():
            raise ConfigError(f"load_policy({str(folder)!r}): no config.json there. Give a folder written by save_pretrained.")
        try:  # weights in safetensors only: the older format is a pickle, which runs what it holds
            return (
                AutoModelForCausalLM.from_pretrained(
                    folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
                ),
                AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
            )
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ConfigError(
                f"load_policy({str(folder)!r}): no model can be loaded from there ({error}). Give a folder written by "
                "save_pretrained, with weights in safetensors and no code of its own."
            ) from error
    weights, header = WEIGHTS.read_bytes(), json.loads(HEADER.read_text())
    found = hashlib.sha256(weights).hexdigest()
    if found != header["sha256"]:
        raise StateError(
            f"{WEIGHTS.name} has sha256 {found[:12]}…, its header says {header['sha256'][:12]}…: the file was changed or cut. "
            f"Install edgewise again, or make it anew: {header['command']}"
        )
    model: Any = make_policy()
    model.load_state_dict(load(weights), strict=False)  # the tied head is stored once, as the embedding
    return model.eval(), make_tokenizer()


def save_policy(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write a folder that `load_policy(folder)` and every Hugging Face tool can read."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
