"""Real TRL, really killed: at every step, in every file operation, at any moment; resumed; bit for bit the same run."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import ledger
from tests.hosts.killed_run import Life, Lives, complete, pairs, result, steps_of, together
from tests.hosts.test_trl_methods import LISTED

FAMILIES = ["dapo", "gps", "gps-ppm", "hive", "mopps", "prompt-replay", "sec", "speed"]
"""A gate, a shared linear model, a model in torch, staged screening, a belief per prompt, a memory, a bandit, held groups."""
CHAOS = ledger.cases(0, chaos=1) == 1
METHODS = LISTED if CHAOS else FAMILIES
PARAMETERS: dict[str, dict[str, Any]] = {"speed": {"pilot": 2}}
STEPS = ledger.cases(3, chaos=4)
pytestmark = pytest.mark.timeout(2_400 if CHAOS else 300)
SAME = ("weights", "beliefs", "waiting", "step", "global_step", "visits")


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    with Lives() as server:
        yield server


def uninterrupted(lives: Lives, life: Life) -> dict[str, Any]:
    end = lives.run(replace(life, name="whole", folder=str(Path(life.folder) / "whole")))
    assert end.code == 0, end.said
    return result(Path(life.folder) / "whole", "whole")


def reached(run: Path) -> int:
    """Step of the newest complete checkpoint."""
    found = complete(run)
    return int(found[-1].name.partition("-")[2]) if found else 0


def require_same(folder: Path, name: str, world: int = 1) -> None:
    """The run in `folder/killed` is the one in `folder/whole`: every account of every step, and what is left at the end."""
    for rank in range(world):
        ours, theirs = result(folder / "killed", name, rank), result(folder / "whole", "whole", rank)
        accounts, whole = steps_of(folder / "killed", rank), steps_of(folder / "whole", rank)
        assert accounts.keys() == whole.keys()
        for step, told in accounts.items():  # also of steps that were done again: each time the same
            assert all(account == whole[step][0] for account in told), f"step {step} on process {rank}"
        assert {key: ours[key] for key in SAME} == {key: theirs[key] for key in SAME}
        totals = {key for key in theirs["metrics"] if key.endswith("_total")}
        assert {key: ours["metrics"][key] for key in totals} == {key: theirs["metrics"][key] for key in totals}
        assert not theirs["metrics"] or ours["metrics"]["degraded_total"] == 0


def calls_of(whole: dict[str, Any]) -> dict[str, int]:
    """Calls in each scope; of each checkpoint what the shortest took, since the first of a process loads modules, too."""
    calls = whole["calls"]
    shortest = {what: min(n for key, n in calls.items() if key.startswith(what) and n) for what in ("save", "file")}
    return {key: shortest.get(key.partition("-")[0], n) for key, n in calls.items()}


@pytest.mark.parametrize("method", METHODS)
def test_killed_in_every_step_and_in_every_checkpoint(lives: Lives, tmp_path: Path, method: str) -> None:
    life = Life(str(tmp_path), method, steps=STEPS, parameters=PARAMETERS.get(method, {}))
    calls = calls_of(uninterrupted(lives, life))
    life = replace(life, folder=str(tmp_path / "killed"), calls=calls, resume="complete")
    luck = random.Random(method)
    kills = {"generate": 0, "save": 0}
    for step in range(1, STEPS + CHAOS):
        for scope in ["generate", "save"] if CHAOS else ["generate", "save"][step % 2 :][:1]:
            if reached(tmp_path / "killed" / "run") >= step:  # the last kill came after the checkpoint was complete
                continue
            end = lives.run(replace(life, kill=(scope, step, luck.random())))
            assert end.code == -signal.SIGKILL, end.said
            kills[scope] += 1
    end = lives.run(replace(life, name="end"))
    assert end.code == 0, end.said
    require_same(tmp_path, "end")
    assert min(kills.values()) >= 1
    ledger.note(1, tried=sum(kills.values()), held=sum(kills.values()))


def test_killed_before_each_file_operation_of_a_checkpoint(lives: Lives, tmp_path: Path) -> None:
    """A half-written newest checkpoint is passed over by whoever looks for `trainer_state.json`, and refused by TRL itself.

    Held groups and a batch in the middle of its generation cycle: all three files of ours are there.
    """
    given = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "per_device_train_batch_size": 8}
    life = Life(str(tmp_path), "", held=True, steps=3, pays="graded", given=given, prompts=20)
    calls = calls_of(uninterrupted(lives, life))
    life = replace(life, calls=calls)
    shutil.copytree(tmp_path / "whole" / "run" / "checkpoint-2", tmp_path / "start" / "run" / "checkpoint-2")
    files = calls["file-3"]
    tried = sorted(random.Random(3).sample(range(files), ledger.cases(3, chaos=files)))
    refusals: dict[str, int] = {}
    for n in tried:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        shutil.copytree(tmp_path / "start", tmp_path / "killed")
        mine = replace(life, folder=str(tmp_path / "killed"))
        end = lives.run(replace(mine, resume="complete", kill=("file", 3, n)))
        assert end.code == -signal.SIGKILL, end.said
        half = tmp_path / "killed" / "run" / "checkpoint-3"
        if half.is_dir() and half not in complete(half.parent):
            end = lives.run(replace(mine, resume="newest", name="naive"))
            assert end.code == 1, "transformers goes on from a checkpoint without trainer_state.json"
            said = end.said.strip().splitlines()[-1].partition(":")[0]
            refusals[said] = refusals.get(said, 0) + 1
        end = lives.run(replace(mine, resume="complete", name="end"))
        assert end.code == 0, end.said
        # steps 1 and 2 are those of the whole run; compare the rest
        whole, again = steps_of(tmp_path / "whole"), steps_of(tmp_path / "killed")
        assert all(account == whole[3][0] for account in again[3])
        ours, theirs = result(tmp_path / "killed", "end"), result(tmp_path / "whole", "whole")
        assert {key: ours[key] for key in SAME} == {key: theirs[key] for key in SAME}
        assert not [f for f in half.rglob("*") if f.name.endswith(".tmp")], "what a killed save left behind"
    assert refusals.keys() <= {
        "FileNotFoundError",
        "ValueError",
        "safetensors_rust.SafetensorError",
        "json.decoder.JSONDecodeError",
    }
    ledger.note(1, tried=len(tried), held=len(tried), refused_by_transformers=sum(refusals.values()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: signal.Signals(number).name)
def test_killed_at_any_moment(lives: Lives, tmp_path: Path, number: int) -> None:
    """By a clock, in the state a scheduler finds it: nothing is installed for SIGTERM, the last checkpoint stands."""
    life = Life(str(tmp_path), "hive", steps=ledger.cases(4, chaos=6))
    began = time.monotonic()
    uninterrupted(lives, life)
    lasted = time.monotonic() - began
    life = replace(life, folder=str(tmp_path / "killed"), resume="complete")
    luck, kills, rounds = random.Random(number), 0, 0
    wanted = ledger.cases(2, chaos=40)
    while kills < wanted:
        pid = lives.start(replace(life, name="end"))
        time.sleep(luck.random() * lasted)
        end = lives.kill(pid, number)
        assert end.code in (0, -number), end.said
        kills += end.code == -number
        if end.code == 0 or kills == wanted:
            if end.code:
                end = lives.run(replace(life, name="end"))
                assert end.code == 0, end.said
            require_same(tmp_path, "end")
            rounds += 1
            if kills < wanted:
                shutil.rmtree(tmp_path / "killed")
    ledger.note(20 if number == signal.SIGTERM else 1, tried=kills, held=kills, whole_runs=rounds)


def test_resumed_from_an_older_step_and_twice(lives: Lives, tmp_path: Path) -> None:
    held = tried = 0
    for method in ("hive", "speed")[: ledger.cases(1, chaos=2)]:
        folder = tmp_path / method
        life = Life(str(folder), method, steps=STEPS, parameters=PARAMETERS.get(method, {}))
        uninterrupted(lives, life)
        shutil.copytree(folder / "whole" / "run", folder / "killed" / "run")
        for step in range(1, STEPS):
            for _ in range(2):  # the second time over the checkpoints that the first wrote
                resume = str(folder / "killed" / "run" / f"checkpoint-{step}")
                end = lives.run(replace(life, folder=str(folder / "killed"), resume=resume, name="end"))
                assert end.code == 0, end.said
                tried += 1
                held += result(folder / "killed", "end")["weights"] == result(folder / "whole", "whole")["weights"]
        accounts, whole = steps_of(folder / "killed"), steps_of(folder / "whole")
        assert all(account == whole[step][0] for step, told in accounts.items() for account in told)
    ledger.note(54, tried=tried, held=held)


@pytest.mark.parametrize("method", ["uniform", "dapo"])
def test_the_epoch_after_the_border_runs_in_full(lives: Lives, tmp_path: Path, method: str) -> None:
    """Two short epochs, killed in each step: every prompt is offered once in each."""
    size = ledger.cases(8, chaos=16)
    steps = {"uniform": size // 2, "dapo": 3}[method]  # dapo tops up: it passes through the pool faster
    life = Life(str(tmp_path), method, steps=steps, prompts=size, pays="prompt")
    life = replace(life, folder=str(tmp_path), calls=calls_of(uninterrupted(lives, life)))
    life = replace(life, folder=str(tmp_path / "killed"), resume="complete")
    kills = 0
    for step in range(1, steps + 1):
        scope = "save" if step % 2 else "generate"
        if reached(tmp_path / "killed" / "run") < step:
            assert lives.run(replace(life, kill=(scope, step, 0.6))).code == -signal.SIGKILL
            kills += 1
    assert lives.run(replace(life, name="end")).code == 0
    require_same(tmp_path, "end")
    accounts = steps_of(tmp_path / "killed")
    offered = [prompt for step in sorted(accounts) for prompts, _ in accounts[step][-1][1] for prompt in prompts]
    epochs = [offered[i : i + size] for i in range(0, len(offered), size)]
    assert len(epochs) >= 2
    assert len(epochs[1]) == size
    for epoch in epochs:
        assert len(set(epoch)) == len(epoch), "a prompt was offered twice in one epoch"
    ledger.note(53, tried=kills, held=kills)


def test_loader_workers_change_nothing(lives: Lives, tmp_path: Path) -> None:
    """TRL's loader reads ahead; its rows are ignored. Killed under no workers, resumed under two; and the other way round."""
    held = tried = 0
    life = Life(str(tmp_path), "hive", steps=STEPS)
    calls = calls_of(uninterrupted(lives, life))
    for first, then in ((0, 2), (2, 0)):
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        mine = replace(life, folder=str(tmp_path / "killed"), calls=calls, resume="complete")
        end = lives.run(replace(mine, kill=("generate", 3, 0.5), given={"dataloader_num_workers": first}))
        assert end.code == -signal.SIGKILL, end.said
        end = lives.run(replace(mine, name="end", given={"dataloader_num_workers": then}))
        assert end.code == 0, end.said
        require_same(tmp_path, "end")
        tried += 1
        held += 1
    ledger.note(52, tried=tried, held=held)


# -- two processes -------------------------------------------------------------------------------------------------------------

HALF = {"per_device_train_batch_size": 8}
"""On each of two processes: the same global batch as 16 on one."""


def test_two_processes_killed_and_resumed(lives: Lives, tmp_path: Path) -> None:
    """Both, or only one of them (the other then fails on its own, or is killed by the launcher, as torchrun does)."""
    life = Life(str(tmp_path), "speed", steps=STEPS, parameters={"pilot": 2}, given=HALF)
    ends = together(lives, replace(life, name="whole", folder=str(tmp_path / "whole")))
    assert [end.code for end in ends] == [0, 0], ends[0].said + ends[1].said
    of_each = [calls_of(result(tmp_path / "whole", "whole", rank)) for rank in range(2)]
    calls = {key: min(calls[key] for calls in of_each) for key in of_each[0]}
    life = replace(life, folder=str(tmp_path / "killed"), calls=calls)
    cases = [(who, scope) for who in ((0, 1), (1,), (0,)) for scope in ("generate", "save")]
    held = 0
    cases = cases if CHAOS else [cases[0], cases[3]]
    for who, scope in cases:
        shutil.rmtree(tmp_path / "killed", ignore_errors=True)
        pids = dict(pairs(lives, life, kills={rank: (scope, 3, 0.4) for rank in who}))
        codes = [lives.wait(pids[rank]).code for rank in who]
        assert -signal.SIGKILL in codes
        assert 0 not in codes  # the other may have found its partner dead before it came to its own end
        for rank in set(pids) - set(who):
            time.sleep(0.2)
            lives.kill(pids[rank], signal.SIGKILL)
        ends = together(lives, replace(life, resume="complete", name="end"))
        assert [end.code for end in ends] == [0, 0], ends[0].said + ends[1].said
        require_same(tmp_path, "end", world=2)
        held += 1
    ledger.note(1, tried=len(cases), held=held, processes=2)
    older, times = str(tmp_path / "killed" / "run" / "checkpoint-1"), ledger.cases(1, chaos=2)
    for _ in range(times):
        ends = together(lives, replace(life, resume=older, name="end"))
        assert [end.code for end in ends] == [0, 0], ends[0].said + ends[1].said
        require_same(tmp_path, "end", world=2)
    ledger.note(54, tried=times, held=times, processes=2)


@pytest.mark.parametrize("method", ["held", "mopps"][: ledger.cases(1, chaos=2)])
def test_the_same_prompts_on_one_process_and_on_two(lives: Lives, tmp_path: Path, method: str) -> None:
    """The same global batch. Processes generate with random streams of their own, so rewards here depend on the prompt."""
    life = Life(str(tmp_path), method, steps=STEPS, pays="prompt", held=method == "held")
    uninterrupted(lives, life)
    whole = {step: told[0][0] for step, told in steps_of(tmp_path / "whole").items()}
    held = tried = 0
    for first, then in ((1, 2), (2, 1)):
        folder = tmp_path / f"{first}-{then}"
        mine = replace(life, folder=str(folder))
        for world, steps, resume in ((first, 2, None), (then, STEPS, "complete")):
            given = {"per_device_train_batch_size": 16 // world}
            ends = together(lives, replace(mine, steps=steps, resume=resume, given=given), world)
            assert all(end.code == 0 for end in ends), ends[0].said
            assert "DegradedWarning" not in ends[0].said, ends[0].said
        told = [steps_of(folder, rank) for rank in range(2)]
        for step, prompts in whole.items():
            tried += 1
            held += [prompt for rank in told for prompt in rank.get(step, [[[]]])[0][0]] == prompts
    ledger.note(51, tried=tried, held=held)
