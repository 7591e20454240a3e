"""The words that results are written in: verdicts, kinds of targets, levels of checks."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    """What one target, or the whole suite, came to. Only PASS is a pass."""

    PASS = "PASS"
    """The interval lies wholly inside the bound."""
    FAIL = "FAIL"
    """The interval lies wholly outside the bound."""
    INCONCLUSIVE = "INCONCLUSIVE"
    """The interval contains the bound, or there is too little to say; `needs` tells what is missing."""
    INVALID = "INVALID"
    """What was measured cannot be used: a crash, a timeout, a torn frame, noise."""
    REFUSED = "REFUSED"
    """Suite only: the environment was refused before anything was measured."""
    INTERRUPTED = "INTERRUPTED"
    """Suite only: Ctrl-C; what there is was judged, but the plan was not finished."""


class TargetKind(StrEnum):
    QUANTILE = "quantile"
    MEDIAN = "median"
    RATIO = "ratio"
    INVARIANT = "invariant"
    BASELINE = "baseline"


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


class Op(StrEnum):
    AT_MOST = "<="
    AT_LEAST = ">="
    EQUAL = "=="


class Level(StrEnum):
    """What a failed check does."""

    NOTE = "note"
    WARN = "warn"
    ERROR = "error"
    """The run is refused (exit code 5)."""


class CaseStatus(StrEnum):
    MEASURED = "measured"
    CRASHED = "crashed"
    """A round ended without a result; the other cases went on."""
    TIMEOUT = "timeout"
    INVALID = "invalid"
    """Integrity was broken inside a timed round."""
    UNAVAILABLE = "unavailable"
    """It cannot run on this machine; `reason` has the fix."""
    NOT_RUN = "not_run"
    """The run was interrupted before its first round."""


class RoundStatus(StrEnum):
    OK = "ok"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
    INVALID = "invalid"


class Role(StrEnum):
    CASE = "case"
    REFERENCE = "reference"
    """Runs only so that others can be compared with it."""
    BASELINE = "baseline"
    """The same case in another installation, interleaved with it."""


EXIT_PASS, EXIT_FAIL, EXIT_USAGE, EXIT_INCONCLUSIVE = 0, 1, 2, 3
EXIT_INVALID, EXIT_REFUSED, EXIT_INTERRUPTED = 4, 5, 130
