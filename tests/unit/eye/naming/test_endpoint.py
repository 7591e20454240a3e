"""An OpenAI-compatible endpoint, in order and out of it; the key is in one header and nowhere else."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator

import pytest

from asys_bench.eye.naming import endpoint as module
from asys_bench.eye.naming.endpoint import KEY_VARIABLE, Endpoint, chance_in, checked_url
from asys_bench.eye.naming.material import Window
from asys_bench.eye.naming.models import (
    GarbageError,
    NamingError,
    RefusedError,
    UnreachableError,
)
from asys_bench.eye.naming.prompts import asking_chat, naming_chat

from .rig import FakeEndpoint, said

KEY = "sk-very-secret-0123456789"
CHAT = naming_chat([Window((" red",), 0, (1.0,))])
QUESTION = asking_chat("colours", Window((" red",), 0, (1.0,)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serving() -> Iterator:
    made = []

    def start(answer) -> FakeEndpoint:
        made.append(FakeEndpoint(answer))
        return made[-1]

    yield start
    for one in made:
        one.close()


def test_a_name_is_asked_for_once_with_the_texts_and_nothing_else(serving) -> None:
    server = serving(lambda body: said("colours"))
    assert Endpoint(f"{server.url}/", "a-model", KEY).answer(CHAT) == "colours"
    (asked,) = server.asked
    assert asked["path"] == "/v1/chat/completions"
    assert asked["messages"] == CHAT
    assert set(asked) == {"path", "model", "messages", "max_tokens", "temperature"}
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"


def test_without_a_key_no_authorization_is_sent(serving) -> None:
    server = serving(lambda body: said("colours"))
    Endpoint(server.url, "m", None).answer(CHAT)
    assert "Authorization" not in server.headers[0]


def test_chances_are_probabilities_of_yes_where_the_endpoint_gives_them(serving) -> None:
    server = serving(
        lambda body: said("Yes", [("Yes", math.log(0.6)), (" no", math.log(0.2)), ("?", -1.0)])
    )
    model = Endpoint(server.url, "m", None)
    assert model.chances([QUESTION] * 9) == pytest.approx([0.75] * 9)
    assert model.graded
    assert len(server.asked) == 9
    assert all(one["logprobs"] and one["max_tokens"] <= 4 for one in server.asked)


@pytest.mark.parametrize("refuses", [False, True], ids=["gives none", "refuses them"])
def test_without_log_probabilities_the_answer_counts(serving, refuses: bool) -> None:
    def answer(body):
        if refuses and "logprobs" in body:
            return 400, {"error": {"message": "logprobs is not supported"}}, {}
        return said("No, it does not")

    model = Endpoint(serving(answer).url, "m", None)
    assert model.chances([QUESTION] * 3) == [0.0] * 3
    assert not model.graded


def test_chances_of_odd_log_probabilities() -> None:
    def told(tops):
        return {"message": {}, "logprobs": {"content": [{"top_logprobs": tops}]}}

    assert chance_in(told([{"token": "YES", "logprob": 5.0}])) == 1.0
    assert chance_in(told([{"token": "maybe", "logprob": -1}])) is None
    assert chance_in(told([{"token": "yes", "logprob": float("nan")}])) is None
    assert chance_in(told([{"token": "yes", "logprob": float("-inf")}])) is None
    assert chance_in(told("x")) is None
    assert chance_in({"message": {}, "logprobs": None}) is None


def test_too_many_requests_are_waited_for_as_long_as_is_asked(serving, monkeypatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Endpoint, "_pause", lambda self, seconds: pauses.append(seconds))
    codes = [
        (429, {}, {"Retry-After": "7"}),
        (429, {}, {"Retry-After": "99999"}),
        (503, b"<html>", {}),
    ]
    server = serving(lambda body: codes.pop(0) if codes else said("colours"))
    assert Endpoint(server.url, "m", None).answer(CHAT) == "colours"
    assert pauses == [7.0, module.MOST_PAUSE_S, pytest.approx(4 * module.FIRST_PAUSE_S)]


def test_an_endpoint_that_goes_on_refusing_is_given_up_after_so_many_tries(serving) -> None:
    server = serving(lambda body: (429, {"error": {"message": "slow down"}}, {}))
    with pytest.raises(RefusedError, match="answers 429: slow down"):
        Endpoint(server.url, "m", None).answer(CHAT)
    assert len(server.asked) == module.TRIES


def test_a_wrong_key_is_said_at_once_and_not_shown(serving, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    server = serving(
        lambda body: (401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {})
    )
    with pytest.raises(RefusedError, match=f"401.*{KEY_VARIABLE}") as caught:
        Endpoint(server.url, "m", KEY).answer(CHAT)
    assert len(server.asked) == 1
    assert KEY not in str(caught.value)
    assert KEY not in caplog.text
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("how", ["hang", "drip"])
def test_an_endpoint_that_never_answers_is_left_after_its_time(
    serving, monkeypatch, how: str
) -> None:
    monkeypatch.setattr(module, "TRY_S", 0.2)
    monkeypatch.setattr(module, "TRIES", 2)
    server = serving(lambda body: how)
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"no answer within|cannot be reached"):
        Endpoint(server.url, "m", KEY).answer(CHAT)
    assert time.monotonic() - began < 60


def test_nobody_there_is_unreachable() -> None:
    with pytest.raises(UnreachableError, match="cannot be reached"):
        Endpoint("http://127.0.0.1:9/v1", "m", None).answer(CHAT)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"null", b'{"choices": []}', b'{"choices": [{"text": "x"}]}',
     b'{"choices": [{"message": "x"}]}', b"\xff\xfe", b'{"choices": ' + b"[" * 100_000],
)  # fmt: skip
def test_garbage_is_called_so(serving, body: bytes) -> None:
    server = serving(lambda asked: (200, body, {}))
    with pytest.raises(GarbageError):
        Endpoint(server.url, "m", None).answer(CHAT)


def test_a_message_without_text_is_no_name(serving) -> None:
    server = serving(lambda body: {"choices": [{"message": {"content": None}}]})
    assert Endpoint(server.url, "m", None).answer(CHAT) == ""


def test_an_answer_without_end_is_garbage(serving, monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST_BYTES", 1000)
    server = serving(lambda body: (200, b" " * 5000, {}))
    with pytest.raises(GarbageError, match="more than 1,000 bytes"):
        Endpoint(server.url, "m", None).answer(CHAT)


def test_a_redirect_is_not_followed(serving) -> None:
    other = serving(lambda body: said("stolen"))
    server = serving(lambda body: (307, {}, {"Location": f"{other.url}/chat/completions"}))
    with pytest.raises(RefusedError, match="307"):
        Endpoint(server.url, "m", KEY).answer(CHAT)
    assert other.asked == []


@pytest.mark.parametrize(
    ("url", "key", "why"),
    [
        ("ftp://host/v1", None, "http:// or https://"),
        ("host/v1", None, "http:// or https://"),
        ("https://", None, "name a host"),
        ("https://h:99999999/v1", None, "no URL"),
        ("https://a b/v1", None, "name a host"),
        (f"https://user:{KEY}@host/v1", None, "holds credentials"),
        (f"https://host/v1?api_key={KEY}", None, "holds credentials or parameters"),
        ("http://example.org/v1", KEY, "in the clear"),
        ("https://host/v1", f"{KEY}\r\nX: y", "no key"),
        ("https://host/v1", "", "no key"),
    ],
)  # fmt: skip
def test_a_url_that_would_give_a_secret_away_is_refused(
    url: str, key: str | None, why: str
) -> None:
    with pytest.raises(NamingError, match=why) as caught:
        Endpoint(url, "m", key)
    assert KEY not in str(caught.value)


def test_a_key_may_go_to_this_machine_and_over_tls() -> None:
    for url in (
        "http://127.0.0.1:8000/v1",
        "http://localhost/v1",
        "http://[::1]:1/v1",
        "https://host/v1",
    ):
        assert checked_url(f"{url}/", KEY) == url
    assert KEY not in repr(Endpoint("https://host/v1", "m", KEY))


def test_the_first_failure_ends_the_questions_that_are_under_way(serving, monkeypatch) -> None:
    """Nineteen others would each be tried four times, a minute each."""
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 200.0)
    answers = iter([said("Yes"), (404, {}, {})])
    server = serving(lambda body: next(answers, "hang"))
    model = Endpoint(server.url, "m", None)
    began = time.monotonic()
    with pytest.raises(RefusedError, match="404"):
        model.chances([QUESTION] * 20)
    assert time.monotonic() - began < 60
    assert len(server.asked) < 10
