"""The TRL host, through the real `GRPOTrainer` with a tiny model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import GRPOTrainer

import edgewise
from edgewise.errors import ConfigError, DegradedWarning, HostError, StateError
from edgewise.hosts.trl import attach
from tests.hosts import tiny
from tests.hosts.tiny import G, pays

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch", "ignore::DeprecationWarning")


class Recorder:
    """A reward function that remembers what it was asked, by round."""

    __name__ = "pays"

    def __init__(self) -> None:
        self.rounds: list[tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]] = []

    def __call__(self, prompts: Any, completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        self.rounds.append((tuple(prompts), tuple(tuple(ids) for ids in completion_ids)))
        return pays(completions, kind, completion_ids)


def spied(trainer: Any) -> list[dict[str, torch.Tensor]]:
    """Every generation batch that the trainer was given to train on."""
    batches: list[dict[str, torch.Tensor]] = []
    cls = type(trainer)
    whole = cls._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> Any:
        batch = whole(self, inputs)
        if self.model.training:
            batches.append({k: v.clone() for k, v in batch.items()})
        return batch

    cls._generate_and_score_completions = spy
    return batches


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


@pytest.mark.parametrize("method", ["dapo", "greso", "hive", "uniform"])
def test_the_optimizer_sees_exactly_the_batch_it_expects(tmp_path: Path, method: str) -> None:
    record = Recorder()
    trainer = tiny.trainer(tmp_path, rewards=record, per_device_train_batch_size=16, max_steps=3, data=tiny.dataset(96))
    selector = attach(trainer, method)
    batches = spied(trainer)
    trainer.train()
    assert len(batches) == 3

    def decode(ids: torch.Tensor) -> str:
        return str(trainer.processing_class.decode(ids)).replace(" ", "")

    for batch in batches:
        assert batch["completion_ids"].shape[0] == batch["advantages"].shape[0] == 16
        prompts = [decode(ids[mask.bool()]) for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)]
        assert all(len(set(prompts[i : i + G])) == 1 for i in range(0, 16, G))  # groups are whole
        assert len(set(prompts)) == 4
        for i in range(0, 16, G):
            group = batch["advantages"][i : i + G]
            assert abs(float(group.sum())) < 1e-3
            if method != "uniform":
                assert float(group.abs().max()) > 0.1  # mixed
    # the rollouts trained on are rollouts that were rewarded: the same tokens, prompt by prompt
    rewarded = Counter((p, ids) for prompts, completions in record.rounds for p, ids in zip(prompts, completions, strict=True))
    for batch in batches:
        for ids, mask, done, keep in zip(
            batch["prompt_ids"], batch["prompt_mask"], batch["completion_ids"], batch["completion_mask"], strict=True
        ):
            assert rewarded[decode(ids[mask.bool()]), tuple(done[keep.bool()].tolist())] > 0
    responses = sum(len(prompts) for prompts, _ in record.rounds)
    assert selector.metrics["rollouts_total"] == responses  # every generated response is counted, once
    assert selector.metrics["tokens_total"] == sum(len(ids) for _, done in record.rounds for ids in done)
    if method == "uniform":
        assert responses == 3 * 16


def test_a_reward_function_is_called_once_a_round_and_extra_logs_follow_their_rows(tmp_path: Path) -> None:
    def logging(
        prompts: Any, completions: Any, kind: Any, completion_ids: Any, log_extra: Any, log_metric: Any, **_: Any
    ) -> Any:
        log_extra("asked", list(prompts))
        log_metric("mine", 1.5)
        return pays(completions, kind, completion_ids)

    trainer = tiny.trainer(tmp_path, rewards=logging, max_steps=3)
    attach(trainer, "dapo")
    trainer.train()
    asked, prompts = list(trainer._logs["extra"]["asked"]), list(trainer._logs["prompt"])
    assert asked == prompts
    assert len(asked) == 8
    assert all(line["mine"] == 1.5 for line in trainer.state.log_history if "mine" in line)


def test_selection_sees_every_earlier_reward(tmp_path: Path) -> None:
    """Zero lag: at each proposal the method has observed all groups of all earlier generations."""
    for given in ({}, {"gradient_accumulation_steps": 2}, {"num_iterations": 2}, {"dataloader_num_workers": 1}):
        record = Recorder()
        trainer = tiny.trainer(tmp_path, rewards=record, max_steps=4, **given)
        method = edgewise.make("greso")
        attach(trainer, method)
        proposed = method.propose
        known: list[tuple[int, int]] = []

        def counting(
            room: int, step: Any, proposed: Any = proposed, known: Any = known, record: Any = record, method: Any = method
        ) -> Any:
            visits = int(sum(v.sum() for k, v in method.state().prompts.items() if k == "visits"))
            known.append((visits, sum(len(prompts) for prompts, _ in record.rounds) // G))
            return proposed(room, step)

        method.propose = counting  # type: ignore[method-assign]
        trainer.train()
        assert len(known) >= 2
        assert all(observed == rolled for observed, rolled in known)


@pytest.mark.parametrize("given", [
    {},
    {"num_iterations": 2},
    {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    {"steps_per_generation": 3, "per_device_train_batch_size": 4},
    {"num_iterations": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "dataloader_num_workers": 1},
], ids=["plain", "iterations", "accumulation", "generation", "all"])  # fmt: skip
def test_killed_after_every_step_and_resumed_equals_uninterrupted(tmp_path: Path, given: dict[str, int]) -> None:
    """Bit for bit: the same prompts, the same rollouts, the same weights. `trainer.train(resume_from_checkpoint=...)`."""
    steps = 5

    def run(resume: str | None) -> tuple[Recorder, torch.Tensor, dict[str, float]]:
        record = Recorder()
        trainer = tiny.trainer(tmp_path, rewards=record, max_steps=steps, save_strategy="steps", save_steps=1, **given)
        selector = attach(trainer, "hive", parameters={"max_rounds": 3})
        trainer.train(resume_from_checkpoint=resume)
        return record, weights(trainer), selector.metrics

    whole, final, metrics = run(None)
    for k in range(1, steps):
        again, w, m = run(str(tmp_path / f"checkpoint-{k}"))
        assert again.rounds == whole.rounds[len(whole.rounds) - len(again.rounds) :]
        assert torch.equal(w, final)
        assert m["rollouts_total"] == metrics["rollouts_total"]


def test_resume_without_selector_state_is_refused_unless_fresh(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    again = tiny.trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    attach(again, "dapo")
    with pytest.raises(StateError, match="has no selector state.*resume='fresh'"):
        again.train(resume_from_checkpoint=True)
    fresh = tiny.trainer(tmp_path, max_steps=3, save_strategy="steps", save_steps=1)
    selector = attach(fresh, "dapo", resume="fresh")
    with pytest.warns(DegradedWarning, match="Starting from priors"):
        fresh.train(resume_from_checkpoint=True)
    assert selector.step_number == 1


def test_short_batch_is_filled_with_dropped_groups_that_move_nothing(tmp_path: Path) -> None:
    """Nothing is ever mixed: the trainer gets a whole batch, every advantage is 0, and it goes on, with one warning."""

    def shaped(completions: Any, kind: Any, **_: Any) -> list[float]:
        return [0.1 * (i % 2) for i in range(len(completions))]  # varies, but nothing is correct

    trainer = tiny.trainer(tmp_path, rewards=[shaped], max_steps=2, per_device_train_batch_size=16)
    selector = attach(trainer, "dapo", outcome="shaped")
    batches = spied(trainer)
    with pytest.warns(DegradedWarning, match="has no group to train on"):
        trainer.train()
    assert [b["advantages"].shape for b in batches] == [(16,), (16,)]
    assert all(float(b["advantages"].abs().max()) == 0.0 for b in batches)
    assert selector.metrics["short_groups"] == 4


def test_unscored_rollouts_are_missing_not_failures(tmp_path: Path) -> None:
    def patchy(completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float | None]:
        scores: list[float | None] = list(pays(completions, kind, completion_ids))
        scores[0] = None
        return scores

    trainer = tiny.trainer(tmp_path, rewards=patchy, max_steps=1)
    selector = attach(trainer, "dapo")
    trainer.train()
    assert selector.metrics["missing_rollouts"] == selector.metrics["rounds"]


def test_several_reward_functions_judge_on_the_named_outcome(tmp_path: Path) -> None:
    def length(completions: Any, **_: Any) -> list[float]:
        return [0.01 * i for i in range(len(completions))]  # never constant: a reward gate would keep everything

    trainer = tiny.trainer(tmp_path, rewards=[pays, length], max_steps=2)
    selector = attach(trainer, "dapo", outcome="pays")
    trainer.train()
    assert selector.metrics["rollouts_total"] > 2 * 8  # zero-variance outcomes were dropped and topped up
    vague = tiny.trainer(tmp_path, rewards=[pays, length], max_steps=2)
    with pytest.warns(DegradedWarning, match="Name the verifier"):
        attach(vague, "dapo")
    with pytest.raises(ConfigError, match=r"no reward function has that name; there are \['pays', 'length'\]"):
        attach(tiny.trainer(tmp_path, rewards=[pays, length]), "dapo", outcome="pay")


def test_evaluation_never_touches_the_selector(tmp_path: Path) -> None:
    def run(**given: Any) -> tuple[Recorder, edgewise.Selector]:
        record = Recorder()
        trainer = tiny.trainer(tmp_path, rewards=record, max_steps=3, eval_data=tiny.dataset(8), **given)
        selector = attach(trainer, "hive", parameters={"max_rounds": 2})
        trainer.train()
        return record, selector

    plain, one = run()
    evaluated, two = run(eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=8)
    assert one.metrics["rollouts_total"] == two.metrics["rollouts_total"] == sum(len(p) for p, _ in plain.rounds)
    assert len(evaluated.rounds) > len(plain.rounds)
    assert evaluated.rounds[0] == plain.rounds[0]


def test_lora_is_scored_with_its_adapters(tmp_path: Path) -> None:
    lora = LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    trainer = tiny.trainer(tmp_path, peft=lora, max_steps=2, per_device_train_batch_size=8)
    selector = attach(trainer, "hive")
    rows = np.arange(6)
    with_adapters = trainer._edgewise._score_everywhere("prompt_entropy", rows)
    with trainer.model.disable_adapter():
        without = trainer._edgewise._score_everywhere("prompt_entropy", rows)
    assert np.abs(with_adapters - without).max() > 1e-4
    trainer.train()
    assert selector.metrics["v_scored"] > 0


def test_response_entropy_reaches_the_method_when_it_needs_it(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2)
    method = edgewise.make("greso", reward_weight=0.5)
    attach(trainer, method)
    seen: list[float] = []
    observe = method.observe

    def watching(groups: Any, step: Any) -> None:
        seen.extend(groups.rollout_entropy.tolist())
        observe(groups, step)

    method.observe = watching  # type: ignore[method-assign]
    trainer.train()
    assert seen
    assert all(0 < h <= np.log(3 + 20) + 1e-6 for h in seen)


def test_logs_reach_the_trainers_loggers(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=4, logging_steps=2)
    attach(trainer, "hive")
    trainer.train()
    lines = [line for line in trainer.state.log_history if "edgewise/rollouts_total" in line]
    assert len(lines) == 2
    assert lines[1]["edgewise/rollouts_total"] > lines[0]["edgewise/rollouts_total"]
    assert {"edgewise/mixed_frac", "edgewise/propose_ms", "edgewise/signal_s", "edgewise/rollout_s"} <= lines[0].keys()
    assert all(np.isfinite(v) for line in lines for k, v in line.items() if k.startswith("edgewise/"))


def test_a_moved_seam_fails_at_start_and_names_it(tmp_path: Path) -> None:
    class Newer(GRPOTrainer):
        def _generate(self, prompts: Any, images: Any) -> Any:  # type: ignore[override]
            return super()._generate(prompts)

        _calculate_rewards = None  # type: ignore[assignment]

    trainer = tiny.trainer(tmp_path, cls=Newer)
    del trainer._buffered_inputs
    with pytest.raises(HostError, match="tested with TRL .* no method `_calculate_rewards`; no attribute `_buffered_inputs`"):
        attach(trainer, "dapo")

    class Renamed(GRPOTrainer):
        def _generate(self, messages: Any) -> Any:  # type: ignore[override]
            return super()._generate(messages)

    with pytest.raises(HostError, match=r"`_generate\('prompts',\)` now takes \('messages',\)"):
        attach(tiny.trainer(tmp_path, cls=Renamed), "dapo")


def test_what_is_not_carried_is_refused_at_start(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path)
    attach(trainer, "dapo")
    with pytest.raises(HostError, match="attached to this trainer already"):
        attach(trainer, "dapo")
    with pytest.raises(HostError, match="iterable train_dataset"):
        attach(tiny.trainer(tmp_path, data=tiny.dataset().to_iterable_dataset()), "dapo")
    with pytest.raises(HostError, match="oracle.*needs the signal pass_rate"):
        attach(tiny.trainer(tmp_path), "oracle")
    with pytest.raises(ConfigError, match="Did you mean 'hive'"):
        attach(tiny.trainer(tmp_path), "hvie")
    with pytest.raises(ConfigError, match="pool"):
        attach(tiny.trainer(tmp_path, per_device_train_batch_size=4 * 32), "dapo")
    made = edgewise.Selector("dapo", tiny.dataset(), batch_size=3, group_size=G)
    with pytest.raises(HostError, match="batch_size 3 x group_size 4; this trainer generates 2 groups of 4"):
        attach(tiny.trainer(tmp_path), made)
    with pytest.raises(ConfigError, match="seed, total_steps, on_problem belong to the Selector"):
        attach(tiny.trainer(tmp_path), made, on_problem="strict", total_steps=4, seed=0)
    with pytest.raises(edgewise.EdgewiseError, match="in every row"):
        attach(
            tiny.trainer(tmp_path, data=Dataset.from_list([{"prompt": "ab", "prompt_id": "x", "kind": 0}] * 8)),
            "dapo",
            id_column="prompt_id",
        )
