"""Features are read apart from the questions about them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from asys_bench.eye import eye as module
from asys_bench.eye import views as views_module
from asys_bench.eye.eye import Eye
from asys_bench.eye.views import NotYetError, Views
from asys_bench.sae import SAEConfig, build_sae

from ..reports import test_run_report as made
from .conftest import D_IN, D_SAE, HOOK
from .fake_index import FakeIndex

WAIT_S = 60.0


def test_a_question_does_not_wait_for_a_large_sae_and_is_told_how_far_it_is() -> None:
    go, begun = threading.Event(), threading.Event()

    def read(label: str, before: object, told: views_module.Told) -> str:
        told("40 % of 10 rows")
        begun.set()
        assert go.wait(60)
        return f"view of {label}"

    views = Views(read)
    with pytest.raises(NotYetError):
        views.get("a", 0.0)
    assert begun.wait(60)
    with pytest.raises(NotYetError, match="40 % of 10 rows"):
        views.get("a", 0.01)
    assert views.there("a") is None
    go.set()
    while views.there("a") is None:
        time.sleep(0.001)
    assert views.there("a") == "view of a"
    views.close()


def test_an_old_view_is_shown_while_a_newer_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views_module, "FRESH_S", {"index": 0.0})
    monkeypatch.setattr(views_module, "SHARE", 1e9)
    made_of, go = [], threading.Event()

    def read(label: str, before: object, told: views_module.Told) -> object:
        made_of.append(before)
        assert len(made_of) == 1 or go.wait(60)
        return SimpleNamespace(features=None, number=len(made_of))

    views = Views(read)
    first = views.get("a", 60.0)
    assert views.get("a", 0.0) is first
    go.set()
    assert views.get("a", 60.0).number == 2
    assert made_of == [None, first]
    views.close()


def test_a_view_that_takes_long_is_made_anew_the_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = SimpleNamespace(s=100.0, cpu_s=0.0)
    clock = SimpleNamespace(monotonic=lambda: now.s, thread_time=lambda: now.cpu_s)
    monkeypatch.setattr(views_module, "time", clock)
    made = []

    def read(label: str, before: object, told: views_module.Told) -> object:
        now.cpu_s += 0.5
        made.append(now.s)
        return SimpleNamespace(features=None)

    views = Views(read)
    for now.s in (
        100.0,
        101.0,
        102.5,
        104.0,
        105.0,
        400.0,
    ):  # at first when as much again is over
        views.get("a", 60.0)
    assert made == [100.0, 102.5, 105.0, 400.0]
    for now.s in (649.0, 651.0, 900.0, 902.0):  # half a second is a five-hundredth of 250 s
        views.get("a", 60.0)
    assert made[4:] == [651.0, 902.0]
    views.close()


def test_a_look_that_finds_nothing_new_changes_nothing_of_when_a_view_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = SimpleNamespace(s=100.0, cpu_s=0.0)
    clock = SimpleNamespace(monotonic=lambda: now.s, thread_time=lambda: now.cpu_s)
    monkeypatch.setattr(views_module, "time", clock)
    looked, is_new = [], True

    def read(label: str, before: object, told: views_module.Told) -> object:
        looked.append(now.s)
        now.cpu_s += 0.5 if is_new else 0.001
        return SimpleNamespace(features=None) if is_new else before

    views = Views(read)
    for now.s in (100.0, 700.0):
        views.get("a", 60.0)
    is_new = False
    for now.s in (949.0, 951.0, 952.0, 953.5):  # 250 s later, then as soon as a look may find more
        views.get("a", 60.0)
    assert looked == [100.0, 700.0, 951.0, 953.5]
    is_new = True
    for now.s in (956.0, 958.5, 1205.0, 1207.0):
        views.get("a", 60.0)
    assert looked[4:] == [956.0, 1207.0]
    views.close()


def test_an_sae_that_the_run_did_not_train_is_shown_by_its_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = tmp_path / "known"
    known.mkdir()
    made.save_sae(
        known, build_sae(SAEConfig(architecture="topk", d_sae=D_SAE, k=2), D_IN),
        made.InputScaling.identity(D_IN), {},
    )  # fmt: skip
    run = tmp_path / "run"
    run.mkdir()
    index = FakeIndex(D_SAE, sae=str(known))
    monkeypatch.setattr(
        module, "open_index", lambda run_dir, label: index if label == HOOK else None
    )
    monkeypatch.setattr(module, "indexed_hooks", lambda run_dir: [HOOK])
    eye = Eye(run, WAIT_S)
    assert eye.figures()["checkpoints"] == {HOOK: "known"}
    assert eye.table(HOOK)["indexed"]
    index.sae = "sae/gone"
    assert Eye(run).figures()["checkpoints"] == {}
    eye.close()
