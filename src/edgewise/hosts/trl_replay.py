"""What TRL's `_generate` answered in the rounds, kept rollout by rollout, and given again when TRL builds its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgewise.errors import HostError

_FIELDS = 8


class Rollouts:
    """What this process generated in one round: one entry a rollout, in row order."""

    def __init__(self, rows: list[int], generated: tuple[Any, ...], extra_logs: dict[str, list[Any]]) -> None:
        prompt_ids, completion_ids, tool_mask, completions, logprobs, _, _, _ = generated
        self.rows = rows
        self.columns: dict[str, Sequence[Any] | None] = {
            "row": rows,
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "tool_mask": tool_mask,
            "completions": completions,
            "logprobs": logprobs,
        }
        self.extra_logs = extra_logs

    def at(self, index: int) -> dict[str, Any]:
        """One rollout as a plain record that can travel to another process."""
        record = {name: None if column is None else column[index] for name, column in self.columns.items()}
        return record | {"extra_logs": {name: values[index] for name, values in self.extra_logs.items()}}


class Replay:
    """What `_generate` and `_calculate_rewards` answer while TRL builds the training batch; and what becomes of its advantages.

    records: this process' rollouts.  rewards: (rows of all processes, functions).  factors: (rows of all processes,), 0 for
    fillers, else the method's weight.  advantages: (rows of all processes,) on whole groups, or None where TRL's own are right.
    mine: this process' rows.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        rewards: torch.Tensor,
        factors: torch.Tensor,
        advantages: torch.Tensor | None,
        mine: slice,
    ) -> None:
        self.records = records
        self.rewards = rewards
        self.factors = factors
        self.advantages = advantages
        self.mine = mine

    def of(self, computed: torch.Tensor) -> torch.Tensor:
        """(local rows,) the advantages to train with, given those that TRL computed."""
        own = computed if self.advantages is None else self.advantages[self.mine].to(computed)
        return own * self.factors[self.mine].to(computed)

    def generated(self) -> tuple[Any, ...]:
        def column(name: str) -> list[Any] | None:
            return None if self.records[0][name] is None else [record[name] for record in self.records]

        kept = ("prompt_ids", "completion_ids", "tool_mask", "completions", "logprobs")
        return (*(column(name) for name in kept), {}, None, [])


def joined(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Several answers of `_generate` as one."""
    if any(len(part) != _FIELDS for part in parts):
        raise HostError(
            f"GRPOTrainer._generate answered {len(parts[0])} values; this host knows {_FIELDS}. Install a tested TRL."
        )
    if len(parts) == 1:
        return parts[0]

    def joined(column: int) -> list[Any] | None:
        return None if parts[0][column] is None else [value for part in parts for value in part[column]]

    extra = {
        name: [v for part in parts for v in part[5][name]] if isinstance(value, list) else value
        for name, value in parts[0][5].items()
    }
    return (*(joined(i) for i in range(5)), extra, None, [])
