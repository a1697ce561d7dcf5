"""`edgewise methods`: which methods there are, when to choose which, and what each lets you set."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import shutil
import textwrap
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

from edgewise import foreign
from edgewise.errors import ConfigError, nearest
from edgewise.lab.table import format_table
from edgewise.methods import METHODS
from edgewise.methods.beta_counts import BetaCounts
from edgewise.methods.composed import Composition
from edgewise.methods.dynamic import DynamicSampling

_DEPARTURES = "Differs from the paper in"


def describe(name: str) -> dict[str, Any]:
    """Everything that is known of a method, as plain values. Raises ConfigError for an unknown name."""
    if name not in METHODS:
        raise ConfigError(f"There is no method {name!r}.{nearest(name, METHODS)} Methods: {', '.join(METHODS)}.")
    entry = METHODS[name]
    meanings = _field_docs(entry.factory)
    own = _own_defaults(entry.factory)
    return {
        "name": name,
        "summary": entry.summary,
        "when": entry.when,
        "signal": entry.signal,
        "needs": sorted(entry.needs),
        "keeps": entry.keeps,
        "extra_rollouts": entry.extra_rollouts,
        "cost": entry.cost,
        "paper": entry.paper,
        "parameters": {
            parameter: {"default": value, "own": parameter in own, "meaning": meanings.get(parameter, "")}
            for parameter, value in entry.parameters.items()
        },
        "differs_from_the_paper": departures(entry.factory),
    }


def departures(factory: Callable[..., Any]) -> str:
    """The "Differs from the paper in" paragraph of a method, else of its module, on one line; empty if there is none."""
    for documented in (factory, inspect.getmodule(factory)):
        text = inspect.cleandoc(getattr(documented, "__doc__", None) or "")
        if _DEPARTURES in text:
            return " ".join(text[text.index(_DEPARTURES) :].split("\n\n")[0].split())
    return ""


def _own_defaults(factory: Callable[..., Any]) -> set[str]:
    """Parameters for which a class changes the default of the engine that it is built on."""
    if not isinstance(factory, type):
        return set()
    inherited = {name for base in factory.__mro__[1:] for name in inspect.get_annotations(base)}
    return inherited & set(inspect.get_annotations(factory))


def _field_docs(factory: Callable[..., Any]) -> dict[str, str]:
    """The docstring under each field of a class and its bases; empty where the source is not at hand."""
    docs: dict[str, str] = {}
    for base in reversed(inspect.getmro(factory)) if isinstance(factory, type) else []:
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        except (OSError, TypeError, SyntaxError):
            continue
        statements = body.body if isinstance(body, ast.ClassDef) else []
        for statement, below in zip(statements, statements[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            ):
                docs[statement.target.id] = " ".join(below.value.value.split())
    return docs


def render_table(width: int = 120) -> str:
    """The choosing table, wrapped to about `width` characters; everything else about a method is in `render_method`."""
    free = width - max(map(len, METHODS)) - 8
    shares = {"needs from the host": 0.16, "what it does": 0.42, "choose it": 0.42}
    rows = []
    for name, entry in METHODS.items():
        texts = [", ".join(sorted(entry.needs)) or "nothing", entry.summary, entry.when]
        cells = [textwrap.fill(text, max(14, int(free * share))) for text, share in zip(texts, shares.values(), strict=True)]
        rows.append([name, *cells])
    return format_table(["method", *shares], rows)


def render_method(name: str, width: int = 100) -> str:
    """One method in full: the prose, its parameters, and where it departs from its paper."""
    found = describe(name)
    words = [
        ("when", found["when"]),
        ("learns from", found["signal"]),
        ("needs", ", ".join(found["needs"]) or "nothing from the host"),
        ("keeps", found["keeps"]),
        ("not trained on", found["extra_rollouts"]),
        ("cost a step", found["cost"]),
        ("paper", found["paper"]),
    ]
    parts = [textwrap.fill(f"{name}: {found['summary']}", width)]
    parts.append("\n".join(_wrapped(label, text, 16, width) for label, text in words))
    rows = []
    for parameter, facts in found["parameters"].items():
        mark = "*" if facts["own"] else " "
        rows.append([f"{mark} {parameter}", repr(facts["default"]), facts["meaning"]])
    left = max((len(row[0]) for row in rows), default=0)
    middle = max((len(row[1]) for row in rows), default=0)
    lines = [_wrapped(f"{row[0]:<{left}}  {row[1]:<{middle}}", row[2], left + middle + 4, width) for row in rows]
    star = " (* set by this method, other than in the engine it shares)" if any(row[0].startswith("*") for row in rows) else ""
    parts.append(f"Parameters and defaults{star}:\n" + "\n".join(lines))
    if found["differs_from_the_paper"]:
        parts.append(textwrap.fill(found["differs_from_the_paper"], width))
    return "\n\n".join(parts)


def _wrapped(label: str, text: str, indent: int, width: int) -> str:
    room = max(30, width - indent)
    lines = textwrap.wrap(text, room) or [""]
    return "\n".join(f"{label if not i else '':<{indent}}{line}".rstrip() for i, line in enumerate(lines))


# -- the manual ----------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- generated by `edgewise methods --update FILE`: begin -->", "<!-- generated: end -->"
"""Between these lines of a Markdown file stands what `markdown` gives."""


def markdown() -> str:
    """All methods for the manual: the choosing table, one section each, and the parameters that many share."""
    rows = ["| method | choose it | needs from the host | rollouts not trained on | cost a step |", "|---|---|---|---|---|"]
    for name, entry in METHODS.items():
        needs = ", ".join(f"`{signal}`" for signal in sorted(entry.needs)) or "nothing"
        rows.append(f"| [`{name}`](#{name}) | {entry.when} | {needs} | {entry.extra_rollouts} | {entry.cost} |")
    sections = ["\n".join(rows)]
    factories = {entry.factory: name for name, entry in METHODS.items()}
    for name, entry in METHODS.items():
        found = describe(name)
        base = next((b for b in inspect.getmro(entry.factory)[1:] if b in factories or b in _ENGINES), None)  # type: ignore[arg-type]
        inherited = _defaults(base)
        own = {p: facts for p, facts in found["parameters"].items() if p not in inherited or inherited[p] != facts["default"]}
        beside = f"As `{factories[base]}`, but:" if base in factories else ""
        paragraphs = [
            f"### `{name}`",
            found["summary"],
            f"Learns from {found['signal']}. Keeps per prompt: {found['keeps']}. Source: {found['paper']}.",
            beside,
            _parameter_table(own) if own else "All parameters are those that many methods share, at their defaults.",
            found["differs_from_the_paper"],
        ]
        sections.append("\n\n".join(filter(None, paragraphs)))
    for engine, whose in _ENGINES.items():
        docs, parent = _field_docs(engine), _defaults(engine.__mro__[1])
        values = {p: value for p, value in _defaults(engine).items() if p not in parent or parent[p] != value}
        table = {p: {"default": value, "meaning": docs.get(p, "")} for p, value in values.items()}
        sections.append(f"### Shared parameters: {whose}\n\n{_parameter_table(table)}")
    return "\n\n".join(sections)


_ENGINES: dict[type, str] = {
    DynamicSampling: "every method",
    Composition: "methods that score candidates by a belief",
    BetaCounts: "methods with Beta counts",
}


def _defaults(cls: Any) -> dict[str, Any]:
    """Hyper-parameters of a class with its defaults; none where it is no dataclass."""
    if cls is None or not is_dataclass(cls):
        return {}
    return {f.name: f.default for f in fields(cls) if f.init and f.default is not MISSING}


def _parameter_table(parameters: dict[str, dict[str, Any]]) -> str:
    rows = ["| parameter | default | meaning |", "|---|---|---|"]
    for name, facts in parameters.items():
        meaning = facts["meaning"].replace("|", "\\|")
        rows.append(f"| `{name}` | `{facts['default']!r}` | {meaning} |")
    return "\n".join(rows)


_MOST = 1 << 24


def update(file: Path) -> bool:
    """Put the present `markdown` between the two lines of `file`. Returns whether it changed. Raises ConfigError."""
    try:
        text = foreign.contents(file, _MOST).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"--update {file}: cannot be read ({why}). Give a Markdown file.") from error
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ConfigError(f"{file} must hold the lines {BEGIN!r} and {END!r}, between which the methods go.")
    new = f"{head}{BEGIN}\n\n{markdown()}\n\n{END}{tail}"
    if new != text:
        try:
            foreign.replace(file.resolve(), new)
        except OSError as error:
            raise ConfigError(f"--update {file}: cannot be written ({error.strerror}).") from error
    return new != text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgewise methods`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="one method: parameters, defaults, departures from the paper")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--update", type=Path, metavar="FILE", help="write the methods into a Markdown file, between its marks")


def run(args: argparse.Namespace) -> int:
    """Print the table, or one method."""
    if args.update is not None:
        changed = update(args.update)
        print(f"{args.update}: {'written' if changed else 'up to date'}, {len(METHODS)} methods\n\nnext: edgewise methods")
        return 0
    width = min(140, max(100, shutil.get_terminal_size().columns))
    if args.name is not None:
        found = describe(args.name)
        print(json.dumps(found, indent=2) if args.json else f"{render_method(args.name)}\n\nnext: edgewise simulate")
    elif args.json:
        print(json.dumps([describe(name) for name in METHODS], indent=2))
    else:
        print(f"{render_table(width)}\n\nnext: edgewise methods {next(iter(METHODS))}")
    return 0
