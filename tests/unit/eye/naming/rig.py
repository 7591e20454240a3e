"""Features that fire on words of their own, a model that knows the truth, and an endpoint on this machine."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from asys_bench.eye.naming.models import Chat, UnreachableError
from asys_bench.eye.naming.naming import Naming

WORDS = ["stop", "and", "red", "seven", "Monday", "river"]
"""Feature n fires on the n-th."""
LABEL = "layer.0"
MARK = re.compile(r"<<(.+?)>>")


def example(word: str, draw: np.random.Generator, activation: float = 1.0) -> dict[str, Any]:
    """Eleven tokens that occur nowhere else, around the word."""
    tokens = [f" x{draw.integers(1 << 40):x}" for _ in range(11)]
    tokens[6] = f" {word}"
    levels: list[float | None] = [0.0] * 11
    levels[6] = activation
    return {"activation": activation, "tokens": tokens, "levels": levels, "at": 6, "step": 1}


class WordFeatures:
    """`features.Features`; the last feature never fires."""

    kind, rows, about = "index", 1000, "made here"

    def __init__(self, words: Sequence[str] = WORDS, each: int = 24) -> None:
        draw = np.random.default_rng(0)
        self.words_F = [*words, ""]
        self.d_sae = len(self.words_F)
        self._made = {
            (feature, kind): [example(word, draw, 2.0 - n / each) for n in range(each)]
            for feature, word in enumerate(words)
            for kind in ("top", "random")
        }
        self.density_F = np.linspace(0.1, 0.01, self.d_sae)
        self.density_F[-1] = 0.0
        self.mean_F = self.max_F = np.ones(self.d_sae)
        self.partners: dict[int, list[int]] = {}

    def words(self) -> list[str]:
        return [f" {word}" if word else "" for word in self.words_F]

    def top_tokens(self) -> list[list[str]]:
        return [[f" {word}"] if word else [] for word in self.words_F]

    def examples(self, feature: int, kind: str) -> list[dict[str, Any]]:
        return self._made.get((feature, kind), [])

    def set_examples(self, feature: int, kind: str, examples: list[dict[str, Any]]) -> None:
        self._made[feature, kind] = examples

    def cofiring(self, feature: int) -> list[tuple[int, float, float]]:
        return [(other, 9.0, 3.0) for other in self.partners.get(feature, [])]


class View:
    """What `Naming` wants of a `SaeView`."""

    def __init__(self, features: Any, checkpoint: str = "step_000000010") -> None:
        self.label, self.features, self.problem = LABEL, features, "nothing archived"
        self.checkpoint = Path(checkpoint)
        self.lives: dict[int, int] = {}
        self.sae = SimpleNamespace(d_sae=features.d_sae if features is not None else 0)

    def generation(self, number: int) -> int | None:
        return self.lives.get(number, 0)


class Truthful:
    """Names a feature by its token, and says yes where the text's token is the name's."""

    graded = True

    def __init__(
        self, about: str = "truthful", wrong: Callable[[str], str] = lambda word: word
    ) -> None:
        self.about, self._wrong = about, wrong
        self.asked: list[str] = []
        self.fail_at = -1

    def answer(self, chat: Chat) -> str:
        if len(self.asked) == self.fail_at:
            raise UnreachableError("gone")
        word = MARK.findall(chat[-1]["content"])[0]
        self.asked.append(word)
        return self._wrong(word)

    def chances(self, chats: Sequence[Chat]) -> list[float | None]:
        found: list[float | None] = []
        for chat in chats:
            said = chat[-1]["content"]
            name = said.split("Phrase: ")[-1]
            found.append(0.9 if MARK.findall(said)[0] == name else 0.2)
        return found


def naming(run_dir: Path, model: Any, features: Any = None, **more: Any) -> Naming:
    """Of a run that is a folder and no more."""
    view = more.pop("view", None) or View(features or WordFeatures())
    return Naming(run_dir, view, more.pop("marks", {}), model)  # type: ignore[arg-type]


# ---- an endpoint


def said(content: str, logprobs: Sequence[tuple[str, float]] | None = None) -> dict[str, Any]:
    """The answer of an OpenAI-compatible server."""
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": content}}
    if logprobs is not None:
        tops = [{"token": token, "logprob": log} for token, log in logprobs]
        choice["logprobs"] = {"content": [{"token": content, "top_logprobs": tops}]}
    return {"id": "x", "choices": [choice]}


class FakeEndpoint:
    """answer: (what was asked) -> a document, (status, document or bytes, headers), or "hang" / "drip"."""

    def __init__(self, answer: Callable[[dict[str, Any]], Any]) -> None:
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append({"path": self.path, **body})
                outer.headers.append(dict(self.headers))
                outer.reply(self, answer(body))

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def reply(self, handler: BaseHTTPRequestHandler, told: Any) -> None:
        if told == "hang":
            self.over.wait(120)
            return
        if told == "drip":
            self._drip(handler)
            return
        status, document, headers = told if isinstance(told, tuple) else (200, told, {})
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _drip(self, handler: BaseHTTPRequestHandler) -> None:
        """A header that never ends, a byte at a time: no read of a socket ever times out."""
        try:
            while not self.over.is_set():
                handler.wfile.write(b"H")
                handler.wfile.flush()
                time.sleep(0.02)
        except OSError:
            pass

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
