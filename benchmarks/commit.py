"""What a durable commit costs, and that it follows the batch and not the pool: `python benchmarks/commit.py`.

Real steps of the `Selector` (B = 256 groups x 8, simulated outcomes) with `directory=` on this machine's disk, fsync included.
Beside each commit that was just made, in the same run, a whole state is written by `Selector.save`: the ratio is what the
journal saves. Compactions (a new snapshot, after the records were read back and compared) are counted apart. Recovery: a new
selector on the same directory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import edgewise


def bench(method: str, pool_size: int, steps: int, folder: Path) -> dict[str, float | str]:
    """Milliseconds and bytes of the commits of one run."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.3, 0.3, pool_size)
    entropy, vectors = rng.normal(2.0, 0.5, pool_size), rng.normal(size=(pool_size, 16))
    signals = {"prompt_entropy": lambda rows: entropy[rows], "embedding": lambda rows: vectors[rows]}
    pool = edgewise.PromptPool.from_ids([f"prompt-{i:07d}" for i in range(pool_size)])

    def made() -> edgewise.Selector:
        return edgewise.Selector(method, pool, batch_size=256, group_size=8, seed=0, directory=folder / "run")

    selector, spent = made(), [0.0]
    durable = selector._autosave

    def timed() -> None:
        begun = time.perf_counter()
        durable()
        spent[0] = 1e3 * (time.perf_counter() - begun)

    selector._autosave = timed  # type: ignore[method-assign]
    luck = np.random.default_rng(1)
    commits, records, compactions, whole, ratios = [], [], [], [], []
    for version in range(steps):
        with selector.step(policy_version=version) as step:
            for tickets in step.requests(signals):
                passes = luck.random((len(tickets), 8)) < rates[[t.row for t in tickets], None]
                step.report([edgewise.Outcome(ticket=t, rewards=p) for t, p in zip(tickets, passes.astype(float), strict=True)])
        if version < 3:  # the first two commits write snapshots, and much is imported
            continue
        size = selector.metrics["commit_bytes"]
        begun = time.perf_counter()
        selector.save(folder / "whole")
        whole.append(1e3 * (time.perf_counter() - begun))
        commits.append(spent[0])
        if size < (folder / "whole").stat().st_size:
            records.append(size)
            ratios.append(whole[-1] / spent[0])
        else:
            compactions.append(spent[0])
    selector.close()
    begun = time.perf_counter()
    again = made()
    opened = 1e3 * (time.perf_counter() - begun)
    assert again.step_number == steps
    again.close()
    return {
        "method": method,
        "prompts": pool_size,
        "commit_ms_p50": float(np.median(commits)),
        "commit_ms_p99": float(np.quantile(commits, 0.99)),
        "record_bytes_mean": float(np.mean(records)),
        "whole_ms_p50": float(np.median(whole)),
        "whole_bytes": (folder / "whole").stat().st_size,
        "whole_over_commit_p50": float(np.median(ratios)),
        "compactions": len(compactions),
        "compaction_ms_max": max(compactions, default=0.0),
        "open_ms": opened,
    }


def main() -> None:
    """Print a table; with --out write it as JSON, too."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=["uniform", "hive", "mopps", "gps"])
    parser.add_argument("--prompts", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, help="a JSON file")
    args = parser.parse_args()
    rows = []
    names = ("commit ms", "p99", "bytes", "whole ms", "ratio", "compactions", "ms at most", "open ms")
    print(f"{'method':10}{'prompts':>10}" + "".join(f"{name:>13}" for name in names))
    for method in args.methods:
        for pool_size in args.prompts:
            with tempfile.TemporaryDirectory() as folder:
                row = bench(method, pool_size, args.steps, Path(folder))
            rows.append(row)
            print(
                f"{method:10}{pool_size:10,}{row['commit_ms_p50']:13.2f}{row['commit_ms_p99']:13.2f}"
                f"{row['record_bytes_mean']:13,.0f}{row['whole_ms_p50']:13.1f}{row['whole_over_commit_p50']:13.1f}"
                f"{row['compactions']:13}{row['compaction_ms_max']:13.0f}{row['open_ms']:13.0f}",
                flush=True,
            )
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
