"""`edgewise simulate`: methods side by side on a simulated learner, in seconds, through the real `Selector`.

The comparison: dynamic sampling (`dapo`) runs for the given steps and sets the bar, its final pass rate and the responses it
generated. Every other method runs until it is over both, or has generated twice as many responses. The x-axis is generated
responses, kept or thrown away. Nothing here says how a method fares on a real model; `edgewise train` does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgewise.errors import ConfigError, EdgewiseError
from edgewise.lab.learner import POOLS, SimulatedLearner
from edgewise.lab.simulated import Run, simulate
from edgewise.lab.statistics import Interval, paired_ratio
from edgewise.lab.table import format_table
from edgewise.methods import METHODS as EVERY
from edgewise.metrics import rank_correlation
from edgewise.selector import Selector
from edgewise.types import ROLLOUT_SIGNALS

REFERENCE = "dapo"
METHODS = ("hive", "greso", "dapo", "uniform", "oracle")
"""What is compared unless told otherwise; `--methods all` takes every method that edgewise has."""
TOO_SLOW = {"gps-ppm-20m": "its network of 20 million weights takes seconds a step on a processor; ask for it by name"}
"""What `--methods all` leaves out, with the reason."""
PATIENCE = 2.0
"""A method still under the bar after this multiple of the reference's responses is stopped, and counted with that multiple."""

Say: TypeAlias = Callable[[str], None]


@dataclass
class Comparison:
    """All runs, and the bar of every seed."""

    settings: dict[str, Any]
    runs: dict[str, list[Run]]
    start: dict[str, float]
    """The first learner before training: mean pass rate, expected zero-variance share, rank correlations of the entropy."""

    @property
    def reference(self) -> list[Run]:
        """Dynamic sampling, seed by seed."""
        return self.runs[REFERENCE]

    def responses_to_bar(self, method: str) -> tuple[list[float], int]:
        """Responses to the reference's final pass rate, seed by seed; and how many seeds fell short (their stop counts)."""
        found = [run.responses_to(bar.pass_rates[-1]) for run, bar in zip(self.runs[method], self.reference, strict=True)]
        stopped = [PATIENCE * bar.responses[-1] for bar in self.reference]
        return [end if n is None else n for n, end in zip(found, stopped, strict=True)], sum(n is None for n in found)

    def ratio(self, method: str) -> Interval:
        """Responses to the bar over the reference's own, paired by seed."""
        return paired_ratio(self.responses_to_bar(method)[0], [bar.responses[-1] for bar in self.reference])

    def summary(self) -> list[dict[str, Any]]:
        """One row a method, plain numbers."""
        rows = []
        for method, runs in self.runs.items():
            budgets = [bar.responses[-1] for bar in self.reference]
            to_bar, unreached = self.responses_to_bar(method)
            ratio = self.ratio(method)
            rows.append(
                {
                    "simulated": True,
                    "method": method,
                    "responses_to_bar": float(np.mean(to_bar)),
                    "seeds_below_bar": unreached,
                    "ratio": ratio.estimate,
                    "ratio_low": ratio.low if ratio.n > 1 else None,
                    "ratio_high": ratio.high if ratio.n > 1 else None,
                    "mixed_share": float(np.mean([run.mixed_share(n) for run, n in zip(runs, budgets, strict=True)])),
                    "final_pass_rate": float(np.mean([run.pass_rate_at(n) for run, n in zip(runs, budgets, strict=True)])),
                    "never_rolled_out": float(np.mean([r.starved_at(n) for r, n in zip(runs, budgets, strict=True)])),
                    "degraded": sum(run.degraded for run in runs),
                    "selection_ms": 1e3 * sum(run.selection_s for run in runs) / max(1, sum(run.steps for run in runs)),
                }
            )
        return rows

    def table(self) -> str:
        """The summary for people."""
        header = [
            "method",
            "responses to dynamic\nsampling's pass rate",
            "x dynamic sampling's\n(95 % interval)",
            "mixed\ngroups",
            "pass rate at\nits responses",
            "prompts never\nrolled out",
            "selection\nCPU ms a step",
        ]
        rows = []
        for row, method in zip(self.summary(), self.runs, strict=True):
            above = ">= " if row["seeds_below_bar"] else ""
            rows.append(
                [
                    method,
                    f"{above}{row['responses_to_bar']:,.0f}",
                    "1 by definition" if method == REFERENCE else f"{above}{self.ratio(method)}",
                    f"{row['mixed_share']:.0%}",
                    f"{row['final_pass_rate']:.3f}",
                    f"{row['never_rolled_out']:,.0f}",
                    f"{row['selection_ms']:.2f}",
                ]
            )
        return format_table(header, rows, "<>>>>>>")


_MOST = {"steps": 1_000_000, "seeds": 1_000, "seed0": 10**9, "prompts": 10_000_000}


def compare(
    methods: Sequence[str] = METHODS,
    *,
    prompts: int = 2_000,
    pool: str = "wasteful",
    steps: int = 60,
    seeds: int = 3,
    seed0: int = 0,
    batch_size: int = 32,
    group_size: int = 8,
    entropy_difficulty: float = 0.75,
    say: Say = lambda line: None,
) -> Comparison:
    """Run every method on the same learners; `dapo` is added as the reference if it is not among them.

    methods: names; "all" alone stands for every method but `TOO_SLOW` whose signals the learner serves, and says which not.
    steps: of dynamic sampling; the others get as many responses.  say: takes one line of progress a run.
    """
    for name, value, least in (("steps", steps, 1), ("seeds", seeds, 1), ("seed0", seed0, 0), ("prompts", prompts, batch_size)):
        if value < least:
            raise ConfigError(f"simulate: {name} must be at least {least}, got {value}.")
        if value > _MOST[name]:
            raise ConfigError(f"simulate: {name} must be at most {_MOST[name]:,}, got {value:,}.")
    every = list(methods) == ["all"]
    names = [name for name in EVERY if name not in TOO_SLOW] if every else list(dict.fromkeys(methods))
    for name in sorted(TOO_SLOW) if every else ():
        say(f"left out: {name}: {TOO_SLOW[name]}")
    if REFERENCE not in names:
        names.append(REFERENCE)

    def learner_of(seed: int) -> SimulatedLearner:
        return SimulatedLearner(prompts, pool=pool, entropy_difficulty=entropy_difficulty, seed=seed)  # type: ignore[arg-type]

    start = _start(learner_of(seed0), group_size)
    served = {*learner_of(seed0).signals, *ROLLOUT_SIGNALS}
    for name in list(names):  # a method that cannot run is refused before anything runs, or left out of "all"
        try:
            learner = learner_of(seed0)
            selector = Selector(name, learner.pool, batch_size=batch_size, group_size=group_size, total_steps=steps)
            selector.check_signals(served)
        except (EdgewiseError, ImportError) as error:
            if not every:
                raise
            names.remove(name)
            say(f"left out: {name}: {error}")
    say(
        f"{prompts:,} prompts ({pool} pool), {steps} steps of dynamic sampling with {batch_size} groups x {group_size}, "
        f"seeds {seed0} to {seed0 + seeds - 1}"
    )
    say(
        f"at the start: mean pass rate {start['pass_rate']:.3f}, zero-variance groups {start['zero_variance_share']:.0%}\n"
        f"rank correlation of the synthetic prompt entropy with pass rate p {start['entropy_pass_corr']:+.2f}, with p(1-p) "
        f"{start['entropy_variance_corr']:+.2f}"
    )
    runs: dict[str, list[Run]] = {name: [] for name in names}
    width = max(8, *map(len, names))
    for seed in range(seed0, seed0 + seeds):
        bar: Run | None = None
        for name in sorted(names, key=lambda name: name != REFERENCE):

            def done(run: Run, bar: Run | None = bar) -> bool:
                if bar is None:
                    return run.steps >= steps
                spent = run.responses[-1] / bar.responses[-1]
                return spent >= PATIENCE or (spent >= 1.0 and run.pass_rates[-1] >= bar.pass_rates[-1])

            run = simulate(
                name, learner_of(seed), batch_size=batch_size, group_size=group_size, seed=seed, until=done,
                total_steps=steps if bar is None else -(-bar.responses[-1] // (batch_size * group_size)),
            )  # fmt: skip
            bar = bar or run
            if bar.pass_rates[-1] <= bar.pass_rates[0]:
                raise ConfigError(
                    f"simulate: dynamic sampling learned nothing in {steps} steps of seed {seed}, so there is no bar to "
                    "compare at. Ask for more steps or prompts."
                )
            runs[name].append(run)
            say(
                f"seed {seed} | {name:<{width}} | {run.steps:4} steps | {run.responses[-1]:>9,} responses | mixed "
                f"{run.mixed_share(run.responses[-1]):4.0%} | pass rate {run.pass_rates[0]:.3f} -> {run.pass_rates[-1]:.3f}"
                + f" | degraded {run.degraded} times"
                * (run.degraded > 0)
            )
    settings = {
        "prompts": prompts, "pool": pool, "steps": steps, "seeds": seeds, "seed0": seed0, "batch_size": batch_size,
        "group_size": group_size, "entropy_difficulty": entropy_difficulty,
    }  # fmt: skip
    return Comparison(settings, runs, start)


def _start(learner: SimulatedLearner, group_size: int) -> dict[str, float]:
    p = learner.pass_rate()
    return {
        "pass_rate": float(p.mean()),
        "zero_variance_share": float(1.0 - learner.mixed_chance(group_size).mean()),
        "entropy_pass_corr": rank_correlation(learner.prompt_entropy, p),
        "entropy_variance_corr": rank_correlation(learner.prompt_entropy, p * (1.0 - p)),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgewise simulate`."""
    parser.add_argument(
        "--methods", default=",".join(METHODS), metavar="A,B,...", help="methods to compare, or all (default: %(default)s)"
    )
    parser.add_argument("--prompts", type=int, default=2_000, help="size of the pool (default: %(default)s)")
    parser.add_argument("--pool", choices=sorted(POOLS), default="wasteful", help="difficulties (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="training steps of dynamic sampling (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: %(default)s)")
    parser.add_argument("--seed0", type=int, default=0, help="first seed (default: %(default)s)")
    parser.add_argument(
        "--entropy-difficulty",
        type=float,
        default=0.75,
        metavar="RHO",
        help="correlation of the synthetic prompt entropy with difficulty (default: %(default)s, as on a small real policy)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write simulated.json (settings, table, curves) here")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Compare and print; every line says that it is simulated."""

    def say(text: str) -> None:
        if not args.json:
            for line in text.splitlines():
                print(f"simulated | {line}".rstrip(), flush=True)

    started = time.perf_counter()
    names = [name.strip() for name in args.methods.split(",") if name.strip()]
    if not names:
        raise ConfigError("--methods names no method. `edgewise methods` lists them.")
    found = compare(
        names,
        prompts=args.prompts,
        pool=args.pool,
        steps=args.steps,
        seeds=args.seeds,
        seed0=args.seed0,
        entropy_difficulty=args.entropy_difficulty,
        say=say,
    )
    result = {"simulated": True, "settings": found.settings, "start": found.start, "methods": found.summary()}
    say(f"\n{found.table()}\n")
    if args.seeds < 5:
        what = "no interval" if args.seeds == 1 else "the interval is little more than the range"
        say(f"{args.seeds} seed{'s' * (args.seeds > 1)}: {what}; --seeds 5 says more.")
    say("A simulated learner stands for no model: read it as a check of the machinery, not as a result.")
    say(f"{time.perf_counter() - started:.1f} s")
    if args.out is not None:
        path = _write(args.out, result, found)
        say(f"written: {path}")
    if args.json:
        print(json.dumps(result, indent=2))
    best = min(found.summary(), key=lambda row: (row["method"] == "oracle", row["ratio"]))
    say(f"next: edgewise methods {best['method']}")
    return 0


def _write(directory: Path, result: dict[str, Any], found: Comparison) -> Path:
    """The result with its curves as one file."""
    curves = [
        {"method": run.method, "seed": run.seed, "responses": run.responses, "pass_rates": run.pass_rates}
        for runs in found.runs.values()
        for run in runs
    ]
    path = directory / "simulated.json"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**result, "curves": curves}), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {directory}: cannot be written ({error.strerror}). Choose another folder.") from error
    return path
