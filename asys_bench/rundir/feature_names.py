"""`names/<SAE>.json` (schema `asys.names/1`): names that a language model proposed for features of an SAE.

    {"schema": "asys.names/1", "sae": "<SAE>", "features": {"<feature>": {"name": "...", "score": 0.9, ...}}}

`asys-run names` writes it. A name that a person gave is in `eye.json`, and is shown in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import NAMES_DIR, NAMES_SCHEMA
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import MAX_DOCUMENT_BYTES, make_folders, read_json

LEAST_SCORE = 0.75
"""A name with a lower score is not shown. With 10 texts on each side a name that says nothing gets there
three times in a hundred (the AUC's standard error is then 0.13: Mann and Whitney 1947)."""
MOST_NAME, MOST_MODEL = 80, 200
MOST_NAMED = 16_384
MOST_FIELDS = 32


class ProposedName(BaseModel, extra="forbid", frozen=True):
    """What a model says that one feature fires on, and how well that tells its texts from others."""

    name: str = Field(min_length=1, max_length=MOST_NAME)
    score: float = Field(ge=0, le=1)
    """AUC: the chance that a text in which the feature fires seems to fit better than one in which it does
    not, on texts that the model had not seen when it chose the name."""
    baseline: float = Field(ge=0, le=1)
    """The same of the feature's top token alone: does the text's token equal it?"""
    graded: bool
    """The score is from the model's probability of "yes"; False: from its answers, which tie often."""
    model: str = Field(min_length=1, max_length=MOST_MODEL)
    """Of the model that chose the name and scored it, with its version where that is known."""
    checkpoint: str = Field(max_length=MOST_MODEL)
    """Of the SAE; its newest when the texts were chosen."""
    generation: int = Field(0, ge=0)
    """The feature's life: a later one (resampling) has another meaning."""
    shown: int = Field(ge=1)
    fires: int = Field(ge=1)
    silent: int = Field(ge=1)
    """Texts that the model chose the name from; texts of the score in which it fires, and does not."""
    unix_ns: int = Field(ge=0)

    @property
    def is_good(self) -> bool:
        """It may be shown."""
        return self.score >= LEAST_SCORE


def names_file(run_dir: Path, label: str) -> Path:
    """Where the proposed names of an SAE are."""
    return run_dir / NAMES_DIR / f"{file_slug(label)}.json"


def read_names(run_dir: Path, label: str) -> dict[int, ProposedName]:
    """Feature -> its proposed name, good or not; empty where nothing was proposed.

    Raises:
        ReadingError: the file is damaged, or of another SAE.
    """
    path = names_file(run_dir, label)
    try:
        document = read_json(path, below=run_dir)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ReadingError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, Mapping) or document.get("schema") != NAMES_SCHEMA:
        raise ReadingError(f"{path}: not an {NAMES_SCHEMA} document")
    features = document.get("features")
    if document.get("sae") != label or not isinstance(features, Mapping):
        raise ReadingError(f"{path}: not the names of {label!r}")
    if len(features) > MOST_NAMED:
        raise ReadingError(f"{path}: more than {MOST_NAMED:,} names")
    return dict(_entry(path, number, entry) for number, entry in features.items())


def _entry(path: Path, number: str, entry: Any) -> tuple[int, ProposedName]:
    try:
        if not (number.isascii() and number.isdecimal() and len(number) < 10):
            raise ValueError("no number of a feature")
        if not isinstance(entry, Mapping) or len(entry) > MOST_FIELDS:
            raise ValueError("no name")
        return int(number), ProposedName.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except ValueError as error:
        why = str(error)
    raise ReadingError(f"{path}: entry {number[:20]!r}: {why[:200]}")


def write_names(run_dir: Path, label: str, names: Mapping[int, ProposedName]) -> None:
    """Replace the file.

    Raises:
        OSError: the disk refuses. ValueError: more names than are read again.
    """
    path = names_file(run_dir, label)
    entries = {str(number): names[number].model_dump() for number in sorted(names)}
    document = {"schema": NAMES_SCHEMA, "sae": label, "features": entries}
    data = json.dumps(document, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    if len(names) > MOST_NAMED or len(data) > MAX_DOCUMENT_BYTES:
        raise ValueError(f"{path}: {len(names):,} names are more than one file holds")
    make_folders(path.parent, below=run_dir)
    replace_file(path, data, sync=False)
