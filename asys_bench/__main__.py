"""`python -m asys_bench run -c CONFIG -- train.py args`: a training script as it is, under observation.

Without `--` and a script it is `asys-run`: `python -m asys_bench run -c CONFIG`.
Under torchrun (`torchrun ... -m asys_bench run -c CONFIG -- train.py`), mpirun and srun all ranks of a node
share a run.
"""

from __future__ import annotations

import argparse
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """The exit code: asys-run's."""
    argv = sys.argv[1:] if argv is None else argv
    split = argv.index("--") if "--" in argv else len(argv)
    ours, script = argv[:split], argv[split + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m asys_bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a script or a configured host under observation")
    run.add_argument("-c", "--config", required=True, metavar="FILE", help="as of asys-run")
    run.add_argument(
        "--set", action="append", default=[], metavar="PATH=VALUE", help="as of asys-run"
    )
    arguments = parser.parse_args(ours)
    if split < len(argv) and not script:
        parser.error("after -- there must be a script: -- train.py ARGS, or -- -m MODULE ARGS")
    if not script:
        return _asys_run(arguments.config, arguments.set)
    if script[0] == "-m" and len(script) < 2:
        parser.error("after -m there must be a module")
    from asys_bench.system.launcher import LocalRanks

    ranks = LocalRanks.from_environment()
    if ranks is not None and ranks.world_size > 1:
        from asys_bench.run.script import observe_script

        return observe_script(arguments.config, arguments.set, script)
    return _asys_run(arguments.config, [*_script_sets(script), *arguments.set])


def _script_sets(argv: list[str]) -> list[str]:
    """The script as overrides of the configuration; its host keeps its own number of threads."""
    from asys_bench.config.paths import assignment

    is_module = argv[0] == "-m"
    name, args = (argv[1], argv[2:]) if is_module else (argv[0], argv[1:])
    script = ("host", "options", "script")
    return [
        assignment(("host", "kind"), "script"),
        assignment((*script, "module" if is_module else "path"), name),
        assignment((*script, "args"), args),
        assignment(("resources", "host_threads"), None),
    ]


def _asys_run(config: str, sets: list[str]) -> int:
    from asys_bench.cli.run import main as asys_run

    return asys_run(["--config", config, *(word for text in sets for word in ("--set", text))])


if __name__ == "__main__":
    if sys.path and os.path.realpath(sys.path[0] or ".") == os.getcwd():
        del sys.path[0]  # `-m` puts the working directory there, whose folders could hide packages
    sys.exit(main())
