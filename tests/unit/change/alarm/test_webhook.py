"""A webhook is tried a bounded number of times and holds nobody up."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from asys_bench.change.alarm import webhook
from asys_bench.contracts.stats import StatsPage
from tests.conformance.support import eventually


class Receiver:
    """An HTTP server that answers with the given codes, one after another, then 200."""

    def __init__(self, codes=(), hold=None):
        self.got, left = [], list(codes)
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.got.append(json.loads(body))
                if hold is not None:
                    hold.wait(20)
                code = left.pop(0) if left else 200
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *args):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def slot():
    page = StatsPage.create(["alarm-0"])
    yield page.slot("alarm-0")
    page.close()


@pytest.fixture
def receiver(request):
    made = Receiver(*getattr(request, "param", ()))
    yield made
    made.close()


def hook_to(url, slot, timeout_s=60.0):
    return webhook.Webhook(url, timeout_s, slot.counter("sent"), slot.counter("failed"))


@pytest.mark.parametrize("receiver", [([500, 302, 503],)], indirect=True)
def test_answers_that_are_no_success_are_tried_again(receiver, slot, monkeypatch):
    monkeypatch.setattr(webhook, "FIRST_PAUSE_S", 0.01)
    sender = hook_to(receiver.url, slot)
    sender.send({"text": "x", "value": 0.5})
    eventually(lambda: slot.counter("sent").value == 1, "a count")
    assert receiver.got == [{"text": "x", "value": 0.5}] * 4
    assert slot.counter("failed").value == 0
    sender.close(60)


@pytest.mark.parametrize("receiver", [([500] * 4,)], indirect=True)
def test_after_the_last_try_a_document_is_counted_as_failed(receiver, slot, monkeypatch, caplog):
    monkeypatch.setattr(webhook, "FIRST_PAUSE_S", 0.01)
    sender = hook_to(receiver.url, slot)
    sender.send({"n": 1})
    eventually(lambda: slot.counter("failed").value == 1, "a count")
    sender.send({"n": 2})
    eventually(lambda: slot.counter("sent").value == 1, "a count")
    assert len(receiver.got) == webhook.TRIES + 1
    sender.close(60)


def test_a_receiver_that_hangs_holds_nobody_up_and_what_cannot_wait_is_counted(slot, monkeypatch):
    monkeypatch.setattr(webhook, "WAITING", 3)
    hold = threading.Event()
    receiver = Receiver((), hold)
    try:
        sender = hook_to(receiver.url, slot, timeout_s=60)
        sender.send({"n": 0})
        eventually(lambda: len(receiver.got) == 1, "a document")
        began = time.thread_time()
        for n in range(1, 6):
            sender.send({"n": n})
        assert time.thread_time() - began < 0.5
        assert slot.counter("failed").value == 2
        hold.set()
        sender.close(60)
        assert [one["n"] for one in receiver.got] == [0, 1, 2, 3]
    finally:
        hold.set()
        receiver.close()


def test_nobody_there_is_a_failure_like_another(slot, monkeypatch):
    monkeypatch.setattr(webhook, "FIRST_PAUSE_S", 0.001)
    sender = hook_to("http://127.0.0.1:9/", slot)
    sender.send({"n": 1})
    eventually(lambda: slot.counter("failed").value == 1, "a count")
    sender.close(60)
