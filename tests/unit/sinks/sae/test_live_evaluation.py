"""Evaluations beside a training: one process at a time, its figures published, its failure said once."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from asys_bench.sinks.sae import live_evaluation

SCRIPT = """\
import json, os, signal, sys, time
words = sys.argv[1:]
run, label, out = words[1], words[words.index("--sae") + 1], words[words.index("--out") + 1]
with open(run + "/started", "a") as file:
    print(json.dumps([label, os.getpid(), os.nice(0), os.environ["OMP_NUM_THREADS"]]), file=file)
{body}
"""
WRITES = """\
os.makedirs(run + "/evaluation", exist_ok=True)
found = {"language": {"passed": None, "replaced": {"ce_recovered": 0.875, "spliced": {"kl_mean": 0.25}}}}
with open(out, "w") as file:
    json.dump([found], file)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch, rig):
    """A program in the place of `asys-run evaluate`; its words are those that this one would get."""

    def install(body):
        script = tmp_path / "evaluate.py"
        script.write_text(SCRIPT.format(body=body))
        real = live_evaluation.subprocess.Popen

        def popen(command, **more):
            assert command[:5] == [sys.executable, "-P", "-m", "asys_bench.cli.run", "evaluate"]
            return real([sys.executable, str(script), *command[4:]], **more)

        monkeypatch.setattr(live_evaluation.subprocess, "Popen", popen)
        (rig.run_dir / "logs").mkdir(exist_ok=True)

    return install


def started(rig):
    import json

    path = rig.run_dir / "started"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def train(rig, worker, first, last):
    for seq in range(first, last):
        rig.feed(worker, rig.packet(rig.rows(seq), seq))
        worker.idle()


def until(worker, ready):
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        worker.idle()
        time.sleep(0.02)


def test_every_so_many_checkpoints_one_is_evaluated_and_its_figures_are_published(rig, stand_in):
    stand_in(WRITES)
    worker = rig.start(evaluate={"every": 2}, sae={"checkpoint_interval_s": 0.001})
    train(rig, worker, 0, 9)
    saved = rig.figure("sae_checkpoints", "layer.0")
    assert saved >= 4
    until(worker, lambda: "layer.0" in rig.labels("sae_ce_recovered"))
    assert rig.figure("sae_ce_recovered", "layer.0") == 0.875
    assert rig.figure("sae_kl_nats", "layer.0") == 0.25
    worker.close()
    label, _, nice, threads = started(rig)[0]
    assert label == "layer.0"
    assert list((rig.run_dir / "evaluation").iterdir()) == [], "what was read is gone"
    assert nice == min(19, os.getpriority(os.PRIO_PROCESS, 0) + live_evaluation.NICER)
    assert threads == "1"


def test_one_that_still_runs_is_waited_for_and_ends_with_the_worker(rig, stand_in):
    stand_in("time.sleep(600)")
    worker = rig.start(evaluate={"every": 1}, sae={"checkpoint_interval_s": 0.001})
    train(rig, worker, 0, 12)
    until(worker, lambda: started(rig))
    train(rig, worker, 12, 20)
    ((_, pid, _, _),) = started(rig)
    began = time.monotonic()
    worker.close()
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_failure_is_said_once_and_training_goes_on(rig, stand_in, caplog):
    stand_in("sys.exit(2)")
    worker = rig.start(evaluate={"every": 1}, sae={"checkpoint_interval_s": 0.001})
    train(rig, worker, 0, 6)
    until(worker, lambda: len(started(rig)) >= 1 and caplog.messages != [])
    for seq in range(6, 60):
        train(rig, worker, seq, seq + 1)
        if len(started(rig)) >= 3:
            break
        time.sleep(0.05)
    worker.close()
    said = [message for message in caplog.messages if "not evaluated" in message]
    assert len(said) == 1
    assert "exit code 2" in said[0]
    assert "trainer-0-evaluate.log" in said[0]
    assert rig.figure("sae_steps", "layer.0") > 5
    assert rig.labels("sae_ce_recovered") == set()


def test_it_ends_with_the_worker_that_started_it_however_that_ends(tmp_path):
    """`asys-run evaluate --live` of a killed parent is gone, wherever it is."""
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import subprocess, sys, time\n"
        "code = 'import asys_bench.cli.commands.run_evaluate as e, time;"
        " e._end_with_parent(); print(1, flush=True); time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)\n"
    )
    import subprocess

    with subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE) as process:
        pid = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


def test_what_one_wrote_that_nobody_read_goes_with_the_worker(rig, stand_in):
    stand_in(f"{WRITES}\ntime.sleep(600)")
    worker = rig.start(evaluate={"every": 1}, sae={"checkpoint_interval_s": 0.001})
    train(rig, worker, 0, 12)
    until(worker, lambda: list((rig.run_dir / "evaluation").glob(".trainer-0.json")))
    worker.close()
    assert list((rig.run_dir / "evaluation").iterdir()) == []
