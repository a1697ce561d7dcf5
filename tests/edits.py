"""Data sets that are edited between runs: prompts with an id and a content, in a world that knows what each is like."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from edgewise.pool import PromptPool
from edgewise.testing.world import World


class Prompt(NamedTuple):
    """name: its id.  content: what it says, a row of the base world; another content is another prompt under the same id."""

    name: str
    content: int


def pool_of(prompts: Sequence[Prompt]) -> PromptPool:
    """The pool of this data set, ids and contents known."""
    with warnings.catch_warnings():  # two prompts may say the same here
        warnings.simplefilter("ignore", UserWarning)
        return PromptPool.from_dataset([{"id": p.name, "prompt": f"text {p.content}"} for p in prompts])


def world_of(base: World, prompts: Sequence[Prompt]) -> World:
    """A world with these prompts: each has the pass rate and the signals of its content."""
    world, contents = copy.copy(base), np.array([p.content for p in prompts])
    world.pass_rates = base.pass_rates[contents]
    world.pool = pool_of(prompts)
    world._tables = {name: table[contents] for name, table in base._tables.items()}
    return world


def edit(
    prompts: Sequence[Prompt], rng: np.random.Generator, *, remove: int, add: int, change: int, contents: int, number: int
) -> list[Prompt]:
    """The prompts in another order, `remove` of them gone, `change` with another content, `add` new ones among them.

    contents: how many there are.  number: of the edit, for the names of new prompts.
    """
    left = [prompts[i] for i in rng.permutation(len(prompts))[remove:]]
    for i in rng.permutation(len(left))[:change].tolist():
        left[i] = Prompt(left[i].name, (left[i].content + 1 + int(rng.integers(contents - 1))) % contents)
    left += [Prompt(f"new-{number}-{i}", int(rng.integers(contents))) for i in range(add)]
    return [left[i] for i in rng.permutation(len(left))]
