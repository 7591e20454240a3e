"""What holds of every bench reporter: every target with its verdict, nothing hostile, never NaN."""

from __future__ import annotations

import copy
import importlib.util
import json as stdlib
import re
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from asys_bench.contracts.reporter import ReporterPlugin, ReportError, Subject
from asys_bench.registry import registry
from asys_bench.reports.bench_html.plugin import plugin as html
from asys_bench.reports.bench_json.plugin import plugin as json
from asys_bench.reports.bench_junit.plugin import plugin as junit
from asys_bench.reports.bench_markdown.plugin import plugin as markdown
from asys_bench.reports.bench_terminal.plugin import plugin as terminal

PLUGINS = (terminal, markdown, html, json, junit)
HOSTILE = "<script>alert(1)</script>\"'&|`@root \x1b[31m\x00\u202e]]> [bold]x[/bold] "


@cache
def _example() -> dict[str, Any]:
    path = Path(__file__).parents[1] / "harness" / "example_result.py"
    spec = importlib.util.spec_from_file_location("example_result", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    data: dict[str, Any] = module.example_data()
    return data


@pytest.fixture
def data() -> dict[str, Any]:
    return copy.deepcopy(_example())


def every_text(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """`value` with its free texts changed; the words of the schema stay."""
    words = {
        "schema", "kind", "level", "op", "verdict", "status", "role", "better", "stat", "unit",
        "metric", "reference", "started",
    }  # fmt: skip
    if isinstance(value, str):
        return value if key in words else change(value)
    if isinstance(value, dict):
        return {k: every_text(v, change, k) for k, v in value.items()}
    if isinstance(value, list):
        return [every_text(v, change, key) for v in value]
    return value


def plain(plugin: ReporterPlugin, document: str) -> str:
    """What a reader sees of it, as one line."""
    text = document
    if plugin is html:
        text = re.sub(r"<[^>]+>", " ", text.replace("<wbr>", ""))
    if plugin is markdown:
        text = text.replace("\\", "")
    return " ".join(text.replace("&lt;", "<").replace("&gt;", ">").split())


def without_code(markdown_text: str) -> str:
    """Markdown without its code, in which nothing is markup."""
    text = re.sub(r"^(`{3,})sh\n.*?\n\1$", "", markdown_text, flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", text)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_it_is_registered_and_refuses_what_it_does_not_know(
    plugin: ReporterPlugin, data: dict[str, Any]
) -> None:
    assert registry("reporter").get(plugin.name, ReporterPlugin) is plugin
    assert plugin.subject is Subject.BENCH
    with pytest.raises(ReportError, match=r"asys\.result/2.*asys\.result/1"):
        plugin.render(data | {"schema": "asys.result/2"})
    with pytest.raises(ReportError, match="not a bench result"):
        plugin.render(data | {"machine": None})
    without = {key: value for key, value in data.items() if key != "schema"}
    with pytest.raises(ReportError, match="None"):
        plugin.render(without)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_target_appears_with_its_verdict_value_and_interval(
    plugin: ReporterPlugin, data: dict[str, Any]
) -> None:
    document = plugin.render(data)
    text = plain(plugin, document)
    for case in data["cases"]:
        if case["targets"]:
            assert case["id"] in text
        for target in case["targets"]:
            assert target["verdict"] in text
            if plugin is json:
                assert target["expr"] in text
                continue
            assert target["metric"] in text
            if target["ci"] is not None:
                low, high = target["ci"]["low"], target["ci"]["high"]
                assert re.search(rf"{low}0* \.\. {high}0*", text)
    assert plugin.render(data) == document, "the same data gives the same document"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_no_nan_and_no_infinity_is_shown_or_accepted(
    plugin: ReporterPlugin, data: dict[str, Any]
) -> None:
    document = plugin.render(data)
    assert not re.search(r"\b(nan|NaN|inf|Infinity)\b", document)
    data["cases"][0]["targets"][0]["observed"] = float("nan")
    with pytest.raises(ReportError, match="finite"):
        plugin.render(data)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_results_with_little_in_them_still_render(
    plugin: ReporterPlugin, data: dict[str, Any]
) -> None:
    empty = data | {"cases": [], "checks": [], "notes": [], "verdict": "REFUSED", "exit_code": 5}
    empty["validity"] = {"valid": True, "reasons": []}
    assert plugin.render(empty)
    partial = copy.deepcopy(data)
    partial["run"] |= {"complete": False, "commit": None, "dirty": None, "command": []}
    partial |= {"verdict": "INTERRUPTED", "exit_code": 130}
    for case in partial["cases"]:
        case |= {"rounds": case["rounds"][:1], "metrics": {}}
        for target in case["targets"]:
            target |= {"observed": None, "ci": None, "margin": None, "bound": None, "points": []}
            target |= {"verdict": "INCONCLUSIVE", "needs": None}
    document = plugin.render(partial)
    if plugin is not json:
        assert "no data" in document
        assert "nterrupted" in document


@pytest.mark.parametrize("bound", [0.0, -1.0, 1e-9, 1e15])
def test_odd_numbers_do_not_break_the_drawings(data: dict[str, Any], bound: float) -> None:
    for case in data["cases"]:
        for target in case["targets"]:
            target |= {"bound": bound, "observed": -bound, "points": [0.0, bound]}
            target["ci"] = {"low": None, "high": bound, "confidence": 0.95}
        for summary in case["metrics"].values():
            if summary["hdr"] is not None:
                summary["hdr"] |= {"buckets": [[0, 1]], "count": 1, "maximum": 0}
    for plugin in PLUGINS:
        assert plugin.render(data)


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_hostile_texts_stay_texts(plugin: ReporterPlugin, data: dict[str, Any]) -> None:
    hostile = every_text(data, lambda text: HOSTILE + text)
    document = plugin.render(hostile)
    if plugin is json:
        assert "\\u001b" in document
        assert "\x00" not in document
        return
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", document)
    if plugin is terminal:
        assert "[bold]x[/bold]" in document
    if plugin in (html, junit):
        assert "<script" not in document
    if plugin is markdown:
        assert not re.search("<script|@root|[^\\\\]`", without_code(document))
    if plugin is junit:
        ET.fromstring(document)


class Reader(HTMLParser):
    """Collects tags and attributes; complains when tags do not nest."""

    VOID = frozenset({"meta", "br", "wbr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("change", [str, lambda text: HOSTILE + text])
def test_the_html_is_well_formed_and_loads_nothing(
    data: dict[str, Any], change: Callable[[str], str]
) -> None:
    document = html.render(every_text(data, change))
    reader = Reader()
    reader.feed(document)
    assert reader.open == []
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & reader.seen
    assert not {"src", "href", "srcset", "action", "style"} & reader.attributes
    assert not any(name.startswith("on") for name in reader.attributes)
    assert "://" not in re.sub(r"file://", "", document)
    assert "@import" not in document
    assert set(re.findall(r"url\(([^)]*)\)", document)) == {"#hatch"}


def test_the_html_holds_every_plot(data: dict[str, Any]) -> None:
    document = html.render(data)
    assert document.count('class="bar"') == 5
    assert "hook_latency_ms by percentile" in document
    assert "p99 &lt;= 0.05 ms" in document
    assert "equal to memcpy" in document
    assert "1 replaced on noise evidence" in document
    assert "spin gap 4100 us &gt; 1000 us" in document
    assert "rounds in run order" in document.lower()
    assert "git checkout 0123456789abcdef" in document


def test_junit_has_a_testcase_per_target_and_one_for_the_run(data: dict[str, Any]) -> None:
    root = ET.fromstring(junit.render(data))
    suite = root.find("testsuite")
    assert suite is not None
    figures = {name: suite.get(name) for name in ("tests", "failures", "errors", "skipped")}
    assert figures == {"tests": "6", "failures": "1", "errors": "2", "skipped": "1"}
    by_name = {
        (case.get("classname"), case.get("name")): {child.tag for child in case}
        for case in suite.findall("testcase")
    }
    assert by_name["example", "run is valid"] == {"error"}
    assert by_name["hook.latency[mp_queue]", "hook_latency_ms.p99 <= 0.05"] == {"failure"}
    assert "skipped" in by_name["hook.latency[numba_ring]", "hook_latency_ms.p99 <= 0.05"]
    skipped = suite.find("testcase/skipped")
    assert skipped is not None
    assert "about 36 more rounds" in str(skipped.get("message"))
    data["validity"] = {"valid": True, "reasons": []}
    for case in data["cases"]:
        for target in case["targets"]:
            target["gated"] = False
    root = ET.fromstring(junit.render(data | {"verdict": "INCONCLUSIVE"}))
    assert len(root.findall(".//skipped")) == 5
    assert len(root.findall(".//error")) == 1, "no judged target is never a pass"


def test_markdown_tables_have_as_many_cells_in_every_row(data: dict[str, Any]) -> None:
    document = markdown.render(every_text(data, lambda text: "a | b " + text))
    cells = [
        len(re.findall(r"(?<!\\)\|", line)) for line in document.splitlines() if line[:1] == "|"
    ]
    assert set(cells) == {8, 4, 6}
    for wanted in ("noise_floor_us", "close other programs", "null backend", "asys-bench check"):
        assert wanted in document


def test_json_is_canonical_whatever_the_order_of_the_keys(data: dict[str, Any]) -> None:
    document = json.render(data)
    assert document.startswith('{\n  "schema": "asys.result/1",\n  "cases": [')
    backwards = dict(reversed(data.items()))
    backwards["run"] = dict(reversed(data["run"].items()))
    backwards["machine"]["identity"] = dict(reversed(data["machine"]["identity"].items()))
    assert json.render(backwards) == document
    assert stdlib.loads(document) == data
    data["cases"][0]["subject"]["params"] = {"rate": float("inf")}
    assert "Infinity" not in json.render(data), "in a free-form part, what JSON cannot hold is null"
