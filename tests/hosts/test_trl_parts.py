"""Our parts of a TRL checkpoint, damaged and hostile: an error or a counted loss, at once, in little memory; no other run."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from edgewise import state
from edgewise.errors import DegradedWarning, StateError
from edgewise.hosts import trl_checkpoint, trl_cycle
from edgewise.hosts.trl import attach
from edgewise.hosts.trl_made import Made, Store, most_bytes
from tests import ledger
from tests.hosts import tiny
from tests.hosts.test_trl_groups import Shaped, hold
from tests.hosts.test_trl_waiting import graded

SECONDS, BYTES = 1.0, 200 << 20
"""What a refusal may cost (row 58)."""


class Saved(NamedTuple):
    """A checkpoint in the middle of a generation cycle, with groups that wait; and a trainer that never changes, to read it."""

    folder: Path
    trainer: Any
    kept: trl_checkpoint.Kept

    @property
    def buffer(self) -> Path:
        return self.folder / "edgewise" / "buffer-0.safetensors"

    @property
    def waiting(self) -> Path:
        return self.folder / "edgewise" / "waiting-0.json"


def made(out: Path, steps: int = 1, **given: Any) -> tuple[Any, Any]:
    trainer = tiny.trainer(
        out, rewards=graded, max_steps=steps, steps_per_generation=2, gradient_accumulation_steps=1, save_strategy="steps",
        save_steps=1, data=tiny.dataset(18), per_device_train_batch_size=8,
    )  # fmt: skip
    return trainer, attach(trainer, Shaped([2], hold), **given)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Made once: what is read is checked before anything is changed, so one trainer serves all cases."""
    folder = tmp_path_factory.mktemp("parts")
    trainer, selector = made(folder)
    trainer.train()
    checkpoint = folder / "checkpoint-1"
    kept = trl_checkpoint._restore_selector(trainer, selector, checkpoint, "exact")
    assert kept is not None
    assert kept.waiting
    alone = SimpleNamespace(
        num_processes=1, process_index=0, unwrap_model=lambda model: model
    )  # accelerate's is reset by tests
    told = {name: getattr(trainer, name) for name in ("args", "model", "state", "num_iterations", "_edgewise")}
    return Saved(checkpoint, SimpleNamespace(accelerator=alone, **told), kept)


def read_buffer(saved: Saved, file: Path) -> Any:
    return trl_cycle.load(saved.trainer, file, saved.kept.of)


def read_waiting(saved: Saved, file: Path) -> Any:
    store = Store()
    store.load([file], 1, torch.device("cpu"), saved.kept)
    return store.known(), store._made


def refused(read: Callable[[Saved, Path], Any], saved: Saved, file: Path) -> str:
    """The message of the error that reading ends with, at once and in little memory. "" if it was read."""
    took = []
    for measure in (False, True):  # tracemalloc takes its time
        if measure:
            tracemalloc.start()
        began = time.thread_time()
        try:
            read(saved, file)
            message = ""
        except Exception as error:  # which it may be is checked through the trainer, below
            message = f"{type(error).__name__}: {error}"
        took.append(time.thread_time() - began)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took[0] < SECONDS, f"{took[0]:.1f} s: {message[:200]}"
    assert most < BYTES, f"{most >> 20} MB: {message[:200]}"
    assert len(message) < 1000
    return message


# -- bytes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["buffer", "waiting"])
def test_every_truncation_and_every_flipped_byte_is_found(saved: Saved, tmp_path: Path, part: str) -> None:
    read: Any = read_buffer if part == "buffer" else read_waiting
    whole = Path(getattr(saved, part)).read_bytes()
    read(saved, getattr(saved, part))
    file, luck = tmp_path / "part", random.Random(part)
    every = list(range(len(whole)))
    cuts = luck.sample(every, min(len(every), ledger.cases(150, chaos=len(every))))
    for at in {0, 1, 8, len(whole) - 1, *cuts}:
        file.write_bytes(whole[:at])
        with pytest.raises((OSError, ValueError, SafetensorError)):
            read(saved, file)
    flips = luck.sample(every, min(len(every), ledger.cases(300, chaos=len(every))))
    for at in flips:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << luck.randrange(8))]) + whole[at + 1 :])
        with pytest.raises((OSError, ValueError, SafetensorError, trl_cycle.AnotherShape)):
            read(saved, file)
    file.write_bytes(bytes(len(whole)))  # what is left of a file after a power loss
    with pytest.raises((OSError, ValueError)):
        read(saved, file)
    ledger.note(3, tried=len(cuts) + 1, held=len(cuts) + 1)
    ledger.note(4, tried=len(flips), held=len(flips))


# -- hostile content, with digests that are right ------------------------------------------------------------------------


def signed(text: str) -> bytes:
    """A file of waiting rollouts as `Store.save` would sign it."""
    return f'{{"sha256": "{hashlib.sha256(text.encode()).hexdigest()}", {text}'.encode()


def texts(saved: Saved) -> dict[str, str]:
    """What stands behind the digest, changed in one way each."""
    content = json.loads(saved.waiting.read_text())
    of, seq = content["of"], next(iter(content["made"]))

    def changed(change: Callable[[dict[str, Any]], Any]) -> str:
        copy = json.loads(json.dumps(content["made"]))
        change(copy)
        return f'"of": {json.dumps(of)}, "made": {json.dumps(copy)}}}'

    def of_first(**fields: Any) -> str:
        return changed(lambda made: made[seq]["records"]["0"].update(fields))

    body = json.dumps(content["made"])
    deep = "[" * 200_000
    return {
        "of another state": f'"of": "another", "made": {body}}}',
        "no state": f'"made_": {body}}}',
        "deep": f'"of": "{of}", "made": {deep}{"]" * len(deep)}}}',
        "unclosed": f'"of": "{of}", "made": {deep}',
        "deep record": f'"of": "{of}", "made": {body[:-1]}, "7": {"[" * 50_000}{"]" * 50_000}}}}}',
        "brackets": f'"of": "{of}", "made": [{"[]," * 3_000_000}[]]}}',
        "numbers": f'"of": "{of}", "made": [{"0.5," * 2_000_000}0]}}',
        "quotes": f'"of": "{of}", "made": [{chr(34) * 9_000_001}]}}',
        "digits": f'"of": "{of}", "made": {{"{"9" * 5_000}": 0}}}}',
        "a long number": f'"of": "{of}", "made": {{"1": {"9" * 100_000}}}}}',
        "keys twice": f'"of": "{of}", "made": {{"{seq}": 1, "{seq}": 2}}}}',
        "made twice": f'"of": "{of}", "made": {{}}, "made": {body}}}',
        "a list": f'"of": "{of}", "made": []}}',
        "null": f'"of": "{of}", "made": null}}',
        "no groups": f'"of": "{of}", "made": {{}}}}',
        "one group less": changed(lambda made: made.pop(seq)),
        "one group more": changed(lambda made: made.update({"999": made[seq]})),
        "a rollout more": changed(lambda made: made[seq]["rewards"].append([0.0])),
        "a function more": changed(lambda made: [row.append(0.0) for row in made[seq]["rewards"]]),
        "ragged rewards": changed(lambda made: made[seq]["rewards"][0].append(0.0)),
        "rewards in words": changed(lambda made: made[seq].update(rewards=[["a"], ["b"]])),
        "huge rewards": changed(lambda made: made[seq].update(rewards=[[10**400], [0]])),
        "number of no rollout": changed(lambda made: made[seq]["records"].update({"77": made[seq]["records"]["0"]})),
        "another row": of_first(row=0 if saved.kept.waiting[int(seq)][0] else 1),
        "a row of 1e30": of_first(row=10**30),
        "no such token": of_first(completion_ids=[3, 10**9]),
        "a negative token": of_first(prompt_ids=[-1]),
        "half a token": of_first(completion_ids=[0.5]),
        "tokens in words": of_first(completion_ids="abc"),
        "tokens without end": of_first(completion_ids=[3] * 5_000),
        "no prompt": of_first(prompt_ids=[]),
        "log-probabilities of others": of_first(logprobs=[0.0] * 50),
        "a field more": of_first(surprise=1),
        "no text": of_first(completions=7),
        "a record that is none": changed(lambda made: made[seq]["records"].update({"0": 5})),
    }


def batches(saved: Saved) -> dict[str, bytes]:
    """Buffers, changed in one way each; with a digest over what they hold."""
    data = saved.buffer.read_bytes()
    length = struct.unpack_from("<Q", data)[0]
    said = json.loads(data[8 : 8 + length])["__metadata__"]
    said.pop("sha256")

    first = load(data)

    def built(change: Callable[[dict[str, torch.Tensor], dict[str, str]], Any]) -> bytes:
        tensors, words = load(data), dict(said)
        change(tensors, words)
        return save(tensors, metadata=words | {"sha256": trl_cycle._digest(words, tensors)})

    def put(name: str, tensor: torch.Tensor) -> bytes:
        return built(lambda tensors, _: tensors.update({name: tensor}))

    prompt, advantages = first["0/prompt_ids"], first["0/advantages"]
    nan = advantages.clone()
    nan[0] = torch.nan

    def head(header: str) -> bytes:
        return struct.pack("<Q", len(header)) + header.encode()

    metadata = json.dumps(said | {"sha256": "0"})
    lying = '{"__metadata__": %s, "step": {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}, "0/%s": %s}'
    return {
        "of another state": built(lambda _, words: words.update(selector="another")),
        "another step": built(lambda tensors, _: tensors.update(step=torch.tensor(2))),
        "a negative step": built(lambda tensors, _: tensors.update(step=torch.tensor(-1))),
        "a step of 1.0": put("step", torch.tensor(1.0)),
        "no step": built(lambda tensors, _: tensors.pop("step")),
        "one part": built(lambda tensors, _: [tensors.pop(name) for name in list(tensors) if name.startswith("1/")]),
        "three parts": built(lambda tensors, _: tensors.update({f"2/{n[2:]}": +t for n, t in first.items() if n[0] == "0"})),
        "no advantages": built(lambda tensors, _: [tensors.pop(f"{i}/advantages") for i in range(2)]),
        "NaN": put("0/advantages", nan),
        "fewer rows": put("0/prompt_ids", prompt[:4].clone()),
        "a row of tokens": put("0/prompt_ids", prompt[0].clone()),
        "no such token": put("0/prompt_ids", prompt + 10**9),
        "a negative token": put("0/prompt_ids", prompt - 10**9),
        "tokens in halves": put("0/prompt_ids", prompt.to(torch.float32)),
        "whole advantages": put("0/advantages", advantages.to(torch.int64)),
        "a mask of 2": put("0/prompt_mask", torch.full_like(prompt, 2)),
        "bytes": put("0/prompt_ids", prompt.to(torch.uint8)),
        "another name": put("surprise", torch.zeros(3)),
        "a larger tensor": put("0/old_per_token_logps", torch.zeros(8, 999)),
        "a lying shape": head(
            lying % (metadata, "prompt_ids", '{"dtype": "I64", "shape": [4000000000, 4000000000], "data_offsets": [8, 16]}')
        ) + bytes(16),
        "a lying length": struct.pack("<Q", 1 << 62) + b"{}",
        "a deep header": head('{"a": ' + "[" * 500_000),
        "keys twice": head('{"__metadata__": {"selector": "a", "selector": "b"}}'),
        "numbers of 5,000 digits": head(lying % (metadata, "a", f'{{"dtype": "I64", "shape": [{"9" * 5000}]}}')),
        "shapes in words": head(lying % (metadata, "a", '{"dtype": "I64", "shape": "many"}')),
        "an infinite shape": head(lying % (metadata, "a", '{"dtype": "I64", "shape": [1e999]}')),
        "a list": head("[1, 2, 3]"),
        "no metadata": head("{}"),
        "numbers as metadata": head('{"__metadata__": {"selector": 5}}'),
        "a pickle": b"cos\nsystem\n(S'touch pwned'\ntR.",
    }  # fmt: skip


def test_hostile_rollouts_are_refused(saved: Saved, tmp_path: Path) -> None:
    file = tmp_path / "waiting-0.json"
    cases = texts(saved)
    file.write_bytes(signed(saved.waiting.read_text().partition(", ")[2]))
    assert file.read_bytes() == saved.waiting.read_bytes(), "this is how it is signed"
    assert refused(read_waiting, saved, file) == ""
    for name, text in cases.items():
        file.write_bytes(signed(text))
        message = refused(read_waiting, saved, file)
        assert message.partition(":")[0] in ("ValueError", "OSError", "JSONDecodeError"), (name, message)
    ledger.note(58, tried=len(cases), held=len(cases))


def test_hostile_batches_are_refused(saved: Saved, tmp_path: Path) -> None:
    file = tmp_path / "buffer-0.safetensors"
    cases = batches(saved)
    for name, data in cases.items():
        file.write_bytes(data)
        message = refused(read_buffer, saved, file)
        assert message.partition(":")[0] in ("ValueError", "OSError", "SafetensorError", "OverflowError"), (name, message)
    ledger.note(58, tried=len(cases), held=len(cases))


def test_what_is_no_file_of_ours_is_refused_by_its_size_or_kind(saved: Saved, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    tried = 0
    for read, good in ((read_buffer, saved.buffer), (read_waiting, saved.waiting)):
        file = tmp_path / good.name

        def link(file: Path = file, good: Path = good) -> None:
            shutil.copy(good, elsewhere)
            file.symlink_to(elsewhere)

        def sparse(file: Path = file) -> None:
            with file.open("wb") as out:
                out.truncate(1 << 40)

        ways: dict[str, tuple[Callable[[], Any], str]] = {
            "a link": (link, "symbolic link"),
            "a terabyte": (sparse, "at most"),
            "a folder": (file.mkdir, "a folder"),
            "a pipe": (lambda file=file: os.mkfifo(file), "a named pipe"),
            "endless": (lambda file=file: file.symlink_to("/dev/zero"), "symbolic link"),
        }
        for name, (make, said) in ways.items():
            make()
            assert said in refused(read, saved, file), name
            shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
            tried += 1
    ledger.note(59, tried=tried, held=tried)


# -- through the trainer -------------------------------------------------------------------------------------------------


def resumed(saved: Saved, out: Path, damage: Callable[[Path], Any], steps: int = 2, **given: Any) -> tuple[Any, list[str]]:
    """The selector after a run from a damaged copy of the checkpoint, and what was warned of."""
    shutil.copytree(saved.folder, out / "checkpoint-1")
    damage(out / "checkpoint-1")
    trainer, selector = made(out, steps, **given)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.train(resume_from_checkpoint=str(out / "checkpoint-1"))
    return selector, [str(w.message) for w in said if isinstance(w.message, DegradedWarning)]


def test_a_loss_is_counted_and_told_or_in_strict_mode_an_error(saved: Saved, tmp_path: Path) -> None:
    def of_waiting(folder: Path) -> None:
        (folder / "edgewise" / "waiting-0.json").write_bytes(signed(texts(saved)["another row"]))

    def of_buffer(folder: Path) -> None:
        (folder / "edgewise" / "buffer-0.safetensors").write_bytes(batches(saved)["no such token"])

    def without(folder: Path) -> None:
        (folder / "edgewise" / "buffer-0.safetensors").unlink()

    selector, said = resumed(saved, tmp_path / "whole", lambda folder: None)
    assert not said
    assert selector.metrics.get("degraded_total", 0) == 0
    for i, (damage, words) in enumerate(((of_waiting, "given up"), (of_buffer, "starts at once"), (without, "starts at once"))):
        selector, said = resumed(saved, tmp_path / f"degrade-{i}", damage, steps=3)
        assert any(words in text for text in said), said
        assert selector.metrics["degraded_total"] >= 1
        with pytest.raises(StateError, match="cannot be read"):
            resumed(saved, tmp_path / f"strict-{i}", damage, on_problem="strict")


def test_a_checkpoint_without_its_random_state_is_told(saved: Saved, tmp_path: Path) -> None:
    selector, said = resumed(saved, tmp_path, lambda folder: (folder / "rng_state.pth").unlink())
    assert any("lacks rng_state.pth" in text for text in said)
    assert selector.metrics["degraded_total"] == 0


def test_files_as_format_1_wrote_them_are_read(saved: Saved, tmp_path: Path) -> None:
    """They did not name their selector's state, nor their step; their digests covered less."""
    inner = json.dumps(json.loads(saved.waiting.read_text())["made"])
    old = tmp_path / "waiting-0.json"
    old.write_text(f'{{"sha256": "{hashlib.sha256(inner.encode()).hexdigest()}", "made": {inner}}}')
    known, now = read_waiting(saved, old), read_waiting(saved, saved.waiting)
    assert known[0] == now[0]
    assert {seq: made.records for seq, made in known[1].items()} == {seq: made.records for seq, made in now[1].items()}
    old.write_text(old.read_text().replace('"row": ', '"row":  ', 1))
    with pytest.raises(ValueError, match="SHA-256"):
        read_waiting(saved, old)
    tensors = load(saved.buffer.read_bytes())
    buffer = tmp_path / "buffer-0.safetensors"
    buffer.write_bytes(save(tensors, metadata=trl_cycle.shape(saved.trainer) | {"sha256": trl_cycle._digest({}, tensors)}))
    step, parts = read_buffer(saved, buffer)
    assert step == int(tensors["step"])
    assert all(torch.equal(tensor, tensors[f"{i}/{name}"]) for i, part in enumerate(parts) for name, tensor in part.items())
    tensors["0/advantages"] = tensors["0/advantages"] + 1
    buffer.write_bytes(save(tensors, metadata=trl_cycle.shape(saved.trainer) | {"sha256": "0"}))
    with pytest.raises(ValueError, match="SHA-256"):
        read_buffer(saved, buffer)


def test_parts_of_two_checkpoints_are_not_mixed(saved: Saved, tmp_path: Path) -> None:
    """Each is sound. A selector of one step and the weights of another are refused; a batch of another state is lost."""
    trainer, _ = made(tmp_path / "run", 3)
    trainer.train()
    run = tmp_path / "run"
    shutil.copytree(run / "checkpoint-3" / "edgewise", run / "checkpoint-1" / "edgewise", dirs_exist_ok=True)
    again, selector = made(run, 3)
    with pytest.raises(StateError, match="saved after step 3, and .* is of step 1.*do not belong together"):
        again.train(resume_from_checkpoint=str(run / "checkpoint-1"))
    assert selector.step_number == 0

    def other_selector(folder: Path) -> None:
        shutil.copy(run / "checkpoint-2" / "edgewise" / "selector.safetensors", folder / "edgewise" / "selector.safetensors")

    _, said = resumed(saved, tmp_path / "mixed", other_selector)
    assert any("another state of the selector" in text for text in said)


def test_nothing_is_written_or_read_through_a_link(saved: Saved, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "run" / "checkpoint-1" / "edgewise").symlink_to(elsewhere)
    trainer, _ = made(tmp_path / "run")
    with pytest.warns(DegradedWarning, match="through which nothing is written"):
        trainer.train()
    assert not list(elsewhere.iterdir())

    def linked(folder: Path) -> None:
        shutil.move(folder / "edgewise", elsewhere / "edgewise")
        (folder / "edgewise").symlink_to(elsewhere / "edgewise")

    with pytest.raises(StateError, match="symbolic link, which is not followed"):
        resumed(saved, tmp_path / "again", linked)
    ledger.note(59, tried=2, held=2)


def test_all_parts_and_their_names_are_flushed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    flush = os.fsync

    def noting(file: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{file}"))
        flush(file)

    monkeypatch.setattr(os, "fsync", noting)
    trainer, _ = made(tmp_path)
    trainer.train()
    folder = tmp_path / "checkpoint-1" / "edgewise"
    for name in ("selector.safetensors", "buffer-0.safetensors", "waiting-0.json"):
        assert any(Path(path).parent == folder and f".{name}." in path for path in synced), name
    assert {str(folder), str(folder.parent), str(tmp_path)} <= set(synced)
    last = max(i for i, path in enumerate(synced) if path.endswith(".tmp"))
    assert str(folder) in synced[last:], "the folder after the last file in it"


def test_text_of_any_kind_comes_back(tmp_path: Path) -> None:
    """Brackets, quotes and backslashes in what a model wrote are no structure."""
    luck = random.Random(0)
    tried = ledger.cases(50, chaos=2_000)
    for _ in range(tried):
        texts = ["".join(luck.choices('[]{}"\\\n\x00\u2028\ud800é:,', k=luck.randrange(5_000))) for _ in range(2)]
        records = {
            j: {"row": 3, "prompt_ids": [1], "completion_ids": [2], "tool_mask": None, "completions": text, "logprobs": [-0.5],
                "extra_logs": {text[:9]: text[-9:]}}
            for j, text in enumerate(texts)
        }  # fmt: skip
        store, again = Store(), Store()
        store._made[5] = Made(torch.tensor([[0.1], [float("nan")]]), records)
        file = tmp_path / "waiting-0.json"
        store.save(file, "a state", 64)
        kept = trl_checkpoint.Kept("a state", 1, {5: (3, 2)}, tokens=3, positions=64)
        again.load([file], 1, torch.device("cpu"), kept)
        assert again._made[5].records == records
        assert torch.equal(again._made[5].rewards.nan_to_num(7), store._made[5].rewards.nan_to_num(7))
    ledger.note(55, tried=tried, held=tried)


def test_what_could_not_be_read_back_is_not_written(saved: Saved, tmp_path: Path) -> None:
    """The bound of the reader is the writer's, too: too much is told when it is saved."""
    store = saved.trainer._edgewise.store
    record = next(iter(next(iter(store._made.values())).records.values()))
    before = dict(record["extra_logs"])
    record["extra_logs"]["page"] = "x" * most_bytes(100, 64)
    with pytest.raises(ValueError, match="more than the .* that are read back"):
        store.save(tmp_path / "waiting-0.json", "a state", 64)
    record["extra_logs"] = before
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_is_written_over_is_not_complete(
    saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that went back to an older step: killed between our parts and the weights, the folder would mix two runs."""
    shutil.copytree(saved.folder, tmp_path / "checkpoint-1")
    stale = tmp_path / "checkpoint-1" / "edgewise"
    (stale / "waiting-7.json").write_text("of seven processes more")
    (stale / ".buffer-0.safetensors.0123.tmp").write_text("of a killed one")
    assert (tmp_path / "checkpoint-1" / "trainer_state.json").is_file()
    trainer, _ = made(tmp_path)

    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "save_model", killed)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not (tmp_path / "checkpoint-1" / "trainer_state.json").exists()
    assert sorted(file.name for file in stale.iterdir()) == ["buffer-0.safetensors", "selector.safetensors", "waiting-0.json"]


def test_a_checkpoint_that_is_written_anew_is_unfinished_on_disk_before_anything_in_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a power cut could leave weights of one run beside the selector of another, and TRL's word that all is complete."""
    trainer, selector = made(tmp_path)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-1"
    before = {file: file.read_bytes() for file in (checkpoint / "edgewise").iterdir()}
    assert (checkpoint / "trainer_state.json").exists()
    flushed: list[tuple[Path, bool, bool]] = []
    real = state.sync_folder

    def sync(folder: Path) -> None:
        same = all(file.exists() and file.read_bytes() == data for file, data in before.items())
        flushed.append((folder, (checkpoint / "trainer_state.json").exists(), same))
        real(folder)

    monkeypatch.setattr(state, "sync_folder", sync)
    trl_checkpoint.save(trainer, selector, checkpoint, trainer._edgewise.store)
    assert flushed[0] == (checkpoint, False, True)
    ledger.note(3, tried=1, held=1)
