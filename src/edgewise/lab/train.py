"""`edgewise train`: the main job. Real GRPO on a small policy, one arm a method and seed, and what each saved.

Arms run as processes of one thread each, side by side. Every arm spends the same budget of generated responses; the table says
what each needed to reach the reference's final held-out accuracy. Ctrl-C saves, and the same command resumes.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edgewise.errors import ConfigError, StateMismatchError
from edgewise.lab.arithmetic import POOLS
from edgewise.lab.compare import Comparison
from edgewise.lab.record import ArmSpec, read_lines
from edgewise.methods import make
from edgewise.types import PASS_RATE, Setting

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
    add("--task", default="arithmetic", metavar="T", help=f"arithmetic, or a generator of reasoning-gym {shown}")
    add("--policy", default="", metavar="P", help="a model folder, or smollm2 (default: the shipped small policy)")
    add("--responses", type=int, default=40_000, help=f"budget of generated responses an arm {shown}")
    add("--steps", type=int, default=0, help="at most this many training batches (default: the budget decides)")
    add("--prompts", type=int, default=1_000, help=f"training prompts {shown}")
    add("--held-out", type=int, default=480, help=f"held-out prompts {shown}")
    add("--batch-size", type=int, default=32, help=f"groups a training batch {shown}")
    add("--group-size", type=int, default=8, help=f"rollouts a group {shown}")
    add("--updates", type=int, default=4, help=f"optimizer steps a training batch is cut into {shown}")
    add("--learning-rate", type=float, default=1e-4, help=f"AdamW, constant {shown}")
    add("--seeds", type=int, default=1, help=f"how many seeds {shown}")
    add("--seed0", type=int, default=0, help=f"the first of them {shown}")
    add("--jobs", type=int, default=0, help="arms at a time, one thread each (default: one a core)")
    add("--every", type=int, default=0, metavar="N", help="print every Nth step (default: 10, or 1 for a single arm)")
    add("--out", type=Path, default=Path("runs/train"), help=f"folder of the run {shown}")
    add("--json", action="store_true", help="print the result as JSON, nothing else")


def run(args: argparse.Namespace) -> int:
    """Train all arms, then print and draw what they say."""
    specs = _specs(args)
    labels = list(dict.fromkeys(spec.name for spec in specs))
    reference = args.reference or (labels[1] if len(labels) > 1 else labels[0])
    if reference not in labels:
        raise ConfigError(f"--reference must be one of the arms {', '.join(labels)}, got {reference!r}.")
    _need_the_lab()

    def say(text: str = "") -> None:
        if not args.json:
            print(text, flush=True)

    folders = [_folder(args.out, spec) for spec in specs]
    started = time.perf_counter()
    jobs = args.jobs or min(len(specs), os.cpu_count() or 1)
    say(
        f"edgewise train | {len(specs)} arms ({', '.join(labels)}; {args.seeds} seed{'s' * (args.seeds > 1)}), {jobs} at a time"
        f" | task {args.task}{'/' + args.pool if args.task == 'arithmetic' else ''} | budget {args.responses:,} responses an arm"
    )
    done = _run_arms(specs, folders, jobs, args.every or (1 if len(specs) == 1 else 10), say)
    if not done:
        say(f"\nedgewise: stopped; everything is saved in {args.out}. The same command resumes where it stopped.")
        return 130
    found = Comparison.read(folders, reference)
    result = found.as_json() | {
        "title": "measured: real GRPO on the laboratory's policy",
        "command": "edgewise train " + shlex.join(_command(args)),
        "versions": _versions(),
        "settings": {k: v for k, v in asdict(specs[0]).items() if k not in ("method", "parameters", "label", "seed")},
    }
    files = _write(args.out, result)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    say(f"\n{found.table()}\n")
    for line in _legend(found, specs[0]):
        say(line)
    say(f"\n{time.perf_counter() - started:.0f} s in all | written: " + ", ".join(str(f) for f in files))
    say(f"next: open {files[-1]}, or edgewise train --seeds 5 for intervals, or edgewise methods {specs[0].method}")
    return 0


# -- what is to run ------------------------------------------------------------------------------------------------------


def _specs(args: argparse.Namespace) -> list[ArmSpec]:
    """All arms, checked as far as that goes without loading a model."""
    for name in ("responses", "prompts", "held_out", "batch_size", "group_size", "updates", "seeds"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}.")
    if args.group_size < 2:
        raise ConfigError(f"--group-size must be at least 2: a group of {args.group_size} has no variance.")
    if args.batch_size * args.group_size % args.updates:
        raise ConfigError(
            f"--updates must divide the {args.batch_size * args.group_size} rollouts of a training batch (--batch-size x "
            f"--group-size), got {args.updates}."
        )
    baselines = [] if args.baseline in ("", "none") else _split_methods(args.baseline)
    wanted = dict.fromkeys([args.method, *baselines])
    specs = []
    for text in wanted:
        name, parameters = _parse(text)
        method = make(name, **parameters)
        method.start(Setting(pool_size=args.prompts, batch_size=args.batch_size, group_size=args.group_size))
        if PASS_RATE in method.needs and (args.task != "arithmetic" or args.policy == "smollm2"):
            raise ConfigError(
                f"{name} needs exact pass rates, which only --task arithmetic with a character policy has. Leave it out: "
                f"--baseline {','.join(b for b in baselines if _parse(b)[0] != name) or 'none'}"
            )
        specs += [
            ArmSpec(
                method=name,
                parameters=parameters,
                label=text if ":" in text else name,
                seed=args.seed0 + k,
                task=args.task,
                pool=args.pool,
                policy=args.policy,
                responses=args.responses,
                steps=args.steps,
                batch_size=args.batch_size,
                group_size=args.group_size,
                updates=args.updates,
                learning_rate=args.learning_rate,
                eval_responses=max(1, args.responses // 20),
                prompts=args.prompts,
                held_out=args.held_out,
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
            parameters[key.strip()] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[key.strip()] = value
    if name == "oracle":
        parameters = ORACLE | parameters
    return name, parameters


def _need_the_lab() -> None:
    for package in ("torch", "transformers", "trl", "datasets", "matplotlib"):
        try:
            version(package)
        except PackageNotFoundError as error:
            raise ConfigError(f"`edgewise train` needs {package}: pip install 'edgewise[lab]'") from error


def _folder(out: Path, spec: ArmSpec) -> Path:
    """The arm's folder; refuses one that holds an arm of another spec."""
    folder = out / f"{re.sub(r'[^A-Za-z0-9.=_-]+', '-', spec.name)}-seed{spec.seed}"
    file = folder / "spec.json"
    text = json.dumps(asdict(spec), indent=1, sort_keys=True)
    if file.is_file() and file.read_text() != text:
        old, new = json.loads(file.read_text()), asdict(spec)
        differ = "\n".join(f"  {k}: there {old.get(k)!r}, now {v!r}" for k, v in new.items() if old.get(k) != v)
        raise StateMismatchError(f"{folder} holds another run:\n{differ}\nGive another --out, or delete that folder.")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return folder


# -- running -------------------------------------------------------------------------------------------------------------


def _run_arms(specs: Sequence[ArmSpec], folders: Sequence[Path], jobs: int, every: int, say: Callable[..., None]) -> bool:
    """Run all arms, `jobs` at a time. False if a signal stopped them; whatever was reached is saved."""
    waiting = [i for i in range(len(specs)) if not (folders[i] / "result.json").is_file()]
    if len(waiting) < len(specs):
        say(f"{len(specs) - len(waiting)} of {len(specs)} arms are finished already.")
    running: dict[int, subprocess.Popen[bytes]] = {}
    printed = [len(read_lines(folder / "steps.jsonl")) for folder in folders]
    stopped = False
    width = max(len(spec.name) for spec in specs)
    bar = _bar(specs, folders)
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        while waiting or running:
            while waiting and len(running) < jobs and not stopped:
                i = waiting.pop(0)
                log = (folders[i] / "log.txt").open("ab")
                command = [sys.executable, "-m", "edgewise.lab.arm", str(folders[i] / "spec.json")]
                # A session of its own: Ctrl-C reaches this process only, which then asks every arm to save and stop.
                running[i] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
                log.close()
            try:
                time.sleep(0.5)
            except KeyboardInterrupt:
                if stopped:
                    raise
                stopped, waiting = True, []
                say("\nedgewise: saving; a second Ctrl-C does not wait.")
                for process in running.values():
                    process.send_signal(signal.SIGINT)
            for i in list(running):
                printed[i] = _report_steps(specs[i], folders[i], printed[i], every, width, bar, say)
                code = running[i].poll()
                if code is None:
                    continue
                del running[i]
                if code not in (0, 75, -signal.SIGINT):
                    tail = "\n".join((folders[i] / "log.txt").read_text(errors="replace").splitlines()[-12:])
                    raise ConfigError(f"The arm {folders[i].name} failed with exit code {code}; its log ends:\n{tail}")
                stopped = stopped or code != 0
                if stopped:
                    waiting = []
    finally:
        for process in running.values():
            process.kill()
        bar.close()
    return not stopped


def _report_steps(spec: ArmSpec, folder: Path, seen: int, every: int, width: int, bar: Any, say: Callable[..., None]) -> int:
    """Print the lines that are due since the last look; returns how many steps have been looked at."""
    lines = read_lines(folder / "steps.jsonl")
    evals = read_lines(folder / "evals.jsonl")
    for line in lines[seen:]:
        bar.update(min(line["responses"], spec.responses) - bar.reached.get(folder, 0), folder)
        if line["step"] % every == 0:
            held = [e["held_out"] for e in evals if e["step"] <= line["step"]]
            bar.write(_step_line(spec, line, held[-1] if held else None, width), say)
    return len(lines)


def _step_line(spec: ArmSpec, line: dict[str, Any], held_out: float | None, width: int) -> str:
    """One aligned line: what was decided in this step and what came of it."""
    m = line["metrics"]
    return (
        f"{spec.name:<{width}} seed {spec.seed} step {line['step']:>4} | {m['rolled_out']:>3.0f} groups x{spec.group_size} in "
        f"{m['rounds']:.0f} round{'s' if m['rounds'] > 1 else ' '} | mixed {100 * m.get('mixed_frac', 0):>3.0f}% "
        f"all-pass {100 * m.get('all_pass_frac', 0):>3.0f}% all-fail {100 * m.get('all_fail_frac', 0):>3.0f}% | "
        f"{line['responses']:>7,} responses | held-out {'    ' if held_out is None else f'{held_out:.3f}'} | "
        f"select {1e3 * m.get('select_s', 0):>5.1f} ms verify {1e3 * m.get('signal_s', 0):>5.1f} ms"
    )


class _Bar:
    """Progress over all arms in responses: a bar on a terminal, silence elsewhere."""

    def __init__(self, total: int, reached: dict[Path, int]) -> None:
        self.reached = reached
        self._bar: Any = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=sum(reached.values()), unit="resp", unit_scale=True, smoothing=0.05)

    def update(self, more: int, folder: Path) -> None:
        self.reached[folder] = self.reached.get(folder, 0) + more
        if self._bar is not None:
            self._bar.update(more)

    def write(self, text: str, say: Callable[..., None]) -> None:
        if self._bar is None:
            say(text)
        else:
            self._bar.clear()
            say(text)
            self._bar.refresh()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _bar(specs: Sequence[ArmSpec], folders: Sequence[Path]) -> _Bar:
    reached = {}
    for spec, folder in zip(specs, folders, strict=True):
        lines = read_lines(folder / "steps.jsonl")
        reached[folder] = min(lines[-1]["responses"], spec.responses) if lines else 0
    return _Bar(sum(spec.responses for spec in specs), reached)


# -- what came of it -----------------------------------------------------------------------------------------------------


def _legend(found: Comparison, spec: ArmSpec) -> list[str]:
    """What the table's columns mean, and what this run says of HIVE's premise."""
    arms = [arm for group in found.arms.values() for arm in group]
    exact = all(arm.exact for arm in arms)
    share = sum(arm.total("select_s") for arm in arms) / sum(arm.steps[-1]["spent"]["wall_s"] for arm in arms)
    seeds = len(next(iter(found.arms.values())))
    lines = [
        f"held-out: {'exact pass probability, no sampling noise' if exact else 'one greedy answer a prompt'}; "
        f"{spec.held_out} prompts. Every response counts, kept or thrown away.",
        f"fewer: what {found.reference} spent to its own final accuracy, over what the method spent to reach it"
        + (f" (paired over {seeds} seeds, 95% bootstrap interval)" if seeds > 1 else "; one seed, so no interval (--seeds 5)")
        + ". '<': some seed never reached it within the budget.",
        f"seconds are the arm's own, evaluation left out; 'fewer seconds' is processor time. Selection and bookkeeping took "
        f"{100 * share:.1f}% of all steps' time.",
    ]
    if "oracle" in found.arms:
        lines.append("oracle: knows the exact pass rates; the ceiling, not a method. Its verify time is that of its knowledge.")
    premise = found.premise()
    if premise:
        lines.append(
            "prompt entropy V on the whole training pool (Spearman, mean over evaluations): "
            f"{premise['v_pass_corr']:+.2f} with the exact pass rate, {premise['v_mixed_corr']:+.2f} with P(group is mixed), "
            f"{premise['v_mixed_corr_within_kind']:+.2f} with it inside a kind of task (median). "
            "HIVE's second stage assumes the second is positive."
        )
    return lines


def _write(out: Path, result: dict[str, Any]) -> list[Path]:
    from edgewise.report.page import write_page
    from edgewise.report.picture import draw_accuracy

    data = out / "comparison.json"
    data.write_text(json.dumps(result, indent=1))
    return [data, draw_accuracy(result, out / "accuracy.png"), write_page(result, out / "report.html")]


def _command(args: argparse.Namespace) -> list[str]:
    """The options that reproduce this run, without the folder."""
    words: list[str] = []
    for name, value in sorted(vars(args).items()):
        if name not in ("verb", "out", "json", "every", "jobs") and value not in ("", 0):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("edgewise", "torch", "transformers", "trl", "numpy")}
