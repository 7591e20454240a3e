"""The process that has the model, with one in its place that answers as it is told."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asys_bench.eye.typed import process as module
from asys_bench.eye.typed.process import ModelProcess, Typing
from asys_bench.eye.typed.reading import CancelledTypingError, TypedError

ECHO = """
import json, sys, time
def say(**what): print(json.dumps(what), flush=True)
say(ready={"about": "tiny", "warning": "<b>others</b>"})
held = None
for line in sys.stdin:
    asked = json.loads(line)
    if "cancel" in asked:
        if held == asked["cancel"]: say(id=held, problem="cancelled")
    elif asked["text"] == "die": sys.exit(1)
    elif asked["text"] == "hang": held = asked["id"]
    elif asked["text"] == "bad": say(id=asked["id"], problem="no module <x>")
    else: say(id=asked["id"], tokens=[asked["text"]], features=[], sae=asked["sae"])
"""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[ModelProcess] = []

    def begin(source: str) -> ModelProcess:
        script = tmp_path / "child.py"
        script.write_text(source)
        monkeypatch.setattr(module, "child_command", lambda *_: [sys.executable, "-S", str(script)])
        made.append(ModelProcess(tmp_path, "model", None))
        return made[-1]

    yield begin
    for one in made:
        one.close()
        assert one._child.poll() is not None


def test_texts_are_answered_one_after_another_with_the_weights_named(start) -> None:
    model = start(ECHO)
    for text in ("one", "two"):
        found = model.ask(Typing("h", text))
        assert (found["tokens"], found["sae"]) == ([text], "h")
        assert found["model"] == {"about": "tiny", "warning": "<b>others</b>"}
    assert model.document() == {
        "about": "tiny",
        "warning": "<b>others</b>",
        "state": "ready",
        "problem": "",
    }


def test_what_a_text_cannot_have_is_said_and_the_next_one_is_answered(start) -> None:
    model = start(ECHO)
    with pytest.raises(TypedError, match="no module <x>"):
        model.ask(Typing("h", "bad"))
    assert model.ask(Typing("h", "one"))["tokens"] == ["one"]


def test_a_cancelled_text_ends_at_once_and_its_answer_is_nobodys(start) -> None:
    model = start(ECHO)
    model.ask(Typing("h", "one"))
    typing = Typing("h", "hang")
    threading.Timer(0.1, typing.cancel).start()
    began = time.monotonic()
    with pytest.raises(CancelledTypingError):
        model.ask(typing)
    assert time.monotonic() - began < 60
    assert model.ask(Typing("h", "two"))["tokens"] == ["two"]


def test_a_text_that_was_cancelled_before_its_turn_is_not_asked(start) -> None:
    model = start("import time\ntime.sleep(60)")
    typing = Typing("h", "one")
    typing.cancel()
    with pytest.raises(CancelledTypingError):
        model.ask(typing)
    assert model.document()["state"] == "loading"


def test_a_model_that_cannot_be_loaded_says_why(start) -> None:
    model = start("import json\nprint(json.dumps({'failed': 'no such folder'}), flush=True)")
    with pytest.raises(TypedError, match="no such folder"):
        model.ask(Typing("h", "one"))
    assert model.document() == {
        "about": "",
        "warning": "",
        "state": "failed",
        "problem": "no such folder",
    }


def test_a_process_that_dies_is_an_error_and_stays_one(start) -> None:
    model = start(ECHO)
    for _ in range(2):
        with pytest.raises(TypedError, match="has ended"):
            model.ask(Typing("h", "die"))


def test_a_process_that_hangs_is_killed(start, monkeypatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.2)
    model = start(ECHO)
    with pytest.raises(TypedError, match=r"did not answer within 0\.2 s"):
        model.ask(Typing("h", "hang"))
    assert model._child.wait(60) != 0


@pytest.mark.rest
@pytest.mark.filterwarnings("ignore")
def test_the_real_process_reads_a_text_and_ends_with_its_input(tmp_path, monkeypatch) -> None:
    import runpy

    pytest.importorskip("transformers")
    monkeypatch.setattr(module, "LEAVE_S", 60.0)
    tiny = runpy.run_path(str(Path(__file__).parents[2] / "rundir" / "tiny_lm.py"))
    tiny["write_model"](tmp_path)
    options = {"transformers": tiny["options"](tmp_path)}
    run_dir = tiny["write_run"](tmp_path, {"kind": "transformers", "options": options}, "h.0")
    model = ModelProcess(run_dir, str(tmp_path / "model"), None)
    try:
        found = model.ask(Typing("h.0", "w1 w2"))
        assert [token.strip() for token in found["tokens"]] == ["w1", "w2"]
        assert found["checkpoint"].startswith("step_")
        assert found["model"]["warning"] == ""
        with pytest.raises(TypedError, match="no SAE"):
            model.ask(Typing("x", "w1"))
    finally:
        model.close()
    assert model._child.returncode == 0
