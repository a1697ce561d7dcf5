"""The seeded command that makes the shipped policy: ``python -m edgewise.lab.warmup``.

The policy is trained as a language model is, on whole lines (prompt tokens too, so that prompt entropy means something), from
easy kinds to hard ones, and never on a held-out prompt (`edgewise.lab.arithmetic.held_out`). A policy that simply mastered its
kinds would leave reinforcement learning nothing to do, so in the last stretch the teacher slips: in each column of a sum or
difference at a rate that depends on how tricky the column is (`SLIP_OF_GRADE`), elsewhere in one digit now and then. The policy
learns to be as unsure as its teacher, column by column, and reinforcement learning has to unlearn that, the trickier the later.

Kinds of which the policy saw few demonstrations (mul22, mod43, addmod3) stay near-impossible.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save

from edgewise.lab.arithmetic import KINDS, Problem, held_out
from edgewise.lab.policy import ASSETS, HEADER, WEIGHTS, make_policy, make_tokenizer


@dataclass(frozen=True, slots=True)
class Lesson:
    """What the teacher shows of one kind.

    share: of the demonstrations, against the other kinds already begun.  slip_rate: probability of one wrong digit, for kinds
    whose columns are not graded.  begins: share of the warm-up that is over when the kind is first shown.
    """

    share: float
    slip_rate: float
    begins: float


LESSONS: dict[str, Lesson] = {
    "add1": Lesson(2, 0.0, 0.0),
    "sub1": Lesson(2, 0.0, 0.0),
    "add2": Lesson(12, 0.0, 0.0),
    "sub2": Lesson(12, 0.0, 0.0),
    "add3": Lesson(18, 0.0, 0.15),
    "sub3": Lesson(18, 0.0, 0.15),
    "mul11": Lesson(4, 0.01, 0.2),
    "mul21": Lesson(5, 0.30, 0.3),
    "mod21": Lesson(4, 0.20, 0.3),
    "addmod1": Lesson(4, 0.20, 0.3),
    "mul22": Lesson(1, 0.20, 0.4),
    "mod43": Lesson(1, 0.20, 0.4),
    "addmod3": Lesson(1, 0.20, 0.4),
}
SLIP_OF_GRADE = (0.0, 0.4, 0.8, 0.97)
"""Probability of a wrong digit in a column of grade 0, 1, 2, 3."""
SLIPS_BEGIN = 0.6
"""Skills are learned from a clean teacher; only then does the teacher begin to slip."""
STEPS, BATCH_SIZE, LEARNING_RATE = 3000, 64, 3e-3
PROMPT_WEIGHT = 0.1
"""Weight of a prompt token in the loss. Operand digits are random: at full weight they only drown the answers in noise."""


def demonstrations(rng: np.random.Generator, progress: float, n: int) -> Iterator[Problem]:
    """n problems with the teacher's answers, slips included, as shown when `progress` (0 to 1) of the warm-up is over."""
    begun = [name for name, lesson in LESSONS.items() if lesson.begins <= progress]
    shares = np.array([LESSONS[name].share for name in begun])
    counts = rng.multinomial(n, shares / shares.sum())
    for name, count in zip(begun, counts.tolist(), strict=True):
        allowed = (problem for problem in KINDS[name].problems(name, rng) if not held_out(problem.prompt))
        for problem in islice(allowed, count):
            yield slipped(problem, LESSONS[name].slip_rate, rng) if progress >= SLIPS_BEGIN else problem


def slipped(problem: Problem, slip_rate: float, rng: np.random.Generator) -> Problem:
    """The problem as the teacher answers it: each graded column may go wrong; elsewhere one digit, at `slip_rate`."""
    if problem.grades:
        wrong = [i for i, grade in enumerate(problem.grades) if rng.random() < SLIP_OF_GRADE[grade]]
    else:
        wrong = [int(rng.integers(len(problem.answer)))] if rng.random() < slip_rate else []
    digits = list(problem.answer)
    for i in wrong:
        digits[i] = str((int(digits[i]) + int(rng.integers(1, 10))) % 10)
    return replace(problem, answer="".join(digits))


def warm_up(*, steps: int = STEPS, seed: int = 0, progress: bool = False) -> tuple[transformers.Qwen2ForCausalLM, list[float]]:
    """Train a fresh policy on demonstrations. Returns the model in eval mode and the loss of every step (nats a token).

    One torch thread gives the same weights every time; the learning rate falls to zero over `steps` along a cosine.
    """
    model: Any = make_policy(seed)
    tokenizer = make_tokenizer()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    rng = np.random.default_rng([seed, 1])
    losses: list[float] = []
    for step in range(steps):
        scale = min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * scale
        loss = _loss(model, tokenizer, list(demonstrations(rng, step / steps, BATCH_SIZE)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if progress and (step + 1) % 200 == 0:
            print(f"warm-up {step + 1:5d}/{steps}  loss {np.mean(losses[-200:]):.4f}", file=sys.stderr)
    return model.eval(), losses


def _loss(model: Any, tokenizer: Any, batch: list[Problem]) -> torch.Tensor:
    """Mean cross entropy in nats over the whole lines, prompt tokens at `PROMPT_WEIGHT`."""
    prompts: list[list[int]] = tokenizer([p.prompt for p in batch])["input_ids"]
    answers: list[list[int]] = tokenizer([p.answer for p in batch], add_special_tokens=False)["input_ids"]
    lines = [prompt + answer + [tokenizer.eos_token_id] for prompt, answer in zip(prompts, answers, strict=True)]
    width = max(map(len, lines))
    ids = torch.full((len(lines), width), tokenizer.pad_token_id)
    weights = torch.zeros(len(lines), width)
    for row, (line, prompt) in enumerate(zip(lines, prompts, strict=True)):
        ids[row, : len(line)] = torch.tensor(line)
        weights[row, : len(line)] = 1.0
        weights[row, : len(prompt)] = PROMPT_WEIGHT
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    nats = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    result: torch.Tensor = (nats * weights[:, 1:]).sum() / weights[:, 1:].sum()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m edgewise.lab.warmup", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=ASSETS, help="folder for policy.safetensors and policy.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.process_time()
    model, losses = warm_up(steps=args.steps, seed=args.seed, progress=True)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights = save(state)
    header = {
        "command": f"python -m edgewise.lab.warmup --steps {args.steps} --seed {args.seed}",
        "seed": args.seed, "steps": args.steps, "parameters": model.num_parameters(),
        "final_loss": round(float(np.mean(losses[-100:])), 4),
        "torch": torch.__version__.split("+")[0], "transformers": transformers.__version__, "threads": 1,
        "sha256": hashlib.sha256(weights).hexdigest(),
    }  # fmt: skip
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / WEIGHTS.name).write_bytes(weights)
    (args.out / HEADER.name).write_text(json.dumps(header, indent=2) + "\n")
    print(f"{args.out / WEIGHTS.name}  {len(weights):,} bytes  {time.process_time() - started:.0f} s of one core")


if __name__ == "__main__":
    main()
