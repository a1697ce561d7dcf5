"""The real GRPOTrainer resumed from a checkpoint with a data set that was edited since."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import edgewise
from edgewise.errors import ConfigError, DegradedWarning, StateMismatchError
from edgewise.hosts.trl import attach
from tests import ledger
from tests.hosts import tiny
from tests.hosts.test_trl_groups import Shaped, hold
from tests.hosts.tiny import G


def rows(n: int = 24) -> list[dict[str, Any]]:
    return tiny.dataset(n).to_list()


def other(before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In another order, three prompts gone, one with another text, four new ones."""
    left = [dict(row) for row in before[3:]]
    left[5]["prompt"] = "tttt"
    new = [{"prompt": "qrs" + tiny.LETTERS[i], "prompt_id": f"new-{i}", "kind": i % 3} for i in range(4)]
    both = left + new
    return [both[i] for i in np.random.default_rng(0).permutation(len(both))]


def run(
    out: Path, data: list[dict[str, Any]], method: Any, steps: int, resume: str | None, how: Any = "exact", **given: Any
) -> Any:
    """(selector, what was said)."""
    trainer = tiny.trainer(
        out, data=Dataset.from_list(data), max_steps=steps, save_strategy="steps", save_steps=1, **given,
    )  # fmt: skip
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        selector = attach(trainer, method, resume=how)
        trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == steps
    return selector, [str(one.message) for one in said if issubclass(one.category, DegradedWarning)]


def test_what_was_learned_follows_the_prompts_of_an_edited_data_set(tmp_path: Path) -> None:
    method = "hive"
    before, _ = run(tmp_path, rows(), method, 4, None)
    saved = tmp_path / "checkpoint-4"
    visits = dict(zip(before.pool.ids, before.method.state().prompts["visits"].tolist(), strict=True))
    now = other(rows())
    new = {"p8"} | {row["prompt_id"] for row in now if row["prompt_id"].startswith("new")}
    trainer = tiny.trainer(tmp_path, data=Dataset.from_list(now), max_steps=6)
    selector = attach(trainer, method)
    with pytest.warns(DegradedWarning, match=r"4 prompts added, 3 removed \(parked\), 1 changed \(their beliefs start anew\)"):
        selector.restore(saved / "edgewise" / "selector.safetensors")
    kept = dict(zip(selector.pool.ids, selector.method.state().prompts["visits"].tolist(), strict=True))
    assert kept == {name: 0 if name in new else visits[name] for name in kept}
    after, said = run(tmp_path, now, method, 7, str(saved))
    assert sum("the data set changed since step 4" in line for line in said) == 1
    total = after.method.state().prompts["visits"].sum()
    assert total >= sum(kept.values()) + 3 * 2
    twice, said = run(tmp_path, now, method, 8, str(tmp_path / "checkpoint-6"))
    assert not any("the data set changed" in line for line in said), "it was acted on once"
    ledger.note(50, tried=1, held=1)


def test_groups_that_wait_are_given_up_or_go_on_and_no_prompt_is_lost(tmp_path: Path) -> None:
    size: dict[str, Any] = {"per_device_train_batch_size": 2 * G}
    before, _ = run(tmp_path, rows(), Shaped([2], hold), 3, None, **size)
    assert before.waiting
    after, _ = run(tmp_path, other(rows()), Shaped([2], hold), 6, str(tmp_path / "checkpoint-3"), **size)
    assert sorted(after._waiting.rows.tolist()) == np.flatnonzero(after._blocked).tolist()
    ledger.note(50, tried=1, held=1)


def test_another_data_set_is_refused_and_adapt_insists(tmp_path: Path) -> None:
    run(tmp_path, rows(), "mopps", 2, None)
    now = [{**row, "prompt_id": f"other-{i}"} if i > 8 else row for i, row in enumerate(rows())]
    with pytest.raises(StateMismatchError, match="knows 24 prompts, and of these only 9 are in this data set"):
        run(tmp_path, now, "mopps", 3, str(tmp_path / "checkpoint-2"))
    pool = edgewise.PromptPool.from_dataset(Dataset.from_list(now))
    insist = edgewise.Selector("mopps", pool, batch_size=2, group_size=G, seed=5, resume="adapt")
    for method in (insist, "mopps"):
        after, said = run(tmp_path, now, method, 3, str(tmp_path / "checkpoint-2"), "adapt")
        assert after.step_number == 3
        assert any("15 prompts added, 15 removed (parked)" in line for line in said)
    ledger.note(50, tried=2, held=2)


def test_fewer_prompts_than_the_batch_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """TRL drops a last batch that is not whole: with fewer prompts it would train nothing, and say so in a log line."""
    size: dict[str, Any] = {"per_device_train_batch_size": 4 * G}
    run(tmp_path, rows(6), "mopps", 2, None, **size)
    trainer = tiny.trainer(tmp_path, data=Dataset.from_list(rows(6)[::2]), max_steps=5, **size)
    with pytest.raises(ConfigError, match="the pool holds 3 prompts, and this trainer generates 4 groups at a time"):
        attach(trainer, "mopps")
    ledger.note(43, tried=1, held=1)
