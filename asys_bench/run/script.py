"""A training script as it is, on every rank that torchrun, mpirun or srun starts.

One process alone is the `script` host's business; ranks have to find each other, which `Observation`
does for them.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import torch

from asys_bench.config import ConfigError, load_config
from asys_bench.config.paths import assignment
from asys_bench.contracts.exit_codes import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from asys_bench.contracts.host import HostError
from asys_bench.hosts.dotted_name import load_function
from asys_bench.hosts.model_finder import ModelFinder
from asys_bench.hosts.script import ScriptOptions, run_script
from asys_bench.run.lifecycle import misfit
from asys_bench.run.observation import Observation
from asys_bench.run.process_state import SignalHandlers, log_lines
from asys_bench.system.launcher import LocalRanks

log = logging.getLogger(__name__)


def observe_script(config: str, sets: Sequence[str], script: Sequence[str]) -> int:
    """Run `script` (a path or `-m module`, then its arguments) and observe the model it trains.

    Returns an exit code. What the script raises goes through, after the observation has ended.
    """
    with log_lines("asys: %(message)s"):
        return _observe_script(config, sets, script)


def _observe_script(config: str, sets: Sequence[str], script: Sequence[str]) -> int:
    ours = [
        assignment(("host", "kind"), "observed"),
        assignment(("resources", "host_threads"), None),
    ]
    try:
        settings = load_config(config, [*ours, *sets])
        options = ScriptOptions.model_validate(settings.config.host.options.get("script", {}))
        choose = (
            load_function(options.choose, "host.options.script.choose") if options.choose else None
        )
    except (ConfigError, HostError) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    observation: Observation | None = None

    def found(model: torch.nn.Module, called: bool) -> None:
        nonlocal observation
        ranks = LocalRanks.from_environment()
        observation = Observation(model, settings, ranks, "forward call")
        observation.start(called=called)

    ended_by: int | None = None

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal ended_by
        ended_by = number
        raise KeyboardInterrupt  # as the `script` host: the script may clean up

    finder = ModelFinder(
        lambda model: misfit(model, settings.config.hooks),
        found,
        class_name=options.model_class,
        choose=choose,
    )
    is_module = script[0] == "-m"
    handlers = SignalHandlers((signal.SIGTERM,), end)
    finder.start()
    try:
        path, module = (None, script[1]) if is_module else (script[0], None)
        run_script(path, module, tuple(script[2:] if is_module else script[1:]))
    except HostError as error:
        print(f"asys: {error}", file=sys.stderr)
        return EXIT_FAILED if ended_by is None else 128 + ended_by
    except KeyboardInterrupt:
        if ended_by is None:
            raise
        return 128 + ended_by
    finally:
        handlers.restore()
        finder.stop()
        if observation is not None:
            observation.close()
    if observation is None:
        print(f"asys: the script ended, but {finder.explain()}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK
