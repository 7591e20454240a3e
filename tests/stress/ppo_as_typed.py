"""What the callback costs stable-baselines3's PPO as a user types it, and where that goes.

    python -P tests/stress/ppo_as_typed.py runs ROUNDS [VARIANT...]    a process per run, in turn (ABBA)
    python -P tests/stress/ppo_as_typed.py parts BLOCKS                in one process, a rollout per block

CartPole, one torch thread, `ObserveCallback(hooks=[two])` on `cpp_spmc` with everything else at its default,
so that an SAE trains on the policy and an archiver writes. One JSON line is printed: microseconds of an
environment step, gradient steps included, by the wall and of the host thread's CPU time. Variants:

    none        no callback
    empty       a callback that does nothing
    bare_hooks  beside it, two forward hooks that do nothing
    hooks       `ObserveCallback` without workers
    typed       as it is typed
    pinned      workers on the other core and idle, 20,000 rows/s at most

Blocks leave out the labels, the labels and the step marks (hooks alone), the hooks, or everything while the
workers go on; their order is drawn anew each time.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from asys_bench.callbacks.stable_baselines3 import ObserveCallback

HOOKS = ["mlp_extractor.policy_net", "mlp_extractor.value_net"]
VARIANTS = ("none", "empty", "bare_hooks", "hooks", "typed", "pinned")
PARTS = ("full", "no labels", "hooks alone", "no hooks", "nothing")
ROLLOUTS, STEPS = 10, 2048
BLOCK_STEPS = 512
SKIPPED = 2
"""Rollouts at the beginning that do not count."""


class Empty(BaseCallback):
    def _on_step(self) -> bool:
        return True


class Timed(PPO):
    """Notes wall time and CPU time of its thread when each rollout with its gradient steps is over."""

    times: list[tuple[float, float]]

    def train(self) -> None:
        super().train()
        self.times.append((time.perf_counter(), time.thread_time()))


def observing(folder: str, rule: dict[str, Any] | None = None, **options: Any) -> ObserveCallback:
    settings = {"run.dir": folder, "bus.backend": "cpp_spmc", **options}
    return ObserveCallback(hooks=[{"match": HOOKS, **(rule or {})}], quiet=True, **settings)


def callback_of(variant: str, model: PPO, folder: str) -> BaseCallback | None:
    if variant == "none":
        return None
    if variant == "hooks":
        return observing(folder, sae=False, archive=False)
    if variant == "typed":
        return observing(folder)
    if variant == "pinned":
        options = {"resources.pinning": "auto", "resources.worker_cpu": "idle"}
        return observing(folder, {"sampling": {"max_rows_per_s": 20000}}, **options)
    if variant == "bare_hooks":
        for name in HOOKS:
            model.policy.get_submodule(name).register_forward_hook(lambda *_: None)
    return Empty()


def run(variant: str) -> dict[str, float]:
    model = Timed("MlpPolicy", "CartPole-v1", n_steps=STEPS, device="cpu", seed=1)
    model.times = []
    with tempfile.TemporaryDirectory() as folder:
        model.learn(ROLLOUTS * STEPS, callback=callback_of(variant, model, folder))
    (wall, cpu), (wall_end, cpu_end) = model.times[SKIPPED - 1], model.times[-1]
    steps = (ROLLOUTS - SKIPPED) * STEPS
    return {"wall us": 1e6 * (wall_end - wall) / steps, "cpu us": 1e6 * (cpu_end - cpu) / steps}


def runs(rounds: int, variants: list[str]) -> dict[str, Any]:
    """Medians, and rates over those of the first variant within rounds: median, least, most."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(rounds):
        for name in variants if number % 2 == 0 else variants[::-1]:
            done = subprocess.run(
                [sys.executable, "-P", __file__, "one", name],
                capture_output=True, text=True, check=False, timeout=300,
            )  # fmt: skip
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            found[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(number, name, found[name][-1], file=sys.stderr, flush=True)
    told: dict[str, Any] = {}
    for name, ours in found.items():
        told[name] = {}
        for unit in ("wall us", "cpu us"):
            rates = [
                base[unit] / one[unit] for base, one in zip(found[variants[0]], ours, strict=True)
            ]
            told[name][unit] = round(statistics.median(one[unit] for one in ours), 1)
            told[name][f"rate by {unit[:-3]}"] = [
                round(one, 3) for one in (statistics.median(rates), min(rates), max(rates))
            ]
    return told


class Blocks(PPO):
    """Leaves out another part in each block."""

    callback: ObserveCallback
    spent: dict[str, list[tuple[float, float]]]
    hooks: dict[str, dict[int, Any]]
    order: list[str]
    now: str = ""
    done: int = 0
    began: tuple[float, float] = (0.0, 0.0)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        wall, cpu = time.perf_counter(), time.thread_time()
        if self.done > 2 * len(PARTS):
            self.spent[self.now].append((wall - self.began[0], cpu - self.began[1]))
        self.order = self.order or random.sample(PARTS, len(PARTS))
        self.now, self.done = self.order.pop(), self.done + 1
        self._leave_out(self.now)
        self.began = time.perf_counter(), time.thread_time()
        return super().collect_rollouts(*args, **kwargs)

    def _leave_out(self, part: str) -> None:
        ours = self.callback
        for name in HOOKS:
            module = self.policy.get_submodule(name)
            kept = self.hooks.setdefault(name, dict(module._forward_hooks))
            module._forward_hooks.clear()
            if part not in ("no hooks", "nothing"):
                module._forward_hooks.update(kept)
        for name in ("stepped", "ended"):
            vars(ours._labels).pop(name, None)
            if part not in ("full", "no hooks"):
                setattr(ours._labels, name, lambda *_: None)
        vars(ours).pop("_on_step", None)
        if part in ("hooks alone", "nothing"):
            ours._on_step = lambda: True  # type: ignore[method-assign]


def parts(blocks: int) -> dict[str, Any]:
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder:
        model = Blocks("MlpPolicy", "CartPole-v1", n_steps=BLOCK_STEPS, device="cpu", seed=1)
        model.callback, model.order, model.hooks = observing(folder), [], {}
        model.spent = {name: [] for name in PARTS}
        model.learn(BLOCK_STEPS * blocks, callback=model.callback)
    told: dict[str, Any] = {}
    for name, spent in model.spent.items():
        wall, cpu = (sorted(1e6 * one[place] / BLOCK_STEPS for one in spent) for place in (0, 1))
        told[name] = {
            "blocks": len(spent),
            "wall us": round(statistics.median(wall), 1),
            "cpu us": round(statistics.median(cpu), 1),
            "cpu us, lower quartile": round(cpu[len(cpu) // 4], 1),
        }
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, first, *others = sys.argv[1:]
    if what == "one":
        print(json.dumps(run(first)))
    elif what == "parts":
        print(json.dumps(parts(int(first))))
    else:
        print(json.dumps(runs(int(first), others or list(VARIANTS))))
