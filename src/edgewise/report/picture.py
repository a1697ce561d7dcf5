"""The two pictures as PNG: accuracy against generated responses, and what became of the generated groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgewise.report.curves import curves, target
from edgewise.report.look import CEILING, NARROW, ORACLE, WASTE, clean, colours, spread
from edgewise.report.words import kind, tag, title

_DPI = 100
_INK, _SOFT, _FAINT = "#1c1c1e", "#5f6368", "#dfe1e5"
_AXIS = "generated responses, kept or thrown away"


def draw_accuracy(comparison: Mapping[str, Any], path: Path) -> Path:
    """Held-out accuracy against generated responses, 1200 x 700 pixels.

    Args:
        comparison: What `edgewise.lab.compare.Comparison.as_json` returns; may also hold a "title".
        path: The PNG file to write.
    """
    from matplotlib import style
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    drawn, bar = curves(comparison), target(comparison)
    colour = colours(curve.method for curve in drawn)
    rows = {str(row["method"]): row for row in comparison["summary"]}
    with style.context("default"):
        figure = Figure(figsize=(12, 7), dpi=_DPI, facecolor="white")
        axes = figure.add_axes((0.066, 0.125, 0.70, 0.69))
        for curve in sorted(drawn, key=lambda c: c.method != ORACLE):  # the ceiling lies below the others
            line = colour[curve.method].light
            dashes: Any = (0, (5, 3)) if curve.method == ORACLE else "solid"
            if curve.seeds > 1:
                axes.fill_between(curve.responses, curve.low, curve.high, color=line, alpha=0.13, linewidth=0)
            axes.plot(curve.responses, curve.mean, color=line, linestyle=dashes, linewidth=2.4 if curve.seeds > 1 else 1.4)
        top = max((curve.responses[-1] for curve in drawn), default=0.0) or 1.0
        axes.set_xlim(0, top)
        axes.margins(y=0.06)
        axes.autoscale(axis="y")
        bottom, ceil = axes.get_ylim()
        if bar is not None:
            axes.axhline(bar, color=_INK, linewidth=1.1, linestyle=(0, (2, 2)), zorder=1.5)
            text = f"{clean(comparison['reference'], 24)}'s final accuracy  {bar:.3f}"
            axes.annotate(
                text, (0, bar), (8, 5), textcoords="offset points", color=_INK, fontsize=10.5, parse_math=False, zorder=4
            ).set_path_effects(_halo())
            for curve in drawn:
                reached = curve.first_reach(bar)
                if reached is not None and reached > 0:
                    axes.plot([reached, reached], [bottom, bar], color=colour[curve.method].light, linewidth=1.1, alpha=0.75)
                    axes.plot(
                        reached, bar, "o", color=colour[curve.method].light, markersize=7, markeredgecolor="white", zorder=5,
                        clip_on=False,
                    )  # fmt: skip
        axes.set_ylim(bottom, ceil)
        axes.set_xlabel(_AXIS, fontsize=12, color=_SOFT, labelpad=9)
        axes.annotate("held-out accuracy", (0, 1), (-38, 9), "axes fraction", "offset points", color=_SOFT, fontsize=12)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.grid(axis="y", color=_FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=_SOFT, labelsize=11, length=0, pad=6)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color("#9aa0a6")

        wanted = [float((curve.mean[-1] - bottom) / (ceil - bottom)) for curve in drawn]
        for curve, own, place in zip(drawn, wanted, spread(wanted, 0.087, 0.03, 0.97), strict=True):
            ends = curve.responses[-1] / top
            axes.plot(
                [ends, 1.012, 1.03], [own, own, place], transform=axes.transAxes, color=colour[curve.method].light,
                linewidth=0.9, alpha=0.6, clip_on=False, linestyle=(0, (1, 1.5)),
            )  # fmt: skip
            row = rows.get(curve.method)
            said = tag(row, comparison) if row else f"{curve.mean[-1]:.3f}"
            name = clean(curve.method, 24)
            axes.annotate(
                name, (1.037, place), (0, 1), "axes fraction", "offset points", color=colour[curve.method].light, fontsize=12.5,
                fontweight="bold", va="bottom", parse_math=False, annotation_clip=False,
            )  # fmt: skip
            axes.annotate(
                said, (1.037, place), (0, -1), "axes fraction", "offset points", color=_SOFT, fontsize=10.5, va="top",
                annotation_clip=False,
            )  # fmt: skip
        _head(figure, title(comparison), _caption(comparison, drawn))
        return _save(figure, path)


def draw_waste(comparison: Mapping[str, Any], path: Path) -> Path:
    """Shares of generated groups that were all fail, mixed and all pass, a bar a method; 1200 pixels wide.

    Args:
        comparison: What `edgewise.lab.compare.Comparison.as_json` returns; may also hold a "title".
        path: The PNG file to write.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    rows = comparison["summary"]
    height = 1.75 + 0.55 * max(len(rows), 1)
    with style.context("default"):
        figure = Figure(figsize=(12, height), dpi=_DPI, facecolor="white")
        bottom, top = 0.2 / height, 1.0 - 1.5 / height
        axes = figure.add_axes((0.17, bottom, 0.65, top - bottom))
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.axis("off")
        for i, row in enumerate(rows):
            axes.annotate(
                clean(row["method"], 20), (0, i), (-10, 0), textcoords="offset points", ha="right", va="center", fontsize=12.5,
                color=_INK, parse_math=False, annotation_clip=False,
            )  # fmt: skip
            start, outside = 0.0, []
            for name, (words, fill, ink) in WASTE.items():
                share = float(row[name])
                axes.barh(i, share, left=start, height=0.68, color=fill.light, edgecolor="white", linewidth=1.5)
                if share >= NARROW:
                    weight = "bold" if name == "mixed_share" else "normal"
                    axes.text(
                        start + share / 2, i, f"{100 * share:.0f} %", ha="center", va="center", color=ink.light, fontsize=12,
                        fontweight=weight,
                    )  # fmt: skip
                else:
                    outside.append(f"{words} {100 * share:.0f} %")
                start += share
            axes.annotate(
                ", ".join(outside), (1, i), (8, 0), textcoords="offset points", va="center", fontsize=10.5, color=_SOFT,
                annotation_clip=False,
            )  # fmt: skip
        place = 0.17
        for words, fill, _ in WASTE.values():
            y = top + 0.16 / height
            figure.text(place, y, "■", color=fill.light, fontsize=15, va="center")
            figure.text(place + 0.02, y, words, color=_SOFT, fontsize=11.5, va="center")
            place += 0.095
        _head(figure, "What the generated groups were good for", f"Only mixed groups teach · {kind(comparison)}")
        return _save(figure, path)


def _caption(comparison: Mapping[str, Any], drawn: Any) -> str:
    seeds = sorted({curve.seeds for curve in drawn})
    parts = [kind(comparison)]
    if seeds == [1]:
        parts.append("one seed")
    elif seeds:
        many = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        parts.append(f"mean of {many} seeds, band from the lowest to the highest")
    if any(curve.method == ORACLE for curve in drawn):
        parts.append(f"{ORACLE} = {CEILING}")
    return " · ".join(parts)


def _head(figure: Any, bold: str, small: str) -> None:
    """Title and caption, from the left edge, at fixed distances from the top."""
    height = figure.get_figheight()
    size = 17.0 if len(bold) <= 84 else 17.0 * 84 / len(bold)
    figure.text(0.022, 1 - 0.42 / height, bold, fontsize=size, fontweight="bold", color=_INK, va="center", parse_math=False)
    size = 11.5 if len(small) <= 130 else 11.5 * 130 / len(small)
    figure.text(0.022, 1 - 0.78 / height, small, fontsize=size, color=_SOFT, va="center", parse_math=False)


def _halo() -> list[Any]:
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=3, foreground="white")]


def _save(figure: Any, path: Path) -> Path:
    import warnings

    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)  # a label may be in any script
        figure.savefig(path, format="png", dpi=_DPI)
    return path
