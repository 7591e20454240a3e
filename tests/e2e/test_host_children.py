"""The children of an observed host end as they would without us."""

from __future__ import annotations

import json
import textwrap

import pytest

import asys_bench
from tests.e2e.test_hosts import SINKS, python, write

pytestmark = pytest.mark.timeout(600)

SCRIPT = """\
    import json, logging, multiprocessing, os, signal, subprocess, sys, threading, time
    import torch

    def square(x):
        return x * x

    def leave(code):
        sys.exit(code)

    def sleep(ready):
        ready.set()
        time.sleep(60)

    def train_in_a_child():
        model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        model.train()
        model(torch.randn(2, 8))

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 8

        def __getitem__(self, i):
            return torch.full((8,), float(i))

    def status(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def forked(work):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(99)  # nobody ended it: going on here would kill(0, ...), the whole process group
        return pid

    def main():
        logging.basicConfig(level=logging.INFO, format="HOST %(message)s")
        logging.info("its own format")
        seen = {}
        model = torch.nn.Sequential(torch.nn.Linear(8, 4))
        model.train()
        model(torch.randn(2, 8))
        context = multiprocessing.get_context("fork")
        ready = context.Event()
        child = context.Process(target=sleep, args=(ready,))
        child.start()
        ready.wait(60)
        child.terminate()
        child.join(60)
        with context.Pool(2) as pool:
            squares = pool.map(square, range(4))
            workers = list(pool._pool)
        for worker in workers:
            worker.join(60)
        clean = all(worker.exitcode in (0, -signal.SIGTERM) for worker in workers)
        coded = context.Process(target=leave, args=(3,))
        other = context.Process(target=train_in_a_child)
        spawned = multiprocessing.get_context("spawn").Process(target=leave, args=(4,))
        for process in (coded, other, spawned):
            process.start()
            process.join(60)
        ends = [process.exitcode for process in (child, coded, other, spawned)]
        seen["multiprocessing"] = [ends, squares, clean]
        rows = [x.sum().item() for x in torch.utils.data.DataLoader(Rows(), num_workers=2)]
        seen["loader"] = rows
        quiet = forked(lambda: time.sleep(60))
        os.kill(quiet, signal.SIGTERM)
        seen["terminated"] = status(quiet)
        begun, begins = os.pipe()
        quiet = forked(lambda: (os.write(begins, b"x"), time.sleep(60)))
        os.read(begun, 1)
        os.kill(quiet, signal.SIGINT)
        seen["interrupted"] = status(quiet)
        waiting = subprocess.Popen(["sleep", "60"])
        waiting.terminate()
        seen["subprocess"] = waiting.wait(60)
        pid = os.fork()
        if pid == 0:  # leaves main(), and with it everything around it
            return sys.exit(7) if os.getppid() else None
        seen["sys.exit"] = status(pid)
        pid = os.fork()
        if pid == 0:
            return
        seen["returned"] = status(pid)
        pid = os.fork()
        if pid == 0:
            raise ValueError("of the child")
        seen["raised"] = status(pid)
        for _ in range(20):
            model(torch.randn(2, 8))
        with open(sys.argv[1], "w") as out:
            json.dump(seen, out)

    if __name__ == "__main__":
        main()
"""


@pytest.mark.rest
def test_children_of_a_script_end_with_and_without_us_in_the_same_way(tmp_path):
    script = write(tmp_path / "train.py", SCRIPT)
    hooks = 'hooks: [{match: "0"}]\nhost: {kind: script}\n'
    config = write(tmp_path / "c.yaml", hooks + textwrap.dedent(SINKS))
    plain = python(script, "plain.json", cwd=tmp_path)
    assert plain.returncode == 0, plain.stderr
    observed = python(
        "-m", "asys_bench", "run", "-c", config, "--", script, "seen.json", cwd=tmp_path
    )
    assert observed.returncode == 0, observed.stderr + observed.stdout
    expected = json.loads((tmp_path / "plain.json").read_text())
    assert json.loads((tmp_path / "seen.json").read_text()) == expected
    assert expected["multiprocessing"] == [[-15, 3, 0, 4], [0, 1, 4, 9], True]
    assert (expected["terminated"], expected["subprocess"]) == (-15, -15)
    assert (expected["sys.exit"], expected["returned"], expected["raised"]) == (7, 0, 1)
    for said in (plain.stderr, observed.stderr):
        assert "HOST its own format" in said
        assert said.count("ValueError: of the child") == 1
        assert said.count("KeyboardInterrupt") == 1, "the interrupted child's, as Python says it"
    run = asys_bench.open_run(tmp_path / "runs")
    assert run.summary["outcome"] == "finished"
    assert run.summary["bus"]["produced"] == 21
    assert run.summary["balanced"]
