"""Rollouts by the ticket that asked for them: of the step under way, and of groups that wait for more from earlier steps.

Every process keeps the trajectories that it generated, and the rewards of all. A group that waits across steps keeps its
trajectories too, also through a checkpoint (`save`, `load`): plain JSON, since completions are text or messages.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from edgewise.hosts.trl_replay import Rollouts

Asked = tuple[int, int, int]
"""(seq of the ticket, pool row, rollouts)."""
Place = tuple[int, int]
"""(seq of the ticket, number of the rollout in it)."""


@dataclass(frozen=True, slots=True)
class Made:
    """The rollouts of one ticket.

    rewards: (n, functions), known to every process.  records: those that this process generated, by number.
    """

    rewards: torch.Tensor
    records: dict[int, dict[str, Any]]


class Store:
    """What was generated for tickets whose group is not trained on yet."""

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}

    def add_round(self, asked: Sequence[Asked], rollouts: Rollouts, rewards: torch.Tensor, process: int) -> None:
        """One finished round: `rollouts` are this process' share of it, `rewards` (all rollouts, functions) of the whole."""
        starts, at = {}, 0
        for seq, _, n in asked:
            starts[seq] = at
            self._made[seq] = Made(rewards[at : at + n], {})
            at += n
        each = len(rollouts.rows)
        for seq, _, n in asked:
            for j in range(n):
                owner, index = divmod(starts[seq] + j, each)
                if owner == process:
                    self._made[seq].records[j] = rollouts.at(index)

    def rewards(self, seqs: Iterable[int]) -> torch.Tensor:
        """(rollouts of these tickets, functions), one after the other."""
        return torch.cat([self._made[seq].rewards for seq in seqs])

    def reward(self, place: Place) -> torch.Tensor:
        """(functions,) of one rollout."""
        return self._made[place[0]].rewards[place[1]]

    def record(self, place: Place) -> dict[str, Any] | None:
        """One rollout, where this process generated it."""
        return self._made[place[0]].records.get(place[1])

    def keep_only(self, seqs: Iterable[int]) -> None:
        """Forget every ticket but these."""
        self._made = {seq: self._made[seq] for seq in seqs if seq in self._made}

    def __contains__(self, seq: int) -> bool:
        return seq in self._made

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, file: Path) -> None:
        """Write atomically, if anything waits. Raises OSError, and TypeError for records that JSON cannot hold."""
        if not self._made:
            return
        content = {
            str(seq): {"rewards": made.rewards.tolist(), "records": {str(j): record for j, record in made.records.items()}}
            for seq, made in self._made.items()
        }
        text = json.dumps(content, default=_plain)
        temporary = file.with_name(f".{file.name}.tmp")
        try:
            with temporary.open("w", encoding="utf-8") as out:
                out.write(f'{{"sha256": "{_digest(text)}", "made": {text}}}')
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, file)
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, file: Path, functions: int, device: torch.device) -> None:
        """Take up what `save` wrote, with rewards of so many functions on `device`, where those of new rounds are.

        Raises OSError, ValueError, KeyError, TypeError, AttributeError; nothing is held then.
        """
        self._made = {}
        if not file.is_file():
            return
        content = json.loads(file.read_text(encoding="utf-8"))
        if _digest(json.dumps(content["made"])) != content["sha256"]:
            raise ValueError("its SHA-256 does not match its content")
        made = {
            int(seq): Made(
                torch.tensor(entry["rewards"], dtype=torch.float32, device=device),
                {int(j): record for j, record in entry["records"].items()},
            )
            for seq, entry in content["made"].items()
        }
        if any(one.rewards.ndim != 2 or one.rewards.shape[1] != functions for one in made.values()):
            raise ValueError(f"it does not hold the rewards of {functions} functions")
        self._made = made

    def held(self) -> dict[int, tuple[int, list[int]]]:
        """For each ticket, its rollouts and the numbers of those that this process generated."""
        return {seq: (len(made.rewards), sorted(made.records)) for seq, made in self._made.items()}


def complete(held: Sequence[dict[int, tuple[int, list[int]]]]) -> bool:
    """Whether the processes, each of which says what it `held`, together hold each rollout of the same tickets once."""
    return all(
        all(seq in one and one[seq][0] == n for one in held)
        and sorted(j for one in held for j in one[seq][1]) == list(range(n))
        for seq, n in {seq: n for one in held for seq, (n, _) in one.items()}.items()
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's. Raises TypeError for what JSON cannot hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written into a checkpoint")
