"""The TRL host on two processes (gloo): one choice, whole groups, exact resume, and an end that leaves nobody waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from edgewise.hosts.trl import attach
from tests.hosts import tiny
from tests.hosts.tiny import G

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:torch", "ignore::DeprecationWarning")
ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds that the second process may take to end after the first, on a busy machine."""


def launch(folder: Path, phase: str) -> tuple[list[int], list[str], float]:
    """Exit codes, what was said, and the seconds between the first and the last exit."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs, files = [], []
    for rank in range(2):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true",
        }  # fmt: skip
        files.append((folder / f"said-{rank}").open("w+"))
        command = [sys.executable, "-m", "tests.hosts.two_processes", str(folder), phase]
        runs.append(subprocess.Popen(command, env=env, cwd=ROOT, stdout=files[-1], stderr=subprocess.STDOUT, text=True))
    try:
        deadline = time.monotonic() + 240
        ended: dict[int, float] = {}
        while len(ended) < 2 and time.monotonic() < deadline:
            ended |= {r: time.monotonic() for r, run in enumerate(runs) if r not in ended and run.poll() is not None}
            if len(ended) == 1 and time.monotonic() > min(ended.values()) + PATIENCE:
                break
            time.sleep(0.05)
    finally:
        for run in runs:
            run.kill()
    said = []
    for file in files:
        file.seek(0)
        said.append(file.read())
        file.close()
    assert len(ended) == 2, "one process was left waiting:\n" + "\n----\n".join(text[-3000:] for text in said)
    return [run.wait() for run in runs], said, max(ended.values()) - min(ended.values())


def test_two_processes(tmp_path: Path) -> None:
    one = tiny.trainer(
        tmp_path / "one", max_steps=1, steps_per_generation=2, per_device_train_batch_size=6, gradient_accumulation_steps=1,
        save_strategy="steps", save_steps=1, num_generations=G,
    )  # fmt: skip
    attach(one, "dapo")
    one.train()
    codes, said, _ = launch(tmp_path, "all")
    assert all("ABORTING" in text for text in said), "\n----\n".join(text[-3000:] for text in said)

    def results(name: str, folder: str = "") -> list[dict[str, Any]]:
        return [json.loads((tmp_path / folder / f"{name}-{rank}.json").read_text()) for rank in range(2)]

    # they choose together and train whole groups
    a, b = results("whole")
    assert a["weights"] == b["weights"]
    assert len(a["batches"]) == len(b["batches"]) == 4
    for (prompts_a, adv_a), (prompts_b, adv_b) in zip(a["batches"], b["batches"], strict=True):
        prompts = [tuple(t for t in p if t) for p in prompts_a + prompts_b]
        assert len(prompts) == 12
        assert all(len(set(prompts[i : i + G])) == 1 for i in range(0, 12, G))
        assert all(abs(sum((adv_a + adv_b)[i : i + G])) < 1e-3 for i in range(0, 12, G))
    asked = [[p for r in (a, b) for p in r["seen"][k][0]] for k in range(len(a["seen"]))]
    assert all(list(Counter(p).values()) == [G] * len(set(p)) for p in asked)  # every round: whole groups over both processes
    totals = [line["edgewise/rollouts_total"] for line in a["logs"] if line]
    assert totals[-1] == sum(len(p) for p in asked)

    # all that is learned is learned on the main one
    assert a["learned"] > 0
    assert (b["learned"], b["steps"], b["metrics"]) == (0, 0, {})
    assert all(not line for line in b["logs"])

    # resumed, they end like the uninterrupted pair
    c, d = results("resumed")
    assert c["weights"] == d["weights"] == a["weights"]
    assert c["seen"] == a["seen"][len(a["seen"]) - len(c["seen"]) :]
    assert d["seen"] == b["seen"][len(b["seen"]) - len(d["seen"]) :]

    # a checkpoint of one process, saved in the middle of a cycle, is continued by two
    e, f = results("more", "more")
    assert e["weights"] == f["weights"]
    assert len(e["batches"]) == len(f["batches"]) == 1

    # a process that cannot score its share costs the method, on all of them alike
    g, h = results("unscored", "unscored")
    assert g["weights"] == h["weights"]
    assert g["metrics"]["degraded"] == 1
    assert "MemoryError: no room on rank 1" in said[0]

    # groups of any size, which go on in the next round or the next step: each on the advantages of its whole group
    i, j = results("ragged", "ragged")
    assert i["weights"] == j["weights"]
    assert max(line.get("edgewise/waiting", 0) for line in i["logs"]) > 0
    kept: list[Any] = []
    steps, sizes = zip(i["batches"], j["batches"], strict=True), set()
    for note in i["decided"]:
        kept += note or []
        if note is not None:
            continue
        (prompts_i, adv_i), (prompts_j, adv_j) = next(steps)
        words = [" ".join(str(t) for t in p if t) for p in prompts_i + prompts_j]
        at = 0
        for text, _, by_hand in sorted(kept, key=lambda group: group[1])[:3]:
            if at + len(by_hand) > 12:
                break
            own = slice(at, at + len(by_hand))
            assert words[own] == [" ".join(str(tiny.LETTERS.index(c) + 3) for c in text)] * len(by_hand)
            assert (adv_i + adv_j)[own] == pytest.approx(by_hand, abs=1e-5)
            at += len(by_hand)
            sizes.add(len(by_hand))
        assert not any((adv_i + adv_j)[at:])
        kept = []
    assert len(sizes) > 1

    # resumed with groups that wait they end alike; without the rollouts of one process all give these groups up
    o, p = results("again", "ragged")
    assert o["weights"] == p["weights"] == i["weights"]
    m, n = results("lost", "ragged")
    assert m["weights"] == n["weights"] != i["weights"]
    assert m["metrics"]["degraded_total"] == 1
    assert "groups that were begun are given up" in said[0]

    # strict: both end, and each says why
    assert all(code not in (0, -9) for code in codes)
    assert "ShortfallError" in said[0]
    assert "The main process stopped this step: ShortfallError" in said[1]


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_reward_function_that_fails_on_one_process_leaves_nobody_waiting(tmp_path: Path, rank: int) -> None:
    codes, said, apart = launch(tmp_path, str(rank))
    assert all(code not in (0, -9) for code in codes)
    assert f"verifier is down on rank {rank}" in said[rank]
    assert apart < PATIENCE
