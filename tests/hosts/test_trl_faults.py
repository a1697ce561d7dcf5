"""The TRL host when things go wrong: exceptions in the middle, disks that refuse, checkpoints that do not fit."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import edgewise
from edgewise.errors import DegradedWarning, ShortfallError, StateError, StateMismatchError
from edgewise.history import History
from edgewise.hosts import trl as host
from edgewise.hosts.trl import attach
from tests.hosts import tiny
from tests.hosts.test_trl import Recorder, spied, weights
from tests.hosts.tiny import G, pays

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch", "ignore::DeprecationWarning")
SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}


def test_every_attribute_of_the_trainer_that_is_used_is_checked_at_attach() -> None:
    used: set[str] = set()
    for file in sorted(Path(host.__file__).parent.glob("trl*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            owner = node.value
            named = isinstance(owner, ast.Name) and owner.id == "trainer"
            held = isinstance(owner, ast.Attribute) and owner.attr == "trainer"
            mixed = (
                isinstance(owner, ast.Call)
                and isinstance(owner.func, ast.Name)
                and owner.func.id == "super"
                and file.name == "trl.py"
            )
            if named or held or mixed:
                used.add(node.attr)
            if isinstance(owner, ast.Attribute) and owner.attr == "args" or isinstance(owner, ast.Name) and owner.id == "args":
                used.add(f"args.{node.attr}")
    checked = {*host._SEAM, *host._ATTRIBUTES, *(f"args.{name}" for name in host._ARGUMENTS)}
    ours = {"args", "__class__", "_edgewise"}
    assert used - checked - ours == set()


@pytest.mark.parametrize("name", [*host._ATTRIBUTES, *host._ARGUMENTS])
def test_each_missing_attribute_is_named(tmp_path: Path, name: str) -> None:
    class Without:
        """The trainer, but for one attribute."""

        def __init__(self, whole: Any) -> None:
            self.__dict__["whole"] = whole

        def __getattr__(self, asked: str) -> Any:
            if asked == name:
                raise AttributeError(asked)
            held = getattr(self.whole, asked)
            return Without(held) if asked == "args" else held

    problems = host._missing(Without(_whole(tmp_path)))
    assert any(f"`{name}`" in problem or f"`args.{name}`" in problem for problem in problems)


_made: list[Any] = []


def _whole(tmp_path: Path) -> Any:
    if not _made:
        _made.append(tiny.trainer(tmp_path))
    return _made[0]


@pytest.mark.parametrize("where", ["_generate", "_calculate_rewards", "_get_per_token_logps_and_entropies"])
def test_an_exception_in_a_generation_rolls_back_and_training_can_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    record = Recorder()
    trainer = tiny.trainer(tmp_path, rewards=record, max_steps=2, num_iterations=2, per_device_train_batch_size=8)
    cls = type(trainer)
    real = getattr(cls, where)
    left = [1]

    def fail(self: Any, *args: Any, **given: Any) -> Any:
        if left[0] == 0:
            left[0] = -1
            raise MemoryError("out of memory")
        left[0] -= 1
        return real(self, *args, **given)

    selector = attach(trainer, "greso")
    before = selector.step_number
    monkeypatch.setattr(cls, where, fail)

    def train() -> None:
        for _ in range(3):
            trainer.train()

    with pytest.raises(MemoryError):
        train()
    assert selector._current is None
    assert selector.in_flight == []
    assert not selector._blocked.any()
    assert trainer._edgewise.replay is None
    spent = len(record.rounds)
    trainer._step, trainer._buffered_inputs = 0, None
    trainer.train()
    assert selector.step_number > before
    assert len(record.rounds) > spent
    visited = selector.method.state().prompts["visits"].sum()
    assert visited * G <= selector.metrics["rollouts_total"]


def test_a_refusing_disk_costs_the_resume_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    stale = tiny.trainer(tmp_path, max_steps=1, **SAVING)
    attach(stale, "dapo")
    stale.train()  # an earlier run wrote to the same folder
    trainer = tiny.trainer(tmp_path, max_steps=2, **SAVING)
    selector = attach(trainer, "dapo")
    monkeypatch.setattr(selector, "save", full)
    with pytest.warns(DegradedWarning, match="could not be written: .*No space left.*resume from an older one"):
        trainer.train()
    assert trainer.state.global_step == 2
    assert (tmp_path / "checkpoint-1" / "model.safetensors").is_file()
    again = tiny.trainer(tmp_path, max_steps=3)
    attach(again, "dapo")
    with pytest.raises(StateError, match="has no selector state"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    strict = tiny.trainer(tmp_path / "strict", max_steps=2, **SAVING)
    selector = attach(strict, "dapo", on_problem="strict")
    monkeypatch.setattr(selector, "save", full)
    with pytest.raises(StateError, match="could not be written"):
        strict.train()


def test_the_buffer_may_refuse_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    def full(*_: Any, **__: Any) -> bytes:
        raise SafetensorError("IoError(Os { code: 28 })")

    trainer = tiny.trainer(tmp_path, max_steps=2, **SAVING)
    attach(trainer, "dapo")
    monkeypatch.setattr("edgewise.hosts.trl_cycle.to_bytes", full)
    with pytest.warns(DegradedWarning, match="IoError"):
        trainer.train()
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=1, **SAVING)
    attach(trainer, "dapo")
    trainer.train()
    other = tiny.trainer(tmp_path, max_steps=2)
    selector = attach(other, "greso")
    with pytest.raises(StateMismatchError, match="method: saved 'dapo', this run 'greso'"):
        other.train(resume_from_checkpoint=True)
    assert selector.step_number == 0


@pytest.mark.parametrize("damage", ["gone", "cut", "shape"])
def test_without_its_buffer_a_cycle_starts_anew(tmp_path: Path, damage: str) -> None:
    """In the middle of a cycle of four steps: the selector goes on exactly, the trainer generates at once."""
    given: dict[str, Any] = {
        "steps_per_generation": 4,
        "gradient_accumulation_steps": 1,
        "per_device_train_batch_size": 4,
        **SAVING,
    }
    trainer = tiny.trainer(tmp_path, max_steps=2, **given)
    selector = attach(trainer, "dapo")
    trainer.train()
    buffer = tmp_path / "checkpoint-2" / "edgewise" / "buffer-0.safetensors"
    if damage == "gone":
        buffer.unlink()
    elif damage == "cut":
        buffer.write_bytes(buffer.read_bytes()[:-9])
    else:  # a buffer of two processes
        buffer.write_bytes(buffer.read_bytes().replace(b'"processes":"1"', b'"processes":"2"'))
    record = Recorder()
    again = tiny.trainer(tmp_path, rewards=record, max_steps=3, **given)
    resumed = attach(again, "dapo")
    said = "processes 2, now 1.*a new generation starts at once" if damage == "shape" else "cannot be read"
    with pytest.warns(DegradedWarning, match=said):
        again.train(resume_from_checkpoint=True)
    assert resumed.metrics["degraded_total"] == (damage != "shape")
    assert again.state.global_step == 3
    assert resumed.step_number == selector.step_number + 1
    assert record.rounds


def test_resuming_from_an_older_checkpoint_twice_gives_the_same_run(tmp_path: Path) -> None:
    def run(steps: int, resume: str | None, directory: bool = True) -> tuple[Recorder, torch.Tensor, edgewise.Selector]:
        record = Recorder()
        trainer = tiny.trainer(tmp_path / "run", rewards=record, max_steps=steps, **SAVING)
        made = edgewise.Selector(
            "greso",
            trainer.train_dataset,
            batch_size=2,
            group_size=G,
            seed=5,
            directory=tmp_path / "selector" if directory else None,
        )
        attach(trainer, made)
        trainer.train(resume_from_checkpoint=resume)
        return record, weights(trainer), made

    whole, final, _ = run(5, None)
    for _ in range(2):  # back to step 2, although the selector's own directory is at step 5
        again, w, made = run(5, str(tmp_path / "run" / "checkpoint-2"))
        assert again.rounds == whole.rounds[len(whole.rounds) - len(again.rounds) :]
        assert torch.equal(w, final)
        assert made.step_number == 5
        history = History.of(tmp_path / "selector")
        assert history.steps()[-3:] == [3, 4, 5]  # steps after 2 are those of this run, not of the one given up
        newest = history.newest()
        assert newest is not None
        assert newest.header["run_id"] == made.run_id
        assert len(history.snapshots) == 2
    shutil.rmtree(tmp_path / "selector")


def test_a_shortfall_that_is_an_error_ends_the_training_and_the_step(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, rewards=lambda completions, **_: [0.0] * len(completions), max_steps=2)
    selector = attach(trainer, "dapo", parameters={"on_short": "error", "max_rounds": 2})
    with pytest.raises(ShortfallError, match="2 groups are missing and 2 rounds are used up"):
        trainer.train()
    assert selector._current is None
    assert not selector._blocked.any()


@pytest.mark.filterwarnings("ignore::edgewise.errors.DegradedWarning")
def test_a_process_that_cannot_score_costs_the_method_and_not_the_run(tmp_path: Path) -> None:
    trainer = tiny.trainer(tmp_path, max_steps=2)
    selector = attach(trainer, "hive")
    trainer._edgewise.signals.scorer = lambda name: (_ for _ in ()).throw(MemoryError("no room"))
    batches = spied(trainer)
    with pytest.warns(DegradedWarning, match="prompt_entropy.*failed: MemoryError: no room.*drawn uniformly"):
        trainer.train()
    assert len(batches) == 2
    assert selector.metrics["degraded"] == 1
    assert np.isfinite(list(selector.metrics.values())).all()


def test_no_reward_is_asked_for_twice_after_a_reward_function_failed(tmp_path: Path) -> None:
    calls = [0]

    def flaky(completions: Any, kind: Any, completion_ids: Any, log_extra: Any, log_metric: Any, **_: Any) -> Any:
        calls[0] += 1
        log_extra("n", [calls[0]] * len(completions))
        log_metric("mine", float(calls[0]))
        if calls[0] == 1:
            raise ConnectionError("verifier is down")
        return pays(completions, kind, completion_ids)

    trainer = tiny.trainer(tmp_path, rewards=flaky, max_steps=1)
    attach(trainer, "dapo")
    with pytest.raises(ConnectionError):
        trainer.train()
    trainer.train()
    assert 1 not in trainer._logs["extra"]["n"]  # what the failed round logged is not this batch's
    assert all(line["mine"] > 1 for line in trainer.state.log_history if "mine" in line)
