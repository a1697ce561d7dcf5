"""What the figures say, in sentences that stay true whichever way they fall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgewise.report.curves import target
from edgewise.report.look import ORACLE, clean

KIND = "measured on the laboratory's small policy"
"""Said of a comparison that does not say itself where its figures come from."""

_CLEAR = 0.1
"""A rank correlation nearer to zero than this is called none."""

_MORE = 1.005
"""Ratios that two decimals do not tell from 1 are called as many."""

Row = Mapping[str, Any]


def kind(comparison: Mapping[str, Any]) -> str:
    """Where the figures come from."""
    return clean(comparison.get("title") or KIND, 160)


def main_row(comparison: Mapping[str, Any]) -> Row | None:
    """The method that the headline is about: the first that is neither the reference nor the oracle."""
    rivals = [row for row in comparison["summary"] if row["method"] != comparison["reference"]]
    return next((row for row in rivals if row["method"] != ORACLE), rivals[0] if rivals else None)


def tag(row: Row, comparison: Mapping[str, Any]) -> str:
    """A few words beside a method's line: where it ended, and what it needed to reach the reference's final accuracy."""
    if row["method"] == comparison["reference"]:
        return f"{row['final']:.3f}, sets the bar"
    pairs, never, ratio = _pairs(row, comparison), row["never_reached"], _estimate(row)
    if pairs and never == pairs:
        return f"{row['final']:.3f}, never reached the bar"
    if ratio is None:
        return f"{row['final']:.3f}"
    return f"{row['final']:.3f}, {_bound(never, ratio)}{_times(ratio)}"


def title(comparison: Mapping[str, Any]) -> str:
    """The headline without its figures' small print."""
    row = main_row(comparison)
    if row is None:
        return "Held-out accuracy against generated responses"
    method, reference = clean(row["method"], 32), clean(comparison["reference"], 32)
    pairs, never, ratio = _pairs(row, comparison), row["never_reached"], _estimate(row)
    if pairs and never == pairs:
        return f"{method} never reached {reference}'s final accuracy"
    if ratio is None:
        return f"{method} ended at a held-out accuracy of {row['final']:.3f}"
    unclear = " (no clear difference)" if _unclear(row) else ""
    needed = f"{_bound(never, ratio)}{_times(ratio)} generated responses"
    return f"{method} needed {needed} to reach {reference}'s final accuracy{unclear}"


def sentence(row: Row, comparison: Mapping[str, Any]) -> str:
    """What a method needed to reach the reference's final accuracy, with everything a careful reader asks for."""
    method, reference, bar = clean(row["method"]), clean(comparison["reference"]), target(comparison)
    ended = f"it ended at {row['final']:.3f} after {row['responses']:,.0f} generated responses"
    if row["method"] == comparison["reference"]:
        return f"{method} sets the bar: it ended at {row['final']:.3f} after {row['responses']:,.0f} generated responses."
    if bar is None:
        return f"{method} has nothing to be measured against, as {reference} did not run; {ended}."
    pairs, never, ratio = _pairs(row, comparison), row["never_reached"], _estimate(row)
    goal = f"{reference}'s final held-out accuracy of {bar:.3f}"
    if not pairs:
        return f"{method} shares no seed with {reference}, so nothing can be paired; {ended}."
    if never == pairs:
        seeds = "with its one seed" if pairs == 1 else f"with any of {pairs} seeds"
        return f"{method} never reached {goal} {seeds}; {ended}."
    if ratio is None:
        return (
            f"For {method} there is no ratio: {goal} was met before any response was spent, "
            f"or was no better than the start; {ended}."
        )
    limits = f"({_seeds(pairs)}{_interval(row, pairs)})"
    if never:
        return (
            f"{method} reached {goal} with {pairs - never} of {pairs} seeds only; with the whole budget counted for the others "
            f"it needed {_bound(never, ratio)}{_responses(ratio, reference)} {limits}."
        )
    unclear = " The interval includes 1: no clear difference." if _unclear(row) else ""
    return f"{method} needed {_responses(ratio, reference)} to reach {goal} {limits}.{unclear}"


def ceiling(comparison: Mapping[str, Any]) -> str | None:
    """The part of the oracle's saving that each method reaches; None where there is no saying."""
    told = []
    for row in comparison["summary"]:
        share = row["share_of_oracle"]
        if share is None or row["method"] in (ORACLE, comparison["reference"]):
            continue
        percent = f"{'at most ' if row['never_reached'] else ''}{100 * share:.0f} %" if share >= 0.005 else "nothing"
        told.append(f"{clean(row['method'])} reached {percent}")
    return f"Of what the oracle saves, {', '.join(told)}." if told else None


def premise(comparison: Mapping[str, Any]) -> list[str]:
    """What the rank correlations of prompt entropy V mean for a method that prefers prompts of high V (HIVE's stage 2)."""
    found: Mapping[str, float] = comparison.get("premise") or {}
    said = []
    mixed, passed, within = (found.get(name) for name in ("v_mixed_corr", "v_pass_corr", "v_mixed_corr_within_kind"))
    if mixed is not None:
        if mixed >= _CLEAR:
            said.append("Here high V went with mixed groups over the whole pool, as HIVE's stage 2 assumes.")
        elif mixed <= -_CLEAR:
            said.append("Here high V went with groups that are not mixed: the opposite of what HIVE's stage 2 assumes.")
        else:
            said.append("Here V said next to nothing about whether a group is mixed, against what HIVE's stage 2 assumes.")
    if passed is not None:
        if passed <= -_CLEAR:
            said.append("High V meant hard: such prompts were solved less often.")
        elif passed >= _CLEAR:
            said.append("High V meant easy: such prompts were solved more often.")
        else:
            said.append("V was unrelated to how often a prompt is solved.")
    if within is not None:
        if within >= _CLEAR:
            said.append("It also told the prompts of one kind apart.")
        elif within <= -_CLEAR:
            said.append("Among prompts of one kind, high V meant less often mixed.")
        else:
            said.append("Among prompts of one kind it told next to nothing: what V knows is which kind a prompt is of.")
    return said


def _pairs(row: Row, comparison: Mapping[str, Any]) -> int:
    """Seeds that both the method and the reference ran."""
    return sum(str(seed) in comparison["targets"] for seed in row["seeds"])


def _estimate(row: Row) -> float | None:
    interval = row["fewer_responses"]
    return None if interval is None else interval[0]


def _times(ratio: float) -> str:
    """1.25 is "1.25× fewer", 0.8 is "1.25× as many"."""
    if ratio >= _MORE:
        return f"{ratio:.2f}× fewer"
    return "as many" if ratio > 1 / _MORE else f"{1 / ratio:.2f}× as many"


def _responses(ratio: float, reference: str) -> str:
    return f"{_times(ratio)} generated responses {'than' if ratio >= _MORE else 'as'} {reference}"


def _bound(never: int, ratio: float) -> str:
    """Seeds that never got there count with their whole budget, so the ratio says at best how many fewer."""
    if not never:
        return ""
    return "at most " if ratio >= _MORE else "at least "


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"


def _interval(row: Row, pairs: int) -> str:
    """With three pairs or fewer, the interval of `edgewise.lab.statistics` is the range of the ratios."""
    ratio, low, high = row["fewer_responses"]
    if low is None or high is None:
        return ", so no interval"
    if ratio <= 1 / _MORE:
        low, high = 1 / high, 1 / low
    return f", {'range' if pairs <= 3 else '95 % interval'} {low:.2f}–{high:.2f}"


def _unclear(row: Row) -> bool:
    interval = row["fewer_responses"]
    if interval is None or interval[1] is None or interval[2] is None or row["never_reached"]:
        return False
    return bool(interval[1] <= 1.0 <= interval[2])
