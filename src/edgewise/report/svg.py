"""The two pictures as SVG for the page: real text, and colours that follow the reader's light or dark setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor
from typing import Any

from edgewise.report.curves import Curve, curves, target
from edgewise.report.look import CEILING, NARROW, ORACLE, WASTE, clean, colours, round_step, spread
from edgewise.report.words import tag

_WIDTH, _HEIGHT = 960, 500
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 724, 34, 440


def variables(comparison: Mapping[str, Any]) -> tuple[str, str]:
    """CSS custom properties of all colours, for a light and for a dark page."""
    named = {f"--s{i}": colour for i, colour in enumerate(_colours(comparison).values())}
    for i, (_, fill, ink) in enumerate(WASTE.values()):
        named |= {f"--w{i}": fill, f"--i{i}": ink}
    light = "".join(f"{name}:{colour.light};" for name, colour in named.items())
    return light, "".join(f"{name}:{colour.dark};" for name, colour in named.items())


def accuracy_svg(comparison: Mapping[str, Any]) -> str:
    """Held-out accuracy against generated responses."""
    drawn, bar = curves(comparison), target(comparison)
    shade = {method: f"var(--s{i})" for i, method in enumerate(_colours(comparison))}
    rows = {str(row["method"]): row for row in comparison["summary"]}
    right = max((float(c.responses[-1]) for c in drawn), default=0.0) or 1.0
    values = [float(v) for c in drawn for v in (c.low.min(), c.high.max())] + ([] if bar is None else [bar])
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.01
    low, high = low - margin, high + margin

    def x(responses: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * responses / right

    def y(accuracy: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * (accuracy - low) / (high - low)

    parts = [_open(_HEIGHT, "acc", "Held-out accuracy against generated responses", _described(drawn, rows, comparison, bar))]
    step = round_step(high - low, 8)
    digits = max(2, len(f"{step:.9f}".rstrip("0").partition(".")[2]))
    for i in range(ceil(low / step), floor(high / step) + 1):
        parts.append(f'<path class="grid" d="M{_LEFT} {y(i * step):.1f}H{_RIGHT}"/>')
        parts.append(_text(_LEFT - 8, y(i * step) + 4, f"{i * step:.{digits}f}", "tick end"))
    step = max(round_step(right, 7), 1.0)
    for i in range(floor(right / step) + 1):
        parts.append(_text(x(i * step), _BOTTOM + 20, f"{i * step:,.0f}", "tick mid"))
    parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
    parts.append(_text((_LEFT + _RIGHT) / 2, _BOTTOM + 46, "generated responses, kept or thrown away", "name mid"))
    parts.append(_text(2, _TOP - 18, "held-out accuracy", "name"))

    for curve in sorted(drawn, key=lambda c: c.method != ORACLE):  # the ceiling lies below the others
        colour, across = shade[curve.method], [x(float(r)) for r in curve.responses]
        if curve.seeds > 1:
            there = [f"{a:.1f} {y(float(v)):.1f}" for a, v in zip(across, curve.high, strict=True)]
            back = [f"{a:.1f} {y(float(v)):.1f}" for a, v in zip(across, curve.low, strict=True)]
            parts.append(f'<path class="band" style="fill:{colour}" d="M{"L".join(there + back[::-1])}Z"/>')
        points = "L".join(f"{a:.1f} {y(float(v)):.1f}" for a, v in zip(across, curve.mean, strict=True))
        look = f"{'line' if curve.seeds > 1 else 'line thin'}{' dashed' if curve.method == ORACLE else ''}"
        parts.append(f'<path class="{look}" style="stroke:{colour}" d="M{points}"><title>{_html(curve.method)}</title></path>')
    if bar is not None:
        parts.append(f'<path class="bar" d="M{_LEFT} {y(bar):.1f}H{_RIGHT}"/>')
        for curve in drawn:
            reached = curve.first_reach(bar)
            if reached is not None and reached > 0:
                said = f"<title>{_html(curve.method)}: {bar:.3f} after {reached:,.0f} generated responses</title>"
                style = f"stroke:{shade[curve.method]}"
                parts.append(f'<path class="drop" style="{style}" d="M{x(reached):.1f} {y(bar):.1f}V{_BOTTOM}"/>')
                at = f'cx="{x(reached):.1f}" cy="{y(bar):.1f}" r="5"'
                parts.append(f'<circle class="dot" style="fill:{shade[curve.method]}" {at}>{said}</circle>')
        words = f"{clean(comparison['reference'], 24)}'s final accuracy  {bar:.3f}"
        parts.append(_text(_LEFT + 8, y(bar) - 7, words, "barname"))

    ends = [y(float(curve.mean[-1])) for curve in drawn]
    for curve, end, place in zip(drawn, ends, spread(ends, 40, _TOP - 4, _BOTTOM - 14), strict=True):
        row = rows.get(curve.method)
        colour = shade[curve.method]
        leader = f"M{x(float(curve.responses[-1])) + 3:.1f} {end:.1f}H{_RIGHT + 8}L{_RIGHT + 22} {place:.1f}"
        parts.append(f'<path class="leader" style="stroke:{colour}" d="{leader}"/>')
        parts.append(_text(_RIGHT + 28, place - 2, clean(curve.method, 24), "label", f"fill:{colour}", curve.method))
        parts.append(_text(_RIGHT + 28, place + 14, tag(row, comparison) if row else f"{curve.mean[-1]:.3f}", "tag"))
    return "".join([*parts, "</svg>"])


def waste_svg(comparison: Mapping[str, Any]) -> str:
    """Shares of generated groups that were all fail, mixed and all pass, a bar a method."""
    rows: Sequence[Mapping[str, Any]] = comparison["summary"]
    left, right, pitch, top = 170, 780, 42, 40
    told = "; ".join(
        f"{clean(row['method'])}: " + ", ".join(f"{words} {100 * row[name]:.0f} %" for name, (words, _, _) in WASTE.items())
        for row in rows
    )
    height = top + pitch * len(rows)
    parts = [_open(height, "waste", "What became of the generated groups", told)]
    place = left
    for k, (words, _, _) in enumerate(WASTE.values()):
        parts.append(f'<rect style="fill:var(--w{k})" x="{place}" y="8" width="14" height="14" rx="2"/>')
        parts.append(_text(place + 20, 20, words, "name"))
        place += 100
    for i, row in enumerate(rows):
        y = top + pitch * i
        parts.append(_text(left - 10, y + 20, clean(row["method"], 20), "rowname end", full=row["method"]))
        start, outside = float(left), []
        for k, (name, (words, _, _)) in enumerate(WASTE.items()):
            share = float(row[name])
            width = share * (right - left)
            parts.append(
                f'<rect style="fill:var(--w{k})" x="{start:.1f}" y="{y}" width="{max(width - 1.5, 0):.1f}" height="30">'
                f"<title>{_html(row['method'])}: {words} {100 * share:.1f} %</title></rect>"
            )
            if share >= NARROW:
                look = "share mid strong" if name == "mixed_share" else "share mid"
                parts.append(_text(start + width / 2, y + 20, f"{100 * share:.0f} %", look, f"fill:var(--i{k})"))
            else:
                outside.append(f"{words} {100 * share:.0f} %")
            start += width
        parts.append(_text(right + 8, y + 20, ", ".join(outside), "tag"))
    return "".join([*parts, "</svg>"])


def _colours(comparison: Mapping[str, Any]) -> dict[str, Any]:
    return colours(str(curve["method"]) for curve in comparison["curves"])


def _described(drawn: Sequence[Curve], rows: Mapping[str, Any], comparison: Mapping[str, Any], bar: float | None) -> str:
    """The picture in words, for those who do not see it."""
    told = [f"{clean(c.method)}: {tag(rows[c.method], comparison)}" for c in drawn if c.method in rows]
    aim = "" if bar is None else f"Dashed line: final accuracy of {clean(comparison['reference'])}, {bar:.3f}. "
    over = f"{ORACLE} is the {CEILING}. " if any(c.method == ORACLE for c in drawn) else ""
    return f"Line chart, one line a method. {aim}{over}{'; '.join(told)}."


def _open(height: int, name: str, title: str, described: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{_html(title)}</title><desc id="{name}-desc">{escape(clean(described, 10_000))}</desc>'
    )


def _text(x: float, y: float, words: str, look: str, style: str = "", full: object = None) -> str:
    styled = f' style="{style}"' if style else ""
    hover = "" if full is None else f"<title>{_html(full)}</title>"
    return f'<text class="{look}" x="{x:.1f}" y="{y:.1f}"{styled}>{_html(words)}{hover}</text>' if words else ""


def _html(text: object) -> str:
    return escape(clean(text))
