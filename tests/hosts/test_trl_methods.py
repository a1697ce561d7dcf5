"""Every listed method, three real GRPOTrainer steps in strict mode, killed after each and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from edgewise.errors import HostError
from edgewise.hosts.trl import attach
from edgewise.methods import METHODS
from edgewise.types import HIDDEN_ANGLES, PASS_RATE
from tests.hosts import tiny
from tests.hosts.tiny import G

HEAVY = {"gps-ppm-20m"}
"""Twenty million parameters: its small twin stands for it here."""
NOT_SERVED = {PASS_RATE, HIDDEN_ANGLES}
"""Signals that this host cannot give: exact pass rates, and angles between parts of a prompt that it cannot tell apart."""
LISTED = sorted(name for name, entry in METHODS.items() if name not in HEAVY and not entry.needs & NOT_SERVED)
STEPS = 3


def data() -> Dataset:
    """Forty prompts with every column that a method may ask for."""
    base = tiny.dataset(40)
    return (
        base.add_column("difficulty", [float(i % 3) * 50 for i in range(40)])
        .add_column("category", ["odd" if i % 2 else "even" for i in range(40)])
        .add_column("anchor_rates", [[0.2 + 0.01 * i, 0.5 + 0.01 * i] for i in range(40)])
    )


def run(folder: Path, name: str, resume: str | None = None) -> tuple[torch.Tensor, dict[str, float], list[int]]:
    shapes: list[int] = []
    trainer = tiny.trainer(
        folder, data=data(), max_steps=STEPS, per_device_train_batch_size=4 * G, save_strategy="steps", save_steps=1
    )
    parameters: dict[str, Any] = {"pilot": 2} if name == "speed" else {}
    selector = attach(trainer, name, parameters=parameters, on_problem="degrade")
    inner = type(trainer)._generate_and_score_completions

    def spy(inputs: Any) -> Any:
        batch = inner(trainer, inputs)
        shapes.append(len(batch["advantages"]))
        assert torch.isfinite(batch["advantages"]).all()
        return batch

    trainer._generate_and_score_completions = spy
    trainer.train(resume_from_checkpoint=resume)
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    return weights, selector.metrics, shapes


@pytest.mark.parametrize("name", LISTED)
def test_it_trains_through_trl_and_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    weights, metrics, shapes = run(tmp_path, name)
    assert shapes == [4 * G] * STEPS, "the optimizer gets batches of the shape it expects"
    assert metrics["degraded_total"] == 0
    assert metrics["rollouts_total"] > 0
    for k in range(1, STEPS):
        again, numbers, _ = run(tmp_path, name, str(tmp_path / f"checkpoint-{k}"))
        assert torch.equal(again, weights), f"resumed after step {k}"
        assert numbers["rollouts_total"] == metrics["rollouts_total"]


@pytest.mark.parametrize("name", sorted(name for name, entry in METHODS.items() if entry.needs & NOT_SERVED))
def test_what_this_host_cannot_serve_is_refused_at_start_in_words(name: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=f"The method '{name}' needs the signal .*, which this host does not serve"):
        attach(tiny.trainer(tmp_path, data=data(), max_steps=STEPS, per_device_train_batch_size=4 * G), name)
