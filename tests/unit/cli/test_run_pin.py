"""`asys-run pin`: listed, pinned, let go, and refused in so many words."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
import torch

from asys_bench.cli import run

ARCHIVER = Path(__file__).parent.parent / "sinks" / "archive" / "conftest.py"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rig = runpy.run_path(str(ARCHIVER))["Rig"](tmp_path)
    worker = rig.start(shard_rotate_mib=1e-6, fsync="never")
    for seq in range(3):
        rig.feed(worker, rig.packet(torch.ones(4, 8), seq))
    document = {"schema": "asys.run/1", "run_id": "run-1", "hooks": [], "host_pid": 1}
    (tmp_path / "run.json").write_text(json.dumps(document))
    for shard in worker._shards.values():
        shard.abandon()
    rig.page.close()
    return tmp_path


def pinned(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("archive/*/*.pin"))


def test_shards_are_listed_with_their_steps_pinned_and_let_go(folder, capsys):
    assert run.main(["pin", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "policy.mlp/archiver-0-0-1.arrows" in text
    assert "10 - 10" in text
    assert "open" in text, "the last one is not closed"
    assert "0 of 3 shards are pinned" in text
    assert run.main(["pin", str(folder), "policy.mlp/archiver-0-0-1.arrows", "*-2.arrows"]) == 0
    assert pinned(folder) == ["archiver-0-0-1.pin", "archiver-0-0-2.pin"]
    assert "2 of 3 shards are pinned" in capsys.readouterr().out
    assert run.main(["pin", str(folder), "*", "--off"]) == 0
    assert pinned(folder) == []


def test_what_is_not_there_is_refused(folder, tmp_path, capsys):
    assert run.main(["pin", str(folder), "../x"]) == 2
    assert "no shard fits ../x" in capsys.readouterr().err
    assert run.main(["pin", str(tmp_path / "none")]) == 2
    assert run.main(["pin", str(folder), "--off"]) == 2
    (folder / "archive").rename(folder / "elsewhere")
    assert run.main(["pin", str(folder)]) == 2
    assert "has no archive" in capsys.readouterr().err
