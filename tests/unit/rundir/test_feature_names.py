"""The file of proposed names: what was written comes back, what nobody wrote is refused and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asys_bench.rundir import feature_names as module
from asys_bench.rundir.feature_names import ProposedName, names_file, read_names, write_names
from asys_bench.rundir.live_run import ReadingError

LABEL = "model.layers.9#wide/x"
NAME = ProposedName(
    name="<b>colours</b>", score=0.75, baseline=0.5, graded=True, model="m (sha256 0123)",
    checkpoint="step_000000010", generation=2, shown=10, fires=9, silent=10, unix_ns=1,
)  # fmt: skip


def test_names_come_back(tmp_path: Path) -> None:
    assert read_names(tmp_path, LABEL) == {}
    write_names(tmp_path, LABEL, {7: NAME, 3: NAME})
    assert read_names(tmp_path, LABEL) == {3: NAME, 7: NAME}
    assert read_names(tmp_path, "another") == {}


@pytest.mark.parametrize(("score", "good"), [(0.7499, False), (0.75, True), (1.0, True)])
def test_the_threshold_is_where_it_is_said(score: float, good: bool) -> None:
    assert NAME.model_copy(update={"score": score}).is_good == good


@pytest.mark.parametrize(
    "change",
    [
        {"score": 1.1}, {"score": float("nan")}, {"score": "high"}, {"name": ""}, {"name": "x" * 81},
        {"model": ""}, {"generation": -1}, {"more": 1}, {"fires": 0}, {"unix_ns": None},
        {f"x{n}": 0 for n in range(100)},
    ],
    ids=str,
)  # fmt: skip
def test_an_entry_that_nobody_wrote_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    write_names(tmp_path, LABEL, {7: NAME})
    path = names_file(tmp_path, LABEL)
    document = json.loads(path.read_text())
    document["features"]["7"] |= change
    path.write_text(json.dumps(document))
    with pytest.raises(ReadingError, match=r"entry '7'"):
        read_names(tmp_path, LABEL)


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"schema": "asys.names/2"}', '{"schema": "asys.names/1", "sae": "another", "features": {}}',
     f'{{"schema": "asys.names/1", "sae": "{LABEL}", "features": []}}',
     f'{{"schema": "asys.names/1", "sae": "{LABEL}", "features": {{"-1": {{}}}}}}',
     f'{{"schema": "asys.names/1", "sae": "{LABEL}", "features": {{"²": {{}}}}}}', "[" * 5000],
)  # fmt: skip
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    write_names(tmp_path, LABEL, {})
    names_file(tmp_path, LABEL).write_text(text)
    with pytest.raises(ReadingError, match="names"):
        read_names(tmp_path, LABEL)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "names").symlink_to(outside)
    with pytest.raises(OSError, match="names"):
        write_names(run, LABEL, {7: NAME})
    assert list(outside.iterdir()) == []


def test_no_more_are_written_than_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_NAMED", 2)
    with pytest.raises(ValueError, match="3 names"):
        write_names(tmp_path, LABEL, dict.fromkeys(range(3), NAME))
    assert not names_file(tmp_path, LABEL).exists()
