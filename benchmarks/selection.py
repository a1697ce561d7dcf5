"""What selecting costs, method by method: `python benchmarks/selection.py`, about two minutes.

CPU milliseconds of one training step inside the real `Selector` (propose, judge, observe and the selector's own work; all
rounds; B = 256 groups x 8) over a pool of 100,000 prompts. Outcomes come from prompts whose pass rates are spread over [0, 1].
Signals are looked up in arrays, so what they cost a real host is not in these numbers. Every step of a method is followed by a
step of `uniform`, and ratios are of the two medians, so that a busy machine does not favour one of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import edgewise
from edgewise.errors import DegradedWarning
from edgewise.lab.table import format_table
from edgewise.synthetic import signals_of
from edgewise.types import PASS_RATE, PROMPT_ENTROPY, ROLLOUT_SIGNALS

BATCH, GROUP, WARM_UP = 256, 8, 3
TOO_SLOW = ("gps-ppm-20m",)
"""Left out unless asked for by name: seconds a step."""


class Bench:
    """One selector and its world, a step at a time."""

    def __init__(self, method: str, pool: edgewise.PromptPool, steps: int) -> None:
        n = len(pool)
        rng = np.random.default_rng(0)
        self.rates = rng.beta(0.3, 0.3, n)
        difficulty = -np.log(np.clip(self.rates, 1e-6, 1 - 1e-6) / (1 - np.clip(self.rates, 1e-6, 1 - 1e-6)))
        tables = signals_of(difficulty, np.arange(n) % 8, rng)
        tables |= {PROMPT_ENTROPY: rng.normal(2.0, 0.5, n), PASS_RATE: self.rates}

        def serving(table: Any) -> Callable[[Any], Any]:
            return lambda rows: table[rows]

        self.signals: Mapping[str, Callable[[Any], Any]] = {name: serving(table) for name, table in tables.items()}
        self.selector = edgewise.Selector(method, pool, batch_size=BATCH, group_size=GROUP, seed=0, total_steps=max(steps, 200))
        self.selector.check_signals({*self.signals, *ROLLOUT_SIGNALS})
        self.luck = np.random.default_rng(1)
        self.spent: list[float] = []
        self.groups: list[float] = []

    def step(self) -> None:
        """One training step; the time of rollouts is not counted."""
        world = 0.0
        started = time.process_time()
        with self.selector.step(policy_version=self.selector.step_number) as step:
            for tickets in step.requests(self.signals):
                begun = time.process_time()
                outcomes = []
                for ticket in tickets:
                    passed = self.luck.random(ticket.rollouts) < self.rates[ticket.row]
                    entropies = self.luck.random(ticket.rollouts).tolist()
                    outcomes.append(
                        edgewise.Outcome(ticket=ticket, rewards=passed.astype(float).tolist(), rollout_entropy=entropies)
                    )
                world += time.process_time() - begun
                step.report(outcomes)
        self.spent.append(1e3 * (time.process_time() - started - world))
        self.groups.append(self.selector.metrics.get("rolled_out", 0.0))

    def row(self, method: str) -> dict[str, Any]:
        """Numbers after the warm-up."""
        spent = self.spent[WARM_UP:]
        held = self.selector.method.state()
        return {
            "method": method,
            "step_ms_p50": float(np.median(spent)),
            "step_ms_p95": float(np.quantile(spent, 0.95)),
            "first_step_ms": self.spent[0],
            "groups_a_step": float(np.mean(self.groups[WARM_UP:])),
            "bytes_a_prompt": sum(np.asarray(a).nbytes for a in held.prompts.values()) / len(self.selector.pool),
            "shared_bytes": sum(np.asarray(a).nbytes for a in held.shared.values()),
            "degraded": self.selector.metrics.get("degraded_total", 0.0),
        }


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "threads": os.environ["OMP_NUM_THREADS"],
        "edgewise": edgewise.__version__,
    }


def main() -> None:
    """Print a table, and write or print JSON where asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default=",".join(name for name in edgewise.METHODS if name not in TOO_SLOW))
    parser.add_argument("--prompts", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=15, help=f"steps measured, after {WARM_UP} that are not")
    parser.add_argument("--out", type=Path, help="write JSON here")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    names = list(dict.fromkeys(["uniform", *args.methods.split(",")]))
    warnings.simplefilter("ignore", DegradedWarning)
    pool = edgewise.PromptPool.from_ids([f"p{i}" for i in range(args.prompts)])
    rows, order = {}, np.random.default_rng(0)
    base = Bench("uniform", pool, args.steps)
    for name in order.permutation([name for name in names if name != "uniform"]):
        bench = Bench(str(name), pool, args.steps)
        for _ in range(WARM_UP + args.steps):  # a step of uniform for every step of the method: the same load for both
            bench.step()
            base.step()
        rows[str(name)] = bench.row(str(name))
        rows[str(name)]["uniform_ms_p50"] = float(np.median(base.spent[-args.steps :]))
        print(f"{name}: {rows[str(name)]['step_ms_p50']:.1f} ms", file=sys.stderr, flush=True)
    rows["uniform"] = {**base.row("uniform"), "uniform_ms_p50": float(np.median(base.spent[WARM_UP:]))}
    for row in rows.values():
        row["x_uniform"] = row["step_ms_p50"] / row["uniform_ms_p50"]
    found = {"machine": machine(), "prompts": args.prompts, "batch_size": BATCH, "group_size": GROUP, "steps": args.steps}
    result = {**found, "methods": [rows[name] for name in names]}
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1))
    if args.json:
        print(json.dumps(result, indent=1))
        return
    header = [
        "method",
        "CPU ms a step\nmedian",
        "\np95",
        "x uniform",
        "first\nstep",
        "groups\na step",
        "bytes\na prompt",
        "shared\nbytes",
    ]
    lines = [
        [
            row["method"] + " (degraded)" * (row["degraded"] > 0), f"{row['step_ms_p50']:.1f}", f"{row['step_ms_p95']:.1f}",
            f"{row['x_uniform']:.1f}", f"{row['first_step_ms']:.0f}", f"{row['groups_a_step']:.0f}",
            f"{row['bytes_a_prompt']:.0f}", f"{row['shared_bytes']:,}",
        ]
        for row in result["methods"]
    ]  # fmt: skip
    print(format_table(header, lines, "<>>>>>>>"))
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))


if __name__ == "__main__":
    main()
