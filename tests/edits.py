"""Data sets that are edited between runs: prompts with an id and a content, in a world that knows what each is like."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import edgewise
from edgewise.methods import METHODS, make
from edgewise.pool import PromptPool
from edgewise.testing.drive import steps
from edgewise.testing.world import World
from edgewise.types import MethodState, Requests, Setting, Verdicts


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


BASE = World(200, seed=4)
FIRST = [Prompt(f"prompt-{i}", i) for i in range(60)]
TOO_LARGE = {"gps-ppm-20m": "gps-ppm with another size, which would take minutes"}
SMALLER: dict[str, dict[str, int]] = {"gps-ppm": {"gradient_steps": 1, "draws": 2}}
EVERY = [name for name in METHODS if name not in TOO_LARGE]


def built(name: str, **parameters: Any) -> edgewise.Method:
    return make(name, **SMALLER.get(name, {}), **parameters)


def restored(selector: edgewise.Selector, path: Path) -> list[str]:
    """Restore, and hand back what was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        selector.restore(path)
    return [str(one.message) for one in said]


def by_name(pool: PromptPool, held: MethodState) -> dict[str, dict[str, bytes]]:
    """What is kept of each prompt, bit for bit."""
    return {
        prompt_id: {name: np.ascontiguousarray(array[row]).tobytes() for name, array in held.prompts.items()}
        for row, prompt_id in enumerate(pool.ids)
    }


def missing(held: MethodState) -> set[str]:
    """Arrays in which something is not a number."""
    arrays = {**held.prompts, **held.shared}
    return {name for name, array in arrays.items() if array.dtype.kind == "f" and np.isnan(array).any()}


class Counting(edgewise.Method):
    """Takes the stream as it is, and counts visits and passes of each prompt."""

    name = "counting"

    def __init__(self, *, bonus: int = 0) -> None:
        self.bonus = bonus

    def start(self, setting: Setting) -> None:
        self.group_size = setting.group_size
        self.visits = np.zeros(setting.pool_size, dtype=np.int64)
        self.passes = np.full(setting.pool_size, 0.5)

    def propose(self, room: int, step: Any) -> Requests:
        return Requests.of(step.draw(room), self.group_size)

    def observe(self, groups: Any, step: Any) -> None:
        self.visits[groups.rows] += 1
        self.passes[groups.rows] += np.nansum(groups.rewards, axis=1)

    def parameters(self) -> dict[str, Any]:
        return {"bonus": self.bonus}

    def state(self) -> MethodState:
        return MethodState(prompts={"visits": self.visits, "passes": self.passes})

    def restore(self, held: MethodState) -> None:
        self.visits, self.passes = held.prompts["visits"].copy(), held.prompts["passes"].copy()


class Halves(Counting):
    """Asks for half of a group, and for the other half in the next step."""

    def propose(self, room: int, step: Any) -> Requests:
        first = step.streaming or step.round == 0
        return Requests.of(step.draw(room if first else 0), self.group_size // 2)

    def judge(self, groups: Any, step: Any) -> Verdicts:
        left = np.maximum(self.group_size - groups.asked, 0)
        return Verdicts(left == 0, tuple("waits" if n else "" for n in left), hold=left)


def told(selector: edgewise.Selector, world: World, n: int) -> list[str]:
    """`n` steps; the names of the prompts, in the order in which they were asked for."""
    return [selector.pool.ids[row] for step in steps(selector, world, n) for rounds in step for row, _ in rounds]
