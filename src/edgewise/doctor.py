"""`edgewise doctor DATA`: what edgewise sees in a data set, what it would refuse, and what to do next. Nothing is changed."""

from __future__ import annotations

import argparse
import json
import shlex
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from edgewise import data
from edgewise.errors import PoolError
from edgewise.lab.table import format_table
from edgewise.pool import ANSWER_COLUMNS, PromptPool
from edgewise.rows import Table, fingerprint, open_table

PROMPT_COLUMNS = ("prompt", "question", "problem", "query", "input", "instruction", "messages")
"""Columns that usually hold the prompt; TRL and edgewise read the first."""

_PRIOR_WORDS = ("pass_rate", "passrate", "pass@", "solve_rate", "success_rate", "correct_rate", "accuracy", "acc", "avg_score")
_SHOWN = 5
_MOST_TEXT = 4_000


@dataclass(kw_only=True)
class Diagnosis:
    """What was found. `problems` would be refused or would spoil a run; `notes` are worth knowing."""

    rows: int
    columns: list[str] = field(default_factory=list)
    prompt_column: str | None = None
    prompt_shape: str = ""
    prompt_characters: tuple[int, int, int] | None = None
    """Shortest, median, longest."""
    answer_columns: list[str] = field(default_factory=list)
    ids: str = ""
    """How prompts get their ids; empty if they cannot."""
    id_examples: list[str] = field(default_factory=list)
    repeated_texts: int = 0
    """Rows whose prompt was already there in an earlier row."""
    prior_pass_rates: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: str = ""


def examine(dataset: Any, *, id_column: str | None = None, prompt_column: str | None = None) -> Diagnosis:
    """Look at a data set as `PromptPool.from_dataset` would, and at what a run would make of it.

    dataset: rows as for `PromptPool.from_dataset`.  id_column, prompt_column: as there; None guesses.
    """
    table = open_table(dataset)
    found = Diagnosis(rows=len(table), columns=list(table.columns))
    if not found.rows:
        found.problems.append("The data set has no rows: nothing to choose from.")
        return found
    found.prompt_column = prompt_column or _guess_prompt_column(table)
    if found.prompt_column is None:
        found.problems.append(
            f"No prompt column: none of {', '.join(PROMPT_COLUMNS)} exists. Rename yours to 'prompt', or pass --prompt-column."
        )
        return found
    if prompt_column is None and found.prompt_column != "prompt":
        found.problems.append(
            f"The prompts seem to be in {found.prompt_column!r}, and trainers read 'prompt'. Rename the column, or pass "
            f"prompt_column={found.prompt_column!r} to PromptPool."
        )
    _look_at_prompts(table, found)
    _look_at_ids(dataset, found, id_column)
    _look_for_prior_pass_rates(table, found)
    return found


def _guess_prompt_column(table: Table) -> str | None:
    return next((name for name in PROMPT_COLUMNS if name in table.columns), None)


def _look_at_prompts(table: Table, found: Diagnosis) -> None:
    """Shape, length, empty prompts, repeated texts and answers that contradict each other, in one walk."""
    assert found.prompt_column is not None
    shapes: Counter[str] = Counter()
    lengths = np.zeros(len(table), dtype=np.int64)
    first_answer: dict[bytes, tuple[int, bytes]] = {}
    answers_seen: set[str] = set()
    empty: list[int] = []
    contradictions: list[int] = []
    for row, (prompt, *answers) in enumerate(table.values(found.prompt_column, *ANSWER_COLUMNS)):
        try:
            text = _text(prompt)
        except RecursionError:
            text = "?"  # the pool names the row
        shapes[_shape(prompt)] += 1
        lengths[row] = len(text)
        if not text.strip():
            empty.append(row)
        given = {name: answer for name, answer in zip(ANSWER_COLUMNS, answers, strict=True) if answer is not None}
        answers_seen |= given.keys()
        try:
            key, answer_key = fingerprint(prompt, {}), fingerprint(None, given)
        except (TypeError, ValueError, RecursionError):
            continue  # the pool names the row and the type
        if key in first_answer:
            found.repeated_texts += 1
            if first_answer[key][1] != answer_key:
                contradictions.append(row)
        else:
            first_answer[key] = (row, answer_key)
    shown = [f"{shape} ({count:,} rows)" for shape, count in shapes.most_common(_SHOWN)]
    more = [f"and {len(shapes) - _SHOWN:,} more shapes"] if len(shapes) > _SHOWN else []
    found.prompt_shape = ", ".join([*shown, *more])
    found.prompt_characters = (int(lengths.min()), int(np.median(lengths)), int(lengths.max()))
    found.answer_columns = [name for name in ANSWER_COLUMNS if name in answers_seen]
    kinds = {shape.partition(" ")[0] for shape in shapes}
    if len(kinds) > 1:
        found.problems.append(f"Prompts have more than one shape: {found.prompt_shape}. Trainers expect one.")
    elif not kinds <= {"text", "chat"}:
        found.problems.append(f"Prompts are {found.prompt_shape}; trainers expect text or a list of chat messages.")
    if empty:
        found.problems.append(f"{len(empty):,} prompts are empty: {_rows(empty)}.")
    if contradictions:
        found.problems.append(
            f"{len(contradictions):,} rows repeat an earlier prompt with another reference answer: {_rows(contradictions)}."
        )
    if not found.answer_columns:
        found.notes.append(f"No reference answer found ({', '.join(ANSWER_COLUMNS)}). Fine if your reward needs none.")


def _look_at_ids(dataset: Any, found: Diagnosis, id_column: str | None) -> None:
    assert found.prompt_column is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            pool = PromptPool.from_dataset(dataset, id_column=id_column, prompt_column=found.prompt_column)
        except PoolError as error:
            found.problems.append(str(error))
            return
    found.ids = pool.how
    found.id_examples = list(pool.ids[:3])
    found.notes += [str(warning.message) for warning in caught]


def _look_for_prior_pass_rates(table: Table, found: Diagnosis) -> None:
    """Columns that look like an old pass rate: named like one, numbers, all in [0, 1]."""
    names = [name for name in table.columns if any(word in name.lower() for word in _PRIOR_WORDS)]
    for name in names:
        values = [value for (value,) in table.values(name) if value is not None]
        if not values or not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            continue
        rates = np.array([value if abs(value) <= 2 else 2 for value in values], dtype=np.float64)
        if not ((rates >= 0) & (rates <= 1)).all():
            found.notes.append(f"{name!r} is named like a pass rate, but holds values outside [0, 1].")
            continue
        decided = np.mean((rates == 0) | (rates == 1))
        found.prior_pass_rates[name] = (
            f"{rates.min():.2f} to {rates.max():.2f}, mean {rates.mean():.2f}, {decided:.0%} exactly 0 or 1, "
            f"{len(rates):,} of {len(table):,} rows"
        )


def _text(prompt: Any) -> str:
    """What a reader sees of a prompt, to measure its length."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        return _text(prompt.get("content") or prompt.get("text"))
    if isinstance(prompt, (list, tuple)):
        return "".join(_text(part) for part in prompt)
    return ""


def _shape(prompt: Any) -> str:
    if isinstance(prompt, str):
        return "text"
    if isinstance(prompt, (list, tuple)) and prompt and all(isinstance(part, Mapping) and "role" in part for part in prompt):
        roles = [part["role"] if isinstance(part["role"], str) else type(part["role"]).__name__ for part in prompt[:4]]
        return f"chat of {' + '.join(role[:20] for role in roles)}{' + ...' if len(prompt) > 4 else ''}"
    return f"{type(prompt).__name__} (neither text nor chat)"


def _rows(rows: Sequence[int]) -> str:
    more = f" and {len(rows) - _SHOWN:,} more" if len(rows) > _SHOWN else ""
    return f"row{'s' if len(rows) > 1 else ''} {', '.join(map(str, rows[:_SHOWN]))}{more}"


def render(found: Diagnosis) -> str:
    """The diagnosis as aligned text."""
    more = f" and {len(found.columns) - 50:,} more" if len(found.columns) > 50 else ""
    lines = [["rows", f"{found.rows:,}"], ["columns", (", ".join(found.columns[:50]) or "none") + more]]
    if found.prompt_column is not None:
        lines.append(["prompt", f"column {found.prompt_column!r}: {found.prompt_shape}"])
    if found.prompt_characters is not None:
        shortest, median, longest = found.prompt_characters
        lines.append(["length", f"{shortest:,} to {longest:,} characters, median {median:,}"])
        lines.append(["answer", ", ".join(found.answer_columns) or "none found"])
        lines.append(["ids", found.ids or "none: see the problems"])
        lines.append(["same text", f"{found.repeated_texts:,} rows repeat an earlier prompt"])
    if found.id_examples:
        lines.append(["examples", ", ".join(_shown_id(prompt_id) for prompt_id in found.id_examples)])
    lines += [["pass rate", f"column {name!r}: {text}"] for name, text in found.prior_pass_rates.items()]
    parts = [format_table(["", ""], [[name, _plain(text)] for name, text in lines]).lstrip("\n")]
    parts += [f"problem: {_plain(text)}" for text in found.problems]
    parts += [f"note: {_plain(text)}" for text in found.notes]
    if not found.problems:
        parts.append("fine: edgewise can choose from these prompts.")
    if found.next:
        parts.append(f"next: {found.next}")
    return "\n".join(parts)


def _plain(text: str) -> str:
    """Text that moves no cursor and changes no colour of a terminal, whatever the data set's columns are called."""
    whole = text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in whole)


def _shown_id(prompt_id: str) -> str:
    text = repr(prompt_id)
    return text if len(text) <= 40 else f"{text[:37]}..."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgewise doctor`."""
    parser.add_argument("data", metavar="DATA", help="a .parquet, .jsonl or .json file, or a folder written by save_to_disk")
    parser.add_argument("--id-column", help="the column that names a prompt (default: found by itself)")
    parser.add_argument("--prompt-column", help="the column that holds the prompt (default: prompt)")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(args: argparse.Namespace) -> int:
    """Examine and print. Returns 0 if all is well, 1 if a problem was found."""
    try:
        found = examine(data.read(args.data), id_column=args.id_column, prompt_column=args.prompt_column)
    except PoolError as error:  # the file is there, its content is broken
        found = Diagnosis(rows=0, problems=[str(error)])
    if found.problems:
        found.next = f"repair, then: edgewise doctor {shlex.quote(args.data)}"
    else:
        found.next = "edgewise methods"
    print(json.dumps(asdict(found), indent=2) if args.json else render(found))
    return 1 if found.problems else 0
