"""Exit codes of the commands: `asys-run` has the first three and those of signals, `asys-bench` has all."""

from __future__ import annotations

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INCONCLUSIVE = 0, 1, 2, 3
EXIT_INVALID, EXIT_REFUSED, EXIT_INTERRUPTED = 4, 5, 130

MEANINGS = {
    EXIT_OK: "pass",
    EXIT_FAILED: "fail",
    EXIT_USAGE: "usage or configuration",
    EXIT_INCONCLUSIVE: "inconclusive",
    EXIT_INVALID: "invalid",
    EXIT_REFUSED: "environment refused",
    EXIT_INTERRUPTED: "interrupted",
}
"""Of a suite's run."""
