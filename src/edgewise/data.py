"""Prompts from a file or folder: parquet, JSON lines, JSON, or a Hugging Face data set written by `save_to_disk`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgewise.errors import ConfigError, PoolError

_READS = "edgewise reads .parquet, .jsonl, .json and folders written by datasets' save_to_disk"
_SHOWN = 5


def read(path: str | Path) -> Any:
    """The rows of a data file or folder, fit for `PromptPool.from_dataset`.

    Raises ConfigError for a path or a format that cannot be read, PoolError for a file whose content is broken.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file or folder. {_READS}; data on the Hub must be downloaded first.")
        if path.is_dir():
            return _read_folder(path)
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(path)
        if path.suffix == ".json":
            return _read_json(path)
        raise ConfigError(f"{path}: cannot tell the format from the suffix {path.suffix!r}; {_READS}.")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}). {_READS}.") from error


class ArrowRows:
    """An Arrow table as rows that are turned into Python values only when read.

    Answers the calls of a Hugging Face `Dataset` that edgewise uses, so a parquet file is read column by column too.
    """

    def __init__(self, table: Any) -> None:
        self._table = table

    @property
    def column_names(self) -> list[str]:
        return list(self._table.column_names)

    def select_columns(self, names: Sequence[str]) -> ArrowRows:
        return ArrowRows(self._table.select(list(names)))

    def with_format(self, kind: None) -> ArrowRows:
        del kind  # always plain Python values
        return self

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, key: int | slice) -> Mapping[str, Any]:
        """One row as a mapping, or a range of rows as a mapping of columns."""
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            columns: Mapping[str, Any] = self._table.slice(start, stop - start).to_pydict()
            return columns
        if not 0 <= key < len(self):
            raise IndexError(f"row {key} is outside the table of {len(self)} rows")
        row: Mapping[str, Any] = self._table.slice(key, 1).to_pylist()[0]
        return row

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self._table.to_batches(max_chunksize=1_000):
            yield from batch.to_pylist()


def _read_parquet(path: Path) -> ArrowRows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading parquet needs pyarrow. pip install 'edgewise[data]'") from error
    try:
        return ArrowRows(pyarrow.parquet.read_table(path))
    except pyarrow.ArrowInvalid as error:
        raise PoolError(f"{path} is not a readable parquet file: {error}. Write it again.") from error


def _read_folder(path: Path) -> Any:
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        raise ConfigError(f"{path} holds the splits {', '.join(splits)}. Name one: {path / (splits[0] if splits else 'train')}")
    if not (path / "dataset_info.json").exists():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".parquet", ".jsonl", ".json"))
        hint = f"Name one file: {path / files[0]}" if files else f"{_READS}."
        raise ConfigError(f"{path} is not a data set written by datasets' save_to_disk. {hint}")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{path}: reading this folder needs datasets. pip install 'edgewise[trl]'") from error
    return datasets.load_from_disk(str(path))


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    with path.open("rb") as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"{"):  # many .json files are JSON lines
        return _read_jsonl(path)
    try:
        rows = _loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise PoolError(f"{path} is not JSON ({_brief(error)}). Repair or write it again.") from error
    if not isinstance(rows, list):
        raise PoolError(f"{path} holds one {type(rows).__name__}; expected a list of objects, or one object a line.")
    bad = [number for number, row in enumerate(rows) if not isinstance(row, dict)]
    if bad:
        raise PoolError(f'{path}: item {bad[0]} of the list is no object such as {{"prompt": "1+1="}} ({len(bad)} in all).')
    return rows


def _read_jsonl(path: Path) -> list[Mapping[str, Any]]:
    """One object a line; a line ends at ``\\n`` and nowhere else, so a text may hold any character. Blank lines are skipped."""
    rows: list[Mapping[str, Any]] = []
    bad: list[tuple[int, str]] = []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = _loads(line)
            except (ValueError, RecursionError) as error:
                bad.append((number, _brief(error)))
                continue
            if isinstance(row, dict):
                rows.append(row)
            else:
                bad.append((number, f"{type(row).__name__} instead of an object"))
    if bad:
        shown = "\n".join(f"  line {number}: {reason}" for number, reason in islice(bad, _SHOWN))
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise PoolError(
            f"{path}: {len(bad)} of {len(bad) + len(rows)} lines cannot be read. Repair or delete them.\n{shown}{more}"
        )
    return rows


def _loads(raw: bytes) -> Any:
    return json.loads(raw.removeprefix(b"\xef\xbb\xbf").decode("utf-8"), strict=False)


def _brief(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, RecursionError):
        return "nested too deep"
    return str(error)
