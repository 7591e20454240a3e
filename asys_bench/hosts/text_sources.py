"""Where texts come from: files, folders, globs, installed packages, and functions of the user's own.

- `.jsonl`, `.parquet` and `.arrow` (a data set of Hugging Face as `save_to_disk` or its cache leaves it)
  hold one text per row, under one field; any other file is one text in UTF-8. `.gz` behind any but the
  last two is unpacked.
- `package:<glob>`: descriptions, licences, .md and .rst of installed Python packages.
- `function:<package.module:name>`: whatever it returns that can be iterated over, of texts or of rows that
  have the field: a list, a generator, a data set of Hugging Face, also a streamed one. It is called anew
  each time round.
"""

from __future__ import annotations

import fnmatch
import glob
import gzip
import importlib.metadata
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from asys_bench.contracts.host import HostError
from asys_bench.hosts.dotted_name import load_function
from asys_bench.hosts.pretrained import PACKAGE

OPTION = "host.options.transformers.texts"
FUNCTION = "function:"
_PACKED, _ROWS, _TABLES = ".gz", (".jsonl",), (".parquet", ".arrow")
_IN_FOLDERS = (".txt", ".md", *_ROWS, *_TABLES)
_LICENCES = ("LICENSE", "LICENCE", "COPYING", "NOTICE")
_CHECKED_CHARACTERS = 4096
_CHECKED_FILES = 1000
"""Of a glob, before the host starts."""
_TABLE_ROWS = 256


@dataclass(frozen=True)
class TextSource:
    """texts: field -> the texts, from the beginning."""

    name: str
    texts: Callable[[str], Iterator[str]]


def sources_of(pattern: str) -> list[TextSource]:
    """Raises HostError: there are none, or one of them is no text."""
    if pattern.startswith(FUNCTION):
        function = load_function(pattern.removeprefix(FUNCTION), OPTION)
        return [TextSource(pattern, lambda field: _rows_of(pattern, function, field))]
    found = files_of(pattern)
    if not pattern.startswith(PACKAGE):
        for path in found[:_CHECKED_FILES]:
            _check_text(path)
    return [TextSource(str(path), partial(_texts_of, path)) for path in found]


def files_of(pattern: str) -> list[Path]:
    """The files of a folder, a glob or installed packages. Raises HostError: there are none."""
    if pattern.startswith(PACKAGE):
        found = _package_texts(pattern.removeprefix(PACKAGE))
        if not found:
            raise HostError(
                f"{OPTION}: {pattern!r} matches no installed Python package with "
                "texts (`package:*` is all of them)"
            )
        return found
    path = Path(os.path.expanduser(pattern))
    if path.is_dir():
        found = [file for file in sorted(path.rglob("*")) if _suffix(file) in _IN_FOLDERS]
    else:
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        found = [file for file in found if file.is_file()]
    if not found:
        raise HostError(
            f"{OPTION}: {pattern!r} matches no file (a folder is searched for "
            f"{', '.join(_IN_FOLDERS)}; a glob may have **)"
        )
    return found


def _suffix(path: Path) -> str:
    """Of what the file holds, unpacked."""
    packed = path.suffix == _PACKED
    return Path(path.stem).suffix if packed else path.suffix


def _opened(path: Path) -> Any:
    open_it = gzip.open if path.suffix == _PACKED else open
    return open_it(path, "rt", encoding="utf-8", errors="replace")


def _check_text(path: Path) -> None:
    """Raises HostError: its beginning is no text."""
    if path.suffix in _TABLES:
        return
    try:
        with _opened(path) as file:
            begin = file.read(_CHECKED_CHARACTERS)
    except (OSError, EOFError) as error:
        raise HostError(f"{path} cannot be read: {error}") from error
    if "\0" in begin:
        raise HostError(
            f"{OPTION}: {path} is no text in UTF-8; rows are read from .jsonl, .parquet and .arrow "
            "files, and from `function:package.module:name`"
        )


def _texts_of(path: Path, field: str) -> Iterator[str]:
    try:
        if path.suffix in _TABLES:
            yield from _table_texts(path, field)
        elif _suffix(path) in _ROWS:
            with _opened(path) as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield _line_text(line, path, number, field)
        else:
            with _opened(path) as file:
                yield file.read()
    except (OSError, EOFError) as error:
        raise HostError(f"{path} cannot be read: {error}") from error


def _line_text(line: str, path: Path, number: int, field: str) -> str:
    try:
        return str(json.loads(line)[field])
    except (ValueError, KeyError, TypeError) as error:
        raise HostError(
            f"{path}:{number}: no text under {field!r} ({error!r}); set "
            "host.options.transformers.text_field"
        ) from error


def _table_texts(path: Path, field: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with path.open("rb") as file:
            if path.suffix == ".parquet":
                table = parquet.ParquetFile(file)
                _check_field(path, field, table.schema_arrow.names)
                batches: Iterable[Any] = table.iter_batches(
                    _TABLE_ROWS, columns=[field], use_threads=False
                )
            else:
                is_random_access = file.read(6) == b"ARROW1"
                file.seek(0)
                if is_random_access:
                    reader = pa.ipc.open_file(file)
                    batches = (reader.get_batch(n) for n in range(reader.num_record_batches))
                else:
                    batches = reader = pa.ipc.open_stream(file)
                _check_field(path, field, reader.schema.names)
            for batch in batches:
                for text in batch.column(batch.schema.get_field_index(field)):
                    if text.is_valid:
                        yield str(text.as_py())
    except pa.ArrowException as error:
        raise HostError(f"{path} cannot be read: {error}") from error


def _check_field(where: object, field: str, names: Iterable[Any]) -> None:
    names = [str(name) for name in names]
    if field not in names:
        raise HostError(
            f"{where}: no text under {field!r}, only {', '.join(names[:12])}; set "
            "host.options.transformers.text_field"
        )


def _rows_of(pattern: str, function: Callable[[], Any], field: str) -> Iterator[str]:
    rows = function()
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise HostError(
            f"{OPTION}: {pattern} returned a {type(rows).__name__}, and not texts or rows"
        )
    for row in rows:
        if isinstance(row, Mapping):
            _check_field(pattern, field, row)
            row = row[field]
        if row is not None:
            yield str(row)


def _package_texts(name: str) -> list[Path]:
    """Descriptions, licences, .md and .rst of the installed packages whose name matches the glob."""
    found = set()
    for package in importlib.metadata.distributions():
        if not fnmatch.fnmatchcase(str(package.metadata["Name"] or "").lower(), name.lower()):
            continue
        for file in package.files or ():
            licence = file.suffix in ("", ".txt") and file.name.upper().startswith(_LICENCES)
            if licence or file.suffix in (".md", ".rst") or file.name == "METADATA":
                found.add(Path(str(file.locate())))
    return sorted(path for path in found if path.is_file())
