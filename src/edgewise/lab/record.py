"""What an arm of the laboratory is told and what it leaves behind: its spec, lines of JSON, and checkpoints.

An arm's folder holds `spec.json`, `steps.jsonl` (a line a training batch), `groups.jsonl` (its groups: row, passes, rollouts,
kept or not), `evals.jsonl` (a line an evaluation), `rates.jsonl` (exact pass rates of the pool at every fifth, where the task
has them), `log.txt`, `checkpoints/` while it runs and `result.json` when it is done. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from edgewise import foreign
from edgewise.errors import ConfigError, StateError, StateMismatchError
from edgewise.foreign import shown

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
    """Make `folder` the arm's own. Raises StateMismatchError, field by field, where it holds an arm of another spec.

    Raises StateError where the spec there cannot be read, ConfigError where a symbolic link would lead files elsewhere.
    """
    refuse_links(folder.parent)
    refuse_links(folder)
    file, new = folder / "spec.json", asdict(spec)
    if os.path.lexists(file):
        old = asdict(ArmSpec(method="")) | _spec(file)  # a field that is younger than the file: its default
        differ = [
            f"  {name}: there {shown(old[name])}, now {shown(new.get(name))}" for name in old if old[name] != new.get(name)
        ]
        if differ:
            wrong = "\n".join(differ)
            raise StateMismatchError(f"{folder} holds another run:\n{wrong}\nGive another --out, or delete that folder.")
    folder.mkdir(parents=True, exist_ok=True)
    foreign.replace(file, json.dumps(new, indent=1, sort_keys=True))


def read_spec(file: Path) -> ArmSpec:
    """The spec that `claim` wrote. Raises StateError."""
    found, names = _spec(file), {field.name for field in fields(ArmSpec)}
    strange = sorted(found.keys() - names)
    if strange or not isinstance(found.get("method"), str):
        what = f"it knows {shown(strange[0])}" if strange else "it names no method"
        raise StateError(f"{file} is no spec of this edgewise: {what}. {_REMEDY}")
    for field_ in fields(ArmSpec):
        default = {} if field_.name == "parameters" else field_.default
        value = found.get(field_.name, default)
        fitting = (int, float) if isinstance(default, float) else str if field_.name == "method" else type(default)
        if not isinstance(value, fitting) or isinstance(value, bool):
            raise StateError(f"{file}: {field_.name} cannot be {shown(value)}. {_REMEDY}")
    return ArmSpec(**found)


def refuse_links(folder: Path) -> None:
    """Raise ConfigError where something in a folder that we write to would be written elsewhere."""
    links = foreign.links_out(folder)
    if links:
        raise ConfigError(
            f"{links[0]} is a symbolic link out of {folder.parent} (to {shown(os.readlink(links[0]))}); the run would write "
            "there. Remove it, or give another --out."
        )


_REMEDY = "Delete that folder, or give another --out."
_MOST_SPEC = 1 << 20
_MOST_TRAINER_STATE = 1 << 26


def _spec(file: Path) -> dict[str, Any]:
    try:
        found = foreign.loads(foreign.contents(file, _MOST_SPEC, links=False))
    except OSError as error:
        raise StateError(f"{file} cannot be read: {error.strerror or error}. {_REMEDY}") from error
    except ValueError as error:
        raise StateError(f"{file} is not JSON ({error}). {_REMEDY}") from error
    if not isinstance(found, dict):
        raise StateError(f"{file} holds {shown(found)} and no spec. {_REMEDY}")
    return found


# -- lines ---------------------------------------------------------------------------------------------------------------


class Tail:
    """Reads a growing JSONL file a piece at a time: each `read` gives the lines that are new and whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def read(self) -> list[dict[str, Any]]:
        """Raises StateError for a line that no arm wrote: arms write objects that say their step."""
        return list(self._lines())

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not os.path.lexists(self.path):
            return
        try:
            with foreign.opened(self.path, links=False) as file:
                file.seek(self._position)
                for line in foreign.lines(file):
                    if not line.endswith(b"\n"):
                        break  # still being written
                    found = foreign.loads(line, nan=True)
                    step = found.get("step") if isinstance(found, dict) else None
                    if isinstance(step, bool) or not isinstance(step, (int, float)) or not math.isfinite(step):
                        raise ValueError("it says no step")
                    self._position += len(line)
                    yield found
        except OSError as error:
            raise StateError(f"{self.path} cannot be read: {error.strerror or error}. {_REMEDY}") from error
        except (ValueError, OverflowError) as error:
            raise StateError(f"{self.path}: the line at byte {self._position} is damaged ({error}). {_REMEDY}") from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a JSONL file; a torn last line is left out. Raises StateError."""
    return Tail(path).read()


def require_numbers(lines: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path, within: str = "") -> None:
    """Raise StateError unless every line (or the object `within` it) has a finite number under each of the names."""
    for line in lines:
        held = line.get(within) if within else line
        if not isinstance(held, dict):
            raise StateError(f"{path}: the line of step {shown(line['step'])} has {within} = {shown(held)}. {_REMEDY}")
        for name in names:
            value = held.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
                what = f"{within}.{name}" if within else name
                raise StateError(f"{path}: the line of step {shown(line['step'])} has {what} = {shown(value)}. {_REMEDY}")


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one line. Raises OSError."""
    foreign.append(path, json.dumps(line) + "\n")


# -- where an arm stands -------------------------------------------------------------------------------------------------


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The arm's newest complete checkpoint and the optimizer step it was written after; (None, 0) if there is none.

    The trainer writes `trainer_state.json` last, so a checkpoint with a whole one is complete.
    """
    found: list[tuple[int, Path]] = []
    for path in (folder / "checkpoints").glob("checkpoint-*"):
        try:
            state = foreign.loads(foreign.contents(path / "trainer_state.json", _MOST_TRAINER_STATE, links=False), nan=True)
        except (OSError, ValueError):
            continue  # the arm was killed while writing it
        step = state.get("global_step") if isinstance(state, dict) else None
        if type(step) is int and 0 <= step < 2**53:
            found.append((step, path))
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
        if path.is_file() and (path.stat().st_size != len(text) or path.read_bytes() != text.encode()):
            foreign.replace(path, text)
    return kept
