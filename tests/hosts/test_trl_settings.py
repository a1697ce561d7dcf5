"""The TRL host under the settings that users combine it with: each trains, and the trainer's own rules still hold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOTrainer

from edgewise.errors import ConfigError, DegradedWarning, HostError
from edgewise.hosts.trl import attach
from tests.hosts import tiny
from tests.hosts.test_trl import spied, weights
from tests.hosts.tiny import G, pays

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::UserWarning:torch", "ignore::DeprecationWarning", "ignore:.*bf16.*:UserWarning"
)


@pytest.mark.parametrize("given", [
    {"gradient_checkpointing": True},
    {"mask_truncated_completions": True},
    {"scale_rewards": "batch"},
    {"scale_rewards": "none", "loss_type": "dr_grpo"},
    {"loss_type": "dapo", "beta": 0.1},
    {"loss_type": "bnpo", "num_iterations": 2},
    {"bf16": True},
    {"importance_sampling_level": "sequence", "steps_per_generation": 2, "per_device_train_batch_size": 4},
    {"multi_objective_aggregation": "normalize_then_sum"},
    {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2, "per_device_eval_batch_size": 4},
    {"log_completions": True, "num_completions_to_print": 1},
    {"top_entropy_quantile": 0.5},
], ids=lambda given: "-".join(given))  # fmt: skip
def test_trains_with(tmp_path: Path, given: dict[str, Any]) -> None:
    lora = None
    if "beta" in given:  # the reference is then the model without its adapter
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    evaluated = tiny.dataset(8) if "eval_strategy" in given else None
    trainer = tiny.trainer(tmp_path, max_steps=2, eval_data=evaluated, peft=lora, **given)
    before = weights(trainer).clone()
    selector = attach(trainer, "hive", parameters={"max_rounds": 3})
    batches = spied(trainer)
    trainer.train()
    assert not torch.equal(weights(trainer), before)
    assert torch.isfinite(weights(trainer)).all()
    assert selector.metrics["v_scored"] > 0
    assert selector.metrics["degraded_total"] == 0
    for batch in batches:
        assert torch.isfinite(batch["advantages"]).all()
        assert (batch["completion_mask"].sum(dim=1) > 0).all() or given.get("mask_truncated_completions")
    for line in trainer.state.log_history:
        mine = {k: v for k, v in line.items() if k.startswith("edgewise/")}
        assert all(type(v) is float and math.isfinite(v) for v in mine.values())


def test_prompts_are_scored_in_the_precision_of_training(tmp_path: Path) -> None:
    """bf16=True keeps float32 weights and computes in bfloat16: the entropies must be computed like that, too."""
    trainer = tiny.trainer(tmp_path, bf16=True)
    attach(trainer, "hive")
    seen: list[bool] = []
    trainer.model.model.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    trainer._edgewise._score_everywhere("prompt_entropy", np.arange(3))
    assert seen
    assert all(seen)


def test_truncated_rollouts_are_counted_and_masked_tokens_are_not_generated_ones(tmp_path: Path) -> None:
    seen: list[list[int]] = []

    def counting(completion_ids: Any, **given: Any) -> list[float]:
        seen.extend(completion_ids)
        return pays(completion_ids=completion_ids, **given)

    trainer = tiny.trainer(tmp_path, rewards=counting, max_steps=1)
    selector = attach(trainer, "dapo")
    trainer.train()
    assert selector.metrics["truncated"] == sum(ids[-1] not in (0, 1) for ids in seen) > 0


def chat(n: int = 24) -> Dataset:
    rows = tiny.dataset(n).to_list()
    return Dataset.from_list([{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows])


def test_conversations(tmp_path: Path) -> None:
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    asked: list[Any] = []

    def judge(prompts: Any, completions: Any, **given: Any) -> list[float]:
        assert all(isinstance(c[0]["content"], str) for c in completions)
        asked.extend(prompts)
        return pays(completions=completions, **given)

    trainer = tiny.trainer(tmp_path, rewards=judge, data=chat(), words=words, max_steps=2)
    selector = attach(trainer, "hive", parameters={"max_rounds": 3})
    batches = spied(trainer)
    trainer.train()
    assert all(p[0]["role"] == "user" for p in asked)
    assert selector.metrics["v_scored"] > 0
    assert all(b["advantages"].abs().max() > 0 for b in batches)
    assert trainer._logs["prompt"][0][0]["role"] == "user"


def test_asynchronous_reward_functions(tmp_path: Path) -> None:
    async def later(completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        return pays(completions, kind, completion_ids)

    def at_once(completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        return pays(completions, kind, completion_ids)

    totals = []
    for rewards in (later, at_once):
        trainer = tiny.trainer(tmp_path, rewards=rewards, max_steps=2)
        totals.append(attach(trainer, "greso"))
        trainer.train()
    assert totals[0].metrics["rollouts_total"] == totals[1].metrics["rollouts_total"]


def test_rewards_that_are_all_none_move_nothing(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, rewards=lambda completions, **_: [None] * len(completions), max_steps=2)
    before = weights(trainer).clone()
    selector = attach(trainer, "dapo", parameters={"max_rounds": 2})
    with pytest.warns(DegradedWarning, match="no group to train on"):
        trainer.train()
    assert torch.equal(weights(trainer), before)
    assert selector.metrics["missing_rollouts"] == selector.metrics["responses"]
    assert selector.metrics["all_fail"] == 0


def test_an_infinite_reward_is_missing_for_the_trainer_too(tmp_path: Path) -> None:
    def wild(completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        scores = pays(completions, kind, completion_ids)
        scores[1] = math.inf
        return scores

    trainer = tiny.trainer(tmp_path, rewards=wild, max_steps=2)
    selector = attach(trainer, "dapo")
    batches = spied(trainer)
    with pytest.warns(DegradedWarning, match="must be finite, got inf"):
        trainer.train()
    for batch in batches:  # the other rollouts of its group are trained on
        assert all(0.1 < float(group.abs().max()) < 10 for group in batch["advantages"].view(-1, G))
    assert torch.isfinite(weights(trainer)).all()
    assert selector.metrics["missing_rollouts"] == selector.metrics["rounds"]


def test_what_a_reward_function_writes_into_a_row_is_in_no_other(tmp_path: Path) -> None:
    rows = [{**row, "notes": {"marks": []}} for row in chat(24).to_list()]
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"

    def scribbling(prompts: Any, completions: Any, kind: Any, completion_ids: Any, notes: Any, **_: Any) -> list[float]:
        for prompt, note in zip(prompts, notes, strict=True):
            assert not note["marks"]
            assert prompt[0]["content"].isalpha()
            note["marks"].append(1)
            prompt[0]["content"] += "!"
        return pays(completions, kind, completion_ids)

    trainer = tiny.trainer(tmp_path, rewards=scribbling, data=Dataset.from_list(rows), words=words, max_steps=2)
    attach(trainer, "dapo")
    trainer.train()


@pytest.mark.parametrize("remove", [False, True])
def test_reward_functions_get_the_columns_that_the_trainer_would_give(tmp_path: Path, remove: bool) -> None:
    data = tiny.dataset().with_format("torch")
    columns: list[set[str]] = []

    def looking(prompts: Any, completions: Any, completion_ids: Any, trainer_state: Any, log_extra: Any, log_metric: Any, **rest: Any) -> Any:  # fmt: skip  # noqa: E501
        columns.append(set(rest))
        return [float(len(set(ids)) % 2) for ids in completion_ids]

    for attached in (True, False):
        trainer = tiny.trainer(tmp_path, rewards=looking, data=data, max_steps=1, remove_unused_columns=remove)
        if attached:
            attach(trainer, "dapo")
        trainer.train()
    assert columns[0] == columns[-1] == (set() if remove else {"prompt_id", "kind"})


def test_extra_logs_of_another_length_do_not_end_the_run(tmp_path: Path) -> None:
    def short(completions: Any, kind: Any, completion_ids: Any, log_extra: Any, **_: Any) -> Any:
        log_extra("short", ["x"])
        return pays(completions, kind, completion_ids)

    trainer = tiny.trainer(tmp_path, rewards=short, max_steps=2)
    attach(trainer, "dapo")
    trainer.train()
    assert len(trainer._logs["extra"]["short"]) == len(trainer._logs["prompt"])


def test_a_subclass_with_its_own_generation_and_rewards_keeps_both(tmp_path: Path) -> None:
    calls: list[str] = []

    class Own(GRPOTrainer):
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
            calls.append("rewards")
            return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            calls.append("batch")
            assert all({"kind", "prompt_id"} <= set(row) for row in inputs)  # the whole rows, as TRL passes them
            assert len({id(row) for row in inputs}) == len(inputs)
            return super()._generate_and_score_completions(inputs)

    trainer = tiny.trainer(tmp_path, cls=Own, max_steps=2)
    selector = attach(trainer, "dapo")
    trainer.train()
    assert calls.count("batch") == 2
    assert calls.count("rewards") >= selector.metrics["rounds"]
    assert type(trainer).__name__ == "SelectingOwn"
    assert isinstance(trainer, Own)


def test_training_twice_and_attaching_after_a_first_training(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=3, gradient_accumulation_steps=2, steps_per_generation=4)
    trainer.train()
    selector = attach(trainer, "hive", parameters={"max_rounds": 3, "arm_at": 0.0})
    versions: list[int] = []
    step = selector.step
    selector.step = lambda *, policy_version: (versions.append(policy_version), step(policy_version=policy_version))[1]  # type: ignore[method-assign]
    for _ in range(3):
        trainer.train()
    assert len(versions) == selector.step_number >= 4
    assert versions == sorted(set(versions))  # the weights go on: a version never comes twice


def test_what_cannot_work_is_refused_at_attach(tmp_path: Path) -> None:
    for rows in (0, -1, 2.5, True):
        with pytest.raises(ConfigError, match="generate_rows"):
            attach(tiny.trainer(tmp_path), "dapo", generate_rows=rows)  # type: ignore[arg-type]
    changed = tiny.trainer(tmp_path)
    attach(changed, "dapo")
    changed._train_batch_size = 4
    changed.args.per_device_train_batch_size = 4
    with pytest.raises(HostError, match="asks for 4 rollouts on each of 1 processes; the selector was made for 8"):
        changed.train()


def test_a_model_that_cannot_be_scored_is_refused_at_attach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.trainer(tmp_path)
    monkeypatch.setattr(type(trainer), "_tokenize_prompts", lambda self, prompts: [[1, 2]])
    with pytest.raises(HostError, match="_tokenize_prompts no longer answers"):
        attach(trainer, "hive")
    assert type(trainer) is GRPOTrainer
    attach(trainer, "greso")  # needs no prompt entropy

    class Headless(type(tiny.model())):  # type: ignore[misc]
        def get_output_embeddings(self) -> None:
            return None

    net = tiny.model()
    net.__class__ = Headless
    with pytest.raises(Exception, match="(?i)head|output"):
        attach(tiny.trainer(tmp_path, net=net), "hive")


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_generation_in_small_parts_makes_the_same_groups(tmp_path: Path, rows: int) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2)
    selector = attach(trainer, "dapo", generate_rows=rows)
    batches = spied(trainer)
    trainer.train()
    assert all(b["completion_ids"].shape[0] == 8 for b in batches)
    assert selector.metrics["rollouts_total"] % G == 0
