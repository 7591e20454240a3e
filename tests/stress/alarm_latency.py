"""Time from an injected change to the flag that the host's loop reads, over many changes of a live run.

`python alarm_latency.py FOLDER`: a host with HOOKS (80) small layers, each watched through a known SAE, at
the sink's default interval. Every EVERY_S (45) seconds the rows of each layer change their distribution and
stay so, layers one after another, until EVENTS (700) changes have been injected. The host's loop reads
`observation.alarms` after each step. Prints a JSON line: events, found, percentiles of the time from the
first changed call, and how many alarms came without a change.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import asys_bench
from asys_bench.sae import SAEConfig, build_sae, save_sae
from asys_bench.sae.architectures.scaling import InputScaling

WIDTH, ROWS = 8, 64
GIVEN_UP_S = 10.0
"""A change that raised no alarm for so long was not found."""


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


def measure(
    folder: Path, hooks: int, events: int, every_s: float, step_s: float, **options
) -> dict:
    """options: of the sink, over its defaults."""
    model, random = Layers(hooks), torch.Generator().manual_seed(1)
    alarm = {
        "watch": [{"sae": str(known_sae(folder / "known")), "features": [0, 1]}],
        "before_s": 1, "after_s": 2, **options,
    }  # fmt: skip
    config = {
        "run": {"dir": str(folder / "runs")},
        "sinks": {"alarm": {"kind": "alarm", "options": alarm}, "trainer": None, "archive": None},
    }
    shift = 4 * torch.randn(hooks, 1, WIDTH, generator=random)
    changed = np.zeros(hooks, bool)
    open_since: dict[int, float] = {}
    seen: dict[str, int] = {}
    latencies: list[float] = []
    injected = missed = unasked = count = 0
    with asys_bench.observe(model, config, hooks="layers.*", quiet=True) as observation:
        began = time.monotonic()
        next_s = began + every_s  # the first reference
        while injected < events or open_since:
            rows = torch.randn(hooks, ROWS, WIDTH, generator=random)
            rows += shift * torch.from_numpy(changed)[:, None, None]
            now = time.monotonic()
            if injected < events and now >= next_s:
                hook = injected % hooks
                next_s += every_s / hooks
                changed[hook] = not changed[hook]
                rows[hook] = torch.randn(ROWS, WIDTH, generator=random) + shift[hook] * bool(
                    changed[hook]
                )
                open_since[hook] = time.monotonic()
                injected += 1
            model(list(rows))
            observation.step()
            if observation.alarms.count != count:
                at = time.monotonic()
                count = observation.alarms.count
                for one in observation.alarms:
                    if one.count == seen.get(one.watcher, 0):
                        continue
                    seen[one.watcher] = one.count
                    hook = int(one.watcher.split()[0].rpartition(".")[2])
                    if hook in open_since:
                        latencies.append(at - open_since.pop(hook))
                    elif changed_lately(hook, injected, hooks, every_s):
                        continue  # another watcher of the same change
                    else:
                        unasked += 1
            for hook, since in list(open_since.items()):
                if time.monotonic() - since > GIVEN_UP_S:
                    missed += 1
                    del open_since[hook]
            time.sleep(max(0.0, now + step_s - time.monotonic()))
        seconds = time.monotonic() - began
        page = observation.page.slot("alarm-0").metrics()
        intervals = page["alarm_intervals"].value
        own = page["alarm_latency_ns"].snapshot()
    percentiles = np.percentile(latencies, [50, 90, 99, 100]).tolist() if latencies else None
    return {
        "events": injected, "found": len(latencies), "missed": missed,
        "latency_s_p50_p90_p99_max": percentiles,
        "alarms_without_a_change": unasked, "seconds": seconds, "intervals": intervals,
        "newest_rows_to_flag_s_p50_p99": [own.quantile(q) / 1e9 for q in (0.5, 0.99)],
        "watchers": 3 * hooks, "load_1_min": os.getloadavg()[0],
    }  # fmt: skip


def changed_lately(hook: int, injected: int, hooks: int, every_s: float) -> bool:
    """Its last change was among those of the last half round."""
    return (injected - 1 - hook) % hooks < hooks / 2 and injected > hook


def main() -> None:
    torch.set_num_threads(1)
    take = lambda name, default: type(default)(os.environ.get(name, default))  # noqa: E731
    found = measure(
        Path(sys.argv[1]), take("HOOKS", 80), take("EVENTS", 700), take("EVERY_S", 45.0), take("STEP_S", 0.03)
    )  # fmt: skip
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(main())
