"""The small policy: tokenizer, shipped weights, warm-up."""

import shutil
from pathlib import Path

import pytest
import torch

from edgewise.errors import ConfigError, StateError
from edgewise.lab import policy, warmup
from edgewise.lab.arithmetic import CHARACTERS, held_out, make_pool
from edgewise.lab.policy import load_policy, make_policy, make_tokenizer, save_policy


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_the_tokenizer_gives_back_every_text() -> None:
    tokenizer = make_tokenizer()
    train, _ = make_pool(n_train=300, n_held_out=10)
    texts = [p.prompt + p.answer for p in train] + [CHARACTERS]
    ids = tokenizer(texts)["input_ids"]
    assert [len(row) for row in ids] == [1 + len(text) for text in texts]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True) == texts


def test_padding_goes_to_the_left_and_special_tokens_are_three() -> None:
    tokenizer = make_tokenizer()
    batch = tokenizer(["1+1=", "12+34="], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1, 1, 1, 1, 1], [1] * 7]
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]


def test_the_shipped_policy_loads_and_changes_with_nothing() -> None:
    before = torch.get_rng_state()
    model, tokenizer = load_policy()
    again, _ = load_policy()
    assert torch.equal(before, torch.get_rng_state())
    assert 140_000 < model.num_parameters() < 160_000
    assert not model.training
    assert len(tokenizer) == model.config.vocab_size
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.isfinite().all()


def test_changed_weights_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(policy.HEADER, tmp_path)
    raw = bytearray(policy.WEIGHTS.read_bytes())
    raw[-1] ^= 1
    (tmp_path / policy.WEIGHTS.name).write_bytes(raw)
    monkeypatch.setattr(policy, "WEIGHTS", tmp_path / policy.WEIGHTS.name)
    with pytest.raises(StateError, match="python -m edgewise.lab.warmup"):
        load_policy()


def test_a_saved_policy_is_the_same_policy(tmp_path: Path) -> None:
    model, tokenizer = load_policy()
    save_policy(model, tokenizer, tmp_path)
    other, other_tokenizer = load_policy(tmp_path)
    ids = tokenizer("12+34=", return_tensors="pt")["input_ids"]
    assert torch.equal(ids, other_tokenizer("12+34=", return_tensors="pt")["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, other(ids).logits)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_policy(tmp_path)


def test_the_seed_decides_the_untrained_policy() -> None:
    first, same, other = (next(make_policy(seed).parameters()) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_warm_up_is_deterministic_and_lowers_the_loss() -> None:
    first, losses = warmup.warm_up(steps=12, seed=5)
    second, again = warmup.warm_up(steps=12, seed=5)
    assert losses == again
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert losses[-1] < losses[0] - 0.3


def test_the_teacher_never_shows_a_held_out_prompt_and_errs_only_late() -> None:
    import numpy as np

    truth = {}
    for progress, errs in ((0.5, False), (1.0, True)):
        shown = list(warmup.demonstrations(np.random.default_rng(0), progress, 3000))
        assert len(shown) == 3000
        assert not any(held_out(p.prompt) for p in shown)
        truth[progress] = [int(p.answer[::-1]) == _right(p.prompt) for p in shown]
        assert (not all(truth[progress])) == errs


def test_the_teacher_slips_column_by_column_at_the_rate_of_its_grade() -> None:
    """10,000 answers of one prompt with grades 0, 2, 3; a share is off by 6 sigma (at most .024) about once in 1e9 runs."""
    import numpy as np

    from edgewise.lab.arithmetic import Problem

    rng = np.random.default_rng(0)
    problem = Problem("860+111=", "1790", "add3/3", (0, 2, 3))
    shown = [warmup.slipped(problem, 0.0, rng).answer for _ in range(10_000)]
    wrong = np.array([[a != b for a, b in zip(answer, problem.answer, strict=True)] for answer in shown])
    assert np.abs(wrong.mean(axis=0) - np.array([0.0, 0.8, 0.97, 0.0])).max() < 0.024
    assert np.corrcoef(wrong[:, 1], wrong[:, 2])[0, 1] < 0.06  # columns slip independently


def _right(prompt: str) -> int:
    import re

    return int(eval(re.sub(r"\d+", lambda number: str(int(number.group())), prompt.removesuffix("="))))
