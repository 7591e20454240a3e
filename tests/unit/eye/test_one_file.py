"""All pages as one file: its policy, its modules, its size. In a browser: e2e/test_eye_browser.py."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from asys_bench.cli.commands import run_report
from asys_bench.eye.one_file import all_features as module
from asys_bench.eye.one_file.all_features import all_features
from asys_bench.eye.one_file.page import INSTEAD, joined, packed, render
from asys_bench.eye.page_files import page_files

from .conftest import D_SAE, HOOK, HOSTILE

FILES = {name: contents.decode() for name, (contents, _) in page_files().items()}


def block(document: str, name: str) -> object:
    """What a data block holds."""
    (found,) = re.findall(
        rf'<script type="text/plain" id="{name}">([A-Za-z0-9+/=]*)</script>', document
    )
    return json.loads(gzip.decompress(base64.b64decode(found)))


@pytest.fixture(scope="module")
def document(text_run: Path) -> str:
    return all_features(text_run, lambda line: None).document.decode()


def test_every_feature_is_there_as_the_server_answers_it(document: str, client) -> None:
    index = json.loads(re.findall(r'id="index">(.*)</script>', document)[0])
    assert index["saes"] == [{"sae": HOOK, "d_sae": D_SAE}]
    found = block(document, "features-0-0")
    assert len(found["features"]) == D_SAE
    for number in (0, 7, 13):
        told = client.get("/api/feature", params={"sae": HOOK, "feature": number}).json()
        one = found["features"][number]
        for example in (e for kind in ("top", "random") for e in one[kind]):
            example["tokens"] = [found["tokens"][token] for token in example["tokens"]]
        assert one == told
    table = client.get("/api/table", params={"sae": HOOK}).json()
    assert block(document, "table-0") == table
    assert len(block(document, "tokens-0")["tokens"]) == D_SAE
    assert block(document, "figures")["live"] is False


def test_the_policy_allows_the_one_script_and_style_and_no_address(document: str) -> None:
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', document)
    for kind, pattern in (
        ("script", r'<script type="module">(.*?)</script>'),
        ("style", r"<style>(.*?)</style>"),
    ):
        (text,) = re.findall(pattern, document, re.DOTALL)
        told = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{told}';" in policy
    assert policy.startswith("default-src 'none';")
    assert not re.search(r"https?:|unsafe|data:|blob:|\*", policy)
    assert not re.search(r'(src|href)="(?!#)', document)
    assert HOSTILE not in document


def test_the_name_of_a_run_closes_no_tag() -> None:
    hostile = '</title></script><script>alert(1)</script>"'
    made = "".join(render(hostile, {"saes": [], "left_out": {hostile: hostile}}, {}))
    assert made.count("<script") == 2
    assert "<script>alert" not in made


@pytest.mark.parametrize("name", INSTEAD)
def test_a_module_of_the_file_gives_what_the_one_of_the_server_gives(name: str) -> None:
    exported = [
        set(re.findall(r"^export (?:async )?(?:function|const) (\w+)", FILES[one], re.M))
        for one in (name, INSTEAD[name])
    ]
    assert exported[0] == exported[1]


def test_modules_come_before_those_that_import_them_and_nothing_is_left_to_import() -> None:
    script = joined(FILES)
    assert not re.search(r"^(import|export) ", script, re.M)
    assert "fetch(" not in script
    assert "EventSource" not in script
    defined = re.findall(r"^modules\['([\w.]+)'\] = ", script, re.M)
    assert len(defined) == len(set(defined))
    for match in re.finditer(r"= modules\['([\w.]+)'\];", script):
        assert f"modules['{match[1]}'] = (" in script[: match.start()]


def test_what_does_not_fit_is_left_out_and_said(
    text_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = all_features(text_run, lambda line: None)
    assert whole.said == [f"{HOOK}: {D_SAE} features, up to 20 top and 10 random examples of each"]
    index = json.loads(re.findall(r'id="index">(.*)</script>', whole.document.decode())[0])
    size = len(whole.document)
    monkeypatch.setattr(module, "FRAME_BYTES", 0)
    monkeypatch.setattr(
        module, "MOST_BYTES", len(packed(block(whole.document.decode(), "features-0-0")))
    )
    less = all_features(text_run, lambda line: None)
    assert "more examples would not fit" in less.said[0]
    assert len(less.document) < size
    monkeypatch.setattr(module, "MOST_BYTES", 100)
    none = all_features(text_run, lambda line: None)
    assert none.said[0].startswith(f"{HOOK} is left out: the file would have more than")
    assert index["left_out"] == {}


def test_the_command_writes_it_beside_the_report_and_says_how_large_it_is(own_run: Path) -> None:
    import argparse

    console = Console(width=200, record=True)
    parser = argparse.ArgumentParser()
    run_report.add(parser)
    assert run_report.main(parser.parse_args([str(own_run), "--all-features"]), console) == 0
    said = console.export_text()
    assert re.search(r"features\.html: 0\.\d MB", said)
    assert f"{HOOK}: {D_SAE} features" in said
    assert (own_run / "features.html").stat().st_mode & 0o777 == 0o600
    assert not (own_run / "report.html").exists()


@pytest.mark.parametrize("argument", [[], ["--all-features"]])
def test_a_damaged_run_is_said_by_either_file_alike(own_run: Path, argument: list[str]) -> None:
    import argparse

    console = Console(width=400, record=True)
    parser = argparse.ArgumentParser()
    run_report.add(parser)
    (own_run / "run.json").write_text("{")
    assert run_report.main(parser.parse_args([str(own_run), *argument]), console) == 2
    assert re.search(r"run\.json cannot be read: ", console.export_text())
    assert not (own_run / "features.html").exists()
