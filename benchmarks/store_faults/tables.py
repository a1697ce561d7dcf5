"""The results as tables of a few columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from edgewise.lab.table import format_table

Rows = dict[str, Any]


def shown(part: str, rows: Rows) -> str:
    """One part as text."""
    return {"a": _speed, "b": _kills, "f": _full, "g": _viewers, "h": _shared}.get(part, _damage)(rows)


def _speed(rows: Rows) -> str:
    texts = []
    for size, stores in rows.items():
        first = next(iter(stores))
        header = [
            size, "commit ms\nmedian", "\nmean", "\np99", f"x {first}", "bytes on disk\na commit", "bytes written\na byte",
            "open\nms", "after\ncommits", "steps\nback",
        ]  # fmt: skip
        lines = [
            [
                name, f"{row['commit_ms_p50']:.2f}", f"{row['commit_ms_mean']:.2f}", f"{row['commit_ms_p99']:.1f}",
                f"{row['ratio']:.2f}", f"{row['disk_bytes_a_commit']:,.0f}", f"{row['write_amplification']:.2f}",
                f"{row['recover_ms']:.0f}", str(row["commits"]), str(row["steps_back"]),
            ]
            for name, row in stores.items()
        ]  # fmt: skip
        texts.append(format_table(header, lines, "<" + ">" * 9))
    return "\n\n".join(texts)


_KILLS = ("kills", "commits", "lost", "different", "unreadable", "cannot_go_on", "rounds_with_leftovers", "slowest_s")


def _kills(rows: Rows) -> str:
    header = [
        "kill -9", "kills", "commits", "lost", "different", "unreadable", "cannot\ngo on", "rounds with\nleftovers",
        "slowest\nreopening, s", "leftovers",
    ]  # fmt: skip
    lines = [[name, *(str(row[key]) for key in _KILLS), ", ".join(row["leftovers"])] for name, row in rows.items()]
    return format_table(header, lines, "<" + ">" * 8)


_DAMAGE = ("cases", "harmless", "said", "silently_different", "silently_lost", "unreadable", "crashed")


def _damage(rows: Rows) -> str:
    header = [
        "damaged", "cases", "harmless", "said so", "silently\ndifferent", "silently\nlost", "nothing\nreadable",
        "process\ncrashed", "records lost\na damage", "of", "goes on",
    ]  # fmt: skip
    lines = []
    for store, files in rows.items():
        for fault in dict.fromkeys(name.split(" | ")[0] for name in files):
            row = summed(counts for name, counts in files.items() if name.split(" | ")[0] == fault)
            hurt = max(1, row["cases"] - row["harmless"])
            each = row["of_records"] // row["cases"]
            lines.append(
                [
                    f"{fault}: {store}", *(str(row[key]) for key in _DAMAGE), f"{row['lost_records'] / hurt:.1f}", str(each),
                    str(row["goes_on"]),
                ]
            )  # fmt: skip
    return format_table(header, sorted(lines, key=lambda line: line[0].split(":")[0]), "<" + ">" * 10)


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Counts of several files added up."""
    total: dict[str, int] = {}
    for row in counts:
        for key, value in row.items():
            total[key] = total.get(key, 0) + value
    return total


_FULL = ("writer_survives", "readable_while_full", "goes_on_by_itself", "goes_on_after_reopening")


def _full(rows: Rows) -> str:
    header = [
        "disk full",
        "refused\nof 12",
        "writer\nlives",
        "readable",
        "goes on\nby itself",
        "after\nreopening",
        "lost",
        "it says",
    ]
    lines = [
        [
            name, str(row["refusals"]), *(_yes(row[key]) for key in _FULL), str(row["lost"]), row["error"][:48],
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    return format_table(header, lines, "<" + ">" * 6)


def _viewers(rows: Rows) -> str:
    header = ["viewers", "commit ms\nalone, max", "watched,\nmax", "looks", "errors\nof it", "wrong", "errors of\nthe writer"]
    busy = [
        [
            name, _number(row["alone_ms_max"]), _number(row["commit_ms_max"]), str(row["looks"]), str(row["viewer_errors"]),
            str(row["viewer_saw_wrong"]), str(row["writer_errors"]),
        ]
        for name, row in ((name, row["busy"]) for name, row in rows.items() if "busy" in row)
    ]  # fmt: skip
    stopped = [
        [
            name, f"{row['writer_errors']} of {row['of']}" if row["writer_errors"] < 10 else "blocked",
            "" if row["bytes_with"] is None or row["writer_errors"] else f"{row['bytes_with'] / row['bytes_without']:.2f}",
            row["writer_error"][:40],
        ]
        for name, row in ((name, row["stopped"]) for name, row in rows.items() if "stopped" in row)
    ]  # fmt: skip
    closed = [
        [name, *(str(row["read only"].get(key, row["read only"].get("skipped")))[:52] for key in ("closed", "killed", "live"))]
        for name, row in rows.items()
    ]
    return "\n\n".join(
        [
            format_table(header, busy, "<" + ">" * 6),
            format_table(["viewer stopped in the middle", "errors of\nthe writer", "size, x", "it says"], stopped, "<>>"),
            format_table(["viewer that may not write: sees", "closed", "killed", "beside a writer"], closed),
        ]
    )


def _shared(rows: Rows) -> str:
    header = ["fork", "rounds", "child\nwrote", "lost", "different", "unreadable", "errors of\nthe parent"]
    keys = ("rounds", "child_wrote", "lost", "different", "unreadable", "parent_errors")
    forks = [[name, *(str(row["fork"][key]) for key in keys)] for name, row in rows.items()]
    two = [
        [name, *(row["two writers"][key][:40] for key in ("second_writer", "takes_over_a_stopped_one", "stopped_one_wakes"))]
        for name, row in rows.items()
    ]
    return "\n\n".join(
        [
            format_table(header, forks, "<" + ">" * 6),
            format_table(["two writers", "a second one", "takes over a stopped one", "which wakes up:"], two),
        ]
    )


def _yes(value: bool) -> str:
    return "yes" if value else "NO"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
