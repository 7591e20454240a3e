"""What a fault is. Every fault

- says before anything starts whether this machine can have it (`unavailable`), with the fix;
- prepares the host's surroundings (`prepare`): environment, mounts; undone by the stage;
- strikes (`inject`) and, where it lasts, ends (`lift`), as often as the case says;
- knows when the run is over it (`recovered`), apart from packets flowing again;
- touches only processes and files of the run under test.
"""

from __future__ import annotations

import random
import signal
from abc import ABC
from collections.abc import Sequence
from typing import ClassVar

from asys_bench.contracts.stats import WorkerState
from asys_bench.harness.faults.observed import ObservedRun
from asys_bench.harness.faults.options import ChaosOptions
from asys_bench.harness.faults.stage import Stage


class Fault(ABC):
    """One kind of fault; an instance per round."""

    name: ClassVar[str]
    summary: ClassVar[str]
    lasts: ClassVar[bool] = False
    """It goes on until it is lifted; recovery counts from there."""
    replaces: ClassVar[bool] = True
    """A worker dies of it, so a successor has to come."""
    host_survives: ClassVar[bool] = True

    def __init__(self, options: ChaosOptions, seed: int) -> None:
        self.options = options
        self.random = random.Random(seed)
        self._lives: dict[str, tuple[int, int]] = {}

    def calm_s(self) -> float:
        """How long nothing happens before the next strike."""
        return self.options.calm_s * self.random.uniform(0.5, 1.5)

    def hold_s(self) -> float:
        """How long a strike that lasts does so."""
        return self.options.hold_s

    @classmethod
    def unavailable(cls, options: ChaosOptions) -> str | None:
        """Why this machine cannot have it, with the fix; None when it can."""
        del options
        return None

    def prepare(self, stage: Stage) -> None:
        """Before the host starts."""

    def inject(self, run: ObservedRun) -> None:
        """Strike now."""

    def lift(self, run: ObservedRun) -> None:
        """End it. Called once per `inject` of a fault that lasts."""

    def excused_packets(self) -> int:
        """Packets that its damage to files explains; counted, never guessed."""
        return 0

    def victims(self, run: ObservedRun) -> Sequence[str]:
        """Slots of the processes it strikes."""
        return run.others() if self.options.worker == "everyone" else (self.options.worker,)

    def strike(self, run: ObservedRun, number: signal.Signals) -> None:
        """Send a signal to whom the case names."""
        if self.options.worker == "anyone":
            run.send_one(self.random.choice, number)
        else:
            self.remember(run)
            run.send(self.victims(run), number)

    def remember(self, run: ObservedRun) -> None:
        """Which incarnation is struck; call it right before."""
        self._lives = {name: run.life(name) for name in self.victims(run)}

    def recovered(self, run: ObservedRun) -> bool:
        """Every process that it struck has a successor that works."""
        if not self.replaces:
            return True
        for name, life in self._lives.items():
            slot = run.slot(name)
            if slot.state is not WorkerState.READY or run.life(name) == life:
                return False
        return True
