"""Run by test_trl.py in two processes (gloo): train a few steps, write what this process saw as JSON."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from edgewise.hosts.trl import attach
from tests.hosts import tiny


def main(out: str, method: str, steps: str, resume: str) -> None:
    seen: list[Any] = []

    def rewards(prompts: Any, completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        seen.append([list(prompts), [list(ids) for ids in completion_ids]])
        return tiny.pays(completions, kind, completion_ids)

    folder = Path(out)
    # 6 rows a process, groups of 4: one group is split across both processes
    trainer = tiny.trainer(
        folder / "run", rewards=rewards, max_steps=int(steps), per_device_train_batch_size=6, save_strategy="steps", save_steps=1,
        ddp_backend="gloo",
    )  # fmt: skip
    selector = attach(trainer, method)
    rank = trainer.accelerator.process_index
    batches: list[Any] = []
    whole = type(trainer)._generate_and_score_completions

    def spy(self: Any, inputs: Any) -> Any:
        batch = whole(self, inputs)
        batches.append([batch["prompt_ids"].tolist(), [round(a, 6) for a in batch["advantages"].tolist()]])
        return batch

    type(trainer)._generate_and_score_completions = spy
    trainer.train(resume_from_checkpoint=resume or None)
    weights = torch.cat([p.detach().flatten() for p in trainer.accelerator.unwrap_model(trainer.model).parameters()])
    result = {
        "seen": seen,
        "batches": batches,
        "weights": hashlib.sha256(weights.numpy().tobytes()).hexdigest(),
        "logs": [{k: v for k, v in line.items() if k.startswith("edgewise/")} for line in trainer.state.log_history],
        "steps": selector.step_number,
    }
    (folder / f"rank{rank}{'-resumed' if resume else ''}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
