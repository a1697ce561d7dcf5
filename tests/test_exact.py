"""Exact pass probabilities: against a product by hand, against sampling, and without side effects."""

from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from edgewise.errors import ConfigError
from edgewise.lab.arithmetic import MAX_COMPLETION_TOKENS, make_pool
from edgewise.lab.exact import pass_probability
from edgewise.lab.policy import load_policy

Bed: TypeAlias = tuple[Any, Any, list[str], list[str]]


@pytest.fixture(scope="module")
def bed() -> Bed:
    torch.set_num_threads(1)
    model, tokenizer = load_policy()
    problems, _ = make_pool("balanced", n_train=200, n_held_out=20)
    return model, tokenizer, [p.prompt for p in problems], [p.answer for p in problems]


def test_it_is_the_product_of_the_token_probabilities(bed: Bed) -> None:
    model, tokenizer, prompts, answers = bed
    found = pass_probability(model, tokenizer, prompts[:12], answers[:12])
    for prompt, answer, p in zip(prompts, answers, found, strict=False):
        ids = tokenizer(prompt)["input_ids"]
        product = 1.0
        for token in [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
            with torch.no_grad():
                product *= model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)[token].item()
            ids = [*ids, token]
        assert p == pytest.approx(product, rel=1e-4)


def test_it_agrees_with_sampling_as_the_trainer_samples(bed: Bed) -> None:
    """40 prompts x 250 samples; the squared standardised errors sum to chi-square(40) where p is not extreme.

    A sum above 40 + 8 * sqrt(80) = 112 happens by chance about once in 1e8 runs, and the seed is fixed.
    """
    model, tokenizer, prompts, answers = bed
    exact = pass_probability(model, tokenizer, prompts, answers)
    rows = np.flatnonzero((exact > 0.05) & (exact < 0.95))[:40]
    assert len(rows) == 40
    samples = 250
    batch = tokenizer([prompts[i] for i in rows for _ in range(samples)], padding=True, return_tensors="pt")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        out = model.generate(**batch, do_sample=True, temperature=1.0, top_p=1.0, top_k=0, max_new_tokens=MAX_COMPLETION_TOKENS)
    texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    passes = np.array([text == answers[rows[i // samples]] for i, text in enumerate(texts)]).reshape(40, samples).mean(axis=1)
    p = exact[rows]
    assert (((passes - p) ** 2) / (p * (1 - p) / samples)).sum() < 112


def test_special_tokens_in_mid_answer_are_negligible(bed: Bed) -> None:
    """Decoding skips them, so they are the only other way to pass: under 2e-4 a token on average."""
    model, tokenizer, prompts, answers = bed
    leaks = []
    for prompt, answer in list(zip(prompts, answers, strict=True))[:50]:
        ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            probabilities = model(ids).logits[0, -len(answer) - 1 :].softmax(-1)
        leaks += probabilities[:, [tokenizer.pad_token_id, tokenizer.bos_token_id]].sum(-1).tolist()
    assert np.mean(leaks) < 2e-4


def test_batch_size_and_order_do_not_matter(bed: Bed) -> None:
    model, tokenizer, prompts, answers = bed
    whole = pass_probability(model, tokenizer, prompts, answers)
    assert whole.dtype == np.float64
    assert whole.shape == (200,)
    assert ((whole >= 0) & (whole <= 1)).all()
    np.testing.assert_allclose(pass_probability(model, tokenizer, prompts, answers, batch_size=7), whole, rtol=1e-4, atol=1e-12)
    back = pass_probability(model, tokenizer, prompts[::-1], answers[::-1])[::-1]
    np.testing.assert_allclose(back, whole, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_mode_gradients_and_random_state_are_left_alone(bed: Bed, training: bool) -> None:
    model, tokenizer, prompts, answers = bed
    model.train(training)
    before = torch.get_rng_state()
    pass_probability(model, tokenizer, prompts[:5], answers[:5])
    assert model.training is training
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


def test_no_prompts_give_no_numbers_and_a_missing_answer_is_refused(bed: Bed) -> None:
    model, tokenizer, prompts, answers = bed
    assert pass_probability(model, tokenizer, [], []).shape == (0,)
    with pytest.raises(ConfigError, match="one answer a prompt"):
        pass_probability(model, tokenizer, prompts, answers[:-1])
