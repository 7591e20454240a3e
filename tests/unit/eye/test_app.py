"""The server's addresses, by a browser that has been let in."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from asys_bench.eye import app as module
from asys_bench.eye.app import VIEWS, Stream, page_files
from asys_bench.eye.views import NotYetError, Views

from .conftest import ADDRESS, D_SAE, HOOK, HOSTILE

ORIGIN = {"Origin": ADDRESS}


def test_every_view_is_the_one_document_and_its_files_are_there(client: TestClient) -> None:
    for path in VIEWS:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/html; charset=utf-8"
    for name in page_files():
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/main.js").headers["content-type"].startswith("text/javascript")


def test_a_browser_keeps_files_of_this_server_alone(client: TestClient) -> None:
    named = re.findall(r'"(/static/[^"]+)"', client.get("/").text)
    assert len(named) == 3
    for path in named:
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "private, max-age=86400, immutable"
        assert answer.content == client.get(f"/static/{path.split('/')[-1]}").content
    stamped = named[0].rpartition("/")[0]
    for path in (f"{stamped}/nothing.js", "/static/main.js", "/api/curves"):
        assert client.get(path).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    ["/static/..%2f..%2fpyproject.toml", "/static/%2e%2e/eye.py", "/static//etc/passwd",
     "/static/main.js%00", "/static/app.py", "/eye.json", "/api/../../etc/passwd", "/static/"],
)  # fmt: skip
def test_no_other_file_is_given_out(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 404
    assert "root:" not in answer.text


def test_the_table_of_an_sae_is_a_list_per_column(client: TestClient) -> None:
    found = client.get("/api/table", params={"sae": HOOK}).json()
    assert found["d_sae"] == D_SAE
    assert {len(column) for column in found["columns"].values()} == {D_SAE}
    assert set(found["columns"]) >= {"density", "mean", "max"}
    assert "feature_index" in found["how"]


def test_the_decoder_map_has_a_point_per_feature(client: TestClient) -> None:
    found = client.get("/api/map", params={"sae": HOOK}).json()
    assert (len(found["x"]), len(found["y"])) == (D_SAE, D_SAE)
    assert 0 < sum(found["explained"]) <= 1.001


def test_a_feature_and_a_search_carry_hostile_tokens_as_text(client: TestClient) -> None:
    found = client.get("/api/search", params={"text": "img"}).json()
    assert found["features"] == D_SAE
    told = [one for one in found["found"] if HOSTILE in one["tokens"]]
    assert told
    one = client.get("/api/feature", params={"sae": HOOK, "feature": told[0]["feature"]})
    assert one.headers["content-type"] == "application/json"
    tokens = [token for example in one.json()["top"] for token in example["tokens"]]
    assert HOSTILE in tokens


def test_the_timeline_says_how_to_make_one_and_has_the_hosts_curves(client: TestClient) -> None:
    found = client.get("/api/births", params={"sae": HOOK}).json()
    assert "asys-run timeline" in found["problem"]
    assert found["curves"][0]["title"] == "reward mean"
    assert client.get("/api/curves").json()[0]["title"].startswith("Fraction")


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/api/table", {"sae": "nowhere"}, 404),
        ("/api/table", {}, 404),
        ("/api/table", {"sae": "../../../etc"}, 404),
        ("/api/feature", {"sae": HOOK, "feature": "-1"}, 404),
        ("/api/feature", {"sae": HOOK, "feature": "²"}, 404),
        ("/api/feature", {"sae": HOOK, "feature": str(D_SAE)}, 404),
        ("/api/births", {"sae": "x" * 5000}, 404),
        ("/api/nothing", {}, 404),
    ],
)
def test_what_is_not_there_is_refused_in_words(
    client: TestClient, path: str, query: dict[str, str], status: int
) -> None:
    answer = client.get(path, params=query)
    assert answer.status_code == status
    assert "Traceback" not in answer.text


def test_a_mark_is_kept_and_shown_as_it_was_typed(own_client: TestClient, own_run: Path) -> None:
    change = {"sae": HOOK, "feature": 4, "name": HOSTILE, "note": "</script>", "pin": True}
    answer = own_client.post("/api/mark", json=change, headers=ORIGIN)
    assert answer.json() == {"name": HOSTILE, "note": "</script>", "pin": True}
    table = own_client.get("/api/table", params={"sae": HOOK}).json()
    assert table["marks"]["4"]["name"] == HOSTILE
    found = own_client.get("/api/search", params={"text": "onerror"}).json()["found"]
    assert found[0]["feature"] == 4
    kept = json.loads((own_run / "eye.json").read_text())
    assert kept["features"] == {HOOK: {"4": {"pin": True, "name": HOSTILE, "note": "</script>"}}}


def test_nothing_else_of_a_run_is_changed(own_client: TestClient, own_run: Path) -> None:
    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in own_run.rglob("*") if path.is_file()}

    before = files()
    for path, query in (
        ("/api/table", {"sae": HOOK}), ("/api/feature", {"sae": HOOK, "feature": "1"}), ("/api/curves", {}),
        ("/api/latest", {"sae": HOOK, "feature": "1"}),
        ("/api/search", {"text": "w1"}), ("/api/births", {"sae": HOOK}),
    ):  # fmt: skip
        assert own_client.get(path, params=query).status_code == 200
        for ask in (own_client.put, own_client.delete, own_client.post):
            assert ask(path, headers=ORIGIN).status_code == 405
    assert files() == before


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{}", "text/plain", 415),
        (b"{}", "application/json", 422),
        (b"{" * 100_000, "application/json", 413),
        (b'{"sae": "x", "feature": 1}', "application/json", 404),
        (b'{"sae": "policy.net", "feature": 32, "pin": true}', "application/json", 404),
        (b'{"sae": "policy.net", "feature": 1, "file": "../x"}', "application/json", 422),
        (b"[" * 5000, "application/json", 422),
        (b"\xff", "application/json", 422),
    ],
)
def test_a_wrong_change_is_refused_and_said(
    client: TestClient, body: bytes, kind: str, status: int
) -> None:
    answer = client.post("/api/mark", content=body, headers={**ORIGIN, "Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["problem"]


def test_pages_get_the_newest_figures_at_once_and_then_what_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    monkeypatch.setattr(module, "SILENT_S", 0.05)
    reads = 0

    async def read() -> Any:
        nonlocal reads
        reads += 1
        if reads == 3:
            raise OSError("<disk>")
        return {"n": min(reads, 5)}

    async def look() -> list[list[str]]:
        stream = Stream(read)
        pages = [stream.events(), stream.events()]
        seen = [[(await anext(page)).decode() for _ in range(5)] for page in pages]
        assert stream.pages == 2
        for page in pages:
            await page.aclose()
        assert stream.pages == 0
        at = reads
        await asyncio.sleep(0.1)
        assert reads <= at + 1, "nobody looks, nobody reads"
        return seen

    first, second = asyncio.run(look())
    assert first[0].startswith("data: {")
    assert any("OSError: <disk>" in event for event in first)
    assert second[0] == 'data: {"n":5}\n\n' or second[0].startswith("data: ")
    assert ": still here\n\n" in second


def test_a_question_for_features_that_are_being_read_is_asked_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_yet(self: object, label: str, wait_s: float) -> None:
        raise NotYetError("reading the features: 40 % of 10 rows")

    monkeypatch.setattr(Views, "get", not_yet)
    for path, query in (
        ("/api/table", {"sae": HOOK}),
        ("/api/feature", {"sae": HOOK, "feature": "1"}),
    ):
        answer = client.get(path, params=query)
        assert answer.status_code == 202
        assert answer.json() == {
            "problem": "reading the features: 40 % of 10 rows",
            "waiting": True,
        }
    found = client.get("/api/search", params={"text": "w1"}).json()
    assert found["waiting"] == [f"{HOOK}: reading the features: 40 % of 10 rows"]
    assert found["found"] == []


def test_of_archived_rows_nobody_knows_which_firing_is_the_last(client: TestClient) -> None:
    assert client.get("/api/latest", params={"sae": HOOK, "feature": "1"}).json() == {
        "latest": None
    }


def test_who_looks_again_is_not_shown_what_was_read_long_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EVERY_S", 0.01)
    now = "then"

    async def read() -> Any:
        return {"it": now}

    async def look() -> list[bytes]:
        nonlocal now
        stream = Stream(read)
        page = stream.events()
        first = await anext(page)
        await page.aclose()
        while not stream._reading.done():
            await asyncio.sleep(0.01)
        now = "now"
        page = stream.events()
        second = await anext(page)
        await page.aclose()
        return [first, second]

    assert asyncio.run(look()) == [b'data: {"it":"then"}\n\n', b'data: {"it":"now"}\n\n']
