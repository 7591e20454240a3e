"""`python -m asys_bench.conformance BACKEND`: the bus contract, run against one installed backend.

The suite comes with the package and needs pytest and hypothesis. Further arguments are pytest's.
"""

from __future__ import annotations

import os
import sys

from asys_bench.config.sources import DATA
from asys_bench.contracts.exit_codes import EXIT_USAGE

SUITE = DATA / "conformance"
ONLY = "ASYS_CONFORMANCE_BACKEND"
"""Environment variable that narrows the suite to one backend; its nursery processes see it, too."""


def main(argv: list[str] | None = None) -> int:
    """pytest's exit code; 2 for a name that is no backend, or one that does not load or run here."""
    argv = sys.argv[1:] if argv is None else argv
    from asys_bench.contracts.bus import BusPlugin
    from asys_bench.registry import PluginError, registry

    known = registry("backend")
    if not argv or argv[0].startswith("-"):
        names = ", ".join(known.names())
        print(f"usage: python -m asys_bench.conformance BACKEND [pytest arguments]; {names}")
        return EXIT_USAGE
    try:
        reason = known.get(argv[0], BusPlugin).unavailable()
    except PluginError as error:
        reason = str(error)
    if reason is not None:
        print(f"{argv[0]}: {reason}", file=sys.stderr)
        return EXIT_USAGE
    import pytest

    os.environ[ONLY] = argv[0]
    suite = SUITE.resolve()
    tests = sorted(str(path) for path in suite.glob("test_bus*.py"))
    options = [
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        f"--rootdir={suite.parent.parent}",
    ]
    return int(pytest.main([*options, "-c", os.devnull, *tests, *argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
