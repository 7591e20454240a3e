"""A run with a copy: `asys-run` to a folder, its uploader killed on the way, and a place that takes
nothing."""

from __future__ import annotations

import os
import signal

import pytest

from asys_bench.rundir.verify import verify_run
from asys_bench.store.mirror import local_folder
from asys_bench.store.uri import is_uri

pytestmark = [pytest.mark.timeout(600), pytest.mark.rest]
STEPS = "host.options.ppo.total_timesteps=12288"


def test_a_run_whose_uploader_is_killed_has_a_whole_copy_at_its_end(
    start_run, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = f"file://{tmp_path}/store/{{run_id}}"
    run = start_run(STEPS, f"storage.uri={uri}", "sinks.archive.options.shard_rotate_mib=1")
    place = tmp_path / "store" / run.path.name
    run.wait_for((place / "manifest.json").exists, "the first manifest")
    os.kill(run.pid("uploader"), signal.SIGKILL)
    assert run.finish() == 0, run.text()
    assert "has everything of" in run.text()
    copy = uri.replace("{run_id}", run.path.name)
    assert is_uri(copy)
    of_run, of_copy = verify_run(run.path), verify_run(local_folder(copy))
    assert not of_run.damaged
    hidden = ("prometheus.json", *(f.path for f in of_run.findings if "/." in f"/{f.path}"))
    assert [f.to_plain() for f in of_copy.findings] == [
        f.to_plain() for f in of_run.findings if f.path not in hidden
    ]
    assert of_copy.to_plain()["archive_rows"] > 1000


def test_a_run_that_could_not_be_sent_says_so_loudly_and_keeps_everything(start_run, tmp_path):
    (tmp_path / "store").write_text("a file in the way")
    steps = "host.options.ppo.total_timesteps=2048"
    run = start_run(steps, f"storage.uri=file://{tmp_path}/store/{{run_id}}")
    assert run.finish() == 1, run.text()
    said = run.text()
    assert "they are kept here; go on with: asys-run upload" in said
    assert "uploader:" in said, "and in the summary"
    assert not verify_run(run.path).damaged
