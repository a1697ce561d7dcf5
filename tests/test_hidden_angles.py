"""Hidden angles: equal to a loop over pairs of the model's own last hidden states, whatever the batching."""

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
from edgewise.signals import HiddenAngles
from tests.test_signals_models import FAMILIES, PROMPTS, llama

MASKS = [[0, 0, 1, 1, 0], [0, 1], [1], [0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 0], [1, 1, 1], [0, 0, 0, 0]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
def by_pairs(model: Any, ids: list[int], mask: list[int]) -> list[float]:
    h = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states[-1][0].double()
    cos = torch.nn.functional.cosine_similarity(h[:, None], h[None, :], dim=-1)
    asked = [i for i, m in enumerate(mask) if m]
    before = range(asked[0]) if asked else range(0)
    intra = [float(cos[i, j]) for i in asked for j in asked if i != j]
    inter = [float(cos[i, j]) for i in asked for j in before]
    return [math.fsum(pairs) / len(pairs) if pairs else math.nan for pairs in (intra, inter)]


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2-learned-positions"])
def test_angles_are_those_of_a_loop_over_pairs(family: str) -> None:
    model = FAMILIES[family]()
    expected = np.array([by_pairs(model, ids, mask) for ids, mask in zip(PROMPTS, MASKS, strict=True)])
    assert np.isnan(expected).tolist() == [[False, False], [True, False], [True, True], [False, False], [False, True],
                                           [True, True]]  # fmt: skip
    for options in ({}, {"tokens_per_forward": 8}, {"padding_side": "left"}):
        np.testing.assert_allclose(HiddenAngles(model, **options)(PROMPTS, MASKS), expected, atol=2e-6, err_msg=str(options))


def test_angles_are_cosines_and_the_model_is_left_alone() -> None:
    model = llama().train()
    got = HiddenAngles(model)(PROMPTS, MASKS)
    assert np.nanmax(np.abs(got)) <= 1.0
    assert model.training
    assert HiddenAngles(model)([], []).shape == (0, 2)


@pytest.mark.parametrize(("masks", "message"), [
    ([[1, 1]], "one mask a prompt is needed, got 1 for 2"),
    ([[1, 1], [1]], r"mask 1 must hold true or false for each of its 2 tokens, got shape \(1,\)"),
    ([[1, 3], [1, 1]], "mask 0 must hold true or false"),
])  # fmt: skip
def test_masks_that_do_not_fit_are_refused(masks: list[list[int]], message: str) -> None:
    with pytest.raises(SignalError, match=message):
        HiddenAngles(llama())([[1, 2], [3, 4]], masks)


def test_what_cannot_work_is_refused_at_construction() -> None:
    with pytest.raises(SignalError, match=r"HiddenAngles\(model=Linear\)"):
        HiddenAngles(torch.nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="must be >= 1, got 0"):
        HiddenAngles(llama(), tokens_per_forward=0)
