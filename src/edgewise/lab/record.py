"""What an arm of the laboratory is told and what it leaves behind: its spec, lines of JSON, and checkpoints.

An arm's folder holds `spec.json`, `steps.jsonl` (a line a training batch), `groups.jsonl` (its groups: row, passes, rollouts,
kept or not), `evals.jsonl` (a line an evaluation), `rates.jsonl` (exact pass rates of the pool at every fifth, where the task
has them), `log.txt`, `checkpoints/` while it runs and `result.json` when it is done. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgewise.errors import StateMismatchError

PARTS = ("select_s", "signal_s", "rollout_s", "reward_s", "train_s")
"""Where an arm's seconds go: choosing and bookkeeping, signals such as prompt entropy, generation, scoring, optimization."""

STOPPED = 75
"""Exit code of an arm that saved and stopped because it was told to (EX_TEMPFAIL: the same command goes on)."""


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
    max_tokens: int = 0
    """Longest response in tokens; 0 for the task's default."""
    threads: int = 1
    """Torch threads."""

    @property
    def name(self) -> str:
        return self.label or self.method

    @property
    def planned_steps(self) -> int:
        """Training batches of the run where nothing is topped up: what methods with a schedule are told."""
        return self.steps or planned_steps(self.responses, self.batch_size, self.group_size)


def planned_steps(responses: int, batch_size: int, group_size: int) -> int:
    """Batches that `responses` pay for.

    >>> planned_steps(40_000, 32, 8)
    157
    """
    return max(1, -(-responses // (batch_size * group_size)))


def claim(folder: Path, spec: ArmSpec) -> None:
    """Make `folder` the arm's own. Raises StateMismatchError, field by field, where it holds an arm of another spec."""
    file, new = folder / "spec.json", asdict(spec)
    if file.is_file():
        old = asdict(ArmSpec(method="")) | json.loads(file.read_text())  # a field that is younger than the file: its default
        differ = [f"  {name}: there {old.get(name)!r}, now {new.get(name)!r}" for name in old if old[name] != new.get(name)]
        if differ:
            wrong = "\n".join(differ)
            raise StateMismatchError(f"{folder} holds another run:\n{wrong}\nGive another --out, or delete that folder.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(new, indent=1, sort_keys=True))


# -- lines ---------------------------------------------------------------------------------------------------------------


class Tail:
    """Reads a growing JSONL file a piece at a time: each `read` gives the lines that are new and whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def read(self) -> list[dict[str, Any]]:
        if not self.path.is_file():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position)
            whole, newline, _ = file.read().rpartition(b"\n")  # a line without its end is still being written
        self._position += len(whole) + len(newline)
        return [json.loads(line) for line in whole.splitlines()]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a torn last line is left out."""
    return Tail(path).read()


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")


# -- where an arm stands -------------------------------------------------------------------------------------------------


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The arm's newest complete checkpoint and the optimizer step it was written after; (None, 0) if there is none.

    The trainer writes `trainer_state.json` last, so a checkpoint with a whole one is complete.
    """
    found: list[tuple[int, Path]] = []
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        try:
            found.append((int(json.loads((path / "trainer_state.json").read_text())["global_step"]), path))
        except (OSError, ValueError, KeyError):
            continue  # the arm was killed while writing it
    if not found:
        return None, 0
    step, path = max(found)
    return path, step


def rewind(folder: Path, batches: int) -> list[dict[str, Any]]:
    """Forget lines of later batches than `batches`: they will be done again. Returns the lines of `steps.jsonl` that stay."""
    kept: list[dict[str, Any]] = []
    for name in ("groups.jsonl", "rates.jsonl", "evals.jsonl", "steps.jsonl"):
        path = folder / name
        kept = [line for line in read_lines(path) if line["step"] <= batches]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        if path.is_file() and path.read_text() != text:
            temporary = path.with_suffix(".tmp")
            temporary.write_text(text)
            os.replace(temporary, path)
    return kept
