"""What happens inside one generation step of TRL: rounds of picks, rollouts and rewards, on every process in step.

The selector lives on the main process. It leads: it broadcasts what is to be done (score these prompts, roll out those),
and all processes do their share with the trainer's own functions. At the end the rollouts of the training batch are fetched
from whichever process made them, and the trainer builds its batch from them (`Replay`).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list, gather_object

from edgewise.errors import HostError, ShortfallError, SignalError
from edgewise.hosts.trl_replay import Replay, Rollouts, joined
from edgewise.selector import Selector
from edgewise.signals.entropy import PromptEntropy, response_entropy
from edgewise.step import Step
from edgewise.types import PROMPT_ENTROPY, ROLLOUT_ENTROPY, Floats, Groups, Ints, Outcome, Signal, Ticket

_LEVELS = frozenset(
    {"step", "rollouts_total", "tokens_total", "degraded_total", "dup_outcomes", "epoch", "in_flight", "p_easy", "p_hard"}
)
"""Metrics that are logged as they stand; all others are averaged over the steps since the last log line."""


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
        # what the trainer's own loader would have shown the reward functions
        self._dataset = trainer._remove_unused_columns(trainer.train_dataset, description="training")
        self._user_signals = signals
        self._entropy: PromptEntropy | None = None
        self._scored_model: Any = None
        self._in_order = False
        self._version = self._versions_before = 0
        self._rounds: list[tuple[Rollouts, torch.Tensor]] = []
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
            served[PROMPT_ENTROPY] = self._score_everywhere
        return served

    def check_signals(self) -> None:
        """Refuse now what would fail in the first step: a signal that is not served, a model that cannot be scored."""
        self.selector.check_signals(self.served)
        asked = self.selector.method.needs & ({PROMPT_ENTROPY, ROLLOUT_ENTROPY} - set(self._user_signals))
        if asked:
            self._prompt_entropy()
            self._tokenized([0])

    def _prompt_entropy(self) -> PromptEntropy:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        if self._entropy is None or self._scored_model is not model:
            self._entropy, self._scored_model = PromptEntropy(model), model
        return self._entropy

    def _tokenized(self, rows: Sequence[int]) -> list[list[int]]:
        """The prompts' tokens, as the trainer renders them for rollouts."""
        answer = self.trainer._tokenize_prompts([self._dataset[int(r)]["prompt"] for r in rows])
        if not isinstance(answer, tuple) or len(answer) != 3 or len(answer[0]) != len(rows):
            raise HostError(
                "GRPOTrainer._tokenize_prompts no longer answers (prompt_ids, images, fields). Install a tested TRL."
            )
        return list(answer[0])

    # -- one generation step -------------------------------------------------------------------------------------------

    def choose(self, local_rows: int) -> tuple[list[dict[str, Any]], Replay, torch.Tensor]:
        """Run the rounds of one step on all processes.

        Returns this process' rows, the replay for TRL, and (local_rows,) 1.0 for rows of kept groups, 0.0 for fillers.
        """
        trainer, accelerator = self.trainer, self.trainer.accelerator
        started = time.perf_counter()
        expected = self.selector.batch_size * trainer.num_generations
        if local_rows * accelerator.num_processes != expected:
            raise HostError(
                f"The trainer asks for {local_rows} rollouts on each of {accelerator.num_processes} processes; the selector "
                f"was made for {expected} in all (generation_batch_size). Something changed the batch size after `attach`."
            )
        self._rounds, self._in_order = [], False
        self._local_rows = local_rows
        trainer._pending_extra_logs.clear()  # of a generation that failed half way
        trainer._pending_metrics.clear()
        if accelerator.is_main_process:
            try:
                final = self._lead()
            except BaseException as error:
                if not self._in_order:  # the others are waiting for an order; in the middle of one they would not hear this
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
        return self._examples([record["row"] for record in records]), Replay(records, rewards), real

    def _examples(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """One row of the dataset a rollout, each its own: what a reward function writes into one is in no other."""
        read = {row: self._dataset[row] for row in dict.fromkeys(rows)}
        return [copy.deepcopy(dict(read[row])) for row in rows]

    def _policy_version(self) -> int:
        """Optimizer steps so far. The trainer counts anew with each `train()`; the weights go on, and so does this."""
        step = self.trainer.state.global_step
        if step + self._versions_before < self._version:
            self._versions_before = self._version - step + 1
        self._version = step + self._versions_before
        return self._version

    def _lead(self) -> list[tuple[int, int, float]]:
        """The main process: drive the selector. Returns the training batch as (round, index in round, 1 kept / 0 filler)."""
        selector = self.selector
        place: dict[int, tuple[int, int]] = {}
        with selector.step(policy_version=self._policy_version()) as step:
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
        rewards, entropies, lengths, truncated, reward_s = self._everywhere("roll", np.array([t.row for t in tickets]))
        step.note(rollout_s=time.perf_counter() - started - reward_s, reward_s=reward_s)
        shape = (-1, self.selector.group_size)
        total = self._total(rewards).view(shape).double().cpu().numpy()
        correct = None
        if self.outcome is not None:
            verdict = rewards[:, self.trainer.reward_func_names.index(self.outcome)].view(shape).double().cpu().numpy()
            correct = np.where(np.isnan(verdict), np.nan, verdict >= self.correct_at)
        tokens = lengths.view(shape).sum(dim=1).tolist()
        cut = truncated.view(shape).tolist()
        mean_entropy = entropies.view(shape).mean(dim=1).tolist() if entropies is not None else [None] * len(tickets)
        return [
            Outcome(
                ticket=ticket,
                rewards=total[i],
                correct=None if correct is None else correct[i],
                statuses=["truncated" if t else "ok" for t in cut[i]] if any(cut[i]) else None,
                rollout_entropy=mean_entropy[i],
                response_tokens=int(tokens[i]),
            )
            for i, ticket in enumerate(tickets)
        ]

    def _total(self, rewards: torch.Tensor) -> torch.Tensor:
        """(n,) weighted sum over the reward functions, as TRL forms it; NaN where every one of them said None."""
        total: torch.Tensor = (rewards * self.trainer.reward_weights.to(rewards)).nansum(dim=1)
        total[rewards.isnan().all(dim=1)] = torch.nan
        return total

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
        self._in_order = True
        answer = self._do(order, rows)
        self._in_order = False
        return answer

    def _score_everywhere(self, rows: Ints) -> Floats:
        """Prompt entropies; where a process could not score its share, an error here and nowhere else."""
        values, errors = self._everywhere("entropy", rows)
        if errors:
            raise SignalError(f"signal({PROMPT_ENTROPY!r}) failed: {errors[0]}.")
        scored: Floats = values
        return scored

    def _do(self, order: str, rows: Ints) -> Any:
        return {"roll": self._do_roll, "entropy": self._do_entropy}[order](rows)

    def _share(self, n: int) -> tuple[int, int]:
        """(rows of each process, rows of padding) when `n` rows are split evenly."""
        processes = self.trainer.accelerator.num_processes
        each = -(-n // processes)
        return each, each * processes - n

    def _do_roll(self, rows: Ints) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, float]:
        """Generate and score one round.

        Returns, for all its rollouts: rewards (n*G, functions), entropies, token counts, cut off or not; and reward seconds.
        """
        trainer, accelerator, group = self.trainer, self.trainer.accelerator, self.trainer.num_generations
        padded = list(rows)
        while len(padded) * group % accelerator.num_processes:  # whole extra groups, so that every process has the same number
            padded.append(rows[-1])
        each = len(padded) * group // accelerator.num_processes
        flat = [int(r) for r in padded for _ in range(group)][
            accelerator.process_index * each : (accelerator.process_index + 1) * each
        ]
        inputs = self._examples(flat)
        prompts = [example["prompt"] for example in inputs]

        limit = self.generate_rows or (each if getattr(trainer, "use_vllm", False) else self._local_rows)
        parts = [trainer._generate(prompts[i : i + limit]) for i in range(0, each, limit)]
        generated = joined(parts)
        for name, values in generated[5].items():  # extra fields of a rollout_func belong to the reward functions
            for i, example in enumerate(inputs):
                example[name] = values[i] if isinstance(values, list) else values
        started = time.perf_counter()
        rewards = trainer._calculate_rewards(inputs, prompts, generated[3], generated[1])
        reward_s = time.perf_counter() - started
        # TRL would read short columns of log_extra row by row, too
        extra = {name: [*values, *[None] * each][:each] for name, values in trainer._pending_extra_logs.items()}
        trainer._pending_extra_logs.clear()
        usable = rewards.clone()
        usable[~self._total(rewards).isfinite()] = torch.nan  # what counts as missing here is unscored for TRL
        self._rounds.append((Rollouts(flat, generated, extra), usable))

        real = len(rows) * group
        counts = accelerator.gather(torch.tensor(self._counted(generated), device=accelerator.device))[:real]
        entropies = None
        if ROLLOUT_ENTROPY in self.selector.method.needs:
            with accelerator.autocast():
                values = response_entropy(self._prompt_entropy().tokens, generated[0], generated[1])
            entropies = accelerator.gather(torch.as_tensor(values, device=accelerator.device, dtype=torch.float64))[:real]
        return rewards[:real], entropies, counts[:, 0], counts[:, 1], reward_s

    def _counted(self, generated: tuple[Any, ...]) -> list[tuple[int, bool]]:
        """For each rollout of this process: tokens that the model generated, and whether it was cut off (as TRL says)."""
        trainer = self.trainer
        ends = {*trainer.eos_token_ids, trainer._tokenizer.pad_token_id}
        masks = generated[2] or [None] * len(generated[1])
        return [
            (len(ids) if mask is None else int(sum(mask)), len(ids) > 0 and ids[-1] not in ends)
            for ids, mask in zip(generated[1], masks, strict=True)
        ]

    def _do_entropy(self, rows: Ints) -> tuple[Floats, list[str]]:
        """Prompt entropy of `rows`, each process scoring its share with the weights it holds; and what went wrong, anywhere."""
        accelerator = self.trainer.accelerator
        each, padding = self._share(len(rows))
        padded = np.concatenate([rows, np.repeat(rows[-1:], padding)])
        mine = padded[accelerator.process_index * each : (accelerator.process_index + 1) * each]
        values, errors = np.full(each, np.nan), []
        try:
            with accelerator.autocast():
                values = self._prompt_entropy()(self._tokenized(mine.tolist()))
        except Exception as error:  # the others are about to gather: tell them, do not leave them
            errors = [f"{type(error).__name__}: {error}"]
        gathered: Floats = (
            accelerator.gather(torch.as_tensor(values, device=accelerator.device, dtype=torch.float64)).cpu().numpy()
        )
        return gathered[: len(rows)], gather_object(errors)

    def _fetch(self, wanted: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """The records of the training batch, from whichever process generated them."""
        accelerator = self.trainer.accelerator
        held: dict[int, dict[str, Any]] = {}
        for at, (number, j) in enumerate(wanted):
            rollouts = self._rounds[number][0]
            process, index = divmod(j, len(rollouts.rows))
            if process == accelerator.process_index:
                held[at] = rollouts.at(index)
        if accelerator.num_processes > 1:
            held = {at: record for part in gather_object([held]) for at, record in part.items()}
        return [held[at] for at in range(len(wanted))]

    # -- logging ---------------------------------------------------------------------------------------

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
