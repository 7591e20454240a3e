"""wandb (offline), trackio and MLflow (SQLite) hold the series that metrics.csv holds, and nothing secret."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from asys_bench.monitors.metrics_csv import value_text
from asys_bench.monitors.tracker.mlflow_runs import metric_key

from .kept import HERE, HOOK, SECRETS, python, read, read_csv

pytestmark = [pytest.mark.rest, pytest.mark.timeout(600)]
SERVICES = ("wandb", "trackio", "mlflow")
STEPS = [
    {
        "host_steps": 100 * n,
        "produced": 1000 * n,
        "rows": 317 * n,
        "reward_mean": 10.5 + n / 3,
        "sae_loss": 2.0 / n,
        "sae_fvu": 1.0 / (n + 1),
        "sae_l0": 8.0 - n / 7,
    }
    for n in range(1, 7)
]


class Lives:
    """A run's folder, and processes of its monitors one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.run_dir.mkdir()
        self.write_run()

    def write_run(self, **more: object) -> None:
        document = {"schema": "asys.run/1", "run_id": "a-run", "hooks": [HOOK], "host_pid": 1}
        document |= {"started_unix_ns": 5, "step_unit": "env step", **more}
        (self.run_dir / "run.json").write_text(json.dumps(document))

    def life(self, service: str, steps: list[dict[str, float]], **more: str) -> dict[str, float]:
        """One process; what the tracker counted."""
        options = {"interval_s": 0.01, service: {"mode": "offline"} if service == "wandb" else {}}
        words = (
            str(HERE / "lockstep.py"),
            str(self.run_dir),
            json.dumps(options),
            json.dumps(steps),
        )
        counted: dict[str, float] = json.loads(python(self.folder, words, **more).splitlines()[-1])
        return counted

    def check(self, service: str) -> dict[str, Any]:
        """The five series are those of metrics.csv, to the digit that it writes; what else was read."""
        found = read(self.folder, service)
        wanted = read_csv(self.run_dir / "metrics.csv", HOOK)
        for name, points in wanted.items():
            assert points, name
            mine = found["series"][metric_key(name) if service == "mlflow" else name]
            assert [(int(step), value_text(value)) for step, value in mine] == points, name
        return found


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    return Lives(tmp_path)


@pytest.mark.parametrize("service", SERVICES)
def test_five_series_are_those_of_metrics_csv_and_no_secret_is_kept(
    lives: Lives, needs: Callable[[str], None], service: str
) -> None:
    needs(service)
    counted = lives.life(service, STEPS)
    assert counted[f"tracker_points{{tracker={service}}}"] == len(STEPS)
    assert counted[f"tracker_errors{{tracker={service}}}"] == 0
    said = json.dumps(lives.check(service)["config"])
    assert '"seed": 7' in said
    assert not any(secret in said for secret in SECRETS)
    for path in lives.folder.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert not any(secret.encode() in data for secret in SECRETS), path
    tracked = json.loads((lives.run_dir / "trackers" / f"{service}.json").read_text())
    assert tracked["service"] == service


@pytest.mark.parametrize("service", SERVICES)
def test_a_run_that_goes_on_makes_steps_again_and_no_point_is_lost(
    lives: Lives, needs: Callable[[str], None], service: str
) -> None:
    needs(service)
    lives.life(service, STEPS[:4])
    lives.life(service, STEPS[2:], ATTEMPT="1")  # from an older step
    found = lives.check(service)
    if service == "wandb":
        first, second = (run["run_id"] for run in found["runs"])
        assert second == f"{first}-2"
        assert len({run["run_group"] for run in found["runs"]}) == 1
    else:
        assert found["runs"] == 1


@pytest.mark.parametrize("service", SERVICES)
def test_summary_and_report_follow(
    lives: Lives, needs: Callable[[str], None], service: str
) -> None:
    needs(service)
    lives.life(service, STEPS[:2])
    (lives.run_dir / "report.html").write_text("<html>what it found</html>")
    saes = [{"hook": HOOK, "fvu": 0.25}]
    summary = {"outcome": "finished", "balanced": True, "elapsed_s": 3.5, "saes": saes}
    (lives.run_dir / "summary.json").write_text(json.dumps(summary))
    section = "{mode: offline}" if service == "wandb" else "{}"
    (lives.run_dir / "config.yaml").write_text(
        f"monitors:\n  t: {{kind: tracker, options: {{{service}: {section}}}}}\n"
    )
    said = python(lives.folder, ("-m", "asys_bench.cli.run", "track", str(lives.run_dir)))
    assert f"{service}: sent" in said
    found = read(lives.folder, service)
    if service == "wandb":
        assert found["summary"][f"asys/sae/{HOOK}/fvu"] == 0.25
        assert len(copies_of_the_report(lives.folder)) == 2, "the run's own, and the artifact's"
    elif service == "mlflow":
        assert "report.html" in found["artifacts"]
        assert found["series"][metric_key(f"summary/sae/{HOOK}/fvu")][-1][1] == 0.25
        assert found["tags"]["asys.outcome"] == "finished"
        assert (found["status"], found["runs"]) == ("FINISHED", 1)
    else:
        assert len(copies_of_the_report(lives.folder / "trackio")) == 1


def copies_of_the_report(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if b"<html>what it found" in path.read_bytes()]


def test_a_wandb_run_of_the_host_gets_ours_in_its_group_and_a_link_to_it(
    lives: Lives, needs: Callable[[str], None]
) -> None:
    needs("wandb")
    host = {"id": "hostrun", "entity": "me", "project": "mine", "group": "sweep-3", "url": ""}
    lives.write_run(trackers={"wandb": {**host, "shared": False}})
    lives.life("wandb", STEPS[:2])
    found = read(lives.folder, "wandb")
    (run,) = found["runs"]
    assert (run["project"], run["run_group"]) == ("mine", "sweep-3")
    assert found["summary"]["host/wandb_run"] == "me/mine/hostrun"
