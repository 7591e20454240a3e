"""Who is let in, from where, and what a browser may do with an answer."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient

from asys_bench.eye.guard import POLICY, Guard

TOKEN = "a-token-of-a-test"
PATHS = ("/", "/hook", "/static/main.js", "/api/events", "/api/table?sae=x", "/nowhere")


async def inner(scope: Any, receive: Any, send: Any) -> None:
    request = Request(scope, receive)
    await PlainTextResponse(f"inside {request.url.path}")(scope, receive, send)


@pytest.fixture
def stranger() -> TestClient:
    return TestClient(Guard(inner, TOKEN), base_url="http://127.0.0.1:8700")


@pytest.fixture
def guest(stranger: TestClient) -> TestClient:
    assert stranger.get(f"/?token={TOKEN}").status_code == 200
    return stranger


@pytest.mark.parametrize("path", PATHS)
def test_without_the_token_nothing_is_answered(stranger: TestClient, path: str) -> None:
    for answer in (stranger.get(path), stranger.post(path, headers={"Origin": ADDRESS})):
        assert answer.status_code == 403
        assert "inside" not in answer.text
        assert "asys-run eye" in answer.text


ADDRESS = "http://127.0.0.1:8700"


@pytest.mark.parametrize("token", ["x", TOKEN[:-1], TOKEN + "x", "é", "%00", TOKEN.upper()])
def test_another_token_lets_nobody_in(stranger: TestClient, token: str) -> None:
    answer = stranger.get(f"/?token={token}")
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert stranger.get("/").status_code == 403


def test_the_token_is_exchanged_for_a_cookie_that_no_script_and_no_other_site_gets(
    stranger: TestClient,
) -> None:
    answer = stranger.get(f"/?token={TOKEN}")
    cookie = answer.headers["set-cookie"]
    assert re.match(r"asys-eye-[0-9a-f]{8}=[\w-]{43}; HttpOnly; Path=/; SameSite=strict$", cookie)
    assert TOKEN not in cookie + answer.text
    assert "url=/" in answer.text
    assert stranger.get("/run").text == "inside /run"


def test_the_token_opens_no_other_path(stranger: TestClient) -> None:
    assert stranger.get(f"/api/table?token={TOKEN}").status_code == 403


def test_the_cookie_of_another_server_does_not_count(guest: TestClient) -> None:
    other = TestClient(Guard(inner, TOKEN), base_url=ADDRESS, cookies=dict(guest.cookies))
    assert other.get("/run").status_code == 403


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8700", "localhost:1", "LOCALHOST:65535", "localhost", "[::1]:8700"]
)
def test_any_port_of_this_machine_is_let_in(guest: TestClient, host: str) -> None:
    assert guest.get("/run", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8700", "127.0.0.2:8700",
     "evil.example#localhost", "localhost:8700@evil.example", "localhost:", "", "10.0.0.1:8700"],
)  # fmt: skip
def test_another_host_is_refused_whoever_asks(guest: TestClient, host: str) -> None:
    for path in ("/run", f"/?token={TOKEN}"):
        answer = guest.get(path, headers={"Host": host})
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_two_hosts_are_refused() -> None:
    headers = [(b"host", b"localhost"), (b"host", b"evil.example")]
    assert asked(headers) == 403
    assert asked([]) == 403


def asked(headers: list[tuple[bytes, bytes]]) -> int:
    """Status of a request with exactly these headers."""
    found: list[int] = []

    async def send(message: Any) -> None:
        found.append(message.get("status", 0))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": headers}
    asyncio.run(Guard(inner, TOKEN)(scope, receive, send))
    return found[0]


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://127.0.0.1:8701", "https://127.0.0.1:8700",
     "http://localhost:8700", "http://127.0.0.1:8700.evil.example", ""],
)  # fmt: skip
def test_another_origin_is_refused(guest: TestClient, origin: str) -> None:
    for ask in (guest.get, guest.post):
        assert ask("/run", headers={"Origin": origin}).status_code == 403


def test_a_change_must_name_its_origin(guest: TestClient) -> None:
    assert guest.post("/api/mark").status_code == 403
    assert guest.post("/api/mark", headers={"Origin": ADDRESS}).status_code == 200
    through_ssh = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
    assert guest.post("/api/mark", headers=through_ssh).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pictures_scripts_and_forms_of_other_sites_are_refused(
    guest: TestClient, site: str
) -> None:
    embedded = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}
    assert guest.get("/api/table", headers=embedded).status_code == 403
    clicked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate"}
    assert guest.get(f"/?token={TOKEN}", headers=clicked).status_code == 200
    assert guest.post("/api/mark", headers={**clicked, "Origin": ADDRESS}).status_code == 403


def test_every_answer_has_the_policy(guest: TestClient) -> None:
    answers = [guest.get("/run"), guest.get(f"/?token={TOKEN}"), guest.get("/?token=x")]
    answers.append(guest.get("/run", headers={"Host": "evil.example"}))
    for answer in answers:
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert "unsafe" not in POLICY
    assert "default-src 'none'" in POLICY


def test_sockets_of_another_kind_are_closed() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {}

    asyncio.run(Guard(inner, TOKEN)({"type": "websocket", "headers": []}, receive, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]


def test_a_damaged_cookie_is_no_cookie(stranger: TestClient) -> None:
    answer: Response
    for cookie in ("asys-eye-", "=", ";;;", "a=\x7f", "asys-eye-00000000=\xe9"):
        answer = stranger.get("/run", headers={"Cookie": cookie.encode("latin-1")})
        assert answer.status_code == 403


def test_odd_cookies_of_other_servers_do_not_hide_ours(guest: TestClient) -> None:
    ((name, value),) = guest.cookies.items()
    for other in ('{"a": "b;c"}', "x=[1, 2]; =;", '"'):
        guest.cookies.clear()
        answer = guest.get("/run", headers={"Cookie": f"{other}; {name}={value}"})
        assert answer.status_code == 200, other
