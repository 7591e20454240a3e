"""`asys-bench` as a user types it: exit codes, files, and what a crash or Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jsonschema
import pytest

from asys_bench.cli.bench import main
from asys_bench.harness.results.store import json_schema

SUITE = """\
    schema: asys.suite/1
    name: tiny
    defaults:
      rounds: {rounds}
      samples_per_round: 100
      process: {process}
      warmup: {{until: none}}
      timeout_s: 240
      min_events: 50
      noise: {{spin_gap_us: null, steal_ratio: null}}
    allow_dotted_plugins: true
    plugins: {{scenario: ["bench_plugins:{name}"]}}
    references:
      memcpy: {{backend: memcpy}}
    cases:
      - id: bus.throughput
        scenario: offline
        backend: mp_queue
        params: {{payload_bytes: 4096, total_mib: 1}}
        targets:
          - throughput_gbps.median >= {bound}
          - throughput_gbps.median >= 0.0001 x memcpy
          - torn_frames.count == 0
          - lost_packets.count == 0
      - id: other
        scenario: {name}
        targets: [thing_ms.median <= 1000]
"""

PLUGINS = """\
    import os, signal, time
    from asys_bench.contracts.scenario import *

    def quick(context):
        with context.timed():
            context.recorder("thing_ms").extend([1000000] * context.samples)

    def crash(context):
        print("about to fall over", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)

    def sleepy(context):
        time.sleep(600)

    METRICS = {"thing_ms": MetricSpec("lower", MetricKind.SAMPLES, "a thing")}

    def _plugin(run):
        return ScenarioPlugin(run.__name__, "for tests", ScenarioOptions, "nothing", METRICS, run)

    quick, crash, sleepy = _plugin(quick), _plugin(crash), _plugin(sleepy)
"""

SOAK = pytest.mark.soak("a minute")


def _signals(sigchld):
    """What a parent ignores is inherited: SIGINT by background jobs, SIGCHLD from `trap '' CHLD`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGCHLD, sigchld)


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "bench_plugins.py").write_text(textwrap.dedent(PLUGINS))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def suite(name="quick", bound="0.0001", process="forked", rounds=6):
        text = textwrap.dedent(SUITE).format(name=name, bound=bound, process=process, rounds=rounds)
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        return path

    started = []

    def start(*words, sigchld=signal.SIG_DFL):
        command = [sys.executable, "-P", "-m", "asys_bench.cli.bench", *map(str, words)]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, preexec_fn=lambda: _signals(sigchld),
        )  # fmt: skip
        started.append(process)
        return process

    def run(*words, **signals):
        process = start(*words, **signals)
        output, _ = process.communicate(timeout=280)
        return process.returncode, output

    def result():
        (path,) = (tmp_path / "out").glob("*/result.json")
        return path, json.loads(path.read_text())

    run.suite, run.start, run.result = suite, start, result
    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.rest
def test_a_run_passes_writes_a_valid_result_and_every_command_reads_it(bench):
    suite = bench.suite()
    code, output = bench("check", suite)
    assert code == 0, output
    code, output = bench("run", suite, "--out", "out")
    assert code == 0, output
    path, data = bench.result()
    written = {file.name for file in path.parent.iterdir()}
    assert written == {"result.json", "report.html", "report.md", "report.xml"}
    jsonschema.validate(data, json_schema())
    assert data["verdict"] == "PASS"
    assert data["run"]["complete"]
    assert data["cases"][0]["subject"]["build_hashes"]
    for words, says in [
        (("explain", path, "throughput"), "order-statistic interval"),
        (("compare", path, path), "not interleaved"),
        (("history", "out"), "| PASS"),
        (("history", "out", "--case", "bus"), "throughput_gbps"),
        (("export", path), "bus.throughput,throughput_gbps"),
        (("export", path, "--format", "asv"), "ns per byte"),
        (("report", path), "PASS"),
        (("judge", path), "judged again"),
    ]:
        code, output = bench(*words)
        assert code == 0, output
        assert says in output, words


@pytest.mark.rest
def test_a_missed_target_exits_1_and_names_itself(bench):
    code, output = bench("run", bench.suite(bound="1000", rounds=9), "--out", "out")
    assert code == 1, output
    assert "throughput_gbps.median" in output
    _, data = bench.result()
    failed = [
        t["expr"] for case in data["cases"] for t in case["targets"] if t["verdict"] == "FAIL"
    ]
    assert failed == ["throughput_gbps.median >= 1000"]
    path, _ = bench.result()
    code, output = bench("judge", path, "--suite", bench.suite(rounds=9), "--out", "again.json")
    assert code == 0, output
    assert "PASS" in output


@pytest.mark.rest
def test_a_part_of_a_suite_is_measured_and_says_so(bench):
    code, output = bench("run", bench.suite(), "--only", "oth*", "--out", "out")
    assert code == 0, output
    _, data = bench.result()
    assert [case["id"] for case in data["cases"]] == ["other"]
    assert "a part of the suite: --only oth*" in data["notes"]


@pytest.mark.rest
@pytest.mark.parametrize(
    ("process", "sigchld"),
    [
        ("forked", signal.SIG_IGN),
        pytest.param("fresh", signal.SIG_DFL, marks=SOAK),
    ],
)
def test_a_crashed_contender_is_reported_and_the_rest_goes_on(bench, process, sigchld):
    suite = bench.suite("crash", process=process)
    code, output = bench("run", suite, "--out", "out", sigchld=sigchld)
    assert code == 4, output
    _, data = bench.result()
    bus, crashed = data["cases"][0], data["cases"][1]
    assert len(bus["rounds"]) == 6
    assert {target["verdict"] for target in bus["targets"]} == {"PASS"}
    assert (crashed["status"], len(crashed["rounds"])) == ("crashed", 1)
    assert "SIGSEGV" in crashed["reason"]
    assert "about to fall over" in crashed["log"]


@pytest.mark.rest
@pytest.mark.parametrize("process", ["fresh", "forked"])
def test_ctrl_c_leaves_a_readable_partial_result_and_no_process(bench, process):
    running = bench.start("run", bench.suite("sleepy", process=process), "--out", "out")
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        try:
            _, data = bench.result()
        except ValueError:
            time.sleep(0.1)
            continue
        if data["cases"][0]["rounds"]:
            break
        time.sleep(0.1)
    time.sleep(1.0)
    running.send_signal(signal.SIGINT)
    output, _ = running.communicate(timeout=120)
    assert running.returncode == 130, output
    _, data = bench.result()
    jsonschema.validate(data, json_schema())
    assert (data["verdict"], data["run"]["complete"]) == ("INTERRUPTED", False)
    assert "Traceback" not in output
    mine = f"asys_bench.harness.measuring.{'round' if process == 'fresh' else 'fork_server'}"
    assert not _processes(mine, running.pid)


def _processes(module, parent):
    """Processes of this run that are left: ours by command line, orphaned or under `parent`."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                words = file.read().split("\0")
            with open(f"/proc/{pid}/stat") as file:
                ppid = int(file.read().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
        if module in words and ppid in (1, parent):
            found.append(int(pid))
    return found


@pytest.mark.rest
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--set", "defaults.rounds=two"), "defaults.rounds"),
        (("--set", "cases.0.targets=[speed.p99 <= 1]"), "unknown metric"),
        (("--only", "nothing"), "--only 'nothing'"),
    ],
)
def test_a_run_that_cannot_be_exits_2_and_says_why(bench, words, says):
    code, output = bench("run", bench.suite(), *words)
    assert code == 2, output
    assert says in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("run",), "give a SUITE"),
        (("run", "nowhere.yaml"), "no such suite"),
        (("judge", "nowhere.json"), "cannot be read"),
        (("report", "nowhere.json"), "cannot be read"),
        (("explain", "nowhere.json", "x"), "cannot be read"),
        (("history", "."), "no result.json"),
    ],
)
def test_usage_errors_exit_2_and_say_why(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(list(words)) == 2
    said = capsys.readouterr()
    assert says in said.out + said.err


@pytest.mark.rest
def test_the_config_alias_names_suite_and_folder(bench, tmp_path):
    bench.suite()
    (tmp_path / "bench.yaml").write_text(
        "schema: asys.bench/1\nsuite: quick.yaml\nout: out\nset: [defaults.rounds=6]\n"
    )
    code, output = bench("--config", "bench.yaml")
    assert code == 0, output
    assert bench.result()[1]["run"]["suite"]["name"] == "tiny"
