"""`asys-run names` against an endpoint on this machine: what it prints, keeps and never gives away."""

from __future__ import annotations

import logging
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asys_bench.cli import run as command
from asys_bench.cli.commands import run_names
from asys_bench.eye import eye as eye_module
from asys_bench.rundir.feature_names import read_names

UNIT = Path(__file__).parents[1]
RIG = runpy.run_path(str(UNIT / "eye" / "naming" / "rig.py"))
FakeEndpoint, View, WordFeatures, MARK, said = (
    RIG[name] for name in ("FakeEndpoint", "View", "WordFeatures", "MARK", "said")
)
LABEL, KEY = RIG["LABEL"], "sk-very-secret-0123456789"


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose only SAE has features that fire on words."""
    folder = tmp_path / "private-place" / "a-run"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        f'{{"schema": "asys.run/1", "run_id": "a-run", "hooks": ["{LABEL}"], "host_pid": 1}}'
    )
    monkeypatch.setattr(eye_module.Eye, "labels", lambda self: [LABEL])
    monkeypatch.setattr(eye_module.Eye, "view", lambda self, label: View(WordFeatures()))
    monkeypatch.setenv("ASYS_NAMES_KEY", KEY)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return folder


def truth(body: dict[str, Any]) -> Any:
    text = body["messages"][-1]["content"]
    if "logprobs" not in body:
        return said(MARK.findall(text)[0])
    yes = MARK.findall(text)[0] == text.split("Phrase: ")[-1]
    return said(
        "Yes" if yes else "No", [("Yes", -0.1 if yes else -3.0), ("No", -3.0 if yes else -0.1)]
    )


@pytest.fixture
def server() -> Iterator[Any]:
    made = FakeEndpoint(truth)
    yield made
    made.close()


def test_names_are_printed_kept_and_nothing_but_texts_is_sent(
    run_dir: Path, server: Any, capsys: Any, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    arguments = ["names", str(run_dir), "--url", server.url, "--model", "a-model", "--most", "2"]
    assert command.main(arguments) == 0
    out = capsys.readouterr()
    assert "stop: 1.00 (top token ' stop': 1.00)" in out.out
    assert "mean AUC of names" in out.out
    kept = read_names(run_dir, LABEL)
    assert {feature: (one.name, one.model) for feature, one in kept.items()} == {
        0: ("stop", "a-model"), 1: ("and", "a-model"),
    }  # fmt: skip
    assert len(server.asked) == 2 * 21, "as --help says"
    sent = str(server.asked)
    for secret in (KEY, "private-place", "a-run", LABEL, "step_0"):
        assert secret not in sent
    told = out.out + out.err + caplog.text
    files = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file())
    assert KEY not in told
    assert KEY.encode() not in files
    assert server.url.encode() not in files
    assert command.main(arguments) == 0  # the next two
    assert set(read_names(run_dir, LABEL)) == {0, 1, 2, 3}


def test_an_endpoint_that_refuses_ends_it_with_its_reason(run_dir: Path, capsys: Any) -> None:
    refusing = FakeEndpoint(
        lambda body: (404, {"error": {"message": f"no such model for {KEY}"}}, {})
    )
    try:
        code = command.main(["names", str(run_dir), "--url", refusing.url, "--model", "m"])
    finally:
        refusing.close()
    said = capsys.readouterr().out
    assert code == 1
    assert "answers 404: no such model for ***" in said
    assert KEY not in said


def test_ctrl_c_keeps_what_was_found(
    run_dir: Path, server: Any, monkeypatch: Any, capsys: Any
) -> None:
    lines: list[str] = []

    def line(one: Any) -> str:
        lines.append(one.proposed.name)
        if len(lines) == 2:
            raise KeyboardInterrupt
        return one.proposed.name

    monkeypatch.setattr(run_names, "_line", line)
    assert command.main(["names", str(run_dir), "--url", server.url, "--model", "m"]) == 130
    assert set(read_names(run_dir, LABEL)) == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--model", "m", "--url", "http://example.org/v1"], "in the clear"),
        (["--model", "/no/such/folder"], "--model: '/no/such/folder' cannot be loaded"),
        (["--model", "package:nowhere-at-all"], "no package 'nowhere-at-all' is installed"),
        (
            ["--model", "m", "--url", "http://127.0.0.1:1/v1", "--hook", "other*"],
            "no SAE named 'other*'",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_is_said_before_anything_is_sent(
    run_dir: Path, capsys: Any, arguments: list[str], why: str
) -> None:
    pytest.importorskip("transformers")
    assert command.main(["names", str(run_dir), *arguments]) == 2
    assert why in " ".join(capsys.readouterr().out.split())
