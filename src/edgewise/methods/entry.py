"""One line of the table of methods: how to build it, and what a reader needs to choose it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgewise.method import Method
from edgewise.types import Signal

Scalar = bool | int | float | str | None
"""A hyper-parameter's value."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One method: how to build it, and what a reader needs to choose it. Words are for people; `needs` is for programs."""

    factory: Callable[..., Method]
    """Builds it; takes hyper-parameters by keyword only."""
    summary: str
    """One line: which prompts it asks for."""
    signal: str
    """What it learns from."""
    keeps: str
    """What it keeps per prompt."""
    extra_rollouts: str
    """Rollouts that are not trained on."""
    cost: str
    """Work per step apart from rollouts."""
    when: str
    """When to choose it."""
    paper: str
    """Where it comes from."""

    @property
    def needs(self) -> frozenset[Signal]:
        """Signals that the host must serve, at the default hyper-parameters."""
        return self.factory().needs

    @property
    def parameters(self) -> dict[str, Scalar]:
        """Every hyper-parameter with its default."""
        return self.factory().parameters()
