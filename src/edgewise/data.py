"""Prompts from a file or folder: parquet, JSON lines, JSON, or a Hugging Face data set written by `save_to_disk`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from edgewise import foreign
from edgewise.errors import ConfigError, PoolError
from edgewise.foreign import named, shown

_READS = "edgewise reads .parquet, .jsonl, .json and folders written by datasets' save_to_disk"
_SHOWN = 5
_MOST_BAD = 1_000
"""Lines that cannot be read before a file is given up."""
_MOST_ROWS = 100_000_000
_MOST_SETTINGS = 1 << 24
"""Bytes of the small files of a folder written by save_to_disk."""


def read(path: str | Path) -> Any:
    """The rows of a data file or folder, fit for `PromptPool.from_dataset`.

    Raises ConfigError for a path or a format that cannot be read, PoolError for a file whose content is broken.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise ConfigError(
                f"{named(path)}: there is no such file or folder. {_READS}; data on the Hub must be downloaded first."
            )
        if path.is_dir():
            return _read_folder(path)
        if path.suffix == ".parquet":
            return _read_parquet(path)
        if path.suffix in (".jsonl", ".ndjson"):
            return _read_jsonl(path)
        if path.suffix == ".json":
            return _read_json(path)
        raise ConfigError(f"{named(path)}: cannot tell the format from the suffix {shown(path.suffix)}; {_READS}.")
    except OSError as error:
        raise ConfigError(f"{named(path)}: cannot be read ({error.strerror or error}). {_READS}.") from error
    except ValueError as error:
        if isinstance(error, (ConfigError, PoolError)):
            raise
        raise ConfigError(f"{shown(str(path))} is no file name ({error}). {_READS}.") from error  # it holds a NUL


class ArrowRows:
    """An Arrow table as rows that are turned into Python values only when read.

    Answers the calls of a Hugging Face `Dataset` that edgewise uses, so a parquet file is read column by column too.
    """

    def __init__(self, table: Any, where: str = "the table") -> None:
        self._table, self._where = table, where

    @property
    def column_names(self) -> list[str]:
        return list(self._table.column_names)

    def select_columns(self, names: Sequence[str]) -> ArrowRows:
        return ArrowRows(self._table.select(list(names)), self._where)

    def with_format(self, kind: None) -> ArrowRows:
        del kind  # always plain Python values
        return self

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __getitem__(self, key: int | slice) -> Mapping[str, Any]:
        """One row as a mapping, or a range of rows as a mapping of columns."""
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            part = self._table.slice(start, stop - start)
            columns: Mapping[str, Any] = self._values(part.to_pydict, start)
            return columns
        if not 0 <= key < len(self):
            raise IndexError(f"row {key} is outside the table of {len(self)} rows")
        row: Mapping[str, Any] = self._values(self._table.slice(key, 1).to_pylist, key)[0]
        return row

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        at = 0
        for batch in self._table.to_batches(max_chunksize=1_000):
            yield from self._values(batch.to_pylist, at)
            at += batch.num_rows

    def _values(self, convert: Callable[[], Any], row: int) -> Any:
        """What Arrow makes of its bytes: a text may be no UTF-8, a date beyond the calendar. Raises PoolError."""
        try:
            return convert()
        except (ValueError, OverflowError, TypeError) as error:  # pyarrow's own errors are ValueErrors, too
            raise PoolError(
                f"{self._where}: a value in or after row {row} cannot be read ({_brief(error)}). Repair it, or drop the column."
            ) from error


def _read_parquet(path: Path) -> ArrowRows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{path}: reading parquet needs pyarrow. pip install 'edgewise[data]'") from error
    with foreign.opened(path) as opened:  # no pipe, no device
        try:
            file = pyarrow.parquet.ParquetFile(opened)  # which bounds what the head of the file may claim
            rows, names = file.metadata.num_rows, list(file.schema_arrow.names)
            if not 0 <= rows <= _MOST_ROWS:
                raise PoolError(f"{named(path)} would have {rows:,} rows; at most {_MOST_ROWS:,} are read. Cut it into parts.")
            twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
            if twice:
                raise PoolError(f"{named(path)} has more than one column {shown(twice[0])}. Rename or drop one.")
            return ArrowRows(file.read(), named(path))
        except PoolError:
            raise
        except (pyarrow.ArrowException, OSError, ValueError, MemoryError) as error:
            raise PoolError(f"{named(path)} is not a readable parquet file: {_brief(error)}. Write it again.") from error


def _read_folder(path: Path) -> Any:
    if (path / "dataset_dict.json").exists():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        one = path / (splits[0] if splits else "train")
        raise ConfigError(f"{named(path)} holds the splits {', '.join(splits[:20])}. Name one: {named(one)}")
    if not (path / "dataset_info.json").exists():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in (".parquet", ".jsonl", ".json"))
        hint = f"Name one file: {named(path / files[0])}" if files else f"{_READS}."
        raise ConfigError(f"{named(path)} is not a data set written by datasets' save_to_disk. {hint}")
    _check_folder(path)
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{path}: reading this folder needs datasets. pip install 'edgewise[trl]'") from error
    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # whatever datasets makes of foreign bytes
        raise PoolError(
            f"{named(path)} is not a readable data set: {_brief(error)}. Write it again with save_to_disk."
        ) from error


def _check_folder(path: Path) -> None:
    """The small files of a data set are JSON, and the large ones that they name lie beside them. Raises PoolError, OSError."""
    found = {}
    for name in ("dataset_info.json", "state.json"):
        try:
            found[name] = foreign.loads(foreign.contents(path / name, _MOST_SETTINGS))
        except ValueError as error:
            raise PoolError(f"{named(path / name)} is not JSON ({_brief(error)}). Write the data set again.") from error
    files = found["state.json"].get("_data_files") if isinstance(found["state.json"], dict) else None
    names = [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else [None]
    for part in names:
        if not isinstance(part, str) or not part or "\0" in part or Path(part).name != part:
            raise PoolError(f"{named(path / 'state.json')} must name files of this folder, got {shown(part)}. Write it again.")
        foreign.opened(path / part).close()


def _read_json(path: Path) -> list[Mapping[str, Any]]:
    with foreign.opened(path) as file:
        head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if head.startswith(b"{"):  # many .json files are JSON lines
            return _read_jsonl(path)
        file.seek(0)
        rows: list[Mapping[str, Any]] = []
        bad: list[int] = []
        count = 0
        try:
            for row in foreign.items(file):
                if isinstance(row, dict):
                    rows.append(row)
                elif len(bad) < _MOST_BAD:
                    bad.append(count)
                count += 1
        except TypeError as error:
            raise PoolError(f"{named(path)} holds one {error}; expected a list of objects, or one object a line.") from error
        except ValueError as error:
            raise PoolError(f"{named(path)} is not JSON ({_brief(error)}). Repair or write it again.") from error
    if bad:
        raise PoolError(
            f'{named(path)}: item {bad[0]} of the list is no object such as {{"prompt": "1+1="}} '
            f"({count - len(rows):,} in all)."
        )
    return rows


def _read_jsonl(path: Path) -> list[Mapping[str, Any]]:
    """One object a line; a line ends at ``\\n`` and nowhere else, so a text may hold any character. Blank lines are skipped."""
    rows: list[Mapping[str, Any]] = []
    bad: list[tuple[int, str]] = []
    given_up = ""
    with foreign.opened(path) as file:
        for number, line in enumerate(foreign.lines(file), start=1):
            if not line.strip():
                continue
            try:
                row = foreign.loads(line, nan=True)
            except ValueError as error:
                bad.append((number, _brief(error)))
            else:
                if isinstance(row, dict):
                    rows.append(row)
                else:
                    bad.append((number, f"{type(row).__name__} instead of an object"))
            if len(bad) == _MOST_BAD:
                given_up = "\nThe rest was not read."
                break
    if bad:
        listed = "\n".join(f"  line {number}: {reason}" for number, reason in islice(bad, _SHOWN))
        more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        raise PoolError(
            f"{named(path)}: {len(bad)} of {len(bad) + len(rows)} lines cannot be read. Repair or delete them.\n"
            f"{listed}{more}{given_up}"
        )
    return rows


def _brief(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
