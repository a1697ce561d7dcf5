"""What an edit of the data set between two runs costs: keys, comparison, refit, and a whole restore with and without an edit.

OMP_NUM_THREADS=1 python benchmarks/edited_data.py [PROMPTS ...]        # default 100000 1000000
"""

from __future__ import annotations

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import edgewise
from edgewise import saved
from edgewise.edited import compare, refit
from edgewise.errors import DegradedWarning
from edgewise.pool import PromptPool


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """(answer, seconds)."""
    begun = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - begun


def measure(name: str, size: int, folder: Path) -> str:
    """One line: a hundredth of the prompts leaves, a fiftieth comes, all are shuffled."""
    ids = [f"prompt-{i}" for i in range(size)]
    kept = np.random.default_rng(0).permutation(size)[: size - size // 100]
    before = PromptPool.from_ids(ids)
    after = PromptPool.from_ids([ids[i] for i in kept.tolist()] + [f"new-{i}" for i in range(size // 50)])
    _, keys = timed(lambda: before.keys)
    after.keys  # noqa: B018 (made once a pool)

    def selector(pool: PromptPool) -> edgewise.Selector:
        return edgewise.Selector(name, pool, batch_size=256, group_size=8)

    run, live = selector(before), selector(after)
    run.take(256, signals={"prompt_entropy": lambda rows: np.ones(len(rows))})
    run.save(folder / "before")
    header, arrays = saved.content(run)
    edit, comparison = timed(lambda: compare(*before.keys, after))
    _, fitted = timed(lambda: refit(header, arrays, edit, after, live.method, saved._identity(live)))
    _, edited = timed(lambda: live.restore(folder / "before"))
    live.save(folder / "after")
    _, plain = timed(lambda: selector(after).restore(folder / "after"))
    return (
        f"{name:6} {size:>9,} prompts: keys {keys:.3f} s, compare {comparison:.3f} s, refit {fitted:.3f} s, restore with "
        f"the edit {edited:.3f} s, without {plain:.3f} s"
    )


def main() -> None:
    warnings.simplefilter("ignore", DegradedWarning)
    for size in map(int, sys.argv[1:] or ("100000", "1000000")):
        for name in ("hive", "mopps"):
            with tempfile.TemporaryDirectory() as folder:
                print(measure(name, size, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
