"""What the ledger holds, as the generated sections of docs/reliability.md. What nobody noted is "not tried", nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tests.faults import FAULTS

NOT_TRIED = "not tried"

COUNTED = {
    "kills": "processes killed at a random time: the run came back whole",
    "flips": "bytes flipped in a saved file: found, never read as another state",
    "truncations": "files cut at an offset: found, what was whole before it kept",
    "resumes": "runs cut and resumed: equal to an uninterrupted twin",
}
NEVER = {"lost": "outcomes lost", "doubled": "outcomes counted twice"}
MEASURED = {
    "commit_ms": ("one commit at 100,000 prompts", "ms"),
    "journal_bytes_per_step": ("bytes a step adds to the journal, 256 prompts x 16 rewards", "bytes"),
}
_HEADLINE = {*COUNTED, *NEVER, *MEASURED, "outcomes"}


def with_sections(page: str, results: Mapping[str, Any]) -> str:
    """`page` with its generated sections made anew. Raises ValueError unless each pair of marks stands there once."""
    for name, lines in (("summary", _summary(results)), ("matrix", _matrix(results))):
        begin, end = f"<!-- {name}: made by `python -m tests.ledger` -->", f"<!-- end of {name} -->"
        pattern = re.compile(rf"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"the page must hold {begin!r} and {end!r} once, in this order")
        section = "\n".join([begin, "", *lines, "", end])
        page = pattern.sub(lambda _, section=section: section, page)
    return page


def _summary(results: Mapping[str, Any]) -> Iterator[str]:
    rows = results["faults"].values()
    yield "| | |"
    yield "|---|---|"
    for name, words in COUNTED.items():
        carrying = [row for row in rows if name in row["figures"]]
        total = sum(row["figures"][name] for row in carrying)
        broken = sum(row["tried"] - row["held"] for row in carrying)
        yield f"| {words} | {f'**{total - broken:,} of {total:,}**' if total else NOT_TRIED} |"
    looked = sum(row["figures"].get("outcomes", 0) for row in rows)
    for name, words in NEVER.items():
        found = [row["figures"][name] for row in rows if name in row["figures"]]
        among = f" of {looked:,} looked for" if looked else ""
        yield f"| {words} | {f'**{sum(found):,}**{among}' if found else NOT_TRIED} |"
    for name, (words, unit) in MEASURED.items():
        measures = [row["figures"][name] for row in rows if name in row["figures"]]
        yield f"| {words} | {_measure(_joined(measures), unit) if measures else NOT_TRIED} |"
    held = sum(row["held"] == row["tried"] for row in rows)
    broken = f", {len(rows) - held} broken" if held < len(rows) else ""
    yield f"| faults of the matrix below: promise held in every case | **{held} of {len(FAULTS)}**{broken} |"
    if rows:
        length = "the long cases" if results["long"] else "the short cases of `make test`"
        seeds = ", ".join(str(seed) for seed in results["seeds"])
        yield ""
        yield (
            f"Made on {results['date']} by `{results['command']}` ({length}, seed {seeds}): {results['tests']} tests noted "
            f"{sum(row['tried'] for row in rows):,} cases. Machine: {results['machine']}. Revision "
            f"{results['revision']}."
        )


def _matrix(results: Mapping[str, Any]) -> Iterator[str]:
    yield "| # | what goes wrong | what edgewise promises | held | tested in |"
    yield "|---|---|---|---|---|"
    part = ""
    for number, fault in FAULTS.items():
        if fault.part != part:
            part = fault.part
            yield f"| | **{part}** | | | |"
        row = results["faults"].get(str(number))
        cells = [str(number), _cell(fault.fault), _cell(fault.promise), _held(row), _files(row) if row else ""]
        yield f"| {' | '.join(cells)} |".replace("  ", " ")


def _held(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return NOT_TRIED
    counts = f"{row['held']:,} of {row['tried']:,}"
    others = [f"{name} {_figure(value)}" for name, value in row["figures"].items() if name not in _HEADLINE]
    return "; ".join([counts if row["held"] == row["tried"] else f"**broken: {counts}**", *others])


def _files(row: Mapping[str, Any]) -> str:
    files = sorted({test.split("::")[0] for test in row["tests"] if test})
    return ", ".join(f"[{file.removeprefix('tests/')}](../{file})" for file in files)


def _figure(value: Any) -> str:
    return _measure(value, "") if isinstance(value, dict) else f"{value:,}"


def _joined(measures: list[dict[str, float]]) -> dict[str, float]:
    notes = sum(m["notes"] for m in measures)
    mean = sum(m["mean"] * m["notes"] for m in measures) / notes
    return {"least": min(m["least"] for m in measures), "mean": mean, "most": max(m["most"] for m in measures), "notes": notes}


def _measure(of: Mapping[str, float], unit: str) -> str:
    """The mean, with the range where there is one.

    >>> _measure({"least": 1.0, "mean": 2.26, "most": 4.0, "notes": 3}, "ms")
    '2.3 ms (1 to 4)'
    """
    spread = f" ({_short(of['least'])} to {_short(of['most'])})" if of["least"] < of["most"] else ""
    return f"{_short(of['mean'])} {unit}".strip() + spread


def _short(value: float) -> str:
    """Two significant digits below 100, whole numbers above.

    >>> _short(0.0123), _short(2.26), _short(12345.6)
    ('0.012', '2.3', '12,346')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("../", "..&#47;")
