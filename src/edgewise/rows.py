"""The rows of a data set, walked column by column, and the fingerprint by which a prompt is known again.

A data set is a Hugging Face `Dataset`, known by its methods and never imported, or any sequence or iterable of mappings. A
column may be a path: ``extra_info.index`` looks inside a column of mappings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from decimal import Decimal
from itertools import islice
from typing import Any, Protocol

from edgewise.errors import PoolError
from edgewise.foreign import shown

FINGERPRINT_BYTES = 16
_CHUNK = 1_000
_SHOWN = 5


class Table(Protocol):
    """Rows that can be walked column by column."""

    rows: Any
    """The data set itself: `rows[row]` is a mapping."""

    @property
    def columns(self) -> Sequence[str]:
        """Names of the columns (of the first row, where rows may differ)."""

    def __len__(self) -> int: ...

    def values(self, *paths: str) -> Iterator[tuple[Any, ...]]:
        """One tuple a row with the value at every path; None where a row has no such value."""


class _MappingRows:
    """Any sequence of mappings."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows if hasattr(rows, "__len__") and hasattr(rows, "__getitem__") else list(rows)
        first = next(self._walk(), None)
        self.columns = [str(name) for name in first] if isinstance(first, Mapping) else []

    def _walk(self) -> Iterator[Any]:
        return iter(self.rows) if hasattr(self.rows, "__iter__") else (self.rows[row] for row in range(len(self.rows)))

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, *paths: str) -> Iterator[tuple[Any, ...]]:
        split = [(path, path.split(".")) for path in paths]
        for number, row in enumerate(self._walk()):
            if not isinstance(row, Mapping):
                raise PoolError(
                    f"Row {number} of the data set is {type(row).__name__}, and each row must be a mapping such as "
                    "{'prompt': '1+1=', 'answer': '2'}. From a pandas DataFrame pass df.to_dict('records')."
                )
            yield tuple(_at(row, path, parts) for path, parts in split)


class _DatasetColumns:
    """A Hugging Face `Dataset`, known by its methods and never imported."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows
        self.columns = list(rows.column_names)

    def __len__(self) -> int:
        return len(self.rows)

    def values(self, *paths: str) -> Iterator[tuple[Any, ...]]:
        top = {path: path if path in self.columns else path.split(".")[0] for path in paths}
        read = sorted(set(top.values()) & set(self.columns))
        if not read:
            yield from ((None,) * len(paths) for _ in range(len(self)))
            return
        plain = self.rows.select_columns(read).with_format(None)
        for start in range(0, len(self), _CHUNK):
            chunk: Mapping[str, Sequence[Any]] = plain[start : start + _CHUNK]
            count = len(chunk[read[0]])
            nothing = [None] * count
            for row in range(count):
                yield tuple(_at({top[path]: chunk.get(top[path], nothing)[row]}, path, path.split(".")) for path in paths)


def open_table(dataset: Any) -> Table:
    """Walk `dataset` by columns. An iterable without a length is read into a list. Raises PoolError for what holds no rows."""
    if isinstance(dataset, (str, bytes)) or hasattr(dataset, "__fspath__"):
        raise PoolError(
            f"from_dataset takes rows, got the path {shown(dataset)}. Read the file first: edgewise.data.read(path)."
        )
    if isinstance(dataset, Mapping):
        keys = ", ".join(shown(key) for key in islice(dataset, _SHOWN)) or "none"
        raise PoolError(
            f"from_dataset takes rows, got a mapping with the keys {keys}. If these are splits, pass one: dataset['train']; "
            "if they are columns, pass datasets.Dataset.from_dict(...)."
        )
    if hasattr(dataset, "select_columns") and hasattr(dataset, "column_names") and hasattr(dataset, "__len__"):
        return _DatasetColumns(dataset)
    if not hasattr(dataset, "__iter__") and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise PoolError(f"from_dataset takes a sequence or an iterable of mappings, got {type(dataset).__name__}.")
    return _MappingRows(dataset)


def _at(row: Mapping[str, Any], path: str, parts: Sequence[str]) -> Any:
    if path in row:
        return row[path]
    value: Any = row
    for part in parts:
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


_encode = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode


def fingerprint(prompt: Any, answers: Mapping[str, Any]) -> bytes:
    """16 bytes of blake2b over the canonical JSON of a prompt and its reference answers.

    Keys without a value do not count (Arrow fills them in), so the same rows read from JSONL, parquet and a Hugging Face data
    set agree. Raises TypeError for a value that has no stable form.

    >>> fingerprint("1+1=", {"answer": "2"}).hex()
    '2a217cd0416aaa274324826651db8435'
    >>> fingerprint([{"role": "user", "content": "x", "name": None}], {}) == fingerprint([{"content": "x", "role": "user"}], {})
    True
    """
    text = _encode([_canonical(prompt), _canonical(answers)])
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=FINGERPRINT_BYTES).digest()


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _canonical(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, (list, tuple)):
        return [_canonical(inner) for inner in value]
    if isinstance(value, (Decimal, date)):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch
        return _canonical(value.tolist())
    if hasattr(value, "tobytes"):  # pictures
        value = value.tobytes()
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.blake2b(value).hexdigest()}
    raise TypeError(type(value).__name__)
