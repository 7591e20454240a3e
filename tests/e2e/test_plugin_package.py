"""A backend in a package of its own: scaffolded, installed, listed, conforming, and used by a run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import asys_bench
from asys_bench.cli.commands.bench.new_plugin import backend_files

FIXTURE = Path(__file__).parents[1] / "fixtures" / "asys-relay"
PATIENCE_S = 500.0
pytestmark = pytest.mark.timeout(600)


def command(*words, path=None, cwd=None):
    environment = dict(os.environ)
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, "-P", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=environment,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the fixture package installed in it, for PYTHONPATH."""
    folder = tmp_path_factory.mktemp("plugin")
    source, target = folder / "source", folder / "target"
    shutil.copytree(FIXTURE, source)
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    done = command("-m", "pip", "install", *options, "--target", str(target), str(source))
    assert done.returncode == 0, done.stderr
    return target


def test_the_fixture_is_what_the_command_writes(tmp_path):
    folder = tmp_path / "made"
    done = command(
        *("-m", "asys_bench.cli.bench", "new-plugin", "backend", "relay", "--dir", str(folder))
    )
    assert done.returncode == 0, done.stderr
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names == set(backend_files("relay"))
    for name in names:
        assert (folder / name).read_text() == (FIXTURE / name).read_text(), name


@pytest.mark.parametrize("name", ["Relay", "my-ring", "1ring", "x", "a" * 42])
def test_a_name_that_cannot_be_one_is_refused(name, tmp_path):
    done = command("-m", "asys_bench.cli.bench", "new-plugin", "backend", name, cwd=tmp_path)
    assert done.returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "asys-relay").mkdir()
    (tmp_path / "asys-relay" / "mine").touch()
    done = command("-m", "asys_bench.cli.bench", "new-plugin", "backend", "relay", cwd=tmp_path)
    assert done.returncode == 2
    assert [p.name for p in (tmp_path / "asys-relay").iterdir()] == ["mine"]


@pytest.mark.rest
def test_it_is_listed_once_installed(installed):
    done = command("-m", "asys_bench.cli.bench", "list", path=installed)
    assert "relay" in done.stdout
    assert "passes everything on to mp_queue" in done.stdout
    assert "relay" not in command("-m", "asys_bench.cli.bench", "list").stdout


@pytest.mark.rest
def test_it_passes_the_conformance_suite(installed):
    done = command("-m", "asys_bench.conformance", "relay", "-q", path=installed)
    assert done.returncode == 0, done.stdout[-6000:]
    assert " passed" in done.stdout


def test_the_suite_refuses_a_backend_that_is_not_there():
    done = command("-m", "asys_bench.conformance", "relay")
    assert done.returncode == 2
    assert "no backend named 'relay'" in done.stderr


SCRIPT = """\
import sys
import torch
import asys_bench

model = torch.nn.Linear(8, 16)
root = torch.nn.Sequential(model)
run = {"dir": sys.argv[1], "drain_timeout_s": 60}
with asys_bench.observe(root, hooks="0", bus={"backend": "relay"}, run=run):
    for _ in range(30):
        root(torch.randn(16, 8))
"""


@pytest.mark.rest
def test_a_run_uses_it_workers_included(installed, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    done = command(str(script), str(tmp_path / "runs"), path=installed)
    assert done.returncode == 0, done.stderr
    run = asys_bench.open_run(tmp_path / "runs")
    bus = run.summary["bus"]
    assert bus["produced"] == 30
    assert all(group["delivered"] == 30 for group in bus["groups"])
