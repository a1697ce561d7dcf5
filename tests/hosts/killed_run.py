"""A real GRPOTrainer in a process of its own, to be killed: lives are forked from one server that has TRL loaded already.

    with Lives() as lives:                                        # starts the server: python -m tests.hosts.killed_run
        lives.run(Life(folder, "hive", name="whole"))             # uninterrupted
        lives.run(Life(folder, "hive", kill=("save", 2, 0.5)))    # kills itself half way through the checkpoint of step 2
        lives.start(Life(folder, "hive", resume="complete"))      # goes on from the newest complete checkpoint

Each life appends one line a finished step to `FOLDER/steps-RANK.jsonl`: the prompts it trained on, and all that it rolled out.
At its end it leaves `FOLDER/NAME-RANK.json`: hashes of weights and selector, totals, what was counted.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
"""Seconds that one life may take, on a busy machine."""
SCOPES = ("generate", "save")
"""Where a life can be told to kill itself: while a step generates and chooses, or while its checkpoint is written."""


@dataclass(frozen=True)
class Life:
    """What one process is to do. Everything is plain, for it travels as JSON.

    resume: None, "complete" (the newest checkpoint whose `trainer_state.json` can be read), "newest" (transformers' own
    choice), or a folder.  kill: (scope, trainer step, share of the scope's calls), or ("file", step, number of the file
    operation).  calls: how many there are.  pays: "rollout" (by what was generated), "prompt" (whatever was generated),
    "graded".  held: not `method`, but two rollouts a group now and two in the next step.
    """

    folder: str
    method: str
    name: str = "life"
    steps: int = 4
    resume: str | None = None
    kill: tuple[str, int, float] | None = None
    calls: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    given: dict[str, Any] = field(default_factory=dict)
    prompts: int = 40
    pays: str = "rollout"
    held: bool = False
    rank: int = 0
    world: int = 1
    port: int = 0


@dataclass(frozen=True)
class End:
    """code: exit code, -9 or -15 for a killed one.  said: what it printed."""

    code: int
    said: str


class Lives:
    """The server, and the lives that were started there."""

    def __enter__(self) -> Lives:
        env = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "true"}
        command = [sys.executable, "-m", "tests.hosts.killed_run"]
        self._server = subprocess.Popen(command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._said: dict[int, Path] = {}
        self._hear()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        assert self._server.stdout is not None
        self._server.stdout.close()

    def _hear(self) -> Any:
        assert self._server.stdout is not None
        ready, _, _ = select.select([self._server.stdout], [], [], 2 * PATIENCE)
        line = self._server.stdout.readline() if ready else b""
        assert line, "the server of lives does not answer"
        return json.loads(line)

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()
        return self._hear()

    def start(self, life: Life) -> int:
        """The pid of a new process."""
        Path(life.folder).mkdir(parents=True, exist_ok=True)
        said = Path(life.folder) / f"said-{life.name}-{life.rank}.txt"
        pid = int(self._ask({"start": asdict(life), "said": str(said)}))
        self._said[pid] = said
        return pid

    def wait(self, pid: int, seconds: float = PATIENCE) -> End:
        """Its end; it is killed, and that is an error, if it lives for longer than `seconds`."""
        code = self._ask({"wait": pid, "seconds": seconds})
        said = self._said.pop(pid).read_text(errors="replace")
        assert code is not None, f"still running after {seconds} s:\n{said[-3000:]}"
        return End(int(code), said)

    def run(self, life: Life) -> End:
        return self.wait(self.start(life))

    def kill(self, pid: int, number: int) -> End:
        """Send a signal and wait. The pid is not reused before: the server has not reaped it."""
        os.kill(pid, number)
        return self.wait(pid)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def complete(run: Path) -> list[Path]:
    """Checkpoints that TRL finished, oldest first.

    The main process writes `trainer_state.json` last. It does not wait for the others, whose random states may be torn then
    (resuming fails with EOFError) or missing (transformers goes on without, and says so at level "info"): these must be there.
    """
    found = []
    for folder in run.glob("checkpoint-*"):
        try:
            json.loads((folder / "trainer_state.json").read_text())
        except (OSError, ValueError):
            continue
        processes = len(list(folder.glob("edgewise/buffer-*.safetensors")))
        names = [f"rng_state_{rank}.pth" for rank in range(processes)] if processes > 1 else ["rng_state.pth"]
        if all(zipfile.is_zipfile(folder / name) for name in names):  # false for what is not there, too
            found.append(folder)
    return sorted(found, key=lambda folder: int(folder.name.partition("-")[2]))


def steps_of(folder: Path, rank: int = 0) -> dict[int, list[Any]]:
    """Step -> every account of it that a life gave: more than one where it was done again after a kill."""
    file = folder / f"steps-{rank}.jsonl"
    found: dict[int, list[Any]] = {}
    for line in file.read_text().splitlines() if file.is_file() else []:
        step, *rest = json.loads(line)
        found.setdefault(step, []).append(rest)
    return found


def result(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    return dict(json.loads((folder / f"{name}-{rank}.json").read_text()))


# -- the server ----------------------------------------------------------------------------------------------------------------


def serve() -> None:
    """One JSON order a line: start (a fork), or wait for one. Answers in JSON."""
    from tests.hosts import test_trl_groups, test_trl_methods, tiny  # noqa: F401  (what every life needs; imported once)

    _load_what_trl_loads_late()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    print(json.dumps("ready"), file=answers, flush=True)
    children: set[int] = set()
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            pid = os.fork()
            if pid == 0:
                _live_and_exit(order)
            children.add(pid)
            answer: Any = pid
        else:
            answer = _waited(order["wait"], order["seconds"])
            children.discard(order["wait"])
        print(json.dumps(answer), file=answers, flush=True)
    for pid in children:
        os.kill(pid, signal.SIGKILL)


def _load_what_trl_loads_late() -> None:
    """Half of a short life would be imports that torch and transformers put off."""
    import importlib

    for name in (
        "torch._dynamo", "transformers.generation", "transformers.models.qwen2.modeling_qwen2", "trl.trainer.grpo_trainer",
        "transformers.modelcard", "trl.trainer.utils", "accelerate.utils", "edgewise.hosts.trl", "wordllama", "scipy.stats",
        "edgewise.beliefs.ppm", "edgewise.signals.embedding", "safetensors.numpy", "torch.utils.serialization",
    ):  # fmt: skip
        importlib.import_module(name)


def _waited(pid: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.003)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _live_and_exit(order: dict[str, Any]) -> None:
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(said, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        live(Life(**order["start"]))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# -- one life ------------------------------------------------------------------------------------------------------------------


def live(life: Life) -> None:
    """Train to the end, or to the kill."""
    if life.world > 1:
        os.environ.update(
            RANK=str(life.rank), LOCAL_RANK=str(life.rank), WORLD_SIZE=str(life.world), MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(life.port),
        )  # fmt: skip
    import torch
    from transformers import TrainerCallback

    from edgewise.hosts.trl import attach
    from tests.hosts import tiny
    from tests.hosts.test_trl_groups import Shaped, hold
    from tests.hosts.test_trl_methods import data

    rounds: list[Any] = []

    def rewards(prompts: Any, completions: Any, kind: Any, completion_ids: Any, **_: Any) -> list[float]:
        rounds.append([list(dict.fromkeys(prompts)), _sha(repr([list(ids) for ids in completion_ids]).encode())])
        if life.pays == "prompt":
            return [1.0 if k == 0 else 0.0 if k == 2 else float(i % 2) for i, k in enumerate(kind)]
        if life.pays == "graded":
            return [sum(ids) % 11 / 10 for ids in completion_ids]
        return tiny.pays(completions, kind, completion_ids)

    folder = Path(life.folder)
    given = {"per_device_train_batch_size": 4 * tiny.G, "save_strategy": "steps", "save_steps": 1} | life.given
    if life.world > 1:
        given["ddp_backend"] = "gloo"
    pool = data().select(range(life.prompts))
    trainer = tiny.trainer(folder / "run", rewards=rewards, data=pool, max_steps=life.steps, **given)
    method: Any = Shaped([2], hold) if life.held else life.method
    selector = attach(trainer, method, parameters=life.parameters or None)
    cls = type(trainer)
    chosen: list[str] = []
    choose = trainer._edgewise.choose

    def choosing(rows: int) -> Any:
        examples, replay = choose(rows)
        chosen.extend(example["prompt"] for example in examples)
        return examples, replay

    trainer._edgewise.choose = choosing

    class Account(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            line = json.dumps([state.global_step, chosen, rounds]) + "\n"
            with (folder / f"steps-{life.rank}.jsonl").open("a") as out:  # one write: a line is there or not
                out.write(line)
            chosen.clear()
            rounds.clear()

    trainer.add_callback(Account())
    calls: dict[str, int] = {}
    _trap(trainer, cls, life, calls)
    trainer.train(resume_from_checkpoint=_from(life))
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    held = selector.method.state()
    arrays = {**{f"p/{k}": v for k, v in held.prompts.items()}, **{f"s/{k}": v for k, v in held.shared.items()}}
    metrics = {k: v for k, v in selector.metrics.items() if not k.endswith(("_s", "_ms"))}
    outcome = {
        "weights": _sha(weights.numpy().tobytes()),
        "beliefs": _sha(b"".join(k.encode() + v.tobytes() for k, v in sorted(arrays.items()))),
        "waiting": [[seq, parts] for seq, parts in selector.waiting.items()],
        "step": selector.step_number,
        "metrics": metrics,
        "calls": calls,
        "visits": [int(v) for v in held.prompts["visits"]] if "visits" in held.prompts else [],
        "global_step": trainer.state.global_step,
    }
    temporary = folder / f".{life.name}-{life.rank}"
    temporary.write_text(json.dumps(outcome))
    os.replace(temporary, folder / f"{life.name}-{life.rank}.json")


def _from(life: Life) -> str | bool | None:
    if life.resume == "newest":
        return True
    if life.resume != "complete":
        return life.resume
    found = complete(Path(life.folder) / "run")
    return str(found[-1]) if found else None


def _trap(trainer: Any, cls: Any, life: Life, calls: dict[str, int]) -> None:
    """Count the calls of each scope, and die in the middle of the one that was named."""
    audited: list[Callable[[], None]] = []

    def within(scope: str, step: int, work: Callable[[], Any]) -> Any:
        key = f"{scope}-{step}"
        wanted = -1
        if life.kill is not None and life.kill[0] == scope and life.kill[1] == step:
            wanted = int(life.kill[2] * life.calls[key])
        count, files = 0, 0

        def profile(*_: Any) -> None:
            nonlocal count
            if count == wanted:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1

        def file() -> None:
            nonlocal files
            if life.kill is not None and life.kill[0] == "file" and life.kill[1] == step and files == life.kill[2]:
                os.kill(os.getpid(), signal.SIGKILL)
            files += 1

        if scope == "save":
            audited.append(file)
        if wanted >= 0 or (life.name == "whole" and key != "save-1"):  # the first save loads modules: many calls, seen once
            sys.setprofile(profile)
        try:
            return work()
        finally:
            sys.setprofile(None)
            calls[key] = count
            if scope == "save":
                audited.clear()
                calls[f"file-{step}"] = files

    def audit(event: str, _: tuple[Any, ...]) -> None:
        if audited and event in ("open", "os.rename", "os.remove", "os.mkdir"):
            audited[0]()

    sys.addaudithook(audit)
    generate, save = cls._generate_and_score_completions, cls._save_checkpoint

    def generating(self: Any, inputs: Any) -> Any:
        return within("generate", self.state.global_step + 1, lambda: generate(self, inputs))

    def saving(self: Any, model: Any, trial: Any) -> Any:
        return within("save", self.state.global_step, lambda: save(self, model, trial))

    cls._generate_and_score_completions = generating
    cls._save_checkpoint = saving


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def pairs(
    lives: Lives, life: Life, world: int = 2, kills: Mapping[int, tuple[str, int, float]] | None = None
) -> Iterator[tuple[int, int]]:
    """(rank, pid) of one life on each of `world` processes; `kills` by rank."""
    port = free_port()
    for rank in range(world):
        kill = (kills or {}).get(rank, life.kill)
        yield rank, lives.start(replace(life, rank=rank, world=world, port=port, kill=kill))


def together(lives: Lives, life: Life, world: int = 2) -> Sequence[End]:
    """One life on each of `world` processes, to their ends."""
    return [lives.wait(pid) for _, pid in list(pairs(lives, life, world))]


if __name__ == "__main__":
    serve()
