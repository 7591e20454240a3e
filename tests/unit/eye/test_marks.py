"""Pins, names and notes: the one thing that a viewer changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asys_bench.eye import marks as module
from asys_bench.eye.marks import Change, Mark, Marks, MarksError


def test_what_is_kept_is_there_for_the_next_eyepiece(tmp_path: Path) -> None:
    Marks(tmp_path).change(Change(sae="a/b", feature=7, name="full stops", pin=True))
    Marks(tmp_path).change(Change(sae="a/b", feature=7, note="also in <b>code</b>"))
    Marks(tmp_path).change(Change(sae="c", feature=7, pin=True))
    found = Marks(tmp_path).of("a/b")
    assert found == {7: Mark(pin=True, name="full stops", note="also in <b>code</b>")}
    assert (tmp_path / "eye.json").stat().st_mode & 0o777 == 0o600
    assert json.loads((tmp_path / "eye.json").read_text())["schema"] == "asys.eye/1"


def test_what_was_taken_back_is_gone(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.change(Change(sae="a", feature=1, pin=True, name="x"))
    marks.change(Change(sae="a", feature=1, pin=False))
    assert marks.of("a") == {1: Mark(name="x")}
    marks.change(Change(sae="a", feature=1, name=""))
    assert json.loads((tmp_path / "eye.json").read_text())["features"] == {}


@pytest.mark.parametrize(
    "wrong",
    [{"feature": -1}, {"feature": 1 << 31}, {"feature": "x"}, {"name": "x" * 201}, {"note": "x" * 4001},
     {"sae": "x" * 1001}, {"path": "/etc/passwd"}, {"pin": "certainly"}],
)  # fmt: skip
def test_nothing_else_can_be_changed(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Change.model_validate({"sae": "a", "feature": 1, **wrong})


def test_there_are_not_more_than_can_be_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = Marks(tmp_path)
    monkeypatch.setattr(module, "MOST_MARKED", 2)
    for feature in range(2):
        marks.change(Change(sae="a", feature=feature, pin=True))
    with pytest.raises(MarksError, match="2 features are marked"):
        marks.change(Change(sae="a", feature=2, pin=True))
    monkeypatch.setattr(module, "MOST_BYTES", 300)
    with pytest.raises(MarksError, match="300 bytes"):
        marks.change(Change(sae="a", feature=1, note="x" * 400))
    assert set(marks.of("a")) == {0, 1}


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": "asys.eye/2"}', '{"features": {"a": {"x": {}}}}']
)
def test_a_damaged_file_is_named_and_not_written_over(tmp_path: Path, text: str) -> None:
    (tmp_path / "eye.json").write_text(text)
    with pytest.raises(MarksError, match=r"eye\.json"):
        Marks(tmp_path).of("a")
    with pytest.raises(MarksError, match=r"eye\.json"):
        Marks(tmp_path).change(Change(sae="a", feature=1, pin=True))
    assert (tmp_path / "eye.json").read_text() == text


def test_a_link_in_the_file_s_place_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    run = tmp_path / "run"
    run.mkdir()
    (run / "eye.json").symlink_to(outside)
    Marks(run).change(Change(sae="a", feature=1, pin=True))
    assert outside.read_text() == "{}"
    (run / ".eye.lock").unlink()
    (run / ".eye.lock").symlink_to(outside)
    with pytest.raises(MarksError, match="not kept"):
        Marks(run).change(Change(sae="a", feature=2, pin=True))
