"""What an arm of the laboratory is told and what it leaves behind: its spec, and lines of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("select_s", "signal_s", "rollout_s", "reward_s", "train_s")
"""Where an arm's seconds go: choosing and bookkeeping, verification, generation, scoring, optimization."""


@dataclass(frozen=True, kw_only=True)
class ArmSpec:
    """Everything that decides an arm's numbers. Written beside them; a folder of another spec is refused."""

    method: str
    """A name that `edgewise methods` lists."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Hyper-parameters of the method that differ from its defaults."""
    label: str = ""
    """What tables call this arm; default the method's name."""
    seed: int = 0
    """Of the prompt order, of every draw and of the rollouts. The starting policy is the same for all."""
    task: str = "arithmetic"
    """"arithmetic", or a generator of the task library."""
    pool: str = "wasteful"
    """Of the arithmetic task: "wasteful" or "balanced"."""
    policy: str = ""
    """"" for the shipped one; a model folder; or "smollm2"."""
    responses: int = 40_000
    """Budget of generated responses, kept or not; the arm stops at the first step that reaches it."""
    steps: int = 0
    """At most this many training batches; 0 means the budget alone decides."""
    batch_size: int = 32
    """Groups in one training batch."""
    group_size: int = 8
    """Rollouts a group."""
    updates: int = 4
    """Optimizer steps a training batch is cut into (HIVE's runs: 256 groups in mini-batches of 64)."""
    learning_rate: float = 1e-4
    """AdamW, constant, no warm-up."""
    eval_responses: int = 2_000
    """Evaluate on held-out prompts each time this many more responses were generated."""
    prompts: int = 0
    """Training prompts; 0 for the task's default."""
    held_out: int = 0
    """Held-out prompts; 0 for the task's default."""
    threads: int = 1
    """Torch threads."""

    @property
    def name(self) -> str:
        return self.label or self.method


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a torn last line is left out."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text().split("\n"):
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Replace a JSONL file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
