"""The main job end to end: what a newcomer sees, and what happens when things are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pyarrow.ipc
import pytest
from safetensors.torch import load_file

from asys_bench.workers.supervisor import END_S
from tests.conformance.open_to_others import open_to_others, session_of

HOOKS = ("mlp_extractor.policy_net", "mlp_extractor.value_net")
ENDLESS = "host.options.ppo.total_timesteps=100000000"
PATIENT = "run.drain_timeout_s=60"
"""For tests that ask whether everything was read, and not how fast."""
BUSY_S = 5.0
"""What a busy machine may add to a promise in seconds: its disks, the starts of other processes."""
pytestmark = pytest.mark.timeout(600)


def timesteps(n: int) -> str:
    return f"host.options.ppo.total_timesteps={n}"


def assert_accounted(summary) -> None:
    bus = summary["bus"]
    assert bus["produced"] > 0
    for group in bus["groups"]:
        assert group["imbalance"] == 0, group
        assert group["ready"] == 0, group


def archived_rows(run_dir) -> int:
    rows = 0
    for path in (run_dir / "archive").rglob("*.arrows"):
        with pyarrow.ipc.open_stream(path) as reader:
            rows += sum(batch.num_rows for batch in reader)
    return rows


def test_a_short_run_trains_archives_accounts_and_leaves_nothing_behind(start_run):
    exporter = ("monitors.prometheus.kind=prometheus", "monitors.prometheus.options.port=0")
    run = start_run(timesteps(12288), *exporter)
    run.wait_rows(2000)
    run.wait_for((run.path / "prometheus.json").exists, "the exporter's address")
    run.remember_processes()
    processes = [run.process.pid, *session_of(run.pid("watchdog"))]
    assert len(processes) >= 8, "host, watchdog, fork server, tracker, two sinks, two monitors"
    assert open_to_others(processes, [run.path]) == []
    assert run.finish() == 0, run.text()
    assert run.leftovers() == []
    summary = run.summary()
    assert_accounted(summary)
    assert summary["outcome"] == "finished"
    assert {sae["hook"] for sae in summary["saes"]} == set(HOOKS)
    for hook in HOOKS:
        weights = load_file(run.path / "sae" / hook / "latest" / "sae_weights.safetensors")
        assert weights["W_enc"].shape == (64, 512)
        assert bool(weights["W_dec"].isfinite().all())
    delivered = {group["group"]: group["delivered"] for group in summary["bus"]["groups"]}
    assert delivered["archive"] == summary["bus"]["produced"] - sum(
        summary["bus"]["dropped"].values()
    )
    assert archived_rows(run.path) == sum(archive["rows"] for archive in summary["archives"]) > 0
    assert (run.path / "config.yaml").exists()
    assert (run.path / "metrics.csv").read_text().count("\n") > 10
    assert oct(run.path.stat().st_mode & 0o777) == "0o700"
    files = [path for path in run.path.rglob("*") if path.is_file()]
    assert [path for path in files if path.stat().st_mode & 0o077] == [], "private, every file"


@pytest.mark.rest
def test_killed_trainer_and_archiver_come_back_resume_and_the_run_ends_well(start_run):
    run = start_run(timesteps(40960), "sinks.trainer.options.sae.checkpoint_interval_s=1")
    run.wait_rows(3000)
    run.wait_for(
        lambda: run.metric("trainer-0", "sae_checkpoints{hook=mlp_extractor.policy_net}") >= 1,
        "a checkpoint",
    )
    for name in ("trainer-0", "archive-0"):
        os.kill(run.pid(name), signal.SIGKILL)
    before = run.metric("archive-0", "archive_rows{hook=mlp_extractor.policy_net}")
    run.wait_rows(int(before) + 500)
    assert run.finish() == 0, run.text()
    summary = run.summary()
    assert_accounted(summary)
    restarts = {worker["name"]: worker["restarts"] for worker in summary["workers"]}
    assert (restarts["trainer-0"], restarts["archive-0"]) == (1, 1)
    assert "resumed at step" in (run.path / "logs" / "trainer-0.log").read_text()
    archive = next(group for group in summary["bus"]["groups"] if group["group"] == "archive")
    assert archive["lost_in_flight"] == archive["dead_lettered"] == 0
    keys = set()
    rows = 0
    for path in (run.path / "archive").rglob("*.arrows"):
        with pyarrow.ipc.open_stream(path) as reader:
            table = reader.read_all().select(["source", "shard", "seq", "row"])
        rows += table.num_rows
        keys.update((path.parent.name, *row.values()) for row in table.to_pylist())
    assert {key[3] for key in keys} == set(range(archive["delivered"])), "a packet is missing"


@pytest.mark.rest
def test_a_stopped_trainer_is_killed_and_replaced(start_run):
    run = start_run(ENDLESS, PATIENT, "watchdog.heartbeat_timeout_s=3", "watchdog.tick_s=0.1")
    run.wait_rows(1000)
    stopped = run.pid("trainer-0")
    os.kill(stopped, signal.SIGSTOP)
    run.wait_for(lambda: run.is_replaced("trainer-0", stopped), "another trainer")
    before = run.metric("trainer-0", "sae_rows{hook=mlp_extractor.policy_net}")
    run.wait_for(
        lambda: run.metric("trainer-0", "sae_rows{hook=mlp_extractor.policy_net}") > before, "rows"
    )
    assert "hangs: no heartbeat" in (run.path / "logs" / "watchdog.log").read_text()
    run.remember_processes()
    run.process.send_signal(signal.SIGINT)
    assert run.finish() == 130
    assert run.leftovers() == []
    assert_accounted(run.summary())


@pytest.mark.rest
def test_a_killed_watchdog_is_replaced_and_adopts_the_workers(start_run):
    run = start_run(ENDLESS, PATIENT)
    run.wait_rows(500)
    trainer, watchdog = run.pid("trainer-0"), run.pid("watchdog")
    os.kill(watchdog, signal.SIGKILL)
    run.wait_for(lambda: run.is_replaced("watchdog", watchdog), "another watchdog")
    assert run.pid("trainer-0") == trainer
    os.kill(trainer, signal.SIGKILL)
    run.wait_for(lambda: run.is_replaced("trainer-0", trainer), "another trainer")
    run.remember_processes()
    run.process.send_signal(signal.SIGTERM)
    assert run.finish() == 143
    assert run.leftovers() == []
    assert_accounted(run.summary())


@pytest.mark.rest
def test_ctrl_c_drains_writes_and_leaves_within_ten_seconds(start_run):
    run = start_run(ENDLESS)
    run.wait_rows(1000)
    run.remember_processes()
    run.process.send_signal(signal.SIGINT)
    run.within(11.0 + BUSY_S, lambda: run.process.poll() is not None, "leaving")
    assert run.finish() == 130
    assert run.leftovers() == []
    assert run.summary()["outcome"] == "interrupted"
    assert_accounted(run.summary())


@pytest.mark.rest
def test_sigterm_to_every_process_loses_nothing_and_leaves_a_summary(start_run):
    """As systemd, Slurm and `timeout` end a service: the workers are told as well as the host."""
    run = start_run(ENDLESS, PATIENT)
    run.wait_rows(1000)
    for pid in run.remember_processes():
        os.kill(pid, signal.SIGTERM)
    assert run.finish() == 143
    assert run.leftovers() == []
    summary = run.summary()
    assert summary["outcome"] == "interrupted"
    assert_accounted(summary)
    assert [worker["restarts"] for worker in summary["workers"]] == [0] * len(summary["workers"])
    assert sum(group["lost_in_flight"] for group in summary["bus"]["groups"]) == 0


@pytest.mark.rest
def test_a_second_ctrl_c_ends_at_once_and_leaves_no_process(start_run):
    run = start_run(ENDLESS)
    run.wait_rows(200)
    run.remember_processes()
    os.kill(run.pid("trainer-0"), signal.SIGSTOP)  # draining alone would now take its whole timeout
    run.process.send_signal(signal.SIGINT)
    run.wait_for(lambda: "stopping" in run.text(), "the first signal")
    run.process.send_signal(signal.SIGINT)
    run.within(END_S + BUSY_S, lambda: run.process.poll() is not None, "leaving")
    assert run.finish() == 130
    assert run.leftovers() == []


@pytest.mark.rest
def test_a_killed_host_takes_its_workers_along_within_five_seconds(start_run):
    run = start_run(ENDLESS)
    run.wait_rows(1000)
    run.remember_processes()
    run.process.kill()
    run.process.wait()
    run.within(6.0 + BUSY_S, lambda: run.leftovers() == [], "the workers' leaving")
    assert archived_rows(run.path) >= 1000
    for hook in HOOKS:
        assert (run.path / "sae" / hook / "latest" / "cfg.json").exists()


@pytest.mark.rest
def test_the_hosts_weights_are_bit_identical_with_and_without_us(tmp_path):
    script = (
        "import sys, hashlib, torch\n"
        "from asys_bench.config import load_config\n"
        "from asys_bench.run.experiment import ExperimentPipeline\n"
        "config = load_config(sys.argv[1], sys.argv[2:]).config\n"
        "pipeline = ExperimentPipeline(config)\n"
        "pipeline.setup()\n"
        "model = pipeline._host._model\n"
        "pipeline.run()\n"
        "digest = hashlib.sha256()\n"
        "for name, tensor in sorted(model.policy.state_dict().items()):\n"
        "    digest.update(tensor.numpy().tobytes())\n"
        "outcome = pipeline.shutdown()\n"
        "produced = outcome.account.produced if outcome.account else 0\n"
        "pipeline.close()\n"
        "print('RESULT', digest.hexdigest(), produced)\n"
    )

    def train(config: str) -> tuple[str, int]:
        sets = [f"run.dir={tmp_path}", timesteps(4096), "monitors.log.enabled=false"]
        done = subprocess.run(
            [sys.executable, "-P", "-c", script, config, *sets],
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        _, digest, produced = next(
            line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")
        )
        return digest, int(produced)

    observed, produced = train("profile_consumer.yaml")
    unobserved, nothing = train("pipelines/none.yaml")
    assert produced > 500
    assert nothing == 0
    assert observed == unobserved


@pytest.mark.rest
@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("bus.backend=mp_quue", "mp_queue"),
        ("hooks.0.match=mlp.nothing", "matches no module"),
        ("host.options.ppo.batch_size=100", "batch_size"),
        ("host.options.ppo.env_id=NoSuch-v9", "NoSuch-v9"),
    ],
)
def test_a_wrong_setting_is_explained_and_nothing_is_started(start_run, override, says):
    run = start_run(override)
    assert run.finish(60) in (1, 2)
    assert says in run.text()
    assert "Traceback" not in run.text()


@pytest.mark.rest
def test_run_json_tells_where_to_look(start_run):
    run = start_run(timesteps(2048))
    assert run.finish() == 0, run.text()
    document = json.loads((run.path / "run.json").read_text())
    assert document["schema"] == "asys.run/1"
    assert document["hooks"] == list(HOOKS)
    assert document["result"]["steps"] >= 2048
