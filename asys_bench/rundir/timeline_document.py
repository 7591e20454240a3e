"""`timeline/<SAE>.json` (schema `asys.timeline/1`): which features of an SAE were born when, and why.

It is made by `asys-run timeline` and by the report (`change.timeline`); here it is read. Lives about which
there is nothing to say (always there, silent) are counted and not listed. A look keeps the births of the
document before it (`look_step`), or withdraws them (`withdrawn_step`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from asys_bench.contracts.names import file_slug
from asys_bench.contracts.run_files import TIMELINE_DIR, TIMELINE_SCHEMA
from asys_bench.rundir.live_run import ReadingError
from asys_bench.system.files import replace_file
from asys_bench.system.files.below import make_folders, read_json

MOST_LIVES = 2000
"""Listed of one SAE; those with the smallest p-values, births first."""
CURVE_POINTS = 64


@dataclass(frozen=True)
class RowAt:
    """A row of the reservoir, by which archive, tokens and labels are found."""

    source: int
    host_step: int
    weights_version: int
    microbatch: int
    call: int
    row: int
    activation: float
    text: int = 0
    """Which text of its call it is a token of; 0: of none."""


@dataclass(frozen=True)
class FeatureLife:
    """One life of a feature. Steps are the host's; rates are shares of rows."""

    feature: int
    verdict: str
    """born; gradual: it came slowly, from other lives or because it moved; turned: so, and the SAE followed
    it; always; silent."""
    generation: int = 0
    found_step: int = 0
    """When the SAE's life began: at its start, or by resampling."""
    late_by_steps: float | None = None
    """The SAE found it so much later than it was there."""
    born_step: float | None = None
    born_low: float | None = None
    born_high: float | None = None
    """An interval of 95 % for it."""
    born_p: float = 1.0
    died_step: float | None = None
    rate_before: float = 0.0
    rate_after: float = 0.0
    cause: str = ""
    """Of a birth. learnt: it is one in several rows of the constant evaluation batch too, where only the host
    can have changed; data: it fired there before; open: the constant batch does not say, or there is none."""
    learnt_step: float | None = None
    usefulness: float = 0.0
    """By how much of its squared size a row's error would grow without it, where it fires."""
    birth_cosine: float = 1.0
    """Of the decoder now and when the SAE's life began."""
    duplicate_of: int | None = None
    """Another life that was born with it and shares its direction, more useful over all rows."""
    look_step: int | None = None
    """Of a birth that only an earlier look saw: the last host step of that look. Its life has ended in the
    SAE, or the reservoir has become too thin for it."""
    withdrawn_step: float | None = None
    """Of a life that is gradual or turned: an earlier look, of fewer rows, had called this step its birth."""
    direction: str = ""
    """Of a birth, or of what was one: its decoder row, of unit length, as base64 of float16; by it a later
    look knows it again."""
    appeared: str = ""
    """Of a birth, written as `direction`: what its first rows have and other rows do not. Where the SAE reads
    two new features with one life it is the one that began then."""
    unread: bool = False
    """No feature of the SAE reads it: a direction that many rows have in what the SAE leaves of them.
    `feature` then counts on from the SAE's features, anew in each look."""
    robust: bool | None = None
    """Another variant of the SAE saw the birth too; None: there is no other."""
    rates: tuple[float, ...] = ()
    """Its rate over the run, in `Timeline.curve_steps`."""
    rows: tuple[RowAt, ...] = ()
    """The strongest rows soon after the birth."""

    @property
    def name(self) -> str:
        """As it is shown."""
        return f"unread {self.feature}" if self.unread else f"feature {self.feature}"


@dataclass(frozen=True)
class Timeline:
    """Of one SAE."""

    label: str
    hook: str
    checkpoint: str
    """Name of the folder of the checkpoint whose weights were run over the rows."""
    features: int
    rows: int
    """Of the reservoir."""
    units: int
    first_step: int
    last_step: int
    constant_moments: int = 0
    """Moments of the constant evaluation batch; 0: none, so that nothing is called learnt."""
    counts: dict[str, int] = field(default_factory=dict)
    """Verdict -> lives of the SAE as it is now."""
    curve_steps: tuple[float, ...] = ()
    lives: tuple[FeatureLife, ...] = ()
    problem: str = ""
    """Why there is no more to say."""

    @property
    def births(self) -> list[FeatureLife]:
        """Lives that were born, the earliest first, without duplicates; with those of earlier looks."""
        found = [one for one in self.lives if one.verdict == "born" and one.duplicate_of is None]
        return sorted(found, key=lambda one: one.born_step or 0.0)

    @property
    def withdrawn(self) -> list[FeatureLife]:
        """Lives that an earlier look had called born and this one does not."""
        return [one for one in self.lives if one.withdrawn_step is not None]

    def to_dict(self) -> dict[str, Any]:
        return {"schema": TIMELINE_SCHEMA, **asdict(self)}


_ADAPTER = TypeAdapter(Timeline)


def timeline_file(run_dir: Path, label: str) -> Path:
    """Where the timeline of an SAE is."""
    return run_dir / TIMELINE_DIR / f"{file_slug(label)}.json"


def write_timeline(run_dir: Path, timeline: Timeline) -> Path:
    """Raises OSError: the disk refuses; ValueError: a number is not finite."""
    path = timeline_file(run_dir, timeline.label)
    data = json.dumps(timeline.to_dict(), allow_nan=False) + "\n"
    make_folders(path.parent, below=run_dir)
    replace_file(path, data.encode(), sync=False)
    return path


def read_timeline(run_dir: Path, label: str) -> Timeline:
    """The document of an SAE.

    Raises:
        ReadingError: there is none yet, or it is damaged.
    """
    path = timeline_file(run_dir, label)
    try:
        document = read_json(path, below=run_dir)
    except FileNotFoundError:
        raise ReadingError(
            f"{run_dir}: no timeline of {label!r} yet: asys-run timeline {run_dir} makes it, of a run "
            "with a sink of kind `reservoir`"
        ) from None
    except (OSError, ValueError) as error:
        raise ReadingError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, Mapping) or document.get("schema") != TIMELINE_SCHEMA:
        raise ReadingError(f"{path}: not an {TIMELINE_SCHEMA} document")
    try:
        return _ADAPTER.validate_python({k: v for k, v in document.items() if k != "schema"})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ReadingError(f"{path}: {first['loc']}: {first['msg']}") from None
