"""The prompts and their stable names.

A `row` is a position in the pool; a `prompt_id` is a name that outlives shuffles, restarts and edits of the data set. Ids come
from a column of the data set when one is fit to be a key, and else from the content of the prompt itself. They are compared
code point by code point and never become file names.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import count, islice
from typing import Any, Literal, TypeAlias

import numpy as np

from edgewise.errors import PoolError, nearest
from edgewise.foreign import shown
from edgewise.rows import FINGERPRINT_BYTES, Table, fingerprint, open_table
from edgewise.types import Array, Ints

Duplicates: TypeAlias = Literal["error", "merge", "suffix"]

ID_COLUMNS = ("prompt_id", "id", "extra_info.index", "extra_info.qid", "task_id", "example_id", "uid")
"""Columns tried for ids, in this order, when none is named. A dot looks inside a column of mappings."""

ANSWER_COLUMNS = ("answer", "solution", "ground_truth", "reward_model.ground_truth", "label", "target")
"""Columns that may hold the reference answer; those that exist are part of a prompt's fingerprint."""

SOURCE_COLUMN = "data_source"
"""Names the data set a row comes from; put before an id when ids repeat across sources."""

FINGERPRINT = np.dtype(f"V{FINGERPRINT_BYTES}")
_SHOWN = 5
_KEY_BYTES = 8
_BLOCK = 65_536  # ids hashed at once: bounds the memory


class PromptPool:
    """The prompts of a run: `ids` names them, `pool[row]` reads them, `digest` identifies them all.

    Holds one string and 16 bytes a prompt; rows stay where the data set keeps them. Build one with `from_dataset`, or with
    `from_ids` where the host knows only ids.

    >>> pool = PromptPool.from_dataset([{"id": "a", "prompt": "1+1="}, {"id": "b", "prompt": "2+2="}])
    >>> len(pool), pool.ids, pool.row_of("b"), pool[1]["prompt"]
    (2, ('a', 'b'), 1, '2+2=')
    >>> print(pool.how)
    ids from column 'id'
    """

    ids: tuple[str, ...]
    """N distinct ids; the position of an id is its row."""

    fingerprints: Array
    """(N,) 16 raw bytes a prompt (dtype V16, read-only): blake2b of the prompt and its reference answer; zeros if unknown."""

    how: str
    """How the ids were found, and why other columns were not taken."""

    def __init__(
        self,
        ids: Iterable[str],
        *,
        fingerprints: Array | None = None,
        how: str = "ids given by the host",
        dataset: Any = None,
        dataset_rows: Ints | None = None,
    ) -> None:
        self.ids = tuple(_iterated(ids, "PromptPool(ids=...)"))
        if not all(isinstance(prompt_id, str) for prompt_id in self.ids):
            raise PoolError("PromptPool(ids=...) must be text. PromptPool.from_ids takes numbers, too.")
        if not self.ids:
            raise PoolError(
                "The pool is empty: there is no prompt to choose from. Check the data set, its split and its filters."
            )
        _refuse_bad_text(self.ids)
        _refuse_duplicates(self.ids, "PromptPool(ids=...)", "Give every prompt its own id.")
        if fingerprints is None:
            fingerprints = np.zeros(len(self.ids), dtype=FINGERPRINT)
        is_array = isinstance(fingerprints, np.ndarray)
        if not is_array or fingerprints.shape != (len(self.ids),) or fingerprints.dtype != FINGERPRINT:
            got = f"{fingerprints.shape} of {fingerprints.dtype}" if is_array else shown(fingerprints)
            raise PoolError(
                f"PromptPool(fingerprints=...) must be ({len(self.ids)},) of dtype V{FINGERPRINT_BYTES}, got {got}."
            )
        self.fingerprints = fingerprints.view()
        self.fingerprints.flags.writeable = False
        self.how = how
        self._dataset = dataset
        self._dataset_rows = dataset_rows
        self._row_by_id: dict[str, int] | None = None
        self._digest: str | None = None
        self._keys: tuple[Array, Array] | None = None

    @classmethod
    def from_ids(cls, ids: Iterable[str | int]) -> PromptPool:
        """A pool of bare ids, for hosts that keep the prompts to themselves. `pool[row]` holds only `prompt_id`."""
        if isinstance(ids, (str, bytes, Mapping)):
            what = {str: "one string", bytes: "bytes"}.get(type(ids), "a mapping")
            raise PoolError(f"PromptPool.from_ids takes a sequence of ids, got {what}. Pass a list of ids.")
        if isinstance(ids, (set, frozenset)):
            raise PoolError("PromptPool.from_ids takes ids in order, got a set, whose order changes. Pass sorted(ids).")
        values = list(_iterated(ids, "PromptPool.from_ids(ids=...)"))
        bad = [row for row, value in enumerate(values) if not _is_id(value)]
        if bad:
            raise PoolError(f"PromptPool.from_ids: {_bad_values(values, bad)}. Ids are text or whole numbers.")
        return cls(map(str, values))

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        id_column: str | None = None,
        prompt_column: str = "prompt",
        answer_columns: Sequence[str] = ANSWER_COLUMNS,
        duplicates: Duplicates = "error",
    ) -> PromptPool:
        """The pool of a data set: a Hugging Face `Dataset`, or any sequence or iterable of mappings.

        Args:
            dataset: The rows. A Hugging Face data set is read column by column; an iterable without a length is kept as a list.
            id_column: The column that names a prompt. None guesses it (`ID_COLUMNS`), else uses a fingerprint of the content.
            prompt_column: Holds the prompt, as text or as a list of chat messages. A dot looks inside a column of mappings.
            answer_columns: Reference answers that belong to a prompt's identity, as far as they exist.
            duplicates: What two rows with one id are: an "error", one prompt ("merge" keeps the first row), or two prompts
                ("suffix" appends ``#2``, ``#3``, ...).

        Raises:
            PoolError: No prompts, an id column unfit to be a key, two rows with one id, or a prompt that cannot be read.
        """
        known = ("error", "merge", "suffix")
        if not isinstance(duplicates, str) or duplicates not in known:
            hint = nearest(duplicates, known) if isinstance(duplicates, str) else ""
            raise PoolError(f"duplicates={shown(duplicates)} must be one of {', '.join(known)}.{hint}")
        for name, column in (("id_column", "" if id_column is None else id_column), ("prompt_column", prompt_column)):
            if not isinstance(column, str) or len(column) > _LONGEST_NAME:
                raise PoolError(f"from_dataset({name}=...) must be the name of a column, got {shown(column)}.")
        answers = (answer_columns,) if isinstance(answer_columns, str) else answer_columns
        if not isinstance(answers, Sequence) or not all(isinstance(name, str) for name in answers):
            raise PoolError(f"from_dataset(answer_columns=...) must be names of columns, got {shown(answer_columns)}.")
        table = open_table(dataset)
        if len(table) == 0:
            raise PoolError("The pool is empty: the data set has no rows. Check its split and its filters.")
        fingerprints = _fingerprints(table, prompt_column, answer_columns)
        if id_column is not None:
            ids, how = _explicit_ids(table, id_column, duplicates), f"ids from column {id_column!r}, as asked"
        else:
            ids, how = _guessed_ids(table, fingerprints)
        rows = None
        if len(set(ids)) < len(ids):
            if duplicates == "error":
                raise PoolError(_duplicates_message(ids, f"Rows share an id ({how})", _DUPLICATES_REMEDY))
            if duplicates == "suffix":
                ids = _suffixed(ids)
            else:
                rows = _first_rows(ids, fingerprints)
                ids, fingerprints = [ids[row] for row in rows], fingerprints[rows]
        pool = cls(ids, fingerprints=fingerprints, how=how, dataset=table.rows, dataset_rows=rows)
        if duplicates != "suffix":
            pool._warn_of_repeated_text()
        return pool

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Mapping[str, Any]:
        if not 0 <= row < len(self.ids):
            raise IndexError(f"row {row} is outside the pool of {len(self.ids)} prompts")
        if self._dataset is None:
            return {"prompt_id": self.ids[row]}
        found: Mapping[str, Any] = self._dataset[int(row if self._dataset_rows is None else self._dataset_rows[row])]
        return found

    def __repr__(self) -> str:
        return f"PromptPool({len(self.ids)} prompts, {self.how})"

    def row_of(self, prompt_id: str) -> int:
        """The row of a prompt. Raises PoolError for an id that the pool does not hold."""
        row = self._index().get(prompt_id)
        if row is None:
            hint = nearest(prompt_id, self.ids) if isinstance(prompt_id, str) and len(self.ids) <= 10_000 else ""
            raise PoolError(f"The pool of {len(self.ids)} prompts has no prompt_id {_short(prompt_id)}.{hint}")
        return row

    def rows_of(self, prompt_ids: Iterable[str]) -> Ints:
        """The row of every prompt, (n,), -1 where the pool does not hold the id."""
        index = self._index()
        return np.array([index.get(prompt_id, -1) for prompt_id in prompt_ids], dtype=np.int64)

    @property
    def digest(self) -> str:
        """sha256 (hex) over ids and fingerprints in order: the same prompts in the same rows, and nothing else."""
        if self._digest is None:
            digest = hashlib.sha256()
            for prompt_id in self.ids:
                encoded = prompt_id.encode()
                digest.update(len(encoded).to_bytes(8, "little"))
                digest.update(encoded)
            digest.update(self.fingerprints.tobytes())
            self._digest = digest.hexdigest()
        return self._digest

    @property
    def keys(self) -> tuple[Array, Array]:
        """((N,), (N,)) uint64, read-only: a hash of each id, all different, and half of each fingerprint, 0 if unknown.

        By these a saved state knows its prompts again when the data set was edited. Ids whose hashes collide (for a million
        prompts a chance of 3e-8) are all hashed once more with a salt, in any order of the pool alike. Should one of them leave
        in an edit, the other is hashed as if it had always been alone, and then counts as new: it loses its belief, and never
        gets another prompt's. Made at the first call, about a second for a million prompts; kept, 16 bytes a prompt.
        """
        if self._keys is None:
            halves = np.frombuffer(self.fingerprints.tobytes(), dtype="<u8").reshape(len(self), -1)
            keys = _distinct_hashes(self.ids), halves[:, 0].astype(np.uint64)
            for array in keys:
                array.flags.writeable = False
            self._keys = keys
        return self._keys

    def _index(self) -> dict[str, int]:
        if self._row_by_id is None:
            self._row_by_id = {prompt_id: row for row, prompt_id in enumerate(self.ids)}
        return self._row_by_id

    def _warn_of_repeated_text(self) -> None:
        repeated = len(self) - len(np.unique(self.fingerprints))
        if repeated:
            warnings.warn(
                f"{repeated} of {len(self)} prompts have the text and answer of another prompt under a different id; edgewise "
                "learns about each apart. Drop them from the data set unless that is meant.",
                stacklevel=3,
            )


def _hashes(ids: Sequence[str], salt: int = 0) -> Array:
    """(n,) uint64: blake2b of each id."""
    salted, hashed = salt.to_bytes(hashlib.blake2b.SALT_SIZE, "little"), hashlib.blake2b
    raw = bytearray()
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK]
        raw += b"".join([hashed(text.encode(), digest_size=_KEY_BYTES, salt=salted).digest() for text in block])
    return np.frombuffer(bytes(raw), dtype="<u8").astype(np.uint64)


def _distinct_hashes(ids: Sequence[str]) -> Array:
    """(N,) uint64: a hash of each of N different ids, all different. See `PromptPool.keys`."""
    keys = _hashes(ids)
    for salt in count(1):
        order = np.argsort(keys, kind="stable")
        same = keys[order][1:] == keys[order][:-1]
        if not same.any():
            break
        again = order[np.append(same, False) | np.append(False, same)]
        keys[again] = _hashes([ids[row] for row in again.tolist()], salt)
    return keys


# ---------------------------------------------------------------------------------------------- from a data set


def _fingerprints(table: Table, prompt_column: str, answer_columns: Sequence[str]) -> Array:
    found = bytearray()
    absent: list[int] = []
    answer_columns = (answer_columns,) if isinstance(answer_columns, str) else answer_columns
    for row, (prompt, *answers) in enumerate(table.values(prompt_column, *answer_columns)):
        if _is_missing(prompt):
            absent.append(row)
            continue
        try:
            found += fingerprint(prompt, dict(zip(answer_columns, answers, strict=True)))
        except (TypeError, ValueError, RecursionError) as error:
            what = f"a value of type {error}" if isinstance(error, TypeError) else f"a value too deep or too long ({error})"
            raise PoolError(
                f"Row {row} holds {what} in {prompt_column!r} or its answer columns, which has no stable content to know the "
                "prompt by. Store text, numbers, lists and mappings there."
            ) from error
    if absent:
        if len(absent) == len(table) and prompt_column not in table.columns:
            raise PoolError(
                f"The data set has no column {prompt_column!r}.{nearest(prompt_column, table.columns)} It has "
                f"{_listed(table.columns)}. Pass prompt_column=..."
            )
        raise PoolError(
            f"Column {prompt_column!r} is empty in {_rows(absent)}; every row needs a prompt. Drop these rows, or pass "
            "prompt_column=..."
        )
    return np.frombuffer(bytes(found), dtype=FINGERPRINT)


_DUPLICATES_REMEDY = (
    "Name a column with one id a prompt (id_column=...), or pass duplicates='merge' to take them as one prompt, or "
    "duplicates='suffix' to keep them apart."
)


def _explicit_ids(table: Table, column: str, duplicates: Duplicates) -> list[str]:
    values = [value for (value,) in table.values(column)]
    remedy = "Choose another id_column, or none to let edgewise find one."
    if all(value is None for value in values):
        known = {*table.columns, *ID_COLUMNS} - {column}
        raise PoolError(
            f"id_column={column!r} holds no value in any row.{nearest(column, known)} The data set has "
            f"{_listed(table.columns)}."
        )
    bad = [row for row, value in enumerate(values) if not _is_id(value)]
    if bad:
        raise PoolError(f"id_column={column!r} {_bad_values(values, bad)}. Ids are text or whole numbers. {remedy}")
    ids = [str(value) for value in values]
    if len(ids) > 1 and len(set(ids)) == 1:
        raise PoolError(f"id_column={column!r} is {_short(ids[0])} in every row, so it names no prompt. {remedy}")
    if duplicates == "error":
        _refuse_duplicates(ids, f"id_column={column!r}", _DUPLICATES_REMEDY)
    return ids


def _guessed_ids(table: Table, fingerprints: Array) -> tuple[list[str], str]:
    rejected: list[str] = []
    for column in ID_COLUMNS:
        values = [value for (value,) in table.values(column)]
        if all(value is None for value in values):
            continue
        reason = _unfit(values)
        if reason is None:
            return [str(value) for value in values], _how(f"ids from column {column!r}", rejected)
        if reason.startswith("repeated"):
            qualified = [_qualified(source, value) for source, value in table.values(SOURCE_COLUMN, column)]
            if _unfit(qualified) is None:
                found = f"ids from columns {SOURCE_COLUMN!r} and {column!r}, as {column!r} alone repeats"
                return [str(value) for value in qualified], _how(found, rejected)
        rejected.append(f"{column!r} {reason}")
    ids = [raw.hex() for raw in _each(fingerprints)]
    return ids, _how("ids are fingerprints of prompt and reference answer, as no column is fit to be a key", rejected)


def _unfit(values: Sequence[Any]) -> str | None:
    """Why a column cannot name prompts, or None if it can."""
    bad = [row for row, value in enumerate(values) if not _is_id(value)]
    if bad:
        return _bad_values(values, bad)
    ids = [str(value) for value in values]
    if len(ids) > 1 and len(set(ids)) == 1:
        return f"is {_short(ids[0])} in every row"
    if len(set(ids)) < len(ids):
        return f"repeated: {len(ids)} rows, {len(set(ids))} values"
    surrogate = [row for row, text in enumerate(ids) if not _is_unicode(text)]
    if surrogate:
        return f"has a lone surrogate in {_rows(surrogate)}"
    return None


def _how(found: str, rejected: Sequence[str]) -> str:
    return f"{found}; not taken: {', '.join(rejected)}" if rejected else found


def _qualified(source: Any, value: Any) -> str | None:
    return f"{source}/{value}" if _is_id(source) and _is_id(value) else None


def _each(fingerprints: Array) -> Iterator[bytes]:
    raw = fingerprints.tobytes()
    return (raw[start : start + FINGERPRINT_BYTES] for start in range(0, len(raw), FINGERPRINT_BYTES))


_LONGEST_NAME = 10_000


def _iterated(values: Any, where: str) -> Iterator[Any]:
    try:
        return iter(values)
    except TypeError:
        raise PoolError(f"{where} must be a sequence of ids, got {shown(values)}.") from None


_LONGEST_NUMBER = 10**1_000
"""Python writes no number of more than some thousand digits."""


def _is_id(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return (
        isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.bool_)) and abs(int(value)) < _LONGEST_NUMBER
    )


def _is_missing(value: Any) -> bool:
    """None, or the NaN that pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _refuse_bad_text(ids: Sequence[str]) -> None:
    bad = [row for row, text in enumerate(ids) if not _is_unicode(text)]
    if bad:
        raise PoolError(
            f"The ids of {_rows(bad)} hold a lone surrogate (broken text), e.g. {ascii(ids[bad[0]])[:60]}; they could not be "
            "saved. Repair these ids, or pass another id_column."
        )


def _refuse_duplicates(ids: Sequence[str], where: str, remedy: str) -> None:
    if len(set(ids)) < len(ids):
        raise PoolError(_duplicates_message(ids, f"{where} names more than one prompt alike", remedy))


def _duplicates_message(ids: Sequence[str], what: str, remedy: str) -> str:
    rows_by_id: dict[str, list[int]] = {}
    for row, prompt_id in enumerate(ids):
        rows_by_id.setdefault(prompt_id, []).append(row)
    repeated = {prompt_id: rows for prompt_id, rows in rows_by_id.items() if len(rows) > 1}
    shown = "; ".join(f"{_short(prompt_id)} in {_rows(rows)}" for prompt_id, rows in islice(repeated.items(), _SHOWN))
    more = f"; and {len(repeated) - _SHOWN} more ids" if len(repeated) > _SHOWN else ""
    return f"{what}: {len(ids)} rows, {len(rows_by_id)} ids: {shown}{more}. {remedy}"


def _suffixed(ids: Sequence[str]) -> list[str]:
    """The n-th row of an id gets ``#n``, passing over names that are taken."""
    taken = set(ids)
    count: dict[str, int] = {}
    renamed: list[str] = []
    for prompt_id in ids:
        number = count.get(prompt_id, 0) + 1
        name = prompt_id
        if number > 1:
            while (name := f"{prompt_id}#{number}") in taken:
                number += 1
            taken.add(name)
        count[prompt_id] = number
        renamed.append(name)
    return renamed


def _first_rows(ids: Sequence[str], fingerprints: Array) -> Ints:
    """The first row of every id. Warns when rows taken as one prompt do not say the same."""
    first: dict[str, int] = {}
    for row, prompt_id in enumerate(ids):
        first.setdefault(prompt_id, row)
    kept = np.array([first[prompt_id] for prompt_id in ids], dtype=np.int64)
    different = int(np.count_nonzero(fingerprints != fingerprints[kept]))
    if different:
        warnings.warn(
            f"duplicates='merge': {different} merged rows have another text or answer than the first row with their id, and "
            "are left out. Check that the id column names prompts.",
            stacklevel=3,
        )
    return np.array(list(first.values()), dtype=np.int64)


# ----------------------------------------------------------------------------------------------------- messages


def _rows(rows: Sequence[int]) -> str:
    if len(rows) == 1:
        return f"row {rows[0]}"
    shown = ", ".join(str(row) for row in rows[:_SHOWN])
    return f"rows {shown} and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else f"rows {shown}"


def _bad_values(values: Sequence[Any], bad: Sequence[int]) -> str:
    empty = [row for row in bad if _is_missing(values[row])]
    if empty:
        return f"has no value in {_rows(empty)}"
    value = values[bad[0]]
    return f"holds {_short(value)} ({type(value).__name__}) in {_rows(bad)}"


def _short(value: object) -> str:
    text = shown(value) if not isinstance(value, str) else repr(value) if _is_unicode(value) else ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no columns"
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return f"the columns {', '.join(repr(name) for name in names[:20])}{more}"
