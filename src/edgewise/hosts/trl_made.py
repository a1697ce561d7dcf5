"""Rollouts by the ticket that asked for them: of the step under way, and of groups that wait for more from earlier steps.

Every process keeps the trajectories that it generated, and the rewards of all. A group that waits across steps keeps its
trajectories too, also through a checkpoint (`save`, `load`): plain JSON, since completions are text or messages.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from edgewise import foreign, state
from edgewise.foreign import shown
from edgewise.hosts.trl_replay import Rollouts

Asked = tuple[int, int, int]
"""(seq of the ticket, pool row, rollouts)."""
Place = tuple[int, int]
"""(seq of the ticket, number of the rollout in it)."""


@dataclass(frozen=True, slots=True)
class Made:
    """The rollouts of one ticket.

    rewards: (n, functions), known to every process.  records: those that this process generated, by number.
    """

    rewards: torch.Tensor
    records: dict[int, dict[str, Any]]


class Store:
    """What was generated for tickets whose group is not trained on yet."""

    def __init__(self) -> None:
        self._made: dict[int, Made] = {}

    def add_round(self, asked: Sequence[Asked], rollouts: Rollouts, rewards: torch.Tensor, process: int) -> None:
        """One finished round: `rollouts` are this process' share of it, `rewards` (all rollouts, functions) of the whole."""
        starts, at = {}, 0
        for seq, _, n in asked:
            starts[seq] = at
            self._made[seq] = Made(rewards[at : at + n], {})
            at += n
        each = len(rollouts.rows)
        for seq, _, n in asked:
            for j in range(n):
                owner, index = divmod(starts[seq] + j, each)
                if owner == process:
                    self._made[seq].records[j] = rollouts.at(index)

    def rewards(self, seqs: Iterable[int]) -> torch.Tensor:
        """(rollouts of these tickets, functions), one after the other."""
        return torch.cat([self._made[seq].rewards for seq in seqs])

    def reward(self, place: Place) -> torch.Tensor:
        """(functions,) of one rollout."""
        return self._made[place[0]].rewards[place[1]]

    def record(self, place: Place) -> dict[str, Any] | None:
        """One rollout, where this process generated it."""
        return self._made[place[0]].records.get(place[1])

    def keep_only(self, seqs: Iterable[int]) -> None:
        """Forget every ticket but these."""
        self._made = {seq: self._made[seq] for seq in seqs if seq in self._made}

    def __contains__(self, seq: int) -> bool:
        return seq in self._made

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def save(self, file: Path, of: str = "", positions: int = 1 << 20) -> None:
        """Write durably, if anything waits. `of` names the selector's state to which it belongs; positions: as in `most_bytes`.

        Raises OSError, and TypeError or ValueError for records that cannot be kept: not JSON, or too long to be read back.
        """
        if not self._made:
            return
        content = {
            str(seq): {"rewards": made.rewards.tolist(), "records": {str(j): record for j, record in made.records.items()}}
            for seq, made in self._made.items()
        }
        text = f'"of": {json.dumps(of)}, "made": {json.dumps(content, default=_plain)}}}'
        data = (_HEAD % _digest(text) + text).encode()
        rollouts = sum(len(made.rewards) for made in self._made.values())
        if len(data) > (most := most_bytes(rollouts, positions)):
            raise ValueError(
                f"rollouts of groups that wait take {len(data):,} bytes, more than the {most:,} that are read back"
            )
        _require_flat(data, len(self._made), rollouts)
        state.write(file, data)

    def load(self, files: Iterable[Path], functions: int, device: torch.device, kept: Expected) -> None:
        """Take up what `save` wrote, with rewards of so many functions on `device`, where those of new rounds are.

        files: those of this process; of several where fewer processes go on than saved. One that does not exist is left out.
        Raises OSError and ValueError; nothing is held then.
        """
        self._made = {}
        made: dict[int, Made] = {}
        for file in files:
            if not os.path.lexists(file):
                continue
            for seq, one in _read(file, functions, device, kept).items():
                both = made.setdefault(seq, Made(one.rewards, {})).records
                if both.keys() & one.records.keys():
                    raise ValueError(f"{file.name} holds rollouts of ticket {seq} that another file holds, too")
                both.update(one.records)
        self._made = made

    def known(self) -> dict[int, list[list[float]]]:
        """The rewards of each ticket."""
        return {seq: made.rewards.tolist() for seq, made in self._made.items()}

    def learn(self, known: Mapping[int, list[list[float]]], device: torch.device) -> None:
        """Rewards of tickets that other processes took up."""
        for seq, rewards in known.items():
            self._made.setdefault(seq, Made(torch.tensor(rewards, dtype=torch.float32, device=device), {}))

    def held(self) -> dict[int, tuple[int, list[int]]]:
        """For each ticket, its rollouts and the numbers of those that this process generated."""
        return {seq: (len(made.rewards), sorted(made.records)) for seq, made in self._made.items()}


def complete(held: Sequence[dict[int, tuple[int, list[int]]]]) -> bool:
    """Whether the processes, each of which says what it `held`, together hold each rollout of the same tickets once."""
    return all(
        all(seq in one and one[seq][0] == n for one in held)
        and sorted(j for one in held for j in one[seq][1]) == list(range(n))
        for seq, n in {seq: n for one in held for seq, (n, _) in one.items()}.items()
    )


class Expected(Protocol):
    """What a file of rollouts is held against."""

    @property
    def of(self) -> str:
        """Hash of the selector's state to which the file must belong."""

    @property
    def waiting(self) -> Mapping[int, tuple[int, int]]:
        """Ticket -> (pool row, rollouts), of the groups that wait."""

    @property
    def tokens(self) -> int:
        """That the model knows."""

    @property
    def positions(self) -> int:
        """Tokens of a sequence, at most."""


_HEAD = '{"sha256": "%s", '
_HEAD_BYTES = len(_HEAD % ("0" * 64))


def most_bytes(rollouts: int, positions: int) -> int:
    """Bytes of a file of so many rollouts: 64 a token (its number, log-probability, mask, text), and 256 KB for all that reward
    functions log of one.
    """
    return 4096 + rollouts * ((1 << 18) + 64 * positions)


def _read(file: Path, functions: int, device: torch.device, kept: Expected) -> dict[int, Made]:
    """What one file holds, whole and fit for this trainer. Raises OSError and ValueError."""
    most = most_bytes(sum(rollouts for _, rollouts in kept.waiting.values()), kept.positions)
    data = foreign.contents(file, most, links=False)
    try:
        head, text = data[:_HEAD_BYTES].decode("ascii"), data[_HEAD_BYTES:].decode("utf-8")
        saved = head[len('{"sha256": "') :][:64]
        first = text.startswith('"made": ')  # format 1: the digest is that of the inner object
        if head != _HEAD % saved or _digest(text[len('"made": ') : -1] if first else text) != saved:
            raise ValueError("its SHA-256 does not match its content")
        _require_flat(data, len(kept.waiting), sum(rollouts for _, rollouts in kept.waiting.values()))
        content = foreign.loads(data, nan=True)
        if not first and content["of"] != kept.of:
            raise ValueError("it belongs to another state of the selector than the one beside it")
        made = {int(seq): _made(entry, functions, device) for seq, entry in content["made"].items()}
    except (KeyError, TypeError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise ValueError(f"it is not what edgewise writes: {error!r}") from error
    if made.keys() != kept.waiting.keys():
        raise ValueError(f"it holds tickets {shown(sorted(made))}; those that wait are {shown(sorted(kept.waiting))}")
    for seq, one in made.items():
        row, rollouts = kept.waiting[seq]
        if len(one.rewards) != rollouts or not all(0 <= j < rollouts for j in one.records):
            raise ValueError(f"ticket {seq} is of {rollouts} rollouts, and it holds {len(one.rewards)}")
        for record in one.records.values():
            _require_record(record, row, kept.tokens, kept.positions)
    return made


def _require_flat(data: bytes, tickets: int, rollouts: int) -> None:
    """Raise ValueError for more lists and objects, or deeper ones, than such rollouts can have: parsed, each empty one takes
    twenty times its text.
    """
    most = 16 + 4 * tickets + 1_000 * rollouts  # of one rollout: its tokens, rewards, messages, and all that was logged of it
    text = np.frombuffer(data.replace(rb"\\", b"").replace(rb"\"", b""), dtype=np.uint8)  # every quote left is one of JSON's
    quoted, depth, deepest, begun = 0, 0, 0, 0
    for at in range(0, len(text), 1 << 20):
        part = text[at : at + (1 << 20)]
        inside = ((part == ord('"')).cumsum(dtype=np.uint8) + np.uint8(quoted)) & 1
        rises = (_OPENING[part].astype(np.int8) - _CLOSING[part])[inside == 0]
        begun += int((rises > 0).sum())
        heights = depth + rises.cumsum(dtype=np.int64)
        quoted = int(inside[-1])
        if len(heights):
            depth, deepest = int(heights[-1]), max(deepest, int(heights.max()))
    if begun > most or deepest > 50:
        raise ValueError(f"it has {begun:,} lists and objects, {deepest} deep; {most:,} and 50 at most")


_OPENING, _CLOSING = (np.isin(np.arange(256), [ord(mark) for mark in marks]) for marks in ("[{", "]}"))


def _made(entry: Any, functions: int, device: torch.device) -> Made:
    rewards = torch.tensor(entry["rewards"], dtype=torch.float32, device=device)
    if rewards.ndim != 2 or rewards.shape[1] != functions:
        raise ValueError(f"it does not hold the rewards of {functions} functions")
    return Made(rewards, {int(j): record for j, record in entry["records"].items()})


def _require_record(record: Any, row: int, tokens: int, positions: int) -> None:
    """Raise ValueError unless this trainer can have generated this rollout of this row."""
    names = ("row", "prompt_ids", "completion_ids", "tool_mask", "completions", "logprobs", "extra_logs")
    if not isinstance(record, dict) or record.keys() != set(names):
        raise ValueError(f"a rollout has not the fields {', '.join(names)}")
    if record["row"] != row:
        raise ValueError(f"a rollout is of row {shown(record['row'])}, its ticket of row {row}")
    prompt, completion = record["prompt_ids"], record["completion_ids"]
    for ids in (prompt, completion):
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < tokens for i in ids):
            raise ValueError(f"a rollout holds tokens outside of 0 to {tokens - 1}")
    if not prompt or len(prompt) + len(completion) > positions:
        raise ValueError(f"a rollout has {len(prompt)} + {len(completion)} tokens; this model reads up to {positions}")
    for name in ("tool_mask", "logprobs"):
        if record[name] is not None and not (isinstance(record[name], list) and len(record[name]) == len(completion)):
            raise ValueError(f"a rollout has not one entry of {name} a token")
    if not isinstance(record["completions"], (str, list)) or not isinstance(record["extra_logs"], dict):
        raise ValueError("a rollout's completion is neither text nor messages, or what was logged of it has no names")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's. Raises TypeError for what JSON cannot hold."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot be written into a checkpoint")
