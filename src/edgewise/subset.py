"""`edgewise subset DATA --out FILE`: a static subset of a data set, by diversity, influence and difficulty (DEPO, offline).

DEPO, arXiv 2509.01321, as reported of it [paper*]; `diverse.py` says where it departs. Writes the ids of the chosen prompts,
and says how many rollouts stand behind the accuracies: whoever compares a run on the subset adds them to its cost.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewise import data, diverse, foreign
from edgewise.errors import ConfigError
from edgewise.foreign import shown
from edgewise.lab.table import format_table
from edgewise.pool import PromptPool
from edgewise.rows import Table, open_table
from edgewise.types import Floats, Ints

_FORMATS = (".jsonl", ".csv")


@dataclass(kw_only=True)
class Chosen:
    """The subset and how it came about. Rows are positions in the data set."""

    prompts: int
    """Prompts of the data set."""
    embedding_width: int
    bandwidth: float
    """Median distance of embeddings of length 1."""
    every_pair: bool
    """Whether the similarity graph held every pair, or the nearest of each prompt."""
    diverse: int
    """Prompts left by the diverse choice."""
    filled: int
    """Of these, how many by influence alone, because no pick added to the diversity."""
    chosen: int
    """Prompts of the subset."""
    mean_accuracy: float | None
    """Of the subset, by the accuracy column."""
    rollouts: int
    """Rollouts behind the accuracy column, over all prompts that have one: part of the cost of this subset."""
    rollouts_needed: int
    """The same over the diverse prompts only: what the paper's order of the two steps would have spent."""
    seed: int
    rows: Ints
    """(chosen,) rising."""
    influence: Floats
    """(prompts,) PageRank of mean 1."""


def choose(
    embeddings: Any,
    *,
    accuracies: Floats | None = None,
    rollouts_per_prompt: int = 0,
    keep: float = 0.5,
    share: float = 0.2,
    difficulty: float = 0.5,
    spread: float = 0.25,
    seed: int = 0,
    most_bytes: float = 2e9,
) -> Chosen:
    """The static subset of a data set.

    embeddings: (n, d), one a prompt.  accuracies: (n,) in [0, 1] of earlier rollouts, NaN where unknown; None leaves out the
    draw by difficulty.  rollouts_per_prompt: behind each accuracy.  keep: share left by the diverse choice.  share: of the
    whole data set, drawn by difficulty.  difficulty, spread: μ and σ of the draw.  most_bytes: memory of the diverse choice.
    Raises ConfigError.
    """
    for name, value, top in (("keep", keep, 1.0), ("share", share, 1.0), ("spread", spread, np.inf)):
        if not (np.isfinite(value) and 0.0 < value <= top):
            limit = " and at most 1" if top == 1.0 else ""
            raise ConfigError(f"subset({name}=...) must be above 0{limit}, got {value}.")
    if not np.isfinite(difficulty):
        raise ConfigError(f"subset(difficulty=...) must be finite, got {difficulty}.")
    if seed < 0:
        raise ConfigError(f"subset(seed=...) must be at least 0, got {seed}.")
    units = diverse.unit_rows(embeddings)
    count = len(units)
    bandwidth = diverse.median_distance(units, np.random.default_rng([seed, 0]))
    influence = diverse.page_rank(diverse.similarity_graph(units, bandwidth))
    left = max(1, round(keep * count))
    picked = diverse.pick_diverse(units, influence, left, bandwidth, np.random.default_rng([seed, 1]), most_bytes=most_bytes)
    rows, known = picked.positions, 0
    if accuracies is not None:
        known = int(np.isfinite(accuracies).sum())
        rows = _by_difficulty(rows, accuracies, max(1, round(share * count)), difficulty, spread, seed)
    rows = np.sort(rows)
    return Chosen(
        prompts=count,
        embedding_width=units.shape[1],
        bandwidth=bandwidth,
        every_pair=count <= diverse.DENSE,
        diverse=len(picked.positions),
        filled=picked.filled,
        chosen=len(rows),
        mean_accuracy=None if accuracies is None else float(accuracies[rows].mean()),
        rollouts=known * rollouts_per_prompt,
        rollouts_needed=0 if accuracies is None else int(np.isfinite(accuracies[picked.positions]).sum()) * rollouts_per_prompt,
        seed=seed,
        rows=rows,
        influence=influence,
    )


def _by_difficulty(rows: Ints, accuracies: Floats, wanted: int, mean: float, deviation: float, seed: int) -> Ints:
    usable = int(np.isfinite(accuracies[rows]).sum())
    if usable < wanted:
        raise ConfigError(
            f"The draw by difficulty wants {wanted:,} prompts, and {usable:,} of the {len(rows):,} diverse ones have an "
            "accuracy. Lower --share, raise --keep, or roll out more prompts."
        )
    return rows[diverse.draw_by_difficulty(accuracies[rows], wanted, mean, deviation, np.random.default_rng([seed, 2]))]


# -- what the verb reads and writes ------------------------------------------------------------------------------------


def read_accuracies(table: Table, column: str) -> Floats:
    """(n,) the column as numbers in [0, 1], NaN where empty. Raises ConfigError."""
    if column.split(".")[0] not in table.columns:
        raise ConfigError(f"There is no column {column!r}; the data set has {', '.join(table.columns)}.")
    values = [value for (value,) in table.values(column)]
    for row, value in enumerate(values):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0):
            if isinstance(value, float) and np.isnan(value):
                continue
            raise ConfigError(f"Column {column!r} must hold accuracies in [0, 1], got {shown(value)} in row {row}.")
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def read_embeddings(path: str, count: int) -> Any:
    """(n, d) from a .npy file, one row a prompt in the order of the data set. Raises ConfigError."""
    try:
        with foreign.opened(path) as file:  # no pipe, no device
            archive = file.read(4) == b"PK\x03\x04"
        # mapped: a shape that lies about the file is refused, not allocated
        table = None if archive else np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise ConfigError(f"{path}: not a readable .npy file ({error.strerror or error}). Write it with numpy.save.") from error
    except Exception as error:  # whatever numpy makes of foreign bytes
        raise ConfigError(f"{path}: not a readable .npy file ({str(error)[:300]}). Write it with numpy.save.") from error
    if table is None:
        raise ConfigError(f"{path} is an archive of arrays; write the embeddings alone, with numpy.save.")
    if table.dtype.kind not in "biuf":
        raise ConfigError(f"{path} must hold numbers, got {table.dtype}.")
    if table.ndim != 2 or len(table) != count or not table.shape[1]:
        raise ConfigError(f"{path} must hold one embedding a prompt, shape ({count}, width), got {table.shape}.")
    return table


def embed(prompts: Sequence[Any]) -> Any:
    """(n, 256) WordLlama's embeddings of the prompts. Raises ConfigError where it is not installed."""
    from edgewise.signals.embedding import PromptEmbedding, prompt_texts

    return PromptEmbedding()(prompt_texts(prompts))


def write(path: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write one line a prompt, as JSON or CSV by the suffix; whole or not at all. Raises ConfigError."""
    target = Path(path)
    text = io.StringIO()
    if target.suffix == ".csv":
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        text.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partial = target.with_name(f"{target.name}.partial")
    try:
        partial.write_text(text.getvalue(), encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}.") from error


def render(found: Chosen, out: str) -> str:
    """The summary as aligned text."""
    graph = "every pair" if found.every_pair else f"the {diverse.NEIGHBOURS} nearest of each prompt"
    lines = [
        ["prompts", f"{found.prompts:,}, embeddings of width {found.embedding_width:,}"],
        ["graph", f"{graph}; median distance {found.bandwidth:.3f}"],
        ["diverse", f"{found.diverse:,} kept ({found.filled:,} of them by influence alone)"],
    ]
    if found.mean_accuracy is not None:
        lines.append(["difficulty", f"{found.chosen:,} drawn, mean accuracy {found.mean_accuracy:.2f}"])
        lines.append([
            "rollouts",
            f"{found.rollouts:,} behind the accuracies, {found.rollouts_needed:,} on the diverse prompts: add them to the cost",
        ])  # fmt: skip
    lines.append(["written", f"{found.chosen:,} ids to {out}"])
    return format_table(["", ""], lines).lstrip("\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgewise subset`."""
    parser.add_argument("data", metavar="DATA", help="a .parquet, .jsonl or .json file, or a folder written by save_to_disk")
    parser.add_argument("--out", metavar="FILE", required=True, help="where the ids go: .jsonl or .csv")
    parser.add_argument("--id-column", help="the column that names a prompt (default: found by itself)")
    parser.add_argument("--prompt-column", default="prompt", help="the column that holds the prompt (default: prompt)")
    parser.add_argument("--embeddings", metavar="FILE", help="a .npy file, one row a prompt (default: WordLlama embeds them)")
    parser.add_argument("--keep", type=float, default=0.5, help="share kept by diversity and influence (default: 0.5)")
    parser.add_argument(
        "--accuracy-column", help="accuracies of earlier rollouts, for the draw by difficulty (default: no draw)"
    )
    parser.add_argument("--rollouts-per-prompt", type=int, default=0, metavar="G", help="rollouts behind each accuracy")
    parser.add_argument("--share", type=float, default=0.2, help="share of the data drawn by difficulty (default: 0.2)")
    parser.add_argument("--difficulty", type=float, default=0.5, help="mean accuracy of the draw, μ (default: 0.5)")
    parser.add_argument("--spread", type=float, default=0.25, help="its deviation, σ (default: 0.25, not the paper's)")
    parser.add_argument(
        "--memory", type=float, default=2.0, metavar="GB", help="most memory of the diverse choice (default: 2)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of every draw (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Choose, write, and print the summary. Returns 0."""
    if Path(args.out).suffix not in _FORMATS:
        raise ConfigError(f"--out must end in {' or '.join(_FORMATS)}, got {args.out!r}.")
    if args.accuracy_column is not None and args.rollouts_per_prompt < 1:
        raise ConfigError(
            "--accuracy-column needs --rollouts-per-prompt G, the rollouts behind each accuracy: they are part of the cost of "
            "this subset, and the summary counts them."
        )
    dataset = data.read(args.data)
    pool = PromptPool.from_dataset(dataset, id_column=args.id_column, prompt_column=args.prompt_column)
    table = open_table(dataset)
    accuracies = None if args.accuracy_column is None else read_accuracies(table, args.accuracy_column)
    if args.embeddings is not None:
        embeddings = read_embeddings(args.embeddings, len(pool))
    else:
        embeddings = embed([prompt for (prompt,) in table.values(args.prompt_column)])
    found = choose(
        embeddings, accuracies=accuracies, rollouts_per_prompt=args.rollouts_per_prompt, keep=args.keep, share=args.share,
        difficulty=args.difficulty, spread=args.spread, seed=args.seed, most_bytes=1e9 * args.memory,
    )  # fmt: skip
    write(args.out, [
        {"prompt_id": pool.ids[row], "row": row, "influence": round(float(found.influence[row]), 6)}
        | ({} if accuracies is None else {"accuracy": float(accuracies[row])})
        for row in found.rows.tolist()
    ])  # fmt: skip
    if args.json:
        summary = {name: value for name, value in asdict(found).items() if name not in ("rows", "influence")}
        print(json.dumps({**summary, "out": args.out}, indent=2))
    else:
        print(f"{render(found, args.out)}\nnext: edgewise methods depo")
    return 0
