"""Colours and places that the PNG and the page share. Safe for colour-blind eyes, and every colour has a text beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

ORACLE = "oracle"
CEILING = "ceiling: knows the exact pass rates"


@dataclass(frozen=True, slots=True)
class Colour:
    """One meaning on a light and on a dark page."""

    light: str
    dark: str


KNOWN = {
    "hive": Colour("#0072b2", "#56b4e9"),
    "greso": Colour("#00845f", "#2fc49a"),
    "dapo": Colour("#d55e00", "#f58a42"),
    "uniform": Colour("#b0578d", "#e08fc0"),
    ORACLE: Colour("#767676", "#a3a3a3"),
}
OTHERS = (
    Colour("#332288", "#9d90f0"),
    Colour("#a67c00", "#e6b930"),
    Colour("#882255", "#d9698f"),
    Colour("#1b8ea6", "#66cfe3"),
    Colour("#6b7a1f", "#b9c95f"),
    Colour("#8a5a3c", "#cf9c7b"),
    Colour("#c1121f", "#ff8a8a"),
    Colour("#7b2cbf", "#c99bf5"),
    Colour("#386641", "#9bcf9f"),
)
WASTE = {
    # key in the summary: (name, colour, ink on it)
    "all_fail_share": ("all fail", Colour("#f0b48c", "#a8602f"), Colour("#3d1a00", "#ffffff")),
    "mixed_share": ("mixed", Colour("#0072b2", "#4aa8de"), Colour("#ffffff", "#00131f")),
    "all_pass_share": ("all pass", Colour("#a9d8c6", "#2c7a60"), Colour("#003322", "#ffffff")),
}
"""What became of the generated groups. Only mixed ones teach; they carry the strong colour."""

NARROW = 0.055
"""A smaller share is too narrow to hold its own percentage."""


def colours(methods: Iterable[str]) -> dict[str, Colour]:
    """A fixed colour for each well-known method, the others from a cycle in order of appearance."""
    found: dict[str, Colour] = {}
    others = 0
    for method in methods:
        if method in KNOWN:
            found[method] = KNOWN[method]
        elif method not in found:
            found[method] = OTHERS[others % len(OTHERS)]
            others += 1
    return found


LONGEST = 500
"""Characters of a name on a page; the data at its end hold more."""


def clean(text: object, most: int = LONGEST) -> str:
    """Text of one line that any font and any file takes, shortened to `most` characters."""
    whole = str(text)
    line = "".join(c if c.isprintable() else " " for c in whole[: 4 * most]).strip() or "(no name)"
    return line if len(line) <= most and len(whole) <= 4 * most else line[: most - 1] + "…"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places in [low, high] near the wanted ones, `gap` apart (less if they are too many), in the same order.

    >>> spread([5.0, 5.0, 9.0], 2.0, 0.0, 10.0)
    [4.0, 6.0, 9.0]
    """
    if len(wanted) < 2:
        return [min(max(place, low), high) for place in wanted]
    gap = min(gap, (high - low) / (len(wanted) - 1))
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, int]] = []  # (sum of wanted places less their own offsets, how many)
    for i in order:
        group = (wanted[i], 1)
        while groups:
            total, size = groups[-1]
            if total / size + size * gap <= group[0] / group[1]:
                break
            groups.pop()
            group = (total + group[0] - group[1] * size * gap, size + group[1])
        groups.append(group)
    steps = [start for total, size in groups for start in accumulate([total / size] + [gap] * (size - 1))]
    for i in range(len(steps)):
        steps[i] = max(steps[i], low + i * gap)
    for i in reversed(range(len(steps))):
        steps[i] = min(steps[i], high - (len(steps) - 1 - i) * gap)
    places = [0.0] * len(wanted)
    for i, place in zip(order, steps, strict=True):
        places[i] = place
    return places


def round_step(span: float, most: int) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that parts `span` into at most `most` pieces."""
    size = 10.0**-9
    while True:
        for factor in (1.0, 2.0, 2.5, 5.0):
            if span / (factor * size) <= most:
                return factor * size
        size *= 10.0
