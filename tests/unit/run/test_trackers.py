"""The host's own wandb run: what run.json says of it, and the link to ours in its summary."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from asys_bench.config import load_config
from asys_bench.monitors.tracker.tracker import HostRun, own_id
from asys_bench.run.trackers import LINK, host_trackers, link_to

KIND = "monitors.t.kind=tracker"
WANDB = (KIND, "monitors.t.options.wandb={}")


def config(*sets: str) -> Any:
    return load_config("profile_consumer.yaml", list(sets)).config


def host_run(mode: str = "online", url: str = "https://w/me/mine/runs/hostrun") -> SimpleNamespace:
    return SimpleNamespace(
        id="hostrun", entity="me", project="mine", group="g", url=url, summary={},
        settings=SimpleNamespace(mode=mode),
    )  # fmt: skip


def test_a_run_of_the_host_is_named_and_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    run = host_run()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    found = host_trackers(config(*WANDB), "a-run", 5)
    assert HostRun.from_plain(found["wandb"]) == HostRun("hostrun", "me", "mine", "g", run.url)
    assert run.summary == {LINK: f"https://w/me/mine/runs/{own_id('a-run', 5)}"}


def test_offline_the_link_is_a_path_and_shared_runs_link_to_themselves() -> None:
    assert link_to(HostRun("h", "me", "mine", "", ""), "ours") == "me/mine/ours"
    shared = HostRun("h", "me", "mine", "", "https://w/me/mine/runs/h", True)
    assert link_to(shared, "ours") == shared.url


def test_without_a_tracker_or_a_run_nothing_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    run = host_run()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=run))
    assert host_trackers(config(), "a-run", 5) == {}
    other = (KIND, "monitors.t.options.trackio={}")
    assert host_trackers(config(*other), "a-run", 5) == {}
    assert run.summary == {}
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    assert host_trackers(config(*WANDB), "a-run", 5) == {}
    monkeypatch.delitem(sys.modules, "wandb")
    assert host_trackers(config(*WANDB), "a-run", None) == {}


def test_a_run_that_cannot_be_read_costs_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=object()))
    assert host_trackers(config(*WANDB), "a-run", 5) == {}
    assert "not linked" in caplog.text
