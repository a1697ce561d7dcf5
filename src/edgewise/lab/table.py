"""Aligned plain text: one table printer for every verb."""

from __future__ import annotations

from collections.abc import Sequence


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Rows of text under a header, two spaces apart, without trailing blanks.

    Args:
        header: One title a column; a title may take several lines.
        rows: One text a column in each row.
        align: ``<`` or ``>`` for each column; columns past its end go left.

    >>> print(format_table(["method", "responses"], [["hive", "20,480"], ["uniform", "512"]], "<>"))
    method   responses
    hive        20,480
    uniform        512
    """
    sides = [align[column] if column < len(align) else "<" for column in range(len(header))]
    titles = [title.split("\n") for title in header]
    height = max(map(len, titles), default=0)
    titles = [[""] * (height - len(lines)) + lines for lines in titles]
    lines = [[title[level] for title in titles] for level in range(height)]
    lines += [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    )
