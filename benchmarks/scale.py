"""What selecting costs, and that it follows the batch and not the pool: `python benchmarks/scale.py`.

One step of propose + judge + observe through the real `Selector` (B = 256 groups x 8, all rounds), with simulated outcomes of
prompts whose pass rates are spread over [0, 1]. Prompt entropy is served from an array, so its forward pass is not in these
numbers. Bytes a prompt: arrays of method and selector, without the prompts themselves and their ids.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import edgewise


def bench(method: str, pool_size: int, steps: int) -> dict[str, float | str]:
    """Median and 95th percentile of one step's milliseconds at one pool size."""
    rng = np.random.default_rng(0)
    rates = rng.beta(0.3, 0.3, pool_size)
    entropy = rng.normal(2.0, 0.5, pool_size)
    pool = edgewise.PromptPool.from_ids([f"p{i}" for i in range(pool_size)])
    selector = edgewise.Selector(method, pool, batch_size=256, group_size=8, seed=0)
    luck = np.random.default_rng(1)
    spent, choosing, groups = [], [], []
    for version in range(steps):
        world = 0.0
        started = time.process_time()
        with selector.step(policy_version=version) as step:
            for tickets in step.requests({"prompt_entropy": lambda rows: entropy[rows]}):
                begun = time.process_time()
                passes = luck.random((len(tickets), 8)) < rates[[t.row for t in tickets], None]
                outcomes = [edgewise.Outcome(ticket=t, rewards=p) for t, p in zip(tickets, passes.astype(float), strict=True)]
                world += time.process_time() - begun
                step.report(outcomes)
        if version >= 3:  # the first steps import scipy and draw the epoch's order
            spent.append(1e3 * (time.process_time() - started - world))
            choosing.append(selector.metrics["propose_ms"])
            groups.append(selector.metrics["rolled_out"])
    held = selector.method.state()
    arrays = sum(a.nbytes for a in held.prompts.values()) + selector._blocked.nbytes + selector._stream._order.nbytes
    return {
        "method": method,
        "prompts": pool_size,
        "step_ms_p50": float(np.median(spent)),
        "step_ms_p95": float(np.quantile(spent, 0.95)),
        "propose_ms_p50": float(np.median(choosing)),
        "groups_a_step": float(np.mean(groups)),
        "bytes_a_prompt": arrays / pool_size,
    }


def main() -> None:
    """Print a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="hive,greso,dapo,uniform")
    parser.add_argument("--prompts", default="10000,100000,1000000")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = [bench(m, int(n), args.steps) for m in args.methods.split(",") for n in args.prompts.split(",")]
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['method']:<8} {row['prompts']:>9,} prompts | whole step {row['step_ms_p50']:6.2f} ms "
            f"(p95 {row['step_ms_p95']:6.2f}), of it propose {row['propose_ms_p50']:5.2f} ms | "
            f"{row['groups_a_step']:4.0f} groups a step | {row['bytes_a_prompt']:.0f} bytes a prompt",
            flush=True,
        )


if __name__ == "__main__":
    main()
