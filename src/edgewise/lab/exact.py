"""The exact pass probability of a prompt, by one teacher-forced pass instead of sampling.

Where the right answer is one string (`edgewise.lab.arithmetic`), a rollout passes exactly when the policy emits its tokens and
then the end token. Sampled at temperature 1 without top-p, top-k or other warping, as GRPO trains, that has probability

    p(x) = Π_t  π(answer_t | x, answer_<t)  ·  π(end | x, answer)

Outside of this product is only a special token in mid-answer, which decoding skips; the tests hold it under 2e-4 a token on
the shipped policy. A tokenizer that is not one token a character may also spell an answer in several ways: there the product
is a lower bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from edgewise.errors import ConfigError
from edgewise.types import Floats


@torch.no_grad()
def pass_probability(
    model: Any, tokenizer: Any, prompts: Sequence[str], answers: Sequence[str], *, batch_size: int = 512
) -> Floats:
    """Probability that one rollout at temperature 1 is exactly the answer, then the end token.

    prompts, answers: n texts each.  batch_size: prompts in one forward pass; it changes memory and time, not the result.
    Returns (n,) float64 in [0, 1]. The model's train/eval mode and every random state are left as they were.
    """
    if len(prompts) != len(answers):
        raise ConfigError(f"pass_probability needs one answer a prompt, got {len(prompts)} prompts and {len(answers)} answers.")
    prompt_ids: list[list[int]] = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    answer_ids: list[list[int]] = [
        [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for answer in answers
    ]
    # Rows of like length side by side: less padding, and the order of the answer is restored by `order`.
    order = np.argsort([len(p) + len(a) for p, a in zip(prompt_ids, answer_ids, strict=True)], kind="stable")
    log_probability = np.zeros(len(prompts))
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            width = max(len(prompt_ids[i]) + len(answer_ids[i]) for i in rows)
            # Padding on the right needs no mask: a causal model never looks there from the positions that are read.
            tokens = torch.full((len(rows), width), tokenizer.pad_token_id)
            targets = torch.zeros(len(rows), width, dtype=torch.bool)
            for row, i in enumerate(rows):
                ids = prompt_ids[i] + answer_ids[i]
                tokens[row, : len(ids)] = torch.tensor(ids)
                targets[row, len(prompt_ids[i]) : len(ids)] = True
            tokens, targets = tokens.to(device), targets.to(device)
            logits = model(input_ids=tokens, use_cache=False).logits[:, :-1].double()
            chosen = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]
            log_probability[rows] = (chosen * targets[:, 1:]).sum(-1).cpu().numpy()
    finally:
        model.train(was_training)
    return np.exp(log_probability)
