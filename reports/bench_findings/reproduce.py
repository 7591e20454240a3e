"""How to run it again: commands that can be pasted in a shell."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import PurePath

from asys_bench.harness.results.result import Result


@dataclass(frozen=True, slots=True)
class Step:
    what: str
    command: str


def steps(result: Result) -> list[Step]:
    """Check out, look at the machine, run the same command."""
    run, found = result.run, []
    if run.commit is not None:
        what = "the source that was measured"
        if run.dirty:
            what += " (it had uncommitted changes, which are not in this commit)"
        found.append(Step(what, f"git checkout {shlex.quote(run.commit)}"))
    suite = shlex.quote(run.suite.path)
    found.append(Step("is this machine fit? measures nothing", f"asys-bench check {suite}"))
    if run.command:
        # Only its name: the folder it was installed in is of no use on another machine.
        words = [PurePath(run.command[0]).name or run.command[0], *run.command[1:]]
        found.append(Step(f"the same run (seed {run.seed})", shlex.join(words)))
    return found


def shell_lines(result: Result) -> list[str]:
    """A comment and a command in turn."""
    return [line for step in steps(result) for line in (f"# {step.what}", step.command)]
