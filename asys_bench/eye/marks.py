"""Pins, names and notes of features: all that a viewer can change. `eye.json` in the run's folder.

    {"schema": "asys.eye/1",
     "features": {"<SAE>": {"<feature>": {"pin": true, "name": "...", "note": "..."}}}}

It is replaced whole. Two viewers who mark at once both keep what they wrote: the file is read again
under a lock before each change. A feature without pin, name and note is left out.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, Field

from asys_bench.contracts.run_files import EYE_FILE, EYE_LOCK, EYE_SCHEMA
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import is_file, open_or_create, read_json
from asys_bench.system.files.locks import take_lock

MOST_NAME, MOST_NOTE = 200, 4000
MOST_MARKED = 10_000
MOST_BYTES = 4 << 20
LOCKED_S = 2.0
"""Another eyepiece of the same run writes for some milliseconds."""


class MarksError(ValueError):
    """It cannot be kept, or what is there cannot be read; says why."""


class Mark(BaseModel, extra="forbid", frozen=True):
    """What a person says of one feature."""

    pin: bool = False
    name: str = Field("", max_length=MOST_NAME)
    note: str = Field("", max_length=MOST_NOTE)

    @property
    def is_empty(self) -> bool:
        return not (self.pin or self.name or self.note)


class Change(BaseModel, extra="forbid", frozen=True):
    """A change of one feature's mark; what is None stays."""

    sae: str = Field(max_length=1000)
    feature: int = Field(ge=0, lt=1 << 31)
    pin: bool | None = None
    name: str | None = Field(None, max_length=MOST_NAME)
    note: str | None = Field(None, max_length=MOST_NOTE)


class _Document(BaseModel, extra="forbid"):
    schema_: str = Field(EYE_SCHEMA, alias="schema", pattern=f"^{EYE_SCHEMA}$")
    features: dict[str, dict[int, Mark]] = {}


class Marks:
    """Those of one run."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._path = run_dir, run_dir / EYE_FILE
        self._mutex = threading.Lock()

    def of(self, sae: str) -> Mapping[int, Mark]:
        """Feature -> its mark. Raises MarksError: the file is damaged."""
        return self._read().features.get(sae, {})

    def change(self, wanted: Change) -> Mark:
        """Keep a change; the mark as it is now.

        Raises:
            MarksError: too many are marked, the file is damaged, or the disk refuses.
        """
        try:
            fd = open_or_create(self._run_dir / EYE_LOCK, below=self._run_dir)
            try:
                with self._mutex:
                    _take(fd)
                    return self._change(wanted)
            finally:
                os.close(fd)
        except OSError as error:
            raise MarksError(f"not kept: {error.strerror or error}") from error

    def _change(self, wanted: Change) -> Mark:
        document = self._read()
        of = document.features.setdefault(wanted.sae, {})
        changes = wanted.model_dump(exclude={"sae", "feature"}, exclude_none=True)
        mark = Mark.model_validate({**of.get(wanted.feature, Mark()).model_dump(), **changes})
        of[wanted.feature] = mark
        if mark.is_empty:
            del of[wanted.feature]
        if sum(map(len, document.features.values())) > MOST_MARKED:
            raise MarksError(f"not kept: {MOST_MARKED:,} features are marked, and no more can be")
        document.features = {sae: marks for sae, marks in document.features.items() if marks}
        data = document.model_dump_json(by_alias=True, indent=1).encode() + b"\n"
        if len(data) > MOST_BYTES:
            raise MarksError(f"not kept: the notes would have more than {MOST_BYTES:,} bytes")
        replace_file(self._path, data, sync=False)
        return mark

    def _read(self) -> _Document:
        if not is_file(self._path, below=self._run_dir):
            return _Document()
        try:
            return _Document.model_validate(read_json(self._path, MOST_BYTES, below=self._run_dir))
        except (OSError, ValueError) as error:
            raise MarksError(f"{self._path} cannot be read: {str(error)[:200]}") from error


def _take(fd: int) -> None:
    """Raises MarksError: another process does not let go of it."""
    until = time.monotonic() + LOCKED_S
    while not take_lock(fd, fcntl.LOCK_EX):
        if time.monotonic() > until:
            raise MarksError("not kept: another process is writing to the file; try again")
        time.sleep(0.01)
