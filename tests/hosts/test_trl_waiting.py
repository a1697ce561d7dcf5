"""Groups that go on in a later step of the real GRPOTrainer: their rollouts are never lost, doubled or taken for others."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from trl import GRPOTrainer

from edgewise.errors import DegradedWarning
from edgewise.hosts.trl import attach
from edgewise.hosts.trl_checkpoint import Kept
from edgewise.hosts.trl_made import Made, Store, complete
from edgewise.hosts.trl_rounds import Rounds
from edgewise.types import Groups, Verdicts
from tests.hosts import tiny
from tests.hosts.test_trl_groups import Shaped, captured, expected, held_run, hold
from tests.hosts.tiny import G


def graded(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """Rewards of many values, by what was generated."""
    return [sum(ids) % 11 / 10 for ids in completion_ids]


def test_after_a_step_that_failed_half_way_held_groups_train_on_their_own_rollouts(tmp_path: Path) -> None:
    """The continuations were rolled out once for the step that failed and once for the one that trained."""
    calls = [0]
    kept: list[Groups] = []

    def rewards(completion_ids: list[list[int]], **given: Any) -> list[float]:
        calls[0] += 1
        return graded(completion_ids, **given)

    def judge(groups: Groups, step: Any) -> Verdicts:
        if calls[0] == fails_at[0]:
            fails_at[0] = -1
            raise ConnectionError("half way")
        return hold(groups, step)

    fails_at = [-1]
    trainer = tiny.trainer(
        tmp_path, rewards=rewards, max_steps=4, per_device_train_batch_size=3 * G, data=tiny.dataset(6), num_iterations=1,
    )  # fmt: skip
    selector = attach(trainer, Shaped([2], judge), on_problem="strict")
    selector.watch(lambda groups, verdicts: kept.append(groups.select(verdicts.keep)))
    batches = captured(trainer)
    fails_at[0] = 3  # after two rounds of pilots, the first continuations
    with pytest.raises(ConnectionError):
        trainer.train()
    assert len(selector.waiting) == 6
    trainer._step, trainer._buffered_inputs = 0, None
    batches.clear()
    trainer.train()
    assert selector.metrics["rollouts_total"] > 0
    trained = [groups for groups in kept if len(groups)]
    full = [advantages for _, advantages in batches if advantages.any()]
    assert len(trained) >= 2
    for advantages, groups in zip(full, trained, strict=False):
        by_hand = [value for i in range(len(groups)) for value in expected(groups, i)]
        assert advantages[: len(by_hand)].tolist() == pytest.approx(by_hand, abs=1e-5)


@pytest.mark.parametrize("how", ["a flipped digit", "another reward function", "the share of one process", "no file"])
def test_held_rollouts_that_are_not_all_there_are_given_up_whole(tmp_path: Path, how: str) -> None:
    held_run(tmp_path, None)
    file = tmp_path / "checkpoint-2" / "edgewise" / "waiting-0.json"
    if how == "a flipped digit":
        text = file.read_text()
        at = text.index('"completion_ids": [') + len('"completion_ids": [')
        file.write_text(text[:at] + ("2" if text[at] == "1" else "1") + text[at + 1 :])
    elif how == "no file":
        file.unlink()
    else:
        store, content = Store(), json.loads(file.read_text())
        store._made = {
            int(seq): Made(torch.tensor(one["rewards"]), {int(j): record for j, record in one["records"].items()})
            for seq, one in content["made"].items()
        }
        for seq, made in store._made.items():
            if how == "another reward function":
                store._made[seq] = Made(made.rewards.repeat(1, 2), made.records)
            else:
                made.records.pop(0)
        store.save(file, content["of"])
    with pytest.warns(DegradedWarning) as warned:
        trainer, _, selector, _ = held_run(tmp_path, str(tmp_path / "checkpoint-2"))
    assert "given up" in " ".join(str(w.message) for w in warned)
    assert trainer.state.global_step == 5
    waiting = selector._waiting.rows
    assert sorted(waiting) == np.flatnonzero(selector._blocked).tolist()


def test_a_flipped_bit_of_the_buffered_batch_costs_the_batch_and_is_never_trained_on(tmp_path: Path) -> None:
    def run(steps: int, resume: str | None) -> Any:
        trainer = tiny.trainer(
            tmp_path, rewards=graded, max_steps=steps, steps_per_generation=2, gradient_accumulation_steps=1,
            save_strategy="steps", save_steps=1,
        )  # fmt: skip
        attach(trainer, "dapo")
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    run(1, None)
    file = tmp_path / "checkpoint-1" / "edgewise" / "buffer-0.safetensors"
    whole = bytearray(file.read_bytes())
    for at in (len(whole) - 3, len(whole) - 40):
        file.write_bytes(bytes(whole[:at]) + bytes([whole[at] ^ 4]) + bytes(whole[at + 1 :]))
        with pytest.warns(DegradedWarning, match="SHA-256 does not match.*A new generation starts at once"):
            assert run(2, str(tmp_path / "checkpoint-1")).state.global_step == 2


def test_what_reward_functions_log_of_held_rollouts_is_kept_as_plain_numbers(tmp_path: Path) -> None:
    def rewards(completion_ids: list[list[int]], log_extra: Any, **_: Any) -> list[float]:
        log_extra("length", np.array([len(ids) for ids in completion_ids], dtype=np.int32))
        return graded(completion_ids)

    trainer = tiny.trainer(
        tmp_path, rewards=rewards, max_steps=1, per_device_train_batch_size=2 * G, data=tiny.dataset(6), save_strategy="steps",
        save_steps=1,
    )  # fmt: skip
    attach(trainer, Shaped([2], hold), on_problem="degrade")
    trainer.train()
    folder = tmp_path / "checkpoint-1" / "edgewise"
    made = json.loads((folder / "waiting-0.json").read_text())["made"]
    assert all(1 <= record["extra_logs"]["length"] <= 5 for entry in made.values() for record in entry["records"].values())
    assert (folder / "selector.safetensors").is_file()


def test_held_rollouts_are_whole_if_each_process_knows_them_and_one_has_each() -> None:
    assert complete([{}])
    assert complete([{}, {}])
    assert complete([{3: (4, [0, 1, 2, 3])}])
    assert complete([{3: (4, [0, 2]), 7: (1, [])}, {3: (4, [1, 3]), 7: (1, [0])}])
    assert not complete([{3: (4, [0, 1, 2])}])
    assert not complete([{3: (4, [0, 1, 2, 3])}, {}])
    assert not complete([{3: (4, [0, 1])}, {3: (4, [1, 2, 3])}])
    assert not complete([{3: (4, [0, 1])}, {3: (5, [2, 3, 4])}])


def test_rewards_of_held_rollouts_come_back_to_where_those_of_new_rounds_are(tmp_path: Path) -> None:
    """TRL keeps its reward weights on the CPU and its rewards on the device."""
    store = Store()
    record = {"row": 1, "prompt_ids": [3], "completion_ids": [4], "tool_mask": None, "completions": "b", "logprobs": None}
    store._made[5] = Made(torch.tensor([[0.5], [float("nan")]]), {j: {**record, "extra_logs": {}} for j in range(2)})
    store.save(tmp_path / "waiting-0.json", "a state")
    accelerator = SimpleNamespace(device=torch.device("meta"), process_index=0, num_processes=1)
    trainer = SimpleNamespace(reward_weights=torch.ones(1), accelerator=accelerator)
    host: Any = SimpleNamespace(trainer=trainer, store=Store(), selector=SimpleNamespace(waiting={}))
    Rounds.take_up(host, tmp_path, Kept("a state", 1, {5: (1, 2)}, tokens=5, positions=9))
    assert host.store.rewards([5]).device.type == "meta"
    assert host.store.rewards([5]).shape == (2, 1)


@pytest.mark.parametrize("rows", [None, 2, 4, 6, 8])
@pytest.mark.parametrize("sizes", [[G], [2, 6]])
def test_each_call_of_generate_holds_whole_groups_or_asks_for_one_answer_a_row(
    tmp_path: Path, rows: int | None, sizes: list[int]
) -> None:
    """vLLM's server takes the first of every `num_generations` prompts of a call to stand for all of them."""
    calls: list[tuple[int, list[str]]] = []

    class Spy(GRPOTrainer):
        def _generate(self, prompts: list[Any]) -> Any:
            calls.append((self.num_generations, list(prompts)))
            return super()._generate(prompts)

    trainer = tiny.trainer(tmp_path, cls=Spy, max_steps=2, per_device_train_batch_size=3 * G)
    attach(trainer, Shaped(sizes), generate_rows=rows)
    trainer.train()
    for n, prompts in calls:
        assert [prompt for prompt in prompts[::n] for _ in range(n)] == prompts
    whole = {n for n, _ in calls} == {G}
    assert whole == (sizes == [G] and (rows or G) % G == 0)
    assert trainer.num_generations == G
