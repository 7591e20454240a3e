"""Labels and probes in a real run: as good as scikit-learn on the archived rows, and what they cost.

By hand: `ASYS_SOAK=1 pytest -s tests/stress/test_labels.py`; each prints its figures. `ASYS_LABEL_STEPS`,
`ASYS_LABEL_ROLLOUTS` and `ASYS_LABEL_FOURS` size it.
"""

from __future__ import annotations

import json
import os
import time

import numpy as np
import psutil
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import asys_bench
from asys_bench.change.probe.blocks import is_held_out
from asys_bench.change.timeline.timeline import timelines_of
from asys_bench.contracts.coin import hashed
from asys_bench.contracts.stats import SlotField
from asys_bench.hosts import rollout_labels
from asys_bench.system.process_usage import process_usage

from .label_turns import PLAIN, measured, pin, ppo_run, run_rollouts, share_cores
from .median_ratio import median_ratio

SOAK = os.environ.get("ASYS_SOAK") == "1"
STEPS = int(os.environ.get("ASYS_LABEL_STEPS", "4000" if SOAK else "400"))
ROLLOUTS = int(os.environ.get("ASYS_LABEL_ROLLOUTS", "400"))
FOURS = int(os.environ.get("ASYS_LABEL_FOURS", "300"))
ENVS, WIDTH, EPISODE = int(os.environ.get("ASYS_LABEL_ENVS", "16")), 64, 25
QUIET = {
    "monitors": {"log": None},
    "watchdog": {"heartbeat_timeout_s": 60, "startup_timeout_s": 120},
    "bus": {"backend": os.environ.get("ASYS_LABEL_BUS", "mp_queue")},
}

ORDER = (False, True, True, False)


class Trunk(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = torch.nn.Sequential(torch.nn.Linear(32, WIDTH), torch.nn.Tanh())

    def forward(self, x):
        return self.trunk(x)


class Planted:
    """A host whose labels are noisy functions of what it feeds its model; rows of an episode are alike."""

    def __init__(self, envs=ENVS):
        self.envs, self.draw = envs, torch.Generator().manual_seed(5)
        self.way = torch.randn(32, 4, generator=self.draw) / 4
        self.begin = torch.randn(envs, 32, generator=self.draw)

    def step(self, step):
        if step % EPISODE == 0:
            self.begin = torch.randn(self.envs, 32, generator=self.draw)
        x = self.begin + 0.7 * torch.randn(self.envs, 32, generator=self.draw)
        told = x @ self.way + torch.randn(self.envs, 4, generator=self.draw)
        labels = {
            "half": told[:, 0] > 0, "rare": told[:, 1] > 4.2,
            "third": torch.bucketize(told[:, 2].contiguous(), torch.tensor([-1.0, 1.0])),
            "episode": torch.arange(self.envs) * 100_000 + step // EPISODE,
        }  # fmt: skip
        return x, labels, told[:, 3]


def observed(tmp_path, steps, envs=ENVS, pace_s=0.0):
    """A run with a trainer, an archive, probes and a reservoir; CPU seconds of its workers."""
    torch.manual_seed(0)
    model, host, late = Trunk(), Planted(envs), {}
    cpu, first_cpu, first_rows = {}, {}, {}
    sinks = {
        "probe": {"kind": "probe", "options": {"evaluate_interval_s": 5}},
        "reservoir": {"kind": "reservoir"},
    }
    with asys_bench.observe(
        model, hooks="trunk", sae={"k": 8, "d_sae": 512}, quiet=True, run__dir=str(tmp_path),
        archive={"max_gib": None}, sinks=sinks, **QUIET,
    ) as run:  # fmt: skip
        for step in range(steps):
            x, labels, number = host.step(step)
            with torch.no_grad():
                model(x)
            run.label(**labels)
            late[step] = number
            if step >= 20:
                run.label(step=step - 20, advantage=late.pop(step - 20))
            run.step()
            if pace_s:
                time.sleep(pace_s)
            if step == steps // 10:  # without what it takes to begin
                first_cpu, first_rows = counted(run)
        cpu, rows = counted(run)
    cpu = {name: cpu[name] - first_cpu.get(name, 0.0) for name in cpu}
    rows = {name: rows[name] - first_rows.get(name, 0) for name in rows}
    return asys_bench.open_run(run.run_dir), cpu, rows


def counted(run):
    """(CPU seconds of each worker, rows that reached it)."""
    cpu = {}
    slots = {name: slot for name, slot in run.page.slots() if name.endswith("-0")}
    rows = {
        name: slot.metrics()[full].value
        for name, full in (
            ("trainer-0", "sae_rows{hook=trunk}"),
            ("probe-0", "probe_rows{hook=trunk}"),
            ("reservoir-0", "reservoir_rows{hook=trunk}"),
        )
        for slot in [slots[name]]
        if full in slot.metrics()
    }  # fmt: skip
    for name, slot in slots.items():
        usage = process_usage(slot.get(SlotField.PID))
        cpu[name] = usage[0] if usage is not None else 0.0  # not begun yet
    return cpu, rows


@pytest.mark.rest
@pytest.mark.stress
@pytest.mark.timeout(3000)
def test_a_runs_probes_are_as_good_as_scikit_learns_on_its_archived_rows(tmp_path):
    run, *_ = observed(tmp_path, STEPS)
    probes = {probe.label: probe for probe in run.probes("trunk")["trunk"]}
    names = ("half", "rare", "third", "advantage")
    assert run.archive.labels == ("advantage", "episode", *names[:3])
    found = run.archive.numpy(
        "trunk", ("values", *(f"label.{name}" for name in (*names, "episode")))
    )
    assert len(found["values"]) == STEPS * ENVS
    assert not np.isnan(found["label.episode"]).any()
    late = np.isnan(found["label.advantage"]).sum()
    assert late == 20 * ENVS, "those of the last steps never came"
    out_N = is_held_out(hashed(3, 0, 0, found["label.episode"].view(np.int64)), 0)
    figures = {}
    for name in names:
        y = found[f"label.{name}"]
        train, test = ~out_N & np.isfinite(y), out_N & np.isfinite(y)
        x = found["values"]
        if name == "advantage":
            model = make_pipeline(StandardScaler(), Ridge()).fit(x[train], y[train])
            theirs = r2_score(y[test], model.predict(x[test]))
        else:
            model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            chance = model.fit(x[train], y[train]).predict_proba(x[test])
            parts = [roc_auc_score(y[test] == c, chance[:, k]) for k, c in enumerate(np.unique(y))]
            theirs = float(np.mean(parts))
        mine = probes[name]
        figures[name] = {
            "ours": round(mine.value, 4), "low": round(mine.low, 4), "high": round(mine.high, 4),
            "scikit-learn": round(theirs, 4), "off": round(mine.value - theirs, 4),
            "share": round(float(np.mean(y == 1)), 4), "rows": [mine.rows, mine.held_out_rows],
            "blocks": mine.held_out_blocks, "metric": mine.metric,
        }  # fmt: skip
    print(json.dumps({"rows": STEPS * ENVS, **figures}, indent=1))
    assert {probe.block for probe in probes.values()} == {"episode"}
    for name in names:
        assert abs(figures[name]["off"]) <= 0.02, (name, figures[name])


@pytest.mark.soak("minutes")
@pytest.mark.timeout(3000)
@pytest.mark.parametrize(("envs", "steps", "pace_s"), [(256, 4000, 0.012), (16, 20_000, 0.002)])
def test_probes_and_a_timeline_take_a_twentieth_of_the_trainers_time_per_row(
    tmp_path, envs, steps, pace_s
):
    """Without what the workers take to begin. A timeline is its reservoir and a look at the end."""
    run, cpu, rows = observed(tmp_path, steps, envs, pace_s)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # others spin while they wait for it, which is no work
    timelines_of(run.path, ["trunk"])  # with what it imports
    began = time.process_time()
    (timeline,) = timelines_of(run.path, ["trunk"])
    look_s = time.process_time() - began
    torch.set_num_threads(threads)
    per_million = {name: 1e6 * cpu[name] / rows[name] for name in rows}
    share = {name: per_million[name] / per_million["trainer-0"] for name in rows}
    look = 1e6 * look_s / rows["reservoir-0"] / per_million["trainer-0"]
    figures = {
        "rows_of_a_packet": envs, "rows": rows, "cpu_s": cpu, "cpu_s_per_million_rows": per_million,
        "share": share, "look_s": look_s, "share_of_a_look": look,
    }  # fmt: skip
    print(json.dumps(figures))
    assert not timeline.problem
    assert run.probes("trunk")
    assert share["probe-0"] <= 0.05
    assert share["reservoir-0"] + look <= 0.05


@pytest.mark.soak("minutes")
@pytest.mark.timeout(3000)
def test_labels_cost_the_host_at_most_a_hundredth_of_its_step(tmp_path, monkeypatch):
    """Rollouts with and without labels in turns (off, on, on, off), in one run with trainer, archive and
    probes: time of the host for each (a rollout and its gradient steps), by the clock and of its thread's
    CPU, compared four by four; and what passes within the calls that label. The host has the first core
    alone, its workers have the others."""
    labels = rollout_labels.RolloutLabels
    cores = sorted(os.sched_getaffinity(0))
    seconds, inside, state = [], [], {"on": False, "began": None, "inside": 0.0}

    def timed(method):
        def call(*arguments):
            if state["on"]:
                began = time.thread_time()
                method(*arguments)
                state["inside"] += time.thread_time() - began

        return call

    for name in ("stepped", "ended"):
        monkeypatch.setattr(labels, name, timed(getattr(labels, name)))

    def whole_at(step):
        now = time.thread_time(), time.monotonic()
        if state["began"] is None:
            share_cores(cores)
        else:
            seconds.append([b - a for a, b in zip(state["began"], now, strict=True)])
            if state["on"]:
                inside.append(state["inside"])
        state["inside"] = 0.0
        state["on"] = ORDER[len(seconds) % len(ORDER)]
        state["began"] = time.thread_time(), time.monotonic()

    config = ppo_run(tmp_path, ROLLOUTS, {**PLAIN, "probe": {"kind": "probe"}})
    try:
        run_rollouts(config, whole_at)
    finally:
        pin(psutil.Process(), cores)
    fours = len(seconds) // 4
    taken = np.array(seconds[4 : 4 * fours]).reshape(-1, 4, 2)
    off = taken[:, [0, 3]].sum(1)
    ratios = taken[:, [1, 2]].sum(1) / off
    figures = {"fours": len(ratios), "rollout_ms": float(500 * np.median(off[:, 0])),
               "within_calls_ms": float(1e3 * np.median(inside[2:])),
               "within_calls": float(2 * np.median(inside[2:]) / np.median(off[:, 0])),
               "load_1_min": os.getloadavg()[0],
               "cpu": median_ratio(ratios[:, 0]), "wall": median_ratio(ratios[:, 1])}  # fmt: skip
    print(json.dumps(figures))
    assert figures["cpu"]["ratio"] <= 1.01
    assert figures["wall"]["ratio"] <= 1.01


@pytest.mark.soak("minutes")
@pytest.mark.timeout(3000)
def test_labels_probes_timeline_and_alarms_cost_the_host_at_most_a_hundredth(tmp_path):
    """Against a run with a trainer and an archive alone (`label_turns`)."""
    each = measured(tmp_path, FOURS)
    off, on = each[:, [0, 3]].sum(1), each[:, [1, 2]].sum(1)
    cpu, wall = (median_ratio(one) for one in (on / off).T)
    figures = {"fours": FOURS, "rollout_ms": [float(500 * one) for one in np.median(off, 0)],
               "load_1_min": os.getloadavg()[0], "cpu": cpu, "wall": wall}  # fmt: skip
    print(json.dumps(figures))
    assert figures["cpu"]["ratio"] <= 1.01
    assert figures["wall"]["ratio"] <= 1.01
