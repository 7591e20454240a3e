"""Each block of README.zh-CN.md runs in a folder of its own: commands, configurations and code as they are.

They are README.md's too (tests/unit/test_bilingual.py). What a reader puts in is put in: a run, a script, a
bucket. `make test-readme` runs them; runs and suites are shortened unless ASYS_SOAK=1. Of `make` targets that
install or run everything, `make -n` reads the rules.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

from asys_bench.rundir.attach import runs_in
from tests.trackers.kept import environment
from tests.unit.test_documents import ROOT, SETTING, Block, blocks_of

README = "README.zh-CN.md"
SOAK = os.environ.get("ASYS_SOAK") == "1"
PATIENCE_S = 600.0 if SOAK else 240.0
pytestmark = [
    pytest.mark.rest,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not SOAK and os.environ.get("ASYS_README") != "1", reason="minutes: make test-readme"
    ),
]

BLOCKS = [block for block in blocks_of((ROOT / README).read_text(), README) if block.language]
STEPS = "host.options.ppo.total_timesteps"
SHORTER = {
    "asys-run --config configs/demo.yaml": f" --set {STEPS}=8192",
    "asys-bench run suites/smoke.yaml": " --only 'bus.push_latency*'",
    "asys-bench run suites/chaos.yaml": " --only fault.torn_file.shard",
    "asys-run evaluate": " --episodes 4",
}
"""Beginning of a command -> what makes it shorter."""
VERDICTS = (0, 1, 3)
"""Of a suite on a busy machine: whatever it says, it has measured."""
CODES = {"asys-bench run": VERDICTS, "asys-bench doctor": (0, 1)}
LIVE = ("asys-run top", "asys-run eye", "asys-run receive")
MORE = "--set sinks.rows.kind=reservoir"
if find_spec("wandb"):
    MORE += " --set monitors.t.kind=tracker --set monitors.t.options.wandb.mode=offline"
"""What some of the commands ask of a run."""
TRAINERS = """\
run: {dir: runs}
bus: {backend: cpp_spmc}
sinks: {archive: {kind: archiver}}
"""


def lines_of(language: str) -> list[str]:
    """The commands, without their comments."""
    texts = [
        re.sub(r"\s*#.*$", "", block.text, flags=re.M)
        for block in BLOCKS
        if block.language == language
    ]
    return [line for text in texts for line in text.splitlines() if line]


class Folder:
    """A checkout's folders, a script and two finished runs that have all that the commands read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for name in ("configs", "suites"):
            (path / name).symlink_to(ROOT / name)
        (path / "train.py").write_text((ROOT / "docs/examples/pytorch.py").read_text())
        (path / "trainers.yaml").write_text(TRAINERS)
        self.environment = {
            **{name: value for name, value in os.environ.items() if "WANDB" not in name},
            **environment(path / "kept"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "WANDB_MODE": "offline",
        }
        (path / "kept").mkdir()
        demo = "asys-run --config configs/demo.yaml"
        self.runs: list[str] = []
        self.runs = [self.finished(f"{demo} {MORE}") for _ in range(2)]

    def finished(self, command: str) -> str:
        """The run that `command` has made, by name."""
        before = set(runs_in(self.path / "runs"))
        done = self.run(command)
        assert done.returncode == 0, done.stdout + done.stderr
        (run,) = set(runs_in(self.path / "runs")) - before
        return run.name

    def text(self, command: str) -> str:
        """The command with what a reader puts in."""
        places = {"s3://bucket": f"file://{self.path}/bucket", "DIR": "out", "BOOK": "book"}
        if self.runs:
            places |= {"<run>": self.runs[0], "<a>": self.runs[0], "<b>": self.runs[1]}
        for name, place in places.items():
            command = command.replace(name, place)
        more = next((more for name, more in SHORTER.items() if command.startswith(name)), "")
        return command if SOAK else command + more

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """It through a shell, to its end."""
        return subprocess.run(
            self.text(command), shell=True, cwd=self.path, env=self.environment,
            capture_output=True, text=True, timeout=PATIENCE_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @contextmanager
    def going_on(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """It while it runs; afterwards it has ended, whatever happened."""
        process = subprocess.Popen(
            f"exec {self.text(command)}", shell=True, cwd=self.path, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()

    def stopped(self, process: subprocess.Popen[str]) -> int:
        """Its exit code after Ctrl-C."""
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
        return process.returncode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("readme"))


def until(condition, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def test_every_block_is_of_a_kind_that_runs_here():
    assert {block.language for block in BLOCKS} == {"sh", "yaml", "python"}
    live = [line for line in lines_of("sh") if line.startswith(LIVE)]
    assert len(live) == 4


@pytest.mark.parametrize("line", [x for x in lines_of("sh") if not x.startswith((*LIVE, "make"))])
def test_a_command_runs(folder: Folder, line: str) -> None:
    if line.endswith("check_interop") and find_spec("sae_lens") is None:
        pytest.skip("needs asys-i[interop]")
    if line.startswith("asys-run track") and find_spec("wandb") is None:
        pytest.skip("needs a tracker")
    done = folder.run(line)
    expected = next((codes for name, codes in CODES.items() if line.startswith(name)), (0,))
    assert done.returncode in expected, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    if line.startswith("asys-bench run"):
        assert re.search(r"result\.json|report", done.stdout), done.stdout


@pytest.mark.parametrize("line", [x for x in lines_of("sh") if x.startswith("make")])
def test_a_target_of_make_has_rules_that_can_be_read(line: str) -> None:
    words = line.split()
    only_read = [] if words == ["make", "help"] else ["-n"]
    done = subprocess.run(
        ["make", *only_read, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_top_shows_a_run_until_it_ends(folder: Folder) -> None:
    before = set(runs_in(folder.path / "runs"))
    longer = f"asys-run --config configs/profile_consumer.yaml --set {STEPS}=16384"
    with folder.going_on(longer) as host:
        until(lambda: set(runs_in(folder.path / "runs")) - before, "a run")
        shown = folder.run("asys-run top")
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "cost" in shown.stdout
        text, _ = host.communicate(timeout=PATIENCE_S)
        assert host.returncode == 0, text


def test_the_eyepiece_prints_an_address_that_opens(folder: Folder) -> None:
    with folder.going_on("asys-run eye") as eye:
        assert eye.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:\S+", eye.stdout.readline())
        assert found
        cookies = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with cookies.open(found[0], timeout=60) as page:
            assert page.status == 200
        assert folder.stopped(eye) == 0


def test_a_receiver_is_in_its_book_and_top_shows_the_cluster(folder: Folder) -> None:
    receive, top = (
        next(line for line in lines_of("sh") if line.startswith(name))
        for name in ("asys-run receive", "asys-run top --cluster")
    )
    with folder.going_on(receive) as receiver:
        book = folder.path / "book"
        until(
            lambda: receiver.poll() is not None or (book.is_dir() and any(book.iterdir())),
            "an entry",
        )
        assert receiver.poll() is None, receiver.communicate()[0]
        with folder.going_on(top) as shown:
            time.sleep(3)
            assert shown.poll() is None, shown.communicate()[0]
            assert folder.stopped(shown) == 0
        assert folder.stopped(receiver) == 130


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "yaml"], ids=lambda b: b.place
)
def test_a_configuration_runs(folder: Folder, block: Block) -> None:
    (folder.path / "mine.yaml").write_text(block.text)
    shorter = f"--set {STEPS}=8192 --set run.name=mine"
    done = folder.run(f"asys-run --config mine.yaml {shorter}")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.language == "python"], ids=lambda b: b.place
)
def test_code_runs(folder: Folder, block: Block) -> None:
    if "sae_lens" in block.text and find_spec("sae_lens") is None:
        pytest.skip("needs asys-i[interop]")
    body = block.text.replace("<run>", folder.runs[0])
    (folder.path / "block.py").write_text(f"{SETTING}import asys_bench\n{body}")
    done = folder.run("python block.py")
    assert done.returncode == 0, done.stderr
