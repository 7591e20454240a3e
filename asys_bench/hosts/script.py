"""The `script` host: a training script as it is, run as `python train.py args` would.

`python -m asys_bench run -c config.yaml -- train.py args` is the short way to it. The script is not
changed and need not know of us; see `model_finder` for how its model is found.

Where its run may go on (`run.resume`), it finds a folder for checkpoints of its own in ASYS_STATE_DIR and how
far the run came in ASYS_LAST_STEP. A script that goes on from a step sets ASYS_STEP in `os.environ` before
its model is called.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from pydantic import Field

from asys_bench.contracts.host import (
    BaseHost,
    HostError,
    HostOptions,
    HostPlugin,
    HostResult,
    LateClock,
)
from asys_bench.contracts.sink import Misfit
from asys_bench.hosts.dotted_name import load_function
from asys_bench.hosts.forked import children_leave
from asys_bench.hosts.model_finder import ModelFinder


class ScriptOptions(HostOptions):
    """Options of the `script` host."""

    path: str | None = Field(
        default=None, description="the script, relative to the working directory"
    )
    module: str | None = Field(
        default=None, description="instead of `path`: a module, run as `python -m` runs it"
    )
    args: tuple[str, ...] = Field(default=(), description="the script's own arguments")
    model_class: str | None = Field(
        default=None,
        description="class of the model, as `Net` or `package.module.Net`; null: the first module "
        "put in train mode, or called in it, on which every glob of `hooks` matches",
    )
    choose: str | None = Field(
        default=None,
        description="`package.module:function` that is given each such module and returns the one "
        "to observe (it or a part of it), or None to go on looking",
    )

    def misfits(self) -> Iterator[Misfit]:
        """A script that is not named, twice named or not there."""
        if (self.path is None) == (self.module is None):
            yield Misfit((), "give either `path` or `module`", [self.path, self.module], "")
        elif self.path is not None and not Path(self.path).is_file():
            yield Misfit(
                ("path",), f"is no file here ({os.getcwd()})", self.path, "name the script"
            )


class ScriptHost(BaseHost):
    """Steps are forward calls of the model."""

    step_unit = "forward call"

    def __init__(self, options: ScriptOptions, seed: int) -> None:
        self._options = options
        self._running = False
        self._begins_at: Callable[[int], None] = lambda step: None

    def goes_on(self, folder: Path, last_step: int, begins_at: Callable[[int], None]) -> None:
        os.environ |= {"ASYS_STATE_DIR": str(folder), "ASYS_LAST_STEP": str(last_step)}
        os.environ.pop("ASYS_STEP", None)
        self._begins_at = begins_at

    def build(self) -> torch.nn.Module | None:
        """None: the model comes up while the script runs."""
        options = self._options
        if (options.path is None) == (options.module is None):
            raise HostError("host.options.script: give either `path` or `module`")
        if options.path is not None and not Path(options.path).is_file():
            raise HostError(
                f"host.options.script.path: {options.path!r} is no file here ({os.getcwd()})"
            )
        self._choose = (
            load_function(options.choose, "host.options.script.choose")
            if options.choose is not None
            else None
        )
        return None

    def run(self, clock: LateClock) -> HostResult:
        """Run the script to its end. Raises what it raises.

        Raises:
            HostError: it exited with an error code, or no model was found in it.
        """
        observed = False

        def found(model: torch.nn.Module, called: bool) -> None:
            nonlocal observed
            if (step := os.environ.get("ASYS_STEP", "")).isdecimal():
                self._begins_at(int(step))
            clock.observe(model, called=called)
            observed = True

        finder = ModelFinder(
            clock.misfit, found, class_name=self._options.model_class, choose=self._choose
        )
        started = time.monotonic()
        stopped = False
        finder.start()
        self._running = True
        try:
            run_script(self._options.path, self._options.module, self._options.args)
        except KeyboardInterrupt:
            if not clock.should_stop:
                raise
            stopped = True
        finally:
            self._running = False
            finder.stop()
        if not observed and not stopped:
            raise HostError(f"{self._name} ended, but {finder.explain()}")
        clock.end()
        return HostResult(clock.steps_made, time.monotonic() - started, stopped_early=stopped)

    def request_stop(self) -> None:
        """As Ctrl-C in the script itself: it may clean up and go on to its end."""
        if self._running:
            raise KeyboardInterrupt

    @property
    def _name(self) -> str:
        return self._options.path or f"-m {self._options.module}"


def run_script(path: str | None, module: str | None, args: tuple[str, ...]) -> None:
    """Run a script or module as `__main__` with its own arguments and import path.

    Raises:
        HostError: it exited with a code other than 0; and whatever it raises itself.
    """
    name = path if path is not None else f"-m {module}"
    try:
        with _command_line([path or str(module), *args], path), children_leave():
            if path is not None:
                runpy.run_path(path, run_name="__main__")
            else:
                runpy.run_module(str(module), run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise HostError(f"{name} exited with {end.code!r}") from end


@contextlib.contextmanager
def _command_line(argv: list[str], path: str | None) -> Iterator[None]:
    """sys.argv and sys.path[0] as the interpreter would have set them."""
    before_argv, before_path = sys.argv, list(sys.path)
    sys.argv = argv
    sys.path.insert(0, str(Path(path).resolve().parent) if path is not None else os.getcwd())
    try:
        yield
    finally:
        sys.argv = before_argv
        sys.path[:] = before_path


def _build(options: HostOptions, seed: int) -> BaseHost:
    assert isinstance(options, ScriptOptions)
    return ScriptHost(options, seed)


plugin = HostPlugin(
    name="script",
    summary="a training script as it is: finds its model when it begins to train",
    options=ScriptOptions,
    build=_build,
)
