"""Aligned plain text: one table printer for every verb."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Rows of text under a header, two spaces apart, without trailing blanks.

    Args:
        header: One title a column; a title may take several lines.
        rows: One text a column in each row; with cells of several lines, rows stand apart by a blank line.
        align: ``<`` or ``>`` for each column; columns past its end go left.

    >>> print(format_table(["method", "responses"], [["hive", "20,480"], ["uniform", "512"]], "<>"))
    method   responses
    hive        20,480
    uniform        512
    """
    sides = [align[column] if column < len(align) else "<" for column in range(len(header))]
    lines = _level([title.split("\n") for title in header], below=False)
    apart = any("\n" in cell for row in rows for cell in row)
    for number, row in enumerate(rows):
        if apart and number:
            lines.append([""] * len(header))
        lines += _level([cell.split("\n") for cell in row], below=True)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )


def _level(cells: list[list[str]], *, below: bool) -> list[list[str]]:
    """Cells of several lines as lines of cells, the shorter ones filled up below or above."""
    height = max(map(len, cells), default=0)
    filled = [cell + [""] * (height - len(cell)) if below else [""] * (height - len(cell)) + cell for cell in cells]
    return [[cell[line] for cell in filled] for line in range(height)]
