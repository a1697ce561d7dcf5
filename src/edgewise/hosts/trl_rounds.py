"""What happens inside one generation step of TRL: rounds of picks, rollouts and rewards, on every process in step.

The selector lives on the main process. It leads: it broadcasts what is to be done (score these prompts, roll out those),
and all processes do their share with the trainer's own functions. At the end the rollouts of the training batch are fetched
from whichever process made them, and the trainer builds its batch from them (`Replay`).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file

from edgewise.errors import DegradedWarning, HostError, ShortfallError, StateError
from edgewise.selector import Selector
from edgewise.signals.entropy import PromptEntropy, response_entropy
from edgewise.step import Step
from edgewise.types import PROMPT_ENTROPY, ROLLOUT_ENTROPY, Floats, Groups, Ints, Outcome, Signal, Ticket

_FOLDER = "edgewise"
_GENERATE_FIELDS = 8
_LEVELS = frozenset(
    {"step", "rollouts_total", "tokens_total", "degraded_total", "dup_outcomes", "epoch", "in_flight", "p_easy", "p_hard"}
)
"""Metrics that are logged as they stand; all others are averaged over the steps since the last log line."""


class _Rollouts:
    """What this process generated in one round: one entry a rollout, in row order."""

    def __init__(self, prompts: list[Any], generated: tuple[Any, ...], extra_logs: dict[str, list[Any]]) -> None:
        prompt_ids, completion_ids, tool_mask, completions, logprobs, _, _, _ = generated
        self.columns: dict[str, list[Any] | None] = {
            "prompt": prompts,
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "tool_mask": tool_mask,
            "completions": completions,
            "logprobs": logprobs,
        }
        self.extra_logs = extra_logs

    def at(self, index: int) -> dict[str, Any]:
        """One rollout as a plain record that can travel to another process."""
        record = {name: None if column is None else column[index] for name, column in self.columns.items()}
        return record | {"extra_logs": {name: values[index] for name, values in self.extra_logs.items()}}


class Replay:
    """What `_generate` and `_calculate_rewards` answer while TRL builds the training batch."""

    def __init__(self, records: list[dict[str, Any]], rewards: torch.Tensor) -> None:
        self.records = records
        self.rewards = rewards

    def generated(self) -> tuple[Any, ...]:
        def column(name: str) -> list[Any] | None:
            return None if self.records[0][name] is None else [record[name] for record in self.records]

        kept = ("prompt_ids", "completion_ids", "tool_mask", "completions", "logprobs")
        return (*(column(name) for name in kept), {}, None, [])


class Rounds:
    """The bridge: runs rounds on every process, drives the selector on the main one."""

    def __init__(
        self,
        trainer: Any,
        selector: Selector,
        outcome: str | None,
        correct_at: float,
        signals: dict[Signal, Callable[[Ints], Any]],
        resume: str,
        generate_rows: int | None,
    ) -> None:
        self.trainer = trainer
        self.selector = selector
        self.outcome = outcome
        self.correct_at = correct_at
        self.resume = resume
        self.generate_rows = generate_rows
        self.replay: Replay | None = None
        self._user_signals = signals
        self._entropy: PromptEntropy | None = None
        self._rounds: list[tuple[_Rollouts, torch.Tensor]] = []
        self._pending_logs: list[dict[str, float]] = []

    # -- signals -------------------------------------------------------------------------------------------------------

    @property
    def served(self) -> set[Signal]:
        """Signals this trainer can serve. Weights that are spread over processes cannot be scored yet."""
        own = set() if self._sharded() else {PROMPT_ENTROPY, ROLLOUT_ENTROPY}
        return own | set(self._user_signals)

    def _sharded(self) -> bool:
        trainer = self.trainer
        plugin = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
        return bool(getattr(trainer, "is_fsdp_enabled", False)) or (plugin is not None and plugin.zero_stage == 3)

    def _signals(self) -> dict[Signal, Callable[[Ints], Any]]:
        served: dict[Signal, Callable[[Ints], Any]] = dict(self._user_signals)
        if PROMPT_ENTROPY in self.served and PROMPT_ENTROPY not in served:
            served[PROMPT_ENTROPY] = lambda rows: self._everywhere("entropy", rows)
        return served

    def _prompt_entropy(self) -> PromptEntropy:
        if self._entropy is None:
            self._entropy = PromptEntropy(self.trainer.accelerator.unwrap_model(self.trainer.model))
        return self._entropy

    # -- one generation step -------------------------------------------------------------------------------------------

    def choose(self, local_rows: int) -> tuple[list[dict[str, Any]], Replay, torch.Tensor]:
        """Run the rounds of one step on all processes.

        Returns this process' rows, the replay for TRL, and (local_rows,) 1.0 for rows of kept groups, 0.0 for fillers.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        started = time.perf_counter()
        self._rounds = []
        self._local_rows = local_rows
        if accelerator.is_main_process:
            try:
                final = self._lead()
            except BaseException as error:
                self._send(("abort", f"{type(error).__name__}: {error}"))
                raise
            self._send(("final", final))
        else:
            final = self._follow()
        wanted = [(r, i * trainer.num_generations + g) for r, i, _ in final for g in range(trainer.num_generations)]
        rewards = torch.stack([self._rounds[r][1][j] for r, j in wanted])
        mine = slice(accelerator.process_index * local_rows, (accelerator.process_index + 1) * local_rows)
        records = self._fetch(wanted)[mine]
        real = torch.tensor([kept for _, _, kept in final for _ in range(trainer.num_generations)], dtype=torch.float32)[mine]
        self._rounds = []
        for name in sorted({name for record in records for name in record["extra_logs"]}):
            trainer._pending_extra_logs[name] = [record["extra_logs"].get(name) for record in records]
        if accelerator.is_main_process:
            metrics = self.selector.metrics
            elsewhere = sum(metrics.get(name, 0.0) for name in ("rollout_s", "reward_s", "signal_s"))
            metrics["select_s"] = max(0.0, time.perf_counter() - started - elsewhere)  # choosing and all bookkeeping
            self._pending_logs.append(dict(metrics))
        return [{"prompt": record["prompt"]} for record in records], Replay(records, rewards), real

    def _lead(self) -> list[tuple[int, int, float]]:
        """The main process: drive the selector. Returns the training batch as (round, index in round, 1 kept / 0 filler)."""
        selector = self.selector
        place: dict[int, tuple[int, int]] = {}
        with selector.step(policy_version=self.trainer.state.global_step) as step:
            for number, tickets in enumerate(step.requests(self._signals())):
                ragged = [t for t in tickets if t.rollouts != selector.group_size]
                if ragged:
                    raise HostError(
                        f"TRL trains groups of {selector.group_size}; {selector.method.name} asked for {ragged[0].rollouts}."
                    )
                place |= {t.seq: (number, i) for i, t in enumerate(tickets)}
                step.report(self._roll_out(step, tickets))
            final = self._fill(step)
        return [(*place[ticket.seq], kept) for ticket, kept in final]

    def _fill(self, step: Step) -> list[tuple[Ticket, float]]:
        """The batch TRL expects, exactly: kept groups, then dropped ones whose advantages are forced to 0."""
        size = self.selector.batch_size
        try:
            kept: Groups | None = step.training_batch
        except ShortfallError as error:
            kept = None
            self.selector.problem(error)
        chosen = [(t, 1.0) for t in kept.tickets] if kept is not None else []
        spare = [(t, 0.0) for t in step.fillers.tickets] if step.fillers is not None else []
        spare = spare or [(t, 0.0) for t, _ in chosen]
        if not spare and len(chosen) < size:
            raise ShortfallError("This step rolled out no group at all; there is nothing to train on.")
        return chosen + [spare[i % len(spare)] for i in range(size - len(chosen))]

    def _roll_out(self, step: Step, tickets: list[Ticket]) -> list[Outcome]:
        started = time.perf_counter()
        rewards, entropies, lengths, reward_s = self._everywhere("roll", np.array([t.row for t in tickets]))
        step.note(rollout_s=time.perf_counter() - started - reward_s, reward_s=reward_s)
        shape = (-1, self.selector.group_size)
        weights = self.trainer.reward_weights.to(rewards)
        total = (rewards * weights).nansum(dim=1)
        total[rewards.isnan().all(dim=1)] = torch.nan  # unscorable: every function said None
        total = total.view(shape).double().cpu().numpy()
        correct = None
        if self.outcome is not None:
            verdict = rewards[:, self.trainer.reward_func_names.index(self.outcome)].view(shape).double().cpu().numpy()
            correct = np.where(np.isnan(verdict), np.nan, verdict >= self.correct_at)
        tokens = lengths.view(shape).sum(dim=1).tolist()
        mean_entropy = entropies.view(shape).mean(dim=1).tolist() if entropies is not None else [None] * len(tickets)
        return [
            Outcome(
                ticket=ticket,
                rewards=total[i],
                correct=None if correct is None else correct[i],
                rollout_entropy=mean_entropy[i],
                response_tokens=int(tokens[i]),
            )
            for i, ticket in enumerate(tickets)
        ]

    # -- all processes in step -----------------------------------------------------------------------------------------

    def _send(self, message: tuple[str, Any]) -> None:
        if self.trainer.accelerator.num_processes > 1:
            broadcast_object_list([message], from_process=0)

    def _follow(self) -> list[tuple[int, int, float]]:
        """Every other process: do what the main one says until the batch is decided."""
        while True:
            box: list[Any] = [None]
            broadcast_object_list(box, from_process=0)
            order, argument = box[0]
            if order == "abort":
                raise HostError(f"The main process stopped this step: {argument}")
            if order == "final":
                return argument  # type: ignore[no-any-return]
            self._do(order, argument)

    def _everywhere(self, order: str, rows: Ints) -> Any:
        self._send((order, rows))
        return self._do(order, rows)

    def _do(self, order: str, rows: Ints) -> Any:
        return {"roll": self._do_roll, "entropy": self._do_entropy}[order](rows)

    def _share(self, n: int) -> tuple[int, int]:
        """(rows of each process, rows of padding) when `n` rows are split evenly."""
        processes = self.trainer.accelerator.num_processes
        each = -(-n // processes)
        return each, each * processes - n

    def _do_roll(self, rows: Ints) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, float]:
        """Generate and score one round. Returns, for all its rollouts: rewards (n*G, functions), entropies, token counts."""
        trainer, accelerator, group = self.trainer, self.trainer.accelerator, self.trainer.num_generations
        padded = list(rows)
        while len(padded) * group % accelerator.num_processes:  # whole extra groups, so that every process has the same number
            padded.append(rows[-1])
        each = len(padded) * group // accelerator.num_processes
        flat = [int(r) for r in padded for _ in range(group)][
            accelerator.process_index * each : (accelerator.process_index + 1) * each
        ]
        examples = {r: trainer.train_dataset[r] for r in set(flat)}
        inputs = [dict(examples[r]) for r in flat]
        prompts = [example["prompt"] for example in inputs]

        limit = self.generate_rows or (each if getattr(trainer, "use_vllm", False) else self._local_rows)
        parts = [trainer._generate(prompts[i : i + limit]) for i in range(0, each, limit)]
        generated = _joined(parts)
        for name, values in generated[5].items():  # extra fields of a rollout_func belong to the reward functions
            for i, example in enumerate(inputs):
                example[name] = values[i] if isinstance(values, list) else values
        started = time.perf_counter()
        rewards = trainer._calculate_rewards(inputs, prompts, generated[3], generated[1])
        reward_s = time.perf_counter() - started
        extra = {name: list(values)[-each:] for name, values in trainer._pending_extra_logs.items()}
        trainer._pending_extra_logs.clear()
        self._rounds.append((_Rollouts(prompts, generated, extra), rewards))

        real = len(rows) * group
        lengths = torch.tensor([len(ids) for ids in generated[1]], device=accelerator.device)
        entropies = None
        if ROLLOUT_ENTROPY in self.selector.method.needs:
            values = response_entropy(self._prompt_entropy().tokens, generated[0], generated[1])
            entropies = accelerator.gather(torch.as_tensor(values, device=accelerator.device, dtype=torch.float64))[:real]
        return rewards[:real], entropies, accelerator.gather(lengths)[:real], reward_s

    def _do_entropy(self, rows: Ints) -> Floats:
        """Prompt entropy of `rows`, each process scoring its share with the weights it holds."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        each, padding = self._share(len(rows))
        padded = np.concatenate([rows, np.repeat(rows[-1:], padding)])
        mine = padded[accelerator.process_index * each : (accelerator.process_index + 1) * each]
        prompt_ids, _, _ = trainer._tokenize_prompts([trainer.train_dataset[int(r)]["prompt"] for r in mine])
        values = torch.as_tensor(self._prompt_entropy()(prompt_ids), device=accelerator.device, dtype=torch.float64)
        gathered: Floats = accelerator.gather(values)[: len(rows)].cpu().numpy()
        return gathered

    def _fetch(self, wanted: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """The records of the training batch, from whichever process generated them."""
        accelerator = self.trainer.accelerator
        held: dict[int, dict[str, Any]] = {}
        for at, (number, j) in enumerate(wanted):
            rollouts = self._rounds[number][0]
            each = len(rollouts.columns["prompt"] or ())
            process, index = divmod(j, each)
            if process == accelerator.process_index:
                held[at] = rollouts.at(index)
        if accelerator.num_processes > 1:
            held = {at: record for part in gather_object([held]) for at, record in part.items()}
        return [held[at] for at in range(len(wanted))]

    # -- logging and checkpoints ---------------------------------------------------------------------------------------

    def take_logs(self) -> dict[str, float]:
        """`edgewise/...` values since the last call: totals and levels as they stand, everything else averaged over steps."""
        pending, self._pending_logs = self._pending_logs, []
        if not pending:
            return {}
        names = {name for metrics in pending for name in metrics}
        values = {}
        for name in sorted(names):
            series = [metrics[name] for metrics in pending if name in metrics]
            values[f"edgewise/{name}"] = series[-1] if name in _LEVELS else sum(series) / len(series)
        return values

    def save(self, checkpoint: Path) -> None:
        """Selector state and, in the middle of a generation cycle, the buffered batch that TRL itself would lose."""
        trainer = self.trainer
        folder = checkpoint / _FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        every = trainer.args.steps_per_generation * trainer.num_iterations
        tensors: dict[str, torch.Tensor] = {"step": torch.tensor(trainer._step)}
        if trainer._step % every and trainer._buffered_inputs is not None:
            for i, part in enumerate(trainer._buffered_inputs):
                tensors |= {
                    f"{i}/{k}": v.detach().cpu().contiguous().clone() for k, v in part.items() if isinstance(v, torch.Tensor)
                }
        if trainer.accelerator.is_main_process:
            self.selector.save(folder / "selector.safetensors")
        target = folder / f"buffer-{trainer.accelerator.process_index}.safetensors"
        save_file(tensors, f"{target}.tmp")
        os.replace(f"{target}.tmp", target)

    def restore(self, checkpoint: Path) -> None:
        """Continue exactly from `checkpoint`: selector, position in the generation cycle, buffered batch."""
        trainer = self.trainer
        folder = checkpoint / _FOLDER
        if not (folder / "selector.safetensors").is_file():
            message = f"The checkpoint {checkpoint} has no selector state ({_FOLDER}/selector.safetensors)."
            if self.resume != "fresh":
                raise StateError(f"{message} Pass attach(trainer, ..., resume='fresh') to start from priors.")
            warnings.warn(f"edgewise: {message} Starting from priors.", DegradedWarning, stacklevel=2)
            return
        if trainer.accelerator.is_main_process:
            self.selector.restore(folder / "selector.safetensors")
        target = folder / f"buffer-{trainer.accelerator.process_index}.safetensors"
        if not target.is_file():  # another number of processes: TRL starts the cycle anew
            return
        tensors = {name: tensor.to(trainer.accelerator.device) for name, tensor in load_file(target).items()}
        trainer._step = int(tensors.pop("step"))
        if tensors:
            parts: dict[int, dict[str, torch.Tensor]] = {}
            for name, tensor in tensors.items():
                number, _, key = name.partition("/")
                parts.setdefault(int(number), {})[key] = tensor
            trainer._buffered_inputs = [parts[i] for i in sorted(parts)]


def _joined(parts: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Several answers of `_generate` as one."""
    if any(len(part) != _GENERATE_FIELDS for part in parts):
        raise HostError(
            f"GRPOTrainer._generate answered {len(parts[0])} values; this host knows {_GENERATE_FIELDS}. Install a tested TRL."
        )
    if len(parts) == 1:
        return parts[0]

    def joined(column: int) -> list[Any] | None:
        return None if parts[0][column] is None else [value for part in parts for value in part[column]]

    extra = {
        name: [v for part in parts for v in part[5][name]] if isinstance(value, list) else value
        for name, value in parts[0][5].items()
    }
    return (*(joined(i) for i in range(5)), extra, None, [])
