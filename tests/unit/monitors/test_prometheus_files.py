"""What is generated from the metric tables: committed as generated, and about metrics that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from asys_bench.monitors.prometheus_alerts import ALERTS
from asys_bench.monitors.prometheus_dashboards import ROWS, dashboard, queries
from asys_bench.monitors.prometheus_files import COMMAND, generated, main
from asys_bench.monitors.prometheus_metrics import all_metrics

ROOT = Path(__file__).parents[3]
EXPRESSIONS = [*queries(), *(rule.expr for rule in ALERTS)]


@pytest.mark.parametrize("name", generated())
def test_the_committed_file_is_the_generated_one(name: str) -> None:
    assert (ROOT / name).read_text() == generated()[name], f"run: {COMMAND}"


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_metric_of_a_panel_or_an_alert_exists(expr: str) -> None:
    known = {name for spec in all_metrics() for name in spec.series}
    used = set(re.findall(r"\basys_[a-z0-9_]+", expr))
    assert used <= known
    assert used or "up{" in expr


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_label_of_a_panel_or_an_alert_is_one_of_its_metric(expr: str) -> None:
    specs = {name: spec for spec in all_metrics() for name in spec.series}
    for name, matchers in re.findall(r"\b(asys_[a-z0-9_]+)\{([^}]*)\}", expr):
        own = {*specs[name].labels, "instance", "job", "le"}
        assert set(re.findall(r"(\w+)\s*=", matchers)) <= own


def test_counters_are_asked_for_their_growth_and_gauges_are_not() -> None:
    kinds = {name: spec.kind for spec in all_metrics() for name in spec.series}
    for expr in EXPRESSIONS:
        for function, name in re.findall(r"(rate|increase)\((asys_[a-z0-9_]+)", expr):
            assert kinds[name] in ("counter", "histogram"), (function, name)


def test_panels_do_not_overlap_and_ids_are_unique() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
    titles = [panel.title for _, row in ROWS for panel in row]
    assert len(set(titles)) == len(titles)


def test_every_alert_says_what_to_do() -> None:
    for rule in ALERTS:
        assert rule.action.endswith(".")
        assert rule.severity in ("info", "warning", "critical")
    assert len({rule.name for rule in ALERTS}) == len(ALERTS)


def test_the_generator_refuses_a_folder_that_is_no_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert "no folder docker/" in capsys.readouterr().err
    (tmp_path / "docker").mkdir()
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / "docs/metrics.md").read_text() == generated()["docs/metrics.md"]


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", "docker/prometheus/prometheus.yml"),
        ("check", "rules", "docker/prometheus/alerts.yml"),
        ("test", "rules", "docker/prometheus/alerts_test.yml"),
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_promtool_agrees(command: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (apt-get install prometheus)")
    checked = subprocess.run(
        [promtool, *command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
