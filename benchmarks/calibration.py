"""How well each belief knows the pass rates of a policy in training, against the exact ones.

    python benchmarks/calibration.py [--pool wasteful] [--prompts 4000] [--responses 40000] [--seeds 3] [--jobs 2] [--out DIR]

Trains `uniform` arms of the main job, which choose blindly, so that what a belief sees favours none. Their logs
(`groups.jsonl`) are then read in order: at each record of exact pass rates (`rates.jsonl`) every belief has learned from the
groups of all earlier steps and says what it believes of the whole pool. Printed, as means over records and seeds with the range
over seeds:

    Spearman   rank correlation of the predicted with the exact pass rate
    Brier      mean squared error of the predicted pass rate

for prompts that had a group and, apart, for prompts that had none. A record counts for a side of at least 100 prompts.
Embeddings: WordLlama of the prompt's text ("words"), as GPS uses, and the starting policy's mean last hidden state over the
prompt ("policy").
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.beliefs.anchored import AnchoredBeta
from edgewise.beliefs.arcsine_kalman import ArcsineKalman
from edgewise.beliefs.base import Belief
from edgewise.beliefs.beta import BetaBelief
from edgewise.beliefs.last import LastRate
from edgewise.beliefs.logit_kalman import LogitKalman
from edgewise.beliefs.markov import Markov3
from edgewise.beliefs.regressed import RidgeBelief
from edgewise.beliefs.shared import SharedPriorBelief
from edgewise.lab.record import ArmSpec, claim, read_lines
from edgewise.lab.table import format_table
from edgewise.lab.task import ArithmeticTask
from edgewise.metrics import rank_correlation
from edgewise.prediction import Prediction, Visits
from edgewise.stream import derived_rng
from edgewise.types import Floats, Ints, MethodState, Setting

LEAST = 100
"""Prompts without which a side of a record is not counted."""


class GlobalMean(Belief):
    """The control: one running pass rate for all prompts, forgetting as fast as ridge does."""

    name = "mean"

    def start(self, setting: Setting) -> None:
        self.totals = np.array([1.0, 2.0])

    def predict(self, rows: Ints, step: Any) -> Prediction:
        return Prediction.of_rates(np.full(len(rows), self.totals[0] / self.totals[1]))

    def observe(self, visits: Visits, step: Any) -> None:
        self.totals = 0.97 * self.totals + [visits.successes.sum(), visits.trials.sum()]

    def state(self) -> MethodState:
        return MethodState(shared={"totals": self.totals})

    def restore(self, state: MethodState) -> None:
        self.totals = state.shared["totals"].copy()


def ppm(combine: Any) -> Belief:
    """GPS' generative predictor, the small preset."""
    from edgewise.beliefs.ppm import Ppm

    return SharedPriorBelief(predictor=lambda: Ppm(size="ppm-small"), combine=combine)


BELIEFS: dict[str, tuple[str, Callable[[], Belief]]] = {
    "one mean for all": ("", GlobalMean),
    "last rate": ("", LastRate),
    "Beta, forgets nothing": ("", lambda: BetaBelief(decay=1.0)),
    "Beta, λ .5 (mopps, mapp)": ("", lambda: BetaBelief(decay=0.5)),
    "BOTS without anchors": ("", lambda: AnchoredBeta(rho=0.0)),
    "Markov, three states (dps)": ("", lambda: Markov3()),
    "Kalman, logit (kgps)": ("", lambda: LogitKalman()),
    "Kalman, arcsine (arcus)": ("", lambda: ArcsineKalman()),
    "ridge alone, words": ("words", lambda: RidgeBelief(combine="none")),
    "ridge + own counts, words (gps)": ("words", lambda: RidgeBelief()),
    "PPM alone, words (gps-ppm)": ("words", lambda: ppm("none")),
    "PPM + own counts, words": ("words", lambda: ppm("beta")),
    "ridge alone, policy": ("policy", lambda: RidgeBelief(combine="none")),
    "ridge + own counts, policy": ("policy", lambda: RidgeBelief()),
    "PPM alone, policy": ("policy", lambda: ppm("none")),
    "PPM + own counts, policy": ("policy", lambda: ppm("beta")),
}
"""What is compared: which embedding it is given, and how it is built."""


class ReadingStep:
    """The step of a log that is being read: what beliefs ask of a `StepView`."""

    round, streaming, strict, epoch = 0, False, True, 0.0

    def __init__(self, number: int, signals: Mapping[str, Floats]) -> None:
        self.number = self.policy_version = number
        self._signals = signals

    def rng(self, purpose: str) -> np.random.Generator:
        return derived_rng(0, self.number, purpose=purpose)

    def signal(self, name: str, rows: Ints) -> Floats:
        return self._signals[name][rows]

    def log(self, **values: float) -> None:
        pass

    gauge = log

    def problem(self, error: Exception) -> None:
        raise error


def run_arm(folder: Path, spec: ArmSpec) -> Path:
    """Train one arm, unless it stands there already."""
    claim(folder, spec)
    if not (folder / "result.json").is_file():
        command = [sys.executable, "-m", "edgewise.lab.arm", str(folder / "spec.json")]
        with (folder / "log.txt").open("wb") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return folder


def embeddings(task: ArithmeticTask) -> dict[str, Floats]:
    """(N, d) of each kind."""
    import torch

    from edgewise.lab.policy import load_policy
    from edgewise.signals.embedding import PromptEmbedding

    prompts = [row["prompt"] for row in task.train]
    model, tokenizer = load_policy(None)
    parts = []
    with torch.no_grad():
        for start in range(0, len(prompts), 512):
            batch = tokenizer(prompts[start : start + 512], return_tensors="pt", padding=True, padding_side="right")
            mask = batch["attention_mask"]
            hidden = model(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=True).hidden_states[-1]
            parts.append(((hidden * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)).double().numpy())
    return {"words": np.asarray(PromptEmbedding()(prompts), dtype=np.float64), "policy": np.concatenate(parts)}


def read(folder: Path, belief: Belief, signals: Mapping[str, Floats]) -> list[dict[str, Any]]:
    """One line a record of exact pass rates: for both sides, how many prompts, Spearman and Brier."""
    groups = {line["step"]: line["groups"] for line in read_lines(folder / "groups.jsonl")}
    records = read_lines(folder / "rates.jsonl")
    size = len(records[0]["pass_rates"])
    spec = json.loads((folder / "spec.json").read_text())
    belief.start(Setting(pool_size=size, batch_size=spec["batch_size"], group_size=spec["group_size"]))
    seen, done, lines = np.zeros(size, dtype=bool), 0, []
    for record in records:
        while done < record["step"]:
            done += 1
            table = np.array(groups[done], dtype=np.int64).reshape(-1, 4)
            step = ReadingStep(done - 1, signals)
            belief.predict(table[:, 0], step)  # as a method would, before the rollouts
            belief.observe(Visits(rows=table[:, 0], successes=table[:, 1].astype(float), trials=table[:, 2]), step)
            seen[table[:, 0]] = True
        exact = np.array(record["pass_rates"])
        believed = belief.predict(np.arange(size), ReadingStep(done, signals)).mean
        line: dict[str, Any] = {"responses": record["responses"]}
        for side, at in (("seen", seen), ("never", ~seen)):
            line[side] = {
                "prompts": int(at.sum()),
                "spearman": rank_correlation(believed[at], exact[at]),
                "brier": float(np.mean((believed[at] - exact[at]) ** 2)) if at.any() else float("nan"),
            }
        lines.append(line)
    return lines


def mean_over(lines: list[dict[str, Any]], side: str, what: str) -> float:
    """Over the records in which the side is large enough and something was learned."""
    values = [line[side][what] for line in lines if line["responses"] > 0 and line[side]["prompts"] >= LEAST]
    return float(np.mean(values)) if values else float("nan")


def cell(seeds: list[float]) -> str:
    """Mean and range over seeds."""
    if not np.isfinite(seeds).all():
        return "–"
    return f"{np.mean(seeds):.3f} ({min(seeds):.3f} to {max(seeds):.3f})".replace("0.", ".")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pool", default="wasteful", choices=("wasteful", "balanced"))
    parser.add_argument("--prompts", type=int, default=4000)
    parser.add_argument("--responses", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/calibration"))
    parser.add_argument("--json", type=Path, help="also write all lines to this file")
    options = parser.parse_args()
    specs = [
        ArmSpec(
            method="uniform", seed=seed, pool=options.pool, prompts=options.prompts, responses=options.responses,
            eval_responses=400,
        )
        for seed in range(options.seeds)
    ]  # fmt: skip
    folders = [options.out / f"{options.pool}-seed{spec.seed}" for spec in specs]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run_arm, folders, specs))
    vectors = embeddings(ArithmeticTask(options.pool, n_train=options.prompts))
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for name, (embedding, make) in BELIEFS.items():
        signals = {"embedding": vectors[embedding]} if embedding else {}
        found[name] = [read(folder, make(), signals) for folder in folders]
        print(f"  {name}", file=sys.stderr, flush=True)
    print(
        f"{options.pool} pool, {options.prompts} prompts, {options.responses:,} responses of uniform, {options.seeds} seeds "
        "(mean, range over seeds); exact pass rates of the main job's policy in training"
    )
    rows = [
        [
            name,
            *(
                cell([mean_over(lines, side, what) for lines in runs])
                for side in ("never", "seen")
                for what in ("spearman", "brier")
            ),
        ]
        for name, runs in found.items()
    ]
    header = ["belief", "Spearman,\nnever seen", "Brier,\nnever seen", "Spearman,\nseen", "Brier,\nseen"]
    print(format_table(header, rows))
    if options.json is not None:
        command = "python benchmarks/" + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
        lines = {"command": command, "specs": [asdict(spec) for spec in specs], "beliefs": found}
        options.json.write_text(json.dumps(lines, indent=1).replace("NaN", "null"))


if __name__ == "__main__":
    main()
