"""What several arms say together: responses and seconds to the reference's final accuracy, paired by seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise.errors import StateError
from edgewise.lab.record import PARTS, read_lines, read_spec, require_numbers
from edgewise.lab.statistics import Interval, paired_ratio
from edgewise.lab.table import format_table

Line = dict[str, Any]
CONTROL = "uniform"
"""The arm that does not choose: every method is held against it, too."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One finished (or stopped) arm, read back from its folder."""

    label: str
    seed: int
    exact: bool
    steps: list[Line]
    evals: list[Line]
    starved: float | None = None
    """Share of the training prompts of which no group was ever rolled out; None where it was not recorded."""

    @classmethod
    def read(cls, folder: Path) -> Arm:
        """The arm that `edgewise.lab.arm` left in `folder`."""
        spec = read_spec(folder / "spec.json")
        evals, steps = read_lines(folder / "evals.jsonl"), read_lines(folder / "steps.jsonl")
        return cls(
            label=spec.name,
            seed=spec.seed,
            exact=bool(evals) and "train_pass_rate" in evals[0],
            steps=steps,
            evals=evals,
            starved=_starved(folder),
        )

    @property
    def final(self) -> float:
        """Held-out accuracy at the end of the budget."""
        return float(self.evals[-1]["held_out"])

    @property
    def best(self) -> float:
        """The best held-out accuracy of any evaluation (what papers report)."""
        return float(max(line["held_out"] for line in self.evals))

    def total(self, name: str) -> float:
        """Sum of a metric over all steps."""
        return float(sum(line["metrics"].get(name, 0.0) for line in self.steps))

    def to_reach(self, accuracy: float, axis: str) -> float | None:
        """How much of `axis` ("responses", "cpu_s", "wall_s", "tokens") was spent when `accuracy` was first reached.

        Linear between evaluations; None if it never was.
        """
        before: Line | None = None
        for line in self.evals:
            if line["held_out"] >= accuracy:
                if before is None:
                    return float(line[axis])
                rise = line["held_out"] - before["held_out"]
                part = (accuracy - before["held_out"]) / rise
                return float(before[axis] + part * (line[axis] - before[axis]))
            before = line
        return None

    def at_batch(self, batch: int) -> tuple[float, float] | None:
        """(held-out accuracy, generated responses) after `batch` training batches; None if it made fewer."""
        if not self.steps or self.steps[-1]["step"] < batch:
            return None
        held_out = np.interp(batch, [line["step"] for line in self.evals], [line["held_out"] for line in self.evals])
        responses = np.interp(batch, [line["step"] for line in self.steps], [line["responses"] for line in self.steps])
        return float(held_out), float(responses)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms by label; `reference` sets the accuracy to reach, seed by seed."""

    arms: dict[str, list[Arm]]
    reference: str

    @classmethod
    def read(cls, folders: Sequence[Path], reference: str) -> Comparison:
        """All arms in `folders`, labels in the order given."""
        arms: dict[str, list[Arm]] = {}
        for folder in folders:
            arm = Arm.read(folder)
            _require_whole(arm, folder)
            arms.setdefault(arm.label, []).append(arm)
        return cls(arms, reference)

    def targets(self) -> dict[int, float]:
        """The reference's final held-out accuracy, by seed."""
        return {arm.seed: arm.final for arm in self.arms.get(self.reference, [])}

    def saving(self, label: str, axis: str) -> tuple[Interval | None, int]:
        """(reference's cost / this method's cost to reach the reference's final accuracy, seeds that never reached it).

        A method that never reached it within its budget counts with its whole budget, so the ratio is then an upper bound.
        None where the reference did not run, or nothing was spent.
        """
        over: list[float] = []
        under: list[float] = []
        never = 0
        bars = {arm.seed: arm for arm in self.arms.get(self.reference, [])}
        for arm in self.arms[label]:
            if arm.seed not in bars:
                continue
            bar = bars[arm.seed]
            reached = arm.to_reach(bar.final, axis)
            never += reached is None
            over.append(bar.to_reach(bar.final, axis) or 0.0)
            under.append(float(arm.evals[-1][axis]) if reached is None else reached)
        if not over or min(under) <= 0 or min(over) <= 0:
            return None, never
        return paired_ratio(over, under), never

    def over_control(self, label: str) -> Interval | None:
        """Responses that the control spent to the reference's final accuracy, over those of this method; above 1, choosing won.

        A method that never reached it counts with its whole budget: an upper bound. None where either did not run, or the
        control never got there.
        """
        bars = self.targets()
        control = {arm.seed: arm for arm in self.arms.get(CONTROL, []) if arm.seed in bars}
        over: list[float] = []
        under: list[float] = []
        for arm in self.arms[label]:
            if arm.seed not in control:
                continue
            theirs = control[arm.seed].to_reach(bars[arm.seed], "responses")
            own = arm.to_reach(bars[arm.seed], "responses")
            if theirs is None:
                return None
            over.append(theirs)
            under.append(float(arm.evals[-1]["responses"]) if own is None else own)
        return paired_ratio(over, under) if over and min(over) > 0 and min(under) > 0 else None

    def at_reference_end(self, label: str) -> dict[str, float] | None:
        """Mean accuracy and responses of a method after as many training batches as the reference made: how papers count.

        None if the reference did not run, or a seed made fewer batches.
        """
        bars = {arm.seed: arm.steps[-1]["step"] for arm in self.arms.get(self.reference, []) if arm.steps}
        found = [arm.at_batch(bars[arm.seed]) for arm in self.arms[label] if arm.seed in bars]
        points = [point for point in found if point is not None]
        if not points or len(points) < len(found):
            return None
        return {"held_out": _mean(held for held, _ in points), "responses": _mean(n for _, n in points)}

    def share_of_oracle(self, label: str) -> float | None:
        """The part of the oracle's saving of responses that a method reaches: (1 - 1/s) / (1 - 1/s_oracle)."""
        if "oracle" not in self.arms:
            return None
        own, ceiling = self.saving(label, "responses")[0], self.saving("oracle", "responses")[0]
        if own is None or ceiling is None or ceiling.estimate <= 1.0:
            return None
        return (1.0 - 1.0 / own.estimate) / (1.0 - 1.0 / ceiling.estimate)

    def summary(self) -> list[dict[str, Any]]:
        """One plain dict a method: means over seeds; intervals as [estimate, low, high]."""
        rows = []
        for label, arms in self.arms.items():
            responses, never = self.saving(label, "responses")
            seconds, _ = self.saving(label, "cpu_s")
            rolled = sum(arm.total("rolled_out") for arm in arms)
            last = [arm.evals[-1] for arm in arms]
            rows.append(
                {
                    "method": label,
                    "seeds": [arm.seed for arm in arms],
                    "steps": _mean(arm.steps[-1]["step"] for arm in arms),
                    "responses": _mean(arm.steps[-1]["responses"] for arm in arms),
                    "tokens": _mean(line["tokens"] for line in last),
                    "seconds": {
                        name: _mean(arm.steps[-1]["spent"][name] for arm in arms) for name in (*PARTS, "wall_s", "cpu_s")
                    },
                    "mixed_share": sum(arm.total("mixed") for arm in arms) / rolled if rolled else 0.0,
                    "all_pass_share": sum(arm.total("all_pass") for arm in arms) / rolled if rolled else 0.0,
                    "all_fail_share": sum(arm.total("all_fail") for arm in arms) / rolled if rolled else 0.0,
                    "final": _mean(arm.final for arm in arms),
                    "best": _mean(arm.best for arm in arms),
                    "fewer_responses": _plain(responses),
                    "fewer_seconds": _plain(seconds) if label != "oracle" else None,
                    "never_reached": never,
                    "over_uniform": _plain(self.over_control(label)),
                    "at_reference_end": self.at_reference_end(label),
                    "share_of_oracle": self.share_of_oracle(label),
                    "starved": _mean(starved) if (starved := [a.starved for a in arms if a.starved is not None]) else None,
                }
            )
        return rows

    def notes(self) -> list[str]:
        """What a reader of the ratios must know of this run, if anything."""
        bars = self.arms.get(self.reference, [])
        if not bars:
            return [f"{self.reference} did not finish, so there is no accuracy to reach and no ratio"]
        flat = [str(arm.seed) for arm in bars if arm.final <= arm.evals[0]["held_out"]]
        if flat:
            return [
                f"{self.reference} ended no better than it began (seed {', '.join(flat)}), so there is no accuracy to "
                "reach and no ratio; give a larger budget (--responses)"
            ]
        return []

    def premise(self) -> dict[str, float]:
        """Means over all evaluations that scored the whole pool: rank correlations of prompt entropy."""
        lines = [line for arms in self.arms.values() for arm in arms for line in arm.evals if "v_mixed_corr" in line]
        names = ("v_pass_corr", "v_mixed_corr", "v_mixed_corr_within_kind")
        return {name: float(np.mean([line[name] for line in lines if name in line])) for name in names} if lines else {}

    def premise_of_groups(self) -> dict[str, float]:
        """Rank correlations of prompt entropy with "was mixed" and with the pass rate in rolled-out groups: mean over steps."""
        steps = [line["metrics"] for arms in self.arms.values() for arm in arms for line in arm.steps]
        found = {name: [m[name] for m in steps if name in m] for name in ("entropy_mixed_corr", "entropy_pass_corr")}
        return {name: _mean(values) for name, values in found.items() if values}

    def as_json(self) -> dict[str, Any]:
        """Everything a picture or a program needs."""
        axes = ("step", "responses", "held_out", "tokens", "wall_s", "cpu_s")
        curves = [
            {"method": arm.label, "seed": arm.seed, "points": [{name: line[name] for name in axes} for line in arm.evals]}
            for arms in self.arms.values()
            for arm in arms
        ]
        return {
            "reference": self.reference,
            "targets": {str(seed): value for seed, value in self.targets().items()},
            "exact": all(arm.exact for arms in self.arms.values() for arm in arms),
            "summary": self.summary(),
            "premise": self.premise(),
            "premise_of_groups": self.premise_of_groups(),
            "curves": curves,
        }

    def table(self) -> str:
        """The result as aligned text."""
        recorded = any(arm.starved is not None for arms in self.arms.values() for arm in arms)
        header = [
            "method", "steps", "responses\ngenerated", "tokens", "select", "verify", "rollout", "train", "mixed\ngroups",
            "held-out\nfinal", "best", f"fewer responses\nto {self.reference}'s final", "fewer\nseconds",
            f"after {self.reference}'s\nlast batch",
        ]  # fmt: skip
        if "oracle" in self.arms:
            header.append("of oracle's\nsaving")
        controlled = CONTROL in self.arms and len(self.arms) > 2
        if controlled:
            header.append("uniform's responses\nto it / its own")
        if recorded:
            header.append("prompts never\nrolled out")
        if len(self.arms) == 1:  # nothing to compare with
            header = header[: header.index("best") + 1]
        rows = []
        for row in self.summary():
            spent, there = row["seconds"], row["at_reference_end"]
            cells = [
                row["method"],
                f"{row['steps']:.0f}",
                f"{row['responses']:,.0f}",
                f"{row['tokens']:,.0f}",
                f"{spent['select_s']:.1f}s",
                f"{spent['signal_s']:.1f}s",
                f"{spent['rollout_s'] + spent['reward_s']:.1f}s",
                f"{spent['train_s']:.1f}s",
                f"{100 * row['mixed_share']:.0f}%",
                f"{row['final']:.3f}",
                f"{row['best']:.3f}",
                _ratio(row["fewer_responses"], row["never_reached"]),
                _ratio(row["fewer_seconds"], row["never_reached"]),
                "–" if there is None else f"{there['held_out']:.3f} at {there['responses']:,.0f}",
            ]
            if "oracle" in self.arms:
                cells.append("–" if row["share_of_oracle"] is None else f"{100 * row['share_of_oracle']:.0f}%")
            if controlled:
                cells.append(_ratio(row["over_uniform"], row["never_reached"]))
            if recorded:
                cells.append("–" if row["starved"] is None else f"{100 * row['starved']:.0f}%")
            rows.append(cells[: len(header)])
        return format_table(header, rows, "<" + ">" * (len(header) - 1))


def _require_whole(arm: Arm, folder: Path) -> None:
    """Raise StateError unless the arm's lines hold every number that a comparison adds up."""
    if not arm.evals or not arm.steps:
        raise StateError(f"{folder}: a finished arm has steps and evaluations, and here are none. Delete that folder.")
    require_numbers(arm.evals, ("responses", "held_out", "tokens", "wall_s", "cpu_s"), folder / "evals.jsonl")
    require_numbers(arm.steps, ("responses",), folder / "steps.jsonl")
    require_numbers(arm.steps, (*PARTS, "wall_s", "cpu_s"), folder / "steps.jsonl", "spent")
    require_numbers(arm.steps, ("rolled_out",), folder / "steps.jsonl", "metrics")


def _starved(folder: Path) -> float | None:
    pools, lines = read_lines(folder / "rates.jsonl"), read_lines(folder / "groups.jsonl")
    if not pools or not lines:
        return None
    try:
        seen = {group[0] for line in lines for group in line["groups"]}
        return 1.0 - len(seen) / len(pools[0]["pass_rates"])
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        what = f"rates.jsonl and groups.jsonl are not what an arm writes ({error!r})"
        raise StateError(f"{folder}: {what}. Delete them.") from error


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))


def _plain(interval: Interval | None) -> list[float | None] | None:
    if interval is None:
        return None
    return [value if np.isfinite(value) else None for value in (interval.estimate, interval.low, interval.high)]


def _ratio(plain: list[float | None] | None, never: int) -> str:
    if plain is None or plain[0] is None:
        return "–"
    text = f"{'<' if never else ''}{plain[0]:.2f}x"
    return text if plain[1] is None else f"{text} [{plain[1]:.2f}, {plain[2]:.2f}]"
