"""Time from an injected change to the flag that the host's loop reads, over many changes of live runs.

`python alarm_latency.py FOLDER`: ROUNDS (4) hosts one after another, each with HOOKS (176) small layers that
are watched through a known SAE, at the sink's default interval: its FVU each. After QUIET_S (85, some 800
values) the rows of one layer after another change their distribution, one every EVERY_S (0.2) seconds; BACK_S
(20) seconds later they are again what they were. So each change is the first of its layer, and 704 of them
take about eleven minutes. The host's loop reads `observation.alarms` after each step of STEP_S (0.06). Prints
a JSON line a round and one of all: changes, found, percentiles of the time from the first changed call to the
flag, the same for `is_over` after the change back, and how many alarms came without a change.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

import asys_bench
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling

WIDTH, ROWS = 8, 64
GIVEN_UP_S = 10.0
"""A change that raised no alarm for so long was not found; one back that ended none, neither."""


def known_sae(folder: Path) -> Path:
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    save_sae(folder, build_sae(SAEConfig(d_sae=32, k=4), WIDTH), InputScaling.identity(WIDTH), {})
    return folder


class Layers(torch.nn.Module):
    """Independent layers, each with its own input."""

    def __init__(self, hooks: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Identity() for _ in range(hooks))

    def forward(self, inputs: list[torch.Tensor]) -> None:
        for layer, rows in zip(self.layers, inputs, strict=True):
            layer(rows)


@dataclass
class Changes:
    """What was injected into each layer when, and when the host saw it. Times are monotonic seconds."""

    hooks: int
    shift_HW: torch.Tensor
    changed_at: dict[int, float] = field(default_factory=dict)
    back_at: dict[int, float] = field(default_factory=dict)
    flag_s: list[float] = field(default_factory=list)
    over_s: list[float] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    over: set[int] = field(default_factory=set)
    unasked: int = 0

    def look(self, alarms, at: float) -> None:
        """What the host's loop reads after a step."""
        for one in alarms:
            hook = int(one.watcher.split()[0].rpartition(".")[2])
            if hook not in self.changed_at:
                self.unasked += hook not in self.seen
            elif hook not in self.seen:
                self.flag_s.append(at - self.changed_at[hook])
            self.seen.add(hook)
            if one.is_over and hook in self.back_at and hook not in self.over:
                self.over.add(hook)
                self.over_s.append(at - self.back_at[hook])

    def rows(self, random: torch.Generator) -> list[torch.Tensor]:
        rows = torch.randn(self.hooks, ROWS, WIDTH, generator=random)
        on = torch.zeros(self.hooks, 1, 1)
        on[[hook for hook in self.changed_at if hook not in self.back_at]] = 1.0
        return list(rows + on * self.shift_HW[:, None])


def measure(
    folder: Path,
    hooks: int,
    every_s: float,
    step_s: float,
    quiet_s: float,
    back_s: float,
    **options,
) -> dict:
    """One run. options: of the sink, over its defaults."""
    model, random = Layers(hooks), torch.Generator().manual_seed(1)
    alarm = {
        "watch": [{"sae": str(known_sae(folder / "known"))}], "before_s": 1, "after_s": 2, **options,
    }  # fmt: skip
    config = {
        "run": {"dir": str(folder / "runs"), "drain_timeout_s": 12},
        "sinks": {"alarm": {"kind": "alarm", "options": alarm}, "trainer": None, "archive": None},
    }
    changes = Changes(hooks, 4 * torch.randn(hooks, WIDTH, generator=random))
    with asys_bench.observe(model, config, hooks="layers.*", quiet=True) as observation:
        began = time.monotonic()
        first = began + quiet_s
        ends = first + hooks * every_s + back_s + GIVEN_UP_S
        while (now := time.monotonic()) < ends:
            due = min(hooks, int((now - first) / every_s) + 1) if now >= first else 0
            for hook in range(len(changes.changed_at), due):
                changes.changed_at[hook] = now
            for hook, at in changes.changed_at.items():
                if now >= at + back_s:
                    changes.back_at.setdefault(hook, now)
            model(changes.rows(random))
            observation.step()
            if observation.alarms:
                changes.look(observation.alarms, time.monotonic())
            time.sleep(max(0.0, now + step_s - time.monotonic()))
        seconds = time.monotonic() - began
        page = observation.page.slot("alarm-0").metrics()
        intervals = page["alarm_intervals"].value
        own = page["alarm_latency_ns"].snapshot()
    in_time = [one for one in changes.flag_s if one <= GIVEN_UP_S]
    return {
        "changes": hooks, "found": len(in_time), "flag_s": in_time,
        "over": len(changes.over_s), "over_s": changes.over_s,
        "alarms_without_a_change": changes.unasked, "seconds": seconds,
        "intervals_per_s": intervals / seconds,
        "newest_rows_to_flag_s_p50_p99": [own.quantile(q) / 1e9 for q in (0.5, 0.99)],
        "load_1_min": os.getloadavg()[0],
    }  # fmt: skip


def told(rounds: list[dict]) -> dict:
    """Of all rounds together."""
    flags, overs = ([s for one in rounds for s in one[name]] for name in ("flag_s", "over_s"))
    percentiles = lambda found: np.percentile(found, [50, 90, 99, 100]).tolist() if found else None  # noqa: E731
    return {
        **{
            name: sum(one[name] for one in rounds)
            for name in ("changes", "found", "over", "alarms_without_a_change", "seconds")
        },
        "flag_s_p50_p90_p99_max": percentiles(flags), "over_s_p50_p90_p99_max": percentiles(overs),
        "intervals_per_s": [one["intervals_per_s"] for one in rounds],
        "newest_rows_to_flag_s_p50_p99": [one["newest_rows_to_flag_s_p50_p99"] for one in rounds],
        "load_1_min": [one["load_1_min"] for one in rounds],
    }  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    take = lambda name, default: type(default)(os.environ.get(name, default))  # noqa: E731
    rounds = []
    for number in range(take("ROUNDS", 4)):
        rounds.append(
            measure(
                Path(sys.argv[1]) / f"round{number}", take("HOOKS", 176), take("EVERY_S", 0.2),
                take("STEP_S", 0.06), take("QUIET_S", 85.0), take("BACK_S", 20.0),
            )
        )  # fmt: skip
        print(json.dumps(told(rounds[-1:])), flush=True)
    print(json.dumps(told(rounds)), flush=True)


if __name__ == "__main__":
    sys.exit(main())
