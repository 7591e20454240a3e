"""The page of metrics is as generated; dashboards and alerts ask for metrics and labels that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from asys_bench.monitors.metrics_page import ALERTS, COMMAND, PAGE_FILE, main, metrics_page
from asys_bench.monitors.prometheus_metrics import all_metrics

ROOT = Path(__file__).parents[3]
RULES = [
    rule
    for group in yaml.safe_load((ROOT / ALERTS).read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "docker/grafana/dashboards/asys-run.json").read_text())
EXPRESSIONS = [
    target["expr"]
    for panel in DASHBOARD["panels"]
    if panel.get("datasource", {}).get("type") == "prometheus"
    for target in panel["targets"]
] + [rule["expr"] for rule in RULES]


def test_the_committed_page_is_the_generated_one() -> None:
    assert (ROOT / PAGE_FILE).read_text() == metrics_page((ROOT / ALERTS).read_text()), COMMAND


def test_there_are_panels_and_alerts_to_judge() -> None:
    assert len(EXPRESSIONS) >= 35
    assert len(RULES) == 20


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
    panels = DASHBOARD["panels"]
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
    titles = [panel["title"] for panel in panels]
    assert len(set(titles)) == len(titles)


def test_every_alert_says_what_to_do() -> None:
    for rule in RULES:
        assert rule["annotations"]["action"].endswith(".")
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


def test_the_generator_refuses_a_folder_that_is_no_checkout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tmp_path)])
    assert f"it has no {ALERTS}" in capsys.readouterr().err
    (tmp_path / ALERTS).parent.mkdir(parents=True)
    shutil.copy(ROOT / ALERTS, tmp_path / ALERTS)
    assert main([str(tmp_path)]) == 0
    assert (tmp_path / PAGE_FILE).read_text() == (ROOT / PAGE_FILE).read_text()


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
        [promtool, *command], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
