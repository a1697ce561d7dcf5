"""What the laboratory trains on: prompts with an answer and an exact reward.

Two sources: `ArithmeticTask` here, and `edgewise.lab.words.make_task` for the generators of a task library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgewise.lab import arithmetic

Row = Mapping[str, Any]
"""One prompt: "prompt", "prompt_id", "answer" (all text) and "kind" (whatever groups prompts of a like sort)."""


class Task(Protocol):
    """Training and held-out prompts, and who passes."""

    name: str
    train: list[dict[str, str]]
    held_out: list[dict[str, str]]
    exact: bool
    """Whether the answer is the only passing completion, so that `edgewise.lab.exact` gives true pass rates."""
    max_completion_tokens: int

    def reward(self, completions: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        """1.0 for a pass, 0.0 for a fail, None where the verifier gave no verdict (missing, never zero)."""


class ArithmeticTask:
    """Short arithmetic (`edgewise.lab.arithmetic`): a completion passes when it is the answer, character by character."""

    exact = True
    max_completion_tokens = arithmetic.MAX_COMPLETION_TOKENS

    def __init__(self, pool: str = "wasteful", *, n_train: int = 2400, n_held_out: int = 480, seed: int = 0) -> None:
        train, held_out = arithmetic.make_pool(pool, n_train, n_held_out, seed)
        self.name = f"arithmetic/{pool}"
        self.train = [_row(problem) for problem in train]
        self.held_out = [_row(problem) for problem in held_out]

    def reward(self, completions: Sequence[str], rows: Sequence[Row]) -> list[float | None]:
        return [float(completion == row["answer"]) for completion, row in zip(completions, rows, strict=True)]


def _row(problem: arithmetic.Problem) -> dict[str, str]:
    # The prompt is its own name: short, unique, and a person reading a log knows which one is meant.
    return {"prompt": problem.prompt, "prompt_id": problem.prompt, "answer": problem.answer, "kind": problem.kind}
