"""`edgewise inspect` and `edgewise verify`: what a run keeps in its directory, and whether every byte of it is sound.

Both only read, without a lock: they may look at a run that is being written. A single state file, such as the one in a
trainer's checkpoint, will do, too.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgewise import lease, state
from edgewise.directory import History, Node, Recovered
from edgewise.errors import ConfigError, StateError
from edgewise.types import Array

_KEPT_ASIDE = ("torn", "superseded", "backup")
_SHOWN = 20


@dataclass(kw_only=True)
class Inspection:
    """What was found. `problems` is empty for a sound directory."""

    path: str
    method: str = ""
    step: int | None = None
    """Of the newest state; None if there is none that can be read."""
    run_id: str = ""
    prompts: int = 0
    group_size: int = 0
    steps: tuple[int, int] | None = None
    """First and last step that a run could resume at."""
    states: int = 0
    """How many states can be read."""
    writer: str = ""
    files: list[dict[str, Any]] = field(default_factory=list)
    aside: dict[str, list[int]] = field(default_factory=dict)
    """Ending -> files and bytes of what is kept and never read."""
    counts: dict[str, float] = field(default_factory=dict)
    """Tickets in flight and expired, groups that wait, prompts retired and parked, and the totals of the run."""
    checked: list[str] = field(default_factory=list)
    """What `verify` proved."""
    problems: list[str] = field(default_factory=list)


def inspected(path: Path, *, thoroughly: bool = False) -> Inspection:
    """Look at a directory of a run, or at one state file. thoroughly: read and check every byte.

    Raises ConfigError if there is nothing of the kind, StateVersionError for a newer format.
    """
    found = Inspection(path=str(path))
    if path.is_file():
        try:
            header, arrays = state.load(path)
            _describe(found, header, arrays)
            found.states, found.checked = 1, ["the SHA-256 of the file"]
        except StateError as error:
            found.problems.append(str(error))
        return found
    if not path.is_dir():
        raise ConfigError(f"{path} is neither a folder nor a file. Name the `directory` of a Selector, or a saved state.")
    said = lease.holder(path).get("made", (0, 0))  # first: what is promised is there already
    try:
        history = History.of(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error
    nodes = history.nodes()
    if (newest := nodes[0][:2] if nodes else (0, 0)) < said:
        found.problems.append(f"Its writer made commit {said[1]:,} under lease {said[0]}, the newest found is {newest[1]:,}.")
    if not nodes and not history.journals and not history.broken and not any(said):
        raise ConfigError(f"{path} holds no state of a selector. Name the `directory` of a Selector, or a saved state.")
    recovered = history.newest()
    if recovered is None:
        found.problems.append("No state here can be read.")
    else:
        _describe(found, recovered.header, recovered.arrays)
        if recovered.node != nodes[0]:
            found.problems.append(f"What was committed after step {recovered.node.step} cannot be read.")
    steps = history.steps()
    found.steps, found.states = (steps[0], steps[-1]) if steps else None, len(steps)
    found.writer = _writer(path)
    found.files = _files(history)
    for ending in _KEPT_ASIDE:
        aside = list(path.glob(f"*.{ending}"))
        if aside:
            found.aside[ending] = [len(aside), sum(file.lstat().st_size for file in aside)]
    if thoroughly:
        _verify(found, history, nodes)
    found.problems += [message for message in dict.fromkeys(history.broken) if message not in found.problems]
    return found


def _describe(found: Inspection, header: dict[str, Any], arrays: dict[str, Array]) -> None:
    """Fill in what one state says."""
    identity = header.get("identity")
    identity = identity if isinstance(identity, dict) else {}
    found.method, found.run_id = str(identity.get("method", "")), str(header.get("run_id", ""))
    found.prompts, found.group_size = int(identity.get("pool_size", 0)), int(identity.get("group_size", 0))
    found.step = int(header.get("step", 0))
    names = {
        "in_flight": "table/in_flight", "expired": "table/expired", "waiting": "table/waiting", "retired": "table/retired",
        "parked": "parked/ids",
    }  # fmt: skip
    found.counts = {name: float(len(arrays[array])) for name, array in names.items() if array in arrays}
    found.counts |= {name: float(value) for name, value in dict(header.get("totals", {})).items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f" and np.isinf(array).any():
            found.problems.append(f"the array {name!r} holds infinite numbers, which no selector writes")


def _files(history: History) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for snapshot in history.snapshots:
        listed.append({"name": snapshot.path.name, "bytes": _size(snapshot.path), "commit": snapshot.commit})
    for file, scan in history.journals:
        one: dict[str, Any] = {"name": file.path.name, "bytes": len(scan.data), "records": len(scan.records)}
        if scan.records:
            one["steps"] = [scan.records[0].step, scan.records[-1].step]
        if scan.bad:
            one |= {"unreadable_from": scan.good, "unreadable_bytes": scan.bad, "torn": scan.torn}
        listed.append(one)
    return listed


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0  # just compacted away


def _verify(found: Inspection, history: History, nodes: list[Node]) -> None:
    """Every snapshot by its hash, every record by its digest, every state by being reached, and every snapshot once more from
    the one before it: two ways to the same bytes."""
    snapshots = [snapshot for snapshot in history.snapshots if history.readable(snapshot)]
    found.checked.append(f"{len(snapshots)} of {len(history.snapshots)} snapshots by their SHA-256")
    records = sum(len(scan.records) for _, scan in history.journals)
    found.checked.append(f"{records} records by their digest")
    for file, scan in history.journals:
        if scan.torn and scan.bad:
            if file == history.journals[-1][0]:
                found.checked.append(f"a tail of {scan.bad} bytes is what a crash leaves; the next writer cuts it off")
            else:
                found.problems.append(f"{file.path} ends in {scan.bad:,} bytes that cannot be read, and others follow it.")
    reached = [node for node in nodes if history.reached(node) is not None]
    found.checked.append(f"{len(reached)} of {len(nodes)} states reached")
    if len(reached) < len(nodes):
        found.problems.append(f"{len(nodes) - len(reached)} states are mentioned and cannot be reached.")
    twice = 0
    for snapshot in snapshots:
        again = history.without(snapshot).reached(history.node_of(snapshot))
        if again is None:
            continue  # the oldest, or the first after a restart from a checkpoint
        direct = history.reached(history.node_of(snapshot))
        assert direct is not None
        if _alike(direct, again):
            twice += 1
        else:
            found.problems.append(f"{snapshot.path}: the snapshot before it and the records since lead to another state.")
    found.checked.append(f"{twice} snapshots once more, from the one before and the records since: the same bytes")


def _alike(a: Recovered, b: Recovered) -> bool:
    """Whether two states hold the same bytes."""
    return a.arrays.keys() == b.arrays.keys() and all(
        array.dtype == b.arrays[name].dtype
        and array.shape == b.arrays[name].shape
        and array.tobytes() == b.arrays[name].tobytes()
        for name, array in a.arrays.items()
    )


def _writer(path: Path) -> str:
    said = lease.holder(path)
    if not said:
        return "nobody"
    who = lease.words(said)
    if said.get("released"):
        return f"nobody now; last was {who}"
    age = lease.silent_for(said)
    if age is not None and not lease.exists(said.get("pid")):
        return f"{who}, which is gone"
    return f"{who}, " + ("on another machine or an earlier boot" if age is None else f"last heard of {age:.0f} s ago")


# -- the verbs -----------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of both verbs."""
    parser.add_argument("path", metavar="PATH", help="the directory of a Selector, or one saved state")
    parser.add_argument("--json", action="store_true", help="the same for machines")


def run(args: argparse.Namespace) -> int:
    """Print what is there. Returns 1 if something is wrong with it."""
    started = time.perf_counter()
    found = inspected(Path(args.path), thoroughly=args.verb == "verify")
    if args.json:
        print(json.dumps(asdict(found), indent=1))
    else:
        print(_text(found, args.verb == "verify", time.perf_counter() - started))
    return 1 if found.problems else 0


def _text(found: Inspection, thoroughly: bool, seconds: float) -> str:
    lines = [f"{_plain(found.path)}: {_plain(found.method) or 'no method'}, {found.prompts:,} prompts"]
    if found.step is not None:
        lines[0] += f", step {found.step:,}, run {_plain(found.run_id)[:8]}"
    if found.writer:
        lines.append(f"  writer     {_plain(found.writer)}")
    if found.steps is not None:
        first, last = found.steps
        lines.append(f"  states     {found.states:,}, of steps {first:,} to {last:,}: Selector(..., resume=<step>)")
    for file in found.files[:_SHOWN]:
        steps = f"  steps {file['steps'][0]:,} to {file['steps'][1]:,}" if "steps" in file else ""
        records = f"  {file['records']} records" if "records" in file else ""
        bad = (
            f"  {file['unreadable_bytes']:,} bytes from byte {file['unreadable_from']:,} on cannot be read"
            if "torn" in file
            else ""
        )
        lines.append(f"  {file['name']}  {file['bytes']:,} bytes{records}{steps}{bad}")
    for ending, (count, size) in found.aside.items():
        lines.append(f"  kept aside {count} *.{ending}, {size:,} bytes; never read, yours to delete")
    if found.counts:
        lines.append("  " + ", ".join(f"{name} {value:,.0f}" for name, value in found.counts.items()))
    lines += [f"  checked    {what}" for what in found.checked if thoroughly]
    lines += [f"  PROBLEM    {_plain(problem)}" for problem in found.problems[:_SHOWN]]
    if thoroughly:
        lines.append(f"{'damaged' if found.problems else 'sound'}, checked in {seconds:.1f} s")
    else:
        lines.append(f"next: edgewise verify {_plain(found.path)}")
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Text of a file for a terminal: what could command it is shown, not sent."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
