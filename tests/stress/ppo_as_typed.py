"""What the callback costs stable-baselines3's PPO as a user types it, and where that goes.

    python -P tests/stress/ppo_as_typed.py runs ROUNDS [VARIANT...]    a process per run, in turn (ABBA)
    python -P tests/stress/ppo_as_typed.py parts CYCLES               in one process, 8 rollouts in each
    python -P tests/stress/ppo_as_typed.py calls ROLLOUTS             in one process, 2,048 steps in each

CartPole, one torch thread, `ObserveCallback(hooks=[two])` on `cpp_spmc` with everything else at its default,
so that an SAE trains on the policy and an archiver writes. One JSON line is printed: microseconds of an
environment step, gradient steps included, by the wall and of the host thread's CPU time. Variants:

    none        no callback
    empty       a callback that does nothing
    bare_hooks  beside it, two forward hooks that do nothing
    hooks       `ObserveCallback` without workers
    typed       as it is typed
    pinned      workers on the other core and idle, 20,000 rows/s at most

`parts` is a ladder: each rung has all of those before it, and what a rung adds is its cost less theirs, so
that the parts add up to the whole. It is another rung every 64 steps, drawn by chance, and CPU time of the
host's thread that is compared; gradient steps have the first rung or the last one. In half of the rollouts
the workers stand still and the bus is empty at first; in the others they run, and it is as full as it is
when the callback is left alone.

    nothing          SB3 alone, and a callback that does nothing
    optimizer watch  counts the optimizer's steps
    stand-ins        the two modules' forward is called by ours, with a hook that does nothing
    hooks            ours in its place
    step marks       the callback tells the clock each step
    labels           and keeps reward, done and action of it: all that the host runs

Told are us of a step: of `nothing`, what each rung adds, and what `all` come to. `workers`: what they add to
`nothing`, where they run. `rate`: `nothing` beside workers that stand still over `all` beside those that run.

`calls` times what the host calls of ours where it stands, as it is typed, with the caches as they are there:
us of a call (mean of the middle half, less reading the clock) and of an environment step.
"""

from __future__ import annotations

import json
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from torch.optim.optimizer import register_optimizer_step_post_hook

from asys_bench.callbacks.stable_baselines3 import ObserveCallback
from asys_bench.capture.hooks.own_hooks import ForwardStandIn
from asys_bench.harness.scenarios.alternation import signal_workers

HOOKS = ["mlp_extractor.policy_net", "mlp_extractor.value_net"]
VARIANTS = ("none", "empty", "bare_hooks", "hooks", "typed", "pinned")
RUNGS = ("nothing", "optimizer watch", "stand-ins", "hooks", "step marks", "labels")
ROLLOUTS, STEPS = 10, 2048
BLOCK_STEPS, TURN_STEPS = 512, 64
SETTLING, TURNS = 4, 4
"""Rollouts as typed before those that count, and of these with workers that run and that stand still."""
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


def observing(
    folder: str,
    rule: dict[str, Any] | None = None,
    kind: type[ObserveCallback] = ObserveCallback,
    **options: Any,
) -> Any:
    settings = {"run.dir": folder, "bus.backend": "cpp_spmc", **options}
    return kind(hooks=[{"match": HOOKS, **(rule or {})}], quiet=True, **settings)


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


class Ours(ObserveCallback):
    """Tells whoever measures of each step, and lets the workers go on before it waits for them."""

    each_step: Callable[[], None]

    def update_locals(self, locals_: dict[str, Any]) -> None:
        super().update_locals(locals_)
        self.each_step()

    def _on_training_end(self) -> None:
        signal_workers(self.observation.session, signal.SIGCONT)
        super()._on_training_end()


class Ladder(PPO):
    """Another rung every `TURN_STEPS` steps; workers run in some rollouts and stand still in others."""

    callback: Ours
    spent: dict[tuple[bool, str, str], list[tuple[float, float]]]
    """(whether workers run, rollout or gradient steps, rung) -> us of a step: by the wall, of CPU time."""
    kept: dict[str, Any]
    plan: list[tuple[bool, bool]]
    """(whether workers run, whether it counts) of the rollouts to come, the next one last."""
    now: tuple[bool, bool] = (True, False)
    rung: str = RUNGS[-1]
    labels: Any = None
    steps: int = 0
    began: tuple[float, float] = (0.0, 0.0)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        if not self.plan:
            self.plan = (
                [(False, True)] * TURNS + [(True, True)] * TURNS + [(True, False)] * SETTLING
            )
        self.now = self.plan.pop()
        observation = self.callback.observation
        signal_workers(observation.session, signal.SIGCONT)
        if not self.now[0]:
            _let_drain(observation)
            signal_workers(observation.session, signal.SIGSTOP)
        self.callback.each_step = self._count
        self._begin()
        done = super().collect_rollouts(*args, **kwargs)
        self._begin(RUNGS[0], RUNGS[-1])
        return done

    def train(self) -> None:
        rung = self.rung
        super().train()
        self._note("gradient steps", rung, self.n_steps)

    def _count(self) -> None:
        self.steps += 1
        if self.steps == TURN_STEPS:
            self._note("rollout", self.rung, TURN_STEPS)
            self._begin()

    def _note(self, part: str, rung: str, steps: int) -> None:
        ended, (runs, counts) = (time.perf_counter(), time.thread_time()), self.now
        if counts:
            wall, cpu = (1e6 * (b - a) / steps for a, b in zip(self.began, ended, strict=True))
            self.spent.setdefault((runs, part, rung), []).append((wall, cpu))

    def _begin(self, *rungs: str) -> None:
        """A rung that is drawn anew."""
        self.steps, self.rung = 0, random.choice(rungs or RUNGS) if self.now[1] else RUNGS[-1]
        rung, ours = RUNGS.index(self.rung), self.callback
        watch = ours.observation._life._optimizers
        (watch.attach if rung >= RUNGS.index("optimizer watch") else watch.detach)()
        for name in HOOKS:
            module = self.policy.get_submodule(name)
            kept = self.kept.setdefault(name, vars(module).get("forward"))
            vars(module).pop("forward", None)
            if rung >= RUNGS.index("hooks"):
                vars(module)["forward"] = kept
            elif rung == RUNGS.index("stand-ins"):
                vars(module)["forward"] = ForwardStandIn(module, _nothing)
        vars(ours).pop("_on_step", None)
        if rung < RUNGS.index("step marks"):
            ours._on_step = lambda: True  # type: ignore[method-assign]
        self.labels = labels = self.labels or ours._labels
        if rung < RUNGS.index("labels"):
            ours._labels = SimpleNamespace(  # type: ignore[assignment]
                stepped=_nothing, ended=labels.ended, flush=labels.flush
            )
        else:
            ours._labels = labels
        self.began = time.perf_counter(), time.thread_time()


def _nothing(*_: Any) -> None:
    return None


def _let_drain(observation: Any) -> None:
    """Until nothing is on the bus, which workers that stand still must not find full, and a moment more."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if not any(group.ready for group in observation.session.bus.account().groups):
            break
        time.sleep(0.005)
    time.sleep(0.05)


def middle(values: Sequence[float]) -> float:
    """Mean of the middle half: what else the machine does lies outside."""
    quarter = len(values) // 4
    return statistics.mean(sorted(values)[quarter : len(values) - quarter])


def parts(cycles: int) -> dict[str, Any]:
    """What the module says."""
    random.seed(0)
    each = 2 * TURNS + SETTLING
    with tempfile.TemporaryDirectory() as folder:
        model = Ladder("MlpPolicy", "CartPole-v1", n_steps=BLOCK_STEPS, device="cpu", seed=1)
        patient = {
            "watchdog.heartbeat_timeout_s": 120
        }  # workers stand still for as long as it takes
        model.callback, model.kept = observing(folder, kind=Ours, **patient), {}
        model.callback.each_step = _nothing
        model.plan, model.spent = [(True, False)] * 2 * SETTLING, {}
        model.learn(BLOCK_STEPS * (each * cycles + 2 * SETTLING), callback=model.callback)
    costs = {one: middle([cpu for _, cpu in spent]) for one, spent in model.spent.items()}
    told: dict[str, Any] = {"turns": min(map(len, model.spent.values()))}
    whole = dict.fromkeys((False, True), 0.0)
    for runs in whole:
        steps = [costs[runs, "rollout", rung] for rung in RUNGS]
        added = [after - before for before, after in pairwise(steps)]
        trained = [costs[runs, "gradient steps", rung] for rung in (RUNGS[0], RUNGS[-1])]
        whole[runs] = steps[0] + trained[0]
        told["workers run" if runs else "workers stand still"] = {
            RUNGS[0]: round(whole[runs], 1),
            **{rung: round(us, 1) for rung, us in zip(RUNGS[1:], added, strict=True)},
            "in gradient steps": round(trained[1] - trained[0], 1),
            "all": round(steps[-1] + trained[1], 1),
        }
    first, last = whole[False], told["workers run"]["all"]
    told |= {"workers": round(whole[True] - first, 1), "rate": round(first / last, 3)}
    return told


def calls(rollouts: int) -> dict[str, Any]:
    """What the module says."""
    spent: dict[str, list[int]] = {}

    def timed(name: Callable[..., str], call: Callable[..., Any]) -> Callable[..., Any]:
        now = time.perf_counter_ns

        def timing(*arguments: Any) -> Any:
            now(), now()  # what the next ones need is in the caches
            began = now()
            result = call(*arguments)
            spent.setdefault(name(*arguments), []).append(now() - began)
            return result

        return timing

    def whose(hook: str, module: Any, args: Any, output: torch.Tensor) -> str:
        return f"{hook}, {'rollout' if len(output) == 1 else 'gradient step'}"

    class Timing(ObserveCallback):
        def _on_training_start(self) -> None:
            super()._on_training_start()
            self._on_step = timed(lambda: "step", self._on_step)  # type: ignore[method-assign]
            for hook in HOOKS:
                forward = vars(self.model.policy.get_submodule(hook))["forward"]
                forward.hook = timed(partial(whose, hook), forward.hook)
            watch = self.observation._life._optimizers
            watch.detach()
            self.counting = register_optimizer_step_post_hook(
                timed(lambda *_: "optimizer's step", watch.stepped)
            )

    with tempfile.TemporaryDirectory() as folder:
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=STEPS, device="cpu", seed=1)
        callback = observing(folder, kind=Timing)
        model.learn((rollouts + SKIPPED) * STEPS, callback=callback)
        callback.counting.remove()
    empty = timed(lambda: "nothing", _nothing)
    for _ in range(STEPS):
        empty()
    least, told, together = middle(spent.pop("nothing")), {}, 0.0
    for name, each in spent.items():
        counted = each[len(each) * SKIPPED // (rollouts + SKIPPED) :]
        us = (middle(counted) - least) / 1e3
        of_a_step = us * len(counted) / (rollouts * STEPS)
        together += of_a_step
        told[name] = {"of a call": round(us, 2), "of a step": round(of_a_step, 2)}
    return told | {"together": round(together, 2)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, first, *others = sys.argv[1:]
    if what == "one":
        print(json.dumps(run(first)))
    elif what == "parts":
        print(json.dumps(parts(int(first))))
    elif what == "calls":
        print(json.dumps(calls(int(first)), indent=1))
    else:
        print(json.dumps(runs(int(first), others or list(VARIANTS))))
