"""Starting, watching and stopping arms, with stand-ins for them; tests/test_train.py does it with real ones."""

import os
import subprocess
import sys

import pytest

from edgewise.errors import ConfigError
from edgewise.lab import runner
from edgewise.lab.record import ArmSpec, append_line, claim
from edgewise.lab.runner import STOPPED, arm_names, launch, run_arms, step_line

METRICS = {"rolled_out": 12, "rounds": 2, "mixed_frac": 0.25, "all_pass_frac": 0.5, "all_fail_frac": 0.25, "select_s": 0.0042}


def line(step, responses):
    return {"step": step, "responses": responses, "held_out": 0.5, "metrics": METRICS, "spent": {}}


class StandIn:
    """An arm that does one thing a look and ends with a code; `script` is a list of lines to write, then the code."""

    started: list[str]

    def __init__(self, folder, lock):
        self.folder, self.script, self.signals = folder, list(self.scripts[folder.name]), []
        self.started.append(folder.name)
        (folder / "log.txt").write_text("Traceback\nValueError: no luck\n")

    def poll(self):
        what = self.script.pop(0)
        if isinstance(what, int):
            return what
        append_line(self.folder / "steps.jsonl", what)
        return None

    def send_signal(self, number):
        self.signals.append(number)
        self.script = [STOPPED]

    def kill(self):
        pass


@pytest.fixture
def arms(tmp_path, monkeypatch):
    """Run these scripts; returns what came of it, what was printed, and which arms were started."""

    def go(scripts, jobs=1, every=1):
        kind = type("Scripted", (StandIn,), {"scripts": scripts, "started": []})
        monkeypatch.setattr(runner, "launch", kind)
        monkeypatch.setattr(runner, "_POLL_S", 0.0)
        specs = [ArmSpec(method=name, responses=100) for name in scripts]
        folders = [tmp_path / name for name in scripts]
        for spec, folder in zip(specs, folders, strict=True):
            claim(folder, spec)
        said, warned = [], []
        ran = run_arms(specs, folders, jobs=jobs, every=every, say=said.append, warn=warned.append)
        return ran, said, warned, kind.started

    return go


def test_every_nth_step_is_printed_once_however_the_lines_come_in(arms):
    ran, said, warned, _ = arms({"hive": [line(1, 48), line(2, 96), line(3, 144), 0]}, every=2)
    assert (ran.stopped, ran.failed, warned) == (False, [], [])
    assert said == [
        "hive | step    2 |  12 groups x8 in 2 rounds | mixed  25% all-pass  50% all-fail  25% |      96 responses | held-out "
        "0.500 | select   4.2 ms verify   0.0 ms",
        "hive | done after 3 steps, 144 responses: held-out 0.500",
    ]


def test_a_failed_arm_does_not_stop_the_others(arms):
    ran, _, warned, started = arms({"a": [line(1, 48), 0], "b": [1], "c": [line(1, 48), 0]})
    assert (ran.failed, started) == ([1], ["a", "b", "c"])
    assert warned[0].startswith("edgewise: the arm b failed (exit code 1). Its log, ")
    assert warned[0].endswith("log.txt, ends:\n  | Traceback\n  | ValueError: no luck")


def test_but_where_none_has_made_a_step_no_other_is_started(arms):
    ran, _, warned, started = arms({"a": [1], "b": [0], "c": [0]})
    assert (ran.failed, started) == ([0], ["a"])
    assert warned[1] == "edgewise: no arm has come as far as a first step, so no other is started."


def test_an_arm_that_was_killed_is_named_with_the_signal(arms):
    _, _, warned, _ = arms({"a": [line(1, 48), -9]})
    assert warned[0].startswith("edgewise: the arm a was killed by SIGKILL (out of memory?).")


def test_one_arm_told_to_stop_stops_them_all(arms):
    ran, _, warned, started = arms(
        {"a": [line(1, 8), STOPPED], "b": [line(1, 8), line(2, 16), line(3, 24), 0], "c": [0]}, jobs=2
    )
    assert (ran.stopped, ran.failed, started) == (True, [], ["a", "b"])
    assert "1 arm finishes its step and saves" in warned[0]


def test_launch_leaves_a_leash_that_ends_with_its_holder(tmp_path, monkeypatch):
    """The stand-in for Python prints its arguments, then waits for the end of its standard input."""
    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/sh\necho "$@" $OMP_NUM_THREADS $HF_HUB_OFFLINE\ncat\nexit 75\n')
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    held, lock = os.pipe()
    process = launch(tmp_path, lock)
    os.close(lock)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)
    assert os.getsid(process.pid) == process.pid  # a terminal's Ctrl-C does not reach it
    os.set_blocking(held, False)
    with pytest.raises(BlockingIOError):
        os.read(held, 1)  # it shares the lock
    process.stdin.close()
    assert process.wait(10) == STOPPED
    assert os.read(held, 1) == b""
    os.close(held)
    assert (tmp_path / "log.txt").read_text() == f"-m edgewise.lab.arm {tmp_path}/spec.json --leash 1 1\n"


def test_a_lock_whose_holder_is_gone_is_waited_for_and_then_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "_PATIENCE_S", 0.3)
    warned = []
    with runner._lock(tmp_path, warned.append):
        (tmp_path / ".lock").write_text("0")  # as if only an arm still held it
        with pytest.raises(ConfigError, match="another edgewise train is at work in"), runner._lock(tmp_path, warned.append):
            pass
        (tmp_path / ".lock").write_text(str(os.getpid()))
        with pytest.raises(ConfigError, match=rf"\(process {os.getpid()}\)"), runner._lock(tmp_path, warned.append):
            pass
    with runner._lock(tmp_path, warned.append):
        pass
    assert warned == [f"edgewise: arms of an earlier run in {tmp_path} are still saving; waiting for them."]


def test_names_are_short_and_tell_seeds_apart_where_there_are_several():
    long = "hive:stage2=off,bypass=0.1,oversample=1.5"
    assert arm_names([ArmSpec(method="hive"), ArmSpec(method="hive", label=long)]) == ["hive", f"{long[:29]}..."]
    assert arm_names([ArmSpec(method="hive", seed=s) for s in (0, 1)]) == ["hive seed 0", "hive seed 1"]


def test_a_step_line_without_a_finished_group_still_prints():
    text = step_line("dapo", ArmSpec(method="dapo"), line(1, 8) | {"metrics": {"rolled_out": 1, "rounds": 1}}, 6)
    assert text.startswith("dapo   | step    1 |   1 groups x8 in 1 round  | mixed   0% ")
