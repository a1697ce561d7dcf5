"""One arm of the laboratory: one method, one seed, one real GRPO run through the TRL host, in a process of its own.

`python -m edgewise.lab.arm SPEC.json` trains until its budget of generated responses is spent, and leaves in the spec's folder
what `edgewise.lab.record` describes. SIGINT or SIGTERM saves and stops; the same command resumes at the saved step, exactly.
With `--leash` the end of its standard input does so too: whoever holds the other end is gone, however it died.

Seconds are those of the arm itself (evaluation left out), on the wall and of the processor; with one thread an arm the latter
hardly depends on what else the machine is doing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: nothing here is ever downloaded
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from edgewise.hosts.trl import attach
from edgewise.lab.exact import pass_probability
from edgewise.lab.policy import load_policy
from edgewise.lab.record import PARTS, STOPPED, ArmSpec, append_line, last_checkpoint, read_lines, read_spec, rewind
from edgewise.lab.task import ArithmeticTask, Task
from edgewise.metrics import rank_correlation
from edgewise.prediction import Visits
from edgewise.scores import prob_mixed
from edgewise.signals.entropy import PromptEntropy
from edgewise.types import CATEGORY, DIFFICULTY, PASS_RATE, Floats, Groups, Ints, Signal, Verdicts

SAVE_EVERY_S = 120.0
"""Longest time between checkpoints: what a kill can cost."""


def run_arm(spec: ArmSpec, folder: Path, leash: int | None = None) -> int:
    """Train the arm in `folder`, resuming whatever stands there. Returns 0 when done, `STOPPED` when told to stop.

    leash: a file descriptor; the arm stops when it reaches its end.
    """
    torch.set_num_threads(spec.threads)
    warnings.filterwarnings("ignore", category=FutureWarning)
    bed = _Bed(spec)
    cuda = torch.cuda.is_available()
    args = GRPOConfig(
        output_dir=str(folder / "checkpoints"),
        use_cpu=not cuda,
        bf16=bed.autocast,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",  # `_Watch` says when
        save_total_limit=1,
        per_device_train_batch_size=spec.batch_size * spec.group_size // spec.updates,
        steps_per_generation=spec.updates,
        num_generations=spec.group_size,
        max_completion_length=bed.max_completion_tokens,
        max_steps=spec.steps * spec.updates or 1_000_000,
        learning_rate=spec.learning_rate,
        lr_scheduler_type="constant",
        temperature=1.0,
        beta=0.0,
        seed=spec.seed,
    )
    trainer = GRPOTrainer(
        model=bed.model, reward_funcs=bed.reward, args=args, train_dataset=bed.dataset, processing_class=bed.tokenizer
    )
    trainer.remove_callback(PrinterCallback)
    selector = attach(
        trainer,
        spec.method,
        parameters=spec.parameters,
        seed=spec.seed,
        signals=bed.signals(lambda: trainer.state.global_step),
        generate_rows=4096 if not spec.policy else None,
        total_steps=spec.planned_steps,
    )
    watch = _Watch(spec, folder, bed, selector)
    trainer.add_callback(watch)
    selector.watch(watch.note_groups)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, watch.ask_to_stop)
    if leash is not None:
        threading.Thread(target=_hold_leash, args=(leash, watch.ask_to_stop), daemon=True).start()
    checkpoint, _ = last_checkpoint(folder)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return watch.finish()


def _hold_leash(leash: int, ask_to_stop: Callable[[], None]) -> None:
    while os.read(leash, 4096):
        pass
    ask_to_stop()


def _task(spec: ArmSpec) -> Task:
    """The spec's prompts and scorer."""
    sizes = {name: n for name, n in (("n_train", spec.prompts), ("n_held_out", spec.held_out)) if n}
    if spec.task == "arithmetic":
        return ArithmeticTask(spec.pool, **sizes)
    from edgewise.lab.words import make_task  # reasoning-gym, only when asked for

    return make_task(spec.task, **sizes)


class _Bed:
    """Task, prompts and policy of an arm, and its evaluation."""

    def __init__(self, spec: ArmSpec) -> None:
        self.task = _task(spec)
        if spec.policy == "smollm2":
            from edgewise.lab.smollm import load_smollm

            self.model, self.tokenizer = load_smollm(torch.float32)
        else:
            self.model, self.tokenizer = load_policy(spec.policy or None)
            self.model = self.model.float()
        # Weights stay float32, for in bf16 an optimizer's small steps are rounded away; bf16 arithmetic pays on large models.
        self.autocast = spec.policy == "smollm2" or (bool(spec.policy) and torch.cuda.is_available())
        self.chat = bool(getattr(self.tokenizer, "chat_template", None))
        self.exact = self.task.exact and not self.chat
        self.max_completion_tokens = spec.max_tokens or self.task.max_completion_tokens
        self.group_size = spec.group_size
        rows: list[dict[str, Any]] = [dict(row) for row in self.task.train]
        if self.chat:
            rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        self.dataset = Dataset.from_list(rows)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._rates: tuple[int, Floats] | None = None

    def reward(self, completions: Any, **columns: Any) -> list[float | None]:
        """The verifier: exact match, or the task library's own scorer. None where scoring failed."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        names = [name for name in columns if isinstance(columns[name], list) and len(columns[name]) == len(texts)]
        rows = [{name: columns[name][i] for name in names} for i in range(len(texts))]
        return list(self.task.reward(texts, rows))

    def _exact(self, rows: Any) -> Floats:
        return pass_probability(self.model, self.tokenizer, [r["prompt"] for r in rows], [r["answer"] for r in rows])

    def signals(self, version: Callable[[], int]) -> dict[Signal, Callable[[Ints], Any]]:
        """What the bed knows of its prompts beside what the host measures.

        Categories are the kinds of the task. With exact pass rates: these, for the oracle, and as difficulty how often the
        starting policy fails, in percent, which elsewhere has to be paid for in rollouts.
        """
        kinds = {kind: i for i, kind in enumerate(sorted({row["kind"] for row in self.task.train}))}
        categories = np.array([kinds[row["kind"]] for row in self.task.train], dtype=np.float64)
        known: dict[Signal, Callable[[Ints], Any]] = {CATEGORY: lambda rows: categories[rows]}
        if self.exact:
            start = 100.0 * (1.0 - self._exact(self.task.train))
            known |= {DIFFICULTY: lambda rows: start[rows], PASS_RATE: self.pass_rates(version)}
        return known

    def pass_rates(self, version: Callable[[], int]) -> Callable[[Ints], Floats]:
        """Exact pass probabilities of training prompts; the whole pool is scored once a policy version."""

        def serve(rows: Ints) -> Floats:
            if self._rates is None or self._rates[0] != version():
                self._rates = (version(), self._exact(self.task.train))
            return self._rates[1][rows]

        return serve

    def held_out(self) -> float:
        """Accuracy on held-out prompts: exact where the task allows, else by one greedy answer a prompt."""
        rows = self.task.held_out
        if self.exact:
            return float(self._exact(rows).mean())
        scores: list[float] = []
        was_training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(rows), 32):
                part = rows[start : start + 32]
                prompts: Any = [row["prompt"] for row in part]
                if self.chat:
                    prompts = [
                        self.tokenizer.apply_chat_template(
                            [{"role": "user", "content": p}], tokenize=False, add_generation_prompt=True
                        )
                        for p in prompts
                    ]
                batch = self.tokenizer(
                    prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=not self.chat
                )
                batch = {name: tensor.to(self.device) for name, tensor in batch.items() if name != "token_type_ids"}
                with torch.no_grad():
                    out = self.model.generate(**batch, do_sample=False, max_new_tokens=self.max_completion_tokens)
                texts = self.tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
                scores += [float(s or 0.0) for s in self.task.reward(texts, part)]
        finally:
            self.model.train(was_training)
        return float(np.mean(scores))

    def training_rates(self) -> Floats:
        """(N,) exact pass probabilities of all training prompts."""
        return self._exact(self.task.train)

    def premise(self, p: Floats) -> dict[str, float]:
        """On the whole training pool: mean exact pass rate, and Spearman of V with pass rate `p` and with P(mixed)."""
        rows = self.task.train
        mixed = prob_mixed(p, self.group_size)
        v = PromptEntropy(self.model)([self.tokenizer(row["prompt"])["input_ids"] for row in rows])
        kinds = np.array([row["kind"] for row in rows])
        within = [rank_correlation(v[kinds == k], mixed[kinds == k]) for k in np.unique(kinds)]
        values = {
            "train_pass_rate": float(p.mean()),
            "zero_variance_share": float(1.0 - mixed.mean()),
            "v_pass_corr": rank_correlation(v, p),
            "v_mixed_corr": rank_correlation(v, mixed),
            "v_mixed_corr_within_kind": float(np.nanmedian(within)),
        }
        return {name: value for name, value in values.items() if np.isfinite(value)}


class _Watch(TrainerCallback):
    """Writes the lines, evaluates when due, and stops the arm."""

    def __init__(self, spec: ArmSpec, folder: Path, bed: _Bed, selector: Any) -> None:
        self.spec, self.folder, self.bed, self.selector = spec, folder, bed, selector
        self.spent = dict.fromkeys((*PARTS, "wall_s", "cpu_s"), 0.0)
        self.groups: list[list[int]] = []
        self.asked_to_stop = False
        self.done = False
        self.held_out = 0.0
        self.next_eval = 0
        self.begun = (0.0, 0.0)
        self.saved_at = time.monotonic()

    def ask_to_stop(self, *_: Any) -> None:
        self.asked_to_stop = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        steps = rewind(self.folder, state.global_step // self.spec.updates)
        evals = read_lines(self.folder / "evals.jsonl")
        if steps:
            self.spent = {name: steps[-1]["spent"][name] for name in self.spent}
        if evals:
            self.held_out = evals[-1]["held_out"]
            self.next_eval = self._after(evals[-1]["responses"])
        else:
            self.evaluate(0, 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.spec.updates == 0:
            self.begun = (time.perf_counter(), time.process_time())

    def note_groups(self, groups: Groups, verdicts: Verdicts) -> None:
        """Remember decided groups until the step ends."""
        visits = Visits.of(groups, self.selector.correct_at)
        kept = dict(zip(groups.rows.tolist(), verdicts.keep.tolist(), strict=True))
        for row, k, n in zip(visits.rows.tolist(), visits.successes.tolist(), visits.trials.tolist(), strict=True):
            self.groups.append([row, int(k), n, int(kept[row])])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        batch, rest = divmod(state.global_step, self.spec.updates)
        if rest:
            return  # in the middle of a training batch
        wall, cpu = time.perf_counter() - self.begun[0], time.process_time() - self.begun[1]
        metrics = self.selector.metrics
        parts = {name: metrics.get(name, 0.0) for name in PARTS if name != "train_s"}
        parts["train_s"] = wall - sum(parts.values())
        for name, value in (*parts.items(), ("wall_s", wall), ("cpu_s", cpu)):
            self.spent[name] += value
        total = int(metrics["rollouts_total"])
        self.done = total >= self.spec.responses or bool(self.spec.steps and batch >= self.spec.steps)
        if total >= self.next_eval or self.done:
            self.evaluate(batch, total, whole=self.done)
        line = {"step": batch, "responses": total, "held_out": self.held_out, "spent": self.spent, "metrics": metrics}
        append_line(self.folder / "groups.jsonl", {"step": batch, "groups": self.groups})
        self.groups = []
        append_line(self.folder / "steps.jsonl", line)
        overdue = time.monotonic() - self.saved_at > SAVE_EVERY_S
        control.should_training_stop |= self.done or self.asked_to_stop
        control.should_save |= not self.done and (self.asked_to_stop or overdue)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved_at = time.monotonic()

    def evaluate(self, step: int, total: int, whole: bool = False) -> None:
        """Add a line to `evals.jsonl`; every fifth also says what holds on the whole training pool."""
        self.held_out = self.bed.held_out()
        line: dict[str, Any] = {"step": step, "responses": total, "held_out": self.held_out}
        line |= {name: self.spent[name] for name in ("wall_s", "cpu_s")}
        line["tokens"] = self.selector.metrics.get("tokens_total", 0.0)
        number = self.next_eval // self.spec.eval_responses
        if self.bed.exact and (whole or number % 5 == 0):
            rates = self.bed.training_rates()
            line |= self.bed.premise(rates)
            exact = [round(rate, 5) for rate in rates.tolist()]
            append_line(self.folder / "rates.jsonl", {"step": step, "responses": total, "pass_rates": exact})
        append_line(self.folder / "evals.jsonl", line)
        self.next_eval = self._after(total)

    def _after(self, responses: int) -> int:
        return (responses // self.spec.eval_responses + 1) * self.spec.eval_responses

    def finish(self) -> int:
        """Write the result of an arm that is done, which needs its checkpoints no more. Returns the exit code."""
        if not self.done:
            return STOPPED
        last = read_lines(self.folder / "steps.jsonl")[-1]
        result = {"spec": asdict(self.spec), "steps": last["step"], "responses": last["responses"], "spent": self.spent}
        temporary = self.folder / "result.tmp"
        temporary.write_text(json.dumps(result))
        os.replace(temporary, self.folder / "result.json")
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return 0


def main(words: Sequence[str]) -> int:
    """`SPEC.json [--leash]`: run the arm that the file describes, in the folder where it stands."""
    path = Path(words[0])
    return run_arm(read_spec(path), path.parent, leash=0 if "--leash" in words else None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
