"""Typed texts over the server: bounded, one at a time, cancelled when their page leaves, in nobody's way."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from asys_bench.eye import app as module
from asys_bench.eye.app import pages_app
from asys_bench.eye.eye import Eye
from asys_bench.eye.guard import Guard
from asys_bench.eye.typed.process import Typing
from asys_bench.eye.typed.reading import CancelledTypingError, TypedError
from asys_bench.rundir.feature_names import ProposedName, write_names

from ..conftest import ADDRESS, HOOK, HOSTILE, TOKEN

ORIGIN = {"Origin": ADDRESS, "Content-Type": "application/json"}


class FakeModel:
    """A `ModelProcess` that holds texts until it is let go."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go_on = threading.Event()
        self.go_on.set()
        self.most = self._now = 0

    def document(self) -> dict[str, Any]:
        return {"state": "ready", "about": "tiny (sha256 ab)", "warning": "others", "problem": ""}

    def ask(self, typing: Typing) -> dict[str, Any]:
        self.asked.append(typing.text)
        self._now += 1
        self.most = max(self.most, self._now)
        try:
            while not self.go_on.wait(0.01):
                if typing.cancelled:
                    raise CancelledTypingError("cancelled")
        finally:
            self._now -= 1
        if typing.text == "bad":
            raise TypedError("another <model>")
        levels = [0.0, 2.0, None]
        features = [{"feature": 3, "activation": 2.0, "levels": levels}]
        return {
            "tokens": ["a", HOSTILE, "c"],
            "features": features,
            "cut": False,
            "checkpoint": "step_000000010",
            "model": {"about": "tiny", "warning": ""},
        }


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
def client(own_run: Path, model: FakeModel) -> Iterator[TestClient]:
    eye = Eye(own_run)
    made = TestClient(Guard(pages_app(eye, model), TOKEN), base_url=ADDRESS)  # type: ignore[arg-type]
    assert made.get("/", params={"token": TOKEN}).status_code == 200
    yield made
    model.go_on.set()
    made.close()
    eye.close()


def type_in(client: TestClient, text: str = "a text", sae: str = HOOK) -> Any:
    return client.post("/api/typed", json={"sae": sae, "text": text}, headers=ORIGIN)


def test_features_come_with_what_they_are_called(client, own_run: Path) -> None:
    name = ProposedName(
        name="colours", score=0.9, baseline=0.7, graded=True, model="m", checkpoint="c", generation=0,
        shown=1, fires=1, silent=1, unix_ns=1,
    )  # fmt: skip
    write_names(own_run, HOOK, {3: name})
    (found,) = (answer := type_in(client).json())["features"]
    assert (found["feature"], found["activation"], found["levels"]) == (3, 2.0, [0.0, 2.0, None])
    assert (found["name"], found["proposed"]["score"]) == ("colours", 0.9)
    assert found["words"].startswith(" w") or found["words"] == HOSTILE
    assert answer["tokens"][1] == HOSTILE
    assert client.get("/api/model").json()["warning"] == "others"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"sae": HOOK, "text": "bad"}, 409),
        ({"sae": "nowhere", "text": "x"}, 404),
        ({"sae": HOOK, "text": ""}, 422),
        ({"sae": HOOK, "text": "x" * 4001}, 422),
        ({"sae": "x" * 1001, "text": "x"}, 422),
        ({"sae": HOOK, "text": "x", "model": "/etc"}, 422),
        ({"sae": HOOK}, 422),
        ({"sae": HOOK, "text": "x" * 60_000}, 413),
    ],
)
def test_what_cannot_be_typed_is_refused_in_words(client, body, status) -> None:
    answer = client.post("/api/typed", json=body, headers=ORIGIN)
    assert answer.status_code == status
    assert answer.json()["problem"]
    assert "Traceback" not in answer.text


def test_another_page_cannot_type(client) -> None:
    for headers in ({}, {"Origin": "http://evil.example"}):
        answer = client.post("/api/typed", json={"sae": HOOK, "text": "x"}, headers=headers)
        assert answer.status_code == 403


def test_without_a_model_it_says_how(text_run: Path) -> None:
    eye = Eye(text_run)
    with TestClient(Guard(pages_app(eye), TOKEN), base_url=ADDRESS) as client:
        client.get("/", params={"token": TOKEN})
        assert client.get("/api/model").json() == {"there": False}
        answer = type_in(client)
    assert (answer.status_code, "--model" in answer.json()["problem"]) == (404, True)
    eye.close()


def app_of(run: Path, model: FakeModel) -> tuple[Eye, Any]:
    """Without the guard, to be called as an ASGI server does."""
    eye = Eye(run)
    return eye, module._Server(eye, model).app  # type: ignore[arg-type]


async def post(app: Any, text: str, leaves: asyncio.Event | None = None) -> tuple[int, Any]:
    body = json.dumps({"sae": HOOK, "text": text}).encode()
    sent: list[Any] = []
    given = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if given:
            return given.pop()
        await (leaves or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/api/typed", "query_string": b"",
        "headers": [(b"content-type", b"application/json")], "http_version": "1.1", "scheme": "http",
        "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": "",
    }  # fmt: skip
    await app(scope, receive, send)
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_a_page_that_leaves_cancels_its_text(text_run: Path, model: FakeModel) -> None:
    model.go_on.clear()
    eye, app = app_of(text_run, model)

    async def leave() -> None:
        gone = asyncio.Event()
        task = asyncio.create_task(post(app, "long", gone))
        while not model.asked:
            await asyncio.sleep(0.01)
        gone.set()
        await asyncio.wait_for(task, 60)
        model.go_on.set()
        status, _ = await asyncio.wait_for(post(app, "next"), 60)
        assert status == 200

    asyncio.run(leave())
    assert model.asked == ["long", "next"]
    eye.close()


def test_while_the_features_are_being_read_the_model_is_not_asked(
    text_run: Path, model: FakeModel
) -> None:
    eye, app = app_of(text_run, model)
    go_on, read = threading.Event(), eye._views.read

    def held(*given: Any) -> Any:
        go_on.wait(60)
        return read(*given)

    eye._views.read, eye._wait_s = held, 0.05
    status, said = asyncio.run(post(app, "a text"))
    assert (status, said["waiting"], model.asked) == (202, True, [])
    eye._wait_s = 60.0
    go_on.set()
    status, _ = asyncio.run(post(app, "a text"))
    assert (status, model.asked) == (200, ["a text"])
    eye.close()


def test_texts_wait_for_each_other_and_nothing_waits_for_them(
    text_run: Path, model: FakeModel
) -> None:
    model.go_on.clear()
    eye, app = app_of(text_run, model)

    async def several() -> None:
        tasks = [asyncio.create_task(post(app, f"{n}")) for n in range(module.MOST_TYPINGS)]
        while not model.asked:
            await asyncio.sleep(0.01)
        began = time.monotonic()
        status, said = await post(app, "one too many")
        assert (status, time.monotonic() - began < 60) == (503, True)
        assert "try again" in said["problem"]
        model.go_on.set()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * len(tasks)

    asyncio.run(several())
    assert model.most == 1
    eye.close()
