"""A run goes on whatever becomes of its eyepiece, and says why there is none."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from asys_bench.eye import address
from asys_bench.run import eyepiece


@pytest.fixture
def heard() -> tuple[list[str], list[str], threading.Event]:
    return [], [], threading.Event()


def start(run_dir: Path, heard: tuple[list[str], list[str], threading.Event]) -> None:
    said, failed, done = heard

    def keep(into: list[str], text: str) -> None:
        into.append(text)
        done.set()

    eyepiece.start_eyepiece(run_dir, (), lambda t: keep(said, t), lambda t: keep(failed, t))
    assert done.wait(120)


def test_without_the_extra_the_message_names_it(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(address, "find_spec", lambda name: None)
    start(tmp_path, heard)
    said, failed, _ = heard
    assert said == []
    assert failed == ["no eyepiece: starlette and uvicorn not installed: pip install 'asys-i[eye]'"]


def test_one_that_dies_at_once_names_its_log(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(eyepiece, "MODULE", "asys_bench.no_such_module")
    start(tmp_path, heard)
    said, (failed,), _ = heard
    assert said == []
    log = tmp_path / "logs" / "eye.log"
    assert failed == f"no eyepiece: it did not start; see {log}"
    assert "no_such_module" in log.read_text()


def test_what_cannot_be_started_is_a_message(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(eyepiece.sys, "executable", "/no/such/python")
    start(tmp_path, heard)
    assert "/no/such/python" in heard[1][0]
