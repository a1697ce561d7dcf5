"""Run by test_trl_two.py in two processes (gloo). What this process saw is written as JSON; some phases are meant to end it."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from edgewise.hosts.trl import attach
from edgewise.method import StepView
from edgewise.types import Groups, Verdicts
from tests.hosts import tiny
from tests.hosts.test_trl_groups import Shaped, expected


def run(folder: Path, name: str, *, resume: str | None = None, method: str = "hive", broken: Any = None, **given: Any) -> None:
    """Train; leave `name`-rank.json. 6 rows a process, groups of 4: one group in three is split across both processes."""
    seen: list[Any] = []

    def rewards(prompts: Any, completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        seen.append([list(prompts), [list(ids) for ids in completion_ids]])
        return tiny.pays(completions, kind, completion_ids)

    attaching = {key: given.pop(key) for key in ("parameters", "on_problem") if key in given}
    trainer = tiny.trainer(
        folder / "run",
        rewards=given.pop("rewards", rewards),
        per_device_train_batch_size=6,
        save_strategy="steps",
        save_steps=1,
        ddp_backend="gloo",
        **given,
    )
    selector = attach(trainer, method, **attaching)
    rank = trainer.accelerator.process_index
    if broken is not None:
        broken(trainer, rank)
    decided: list[Any] = []  # (prompt, first ticket, advantages by hand) of every group that was kept
    texts = trainer.train_dataset["prompt"]

    def note(groups: Groups, verdicts: Verdicts) -> None:
        kept = groups.select(verdicts.keep)
        decided.append([[texts[t.row], t.seq, expected(kept, i)] for i, t in enumerate(kept.tickets)])

    selector.watch(note)
    batches: list[Any] = []
    whole = type(trainer)._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> Any:
        batch = whole(self, inputs)
        batches.append([batch["prompt_ids"].tolist(), [round(a, 6) for a in batch["advantages"].tolist()]])
        decided.append(None)  # the end of a step
        return batch

    type(trainer)._generate_and_score_completions = spy
    trainer.train(resume_from_checkpoint=resume)
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    result = {
        "seen": seen,
        "batches": batches,
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "logs": [{k: v for k, v in line.items() if k.startswith("edgewise/")} for line in trainer.state.log_history],
        "steps": selector.step_number,
        "metrics": selector.metrics,
        "decided": decided,
        "learned": int(sum(int(a.sum()) for k, a in selector.method.state().prompts.items() if k == "visits")),
    }
    (folder / f"{name}-{rank}.json").write_text(json.dumps(result))


def cannot_score(trainer: Any, rank: int) -> None:
    """Prompt entropy fails on the second process only."""
    if rank == 1:
        trainer._edgewise.signals.scorer = lambda name: (_ for _ in ()).throw(MemoryError("no room on rank 1"))


def failing_on(rank: int) -> Any:
    """A reward function that fails on one process, in its second round."""
    calls = [0]

    def rewards(completions: Any, kind: Any, completion_ids: Any, trainer_state: Any, **_: Any) -> list[float]:
        calls[0] += 1
        if calls[0] == 2 and torch.distributed.get_rank() == rank:
            raise ConnectionError(f"verifier is down on rank {rank}")
        return tiny.pays(completions, kind, completion_ids)

    return rewards


def graded(completion_ids: list[list[int]], **_: Any) -> list[float]:
    return [sum(ids) % 11 / 10 for ids in completion_ids]


def going_on(groups: Groups, step: StepView) -> Verdicts:
    """One prompt in three is held for two more rollouts, one gets another in the next round, one is as large as it gets."""
    kind = groups.rows % 3
    begun = groups.asked <= 3
    hold, more = np.where(begun & (kind == 0), 2, 0), np.where(begun & (kind == 1), 1, 0)
    return Verdicts(np.ones(len(groups), dtype=bool), ("",) * len(groups), hold=hold, more=more)


def nothing(completions: Any, **_: Any) -> list[float]:
    return [0.0] * len(completions)


def main(out: str, phase: str) -> None:
    folder = Path(out)
    if phase == "all":
        run(folder, "whole", max_steps=4)
        run(folder, "resumed", max_steps=4, resume=str(folder / "run" / "checkpoint-2"))
        run(
            folder / "more",
            "more",
            max_steps=2,
            resume=str(folder / "one" / "checkpoint-1"),
            method="dapo",
            steps_per_generation=2,
        )
        run(folder / "unscored", "unscored", max_steps=2, broken=cannot_score)
        ragged: dict[str, Any] = {"max_steps": 4, "rewards": graded, "parameters": None, "data": tiny.dataset(12)}
        run(folder / "ragged", "ragged", method=Shaped([3, 2], going_on), **ragged)
        middle = folder / "ragged" / "run" / "checkpoint-2"
        run(folder / "ragged", "again", method=Shaped([3, 2], going_on), **ragged, resume=str(middle))
        dist.barrier()
        if dist.get_rank() == 1:  # a disk that lost the share of one process
            (middle / "edgewise" / "waiting-1.json").unlink()
        dist.barrier()
        run(folder / "ragged", "lost", method=Shaped([3, 2], going_on), **ragged, resume=str(middle))
        print("ABORTING", flush=True)
        run(
            folder / "short", "short", max_steps=2, method="dapo", rewards=nothing,
            parameters={"on_short": "error", "max_rounds": 2}, on_problem="strict",
        )  # fmt: skip
    else:
        print("ABORTING", flush=True)
        run(folder, "never", max_steps=4, method="dapo", rewards=failing_on(int(phase)))


if __name__ == "__main__":
    main(*sys.argv[1:])
