"""The server's addresses: five pages that are one document, their files, and what they ask for.

    /  /run  /hook  /feature  /search  /timeline     `pages/index.html`; its script shows the view
    /static/NAME                                     the files of `pages/`, by name; there are no others
    /static/STAMP/NAME                               the same, which a browser keeps; another server has
                                                     another STAMP, so that nobody who had its port before
                                                     can have left a script there
    /api/events                                      the run's figures, an event whenever they changed
    /api/curves  /api/table  /api/map  /api/feature  /api/latest  /api/search  /api/births     JSON
    /api/model                                       the model that typed texts go through, if there is one
    POST /api/typed                                  which features fire on a text; nothing is kept
    POST /api/mark                                   a pin, a name or a note: the only change there is

An answer is JSON. One that cannot be given has a `problem` that a page shows; with `waiting` besides, the
page asks again: the features of a large SAE are being read.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from asys_bench.eye.eye import Eye, NotThereError
from asys_bench.eye.features import Document
from asys_bench.eye.marks import Change, MarksError
from asys_bench.eye.page_files import page_files
from asys_bench.eye.typed.process import ModelProcess, Typing
from asys_bench.eye.typed.reading import TypedError
from asys_bench.eye.views import NotYetError
from asys_bench.rundir.live_run import ReadingError
from asys_bench.sinks.archive.sidecar import ArchiveError

log = logging.getLogger(__name__)
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
VIEWS = ("/", "/run", "/hook", "/feature", "/search", "/timeline")
EVERY_S = 1.0
"""The run is read this often while somebody looks."""
SILENT_S = 15.0
"""A line goes to a page at least this often, so that one that has left is noticed."""
KEPT = "private, max-age=86400, immutable"
MOST_PAGES = 32
MOST_BODY, MOST_TEXT, MOST_LABEL = 32 << 10, 200, 1000
MOST_TYPED = 4000
"""Characters of a text that goes through the model."""
MOST_TYPINGS = 4
"""Texts that wait for the model, the one that it reads included."""
LOOK_S = 0.25
"""Whoever has left is noticed so soon."""
NO_MODEL = "start it with a model to type a text: asys-run eye RUN --model FOLDER"


class Typed(BaseModel, extra="forbid", frozen=True):
    """A text that somebody typed, for one SAE."""

    sae: str = Field(max_length=MOST_LABEL)
    text: str = Field(min_length=1, max_length=MOST_TYPED)


def pages_app(eye: Eye, model: ModelProcess | None = None) -> ASGIApp:
    """The application, for everybody: a `Guard` is put around it. model: of typed texts."""
    return _Server(eye, model).app


class _Server:
    def __init__(self, eye: Eye, model: ModelProcess | None) -> None:
        self._eye, self._files, self._model = eye, page_files(), model
        stamp = secrets.token_hex(8)
        page, self._page_type = self._files["index.html"]
        self._index = page.replace(b'"/static/', f'"/static/{stamp}/'.encode())
        self._waiting = 0
        self._model_thread = ThreadPoolExecutor(1, "eye-model")
        self._figures = ThreadPoolExecutor(1, "eye-figures")
        self._features = ThreadPoolExecutor(2, "eye-features")
        self._searches = ThreadPoolExecutor(1, "eye-searches")
        self._stream = Stream(lambda: self._on(self._figures, eye.figures))
        asked: dict[str, Callable[[Mapping[str, str]], Any]] = {
            "/api/curves": lambda query: self._on(self._figures, eye.curves),
            "/api/births": lambda query: self._on(self._figures, eye.births, _label(query)),
            "/api/table": lambda query: self._on(self._features, eye.table_text, _label(query)),
            "/api/map": lambda query: self._on(self._features, eye.decoder_map_text, _label(query)),
            "/api/feature": lambda query: self._on(
                self._features, eye.feature, _label(query), _number(query, "feature")
            ),
            "/api/latest": lambda query: self._on(
                self._searches, eye.latest, _label(query), _number(query, "feature")
            ),
            "/api/search": lambda query: self._on(
                self._searches, eye.search, query.get("text", "")[:MOST_TEXT]
            ),
        }
        self.app = Starlette(
            routes=[
                *(Route(path, self._page) for path in VIEWS),
                Route("/static/{name}", self._file),
                Route(f"/static/{stamp}/{{name}}", self._kept_file),
                Route("/api/events", self._events),
                *(Route(path, _answering(how)) for path, how in asked.items()),
                Route("/api/model", self._about_model),
                Route("/api/typed", self._typed, methods=["POST"]),
                Route("/api/mark", self._mark, methods=["POST"]),
            ]
        )

    async def _on(self, threads: ThreadPoolExecutor, ask: Callable[..., T], *given: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(threads, ask, *given)

    async def _page(self, request: Request) -> Response:
        return Response(self._index, media_type=self._page_type)

    async def _file(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self._files:
            return Response("not here\n", 404, media_type="text/plain")
        contents, kind = self._files[name]
        return Response(contents, media_type=kind)

    async def _kept_file(self, request: Request) -> Response:
        answer = await self._file(request)
        if answer.status_code == 200:
            answer.headers["cache-control"] = KEPT
        return answer

    async def _events(self, request: Request) -> Response:
        if self._stream.pages >= MOST_PAGES:
            return _problem(f"{MOST_PAGES} pages are open already; close one", 503)
        self._features.submit(self._eye.begin)
        return StreamingResponse(self._stream.events(), media_type="text/event-stream")

    async def _mark(self, request: Request) -> Response:
        change = await _given(request, Change)
        if isinstance(change, Response):
            return change
        return await _answer(lambda: self._on(self._features, self._eye.mark, change))

    async def _about_model(self, request: Request) -> Response:
        return _json(
            {"there": False} if self._model is None else {"there": True, **self._model.document()}
        )

    async def _typed(self, request: Request) -> Response:
        typed = await _given(request, Typed)
        if isinstance(typed, Response):
            return typed
        if self._model is None:
            return _problem(NO_MODEL, 404)
        if self._waiting >= MOST_TYPINGS:
            return _problem("other texts wait for the model already; try again", 503)
        self._waiting += 1
        ask = self._model.ask
        try:
            return await _answer(lambda: self._fires(request, typed, ask))
        finally:
            self._waiting -= 1

    async def _fires(
        self, request: Request, typed: Typed, ask: Callable[[Typing], Document]
    ) -> Document:
        """While the SAE's features are being read, the model has nothing to do."""
        await self._on(self._features, self._eye.view, typed.sae)
        typing = Typing(typed.sae, typed.text)
        asked = asyncio.create_task(self._on(self._model_thread, ask, typing))
        while not (await asyncio.wait({asked}, timeout=LOOK_S))[0]:
            if await request.is_disconnected():
                typing.cancel()
        return await self._on(self._features, self._eye.typed, typed.sae, await asked)


class Stream:
    """The run's figures for however many pages look; nothing is read while none does."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self.pages = 0
        self._text, self._version = "", 0
        self._changed = asyncio.Condition()
        self._reading: asyncio.Task[None] | None = None

    async def events(self) -> AsyncIterator[bytes]:
        """Server-sent events: the newest figures at once, then whenever they differ."""
        self.pages += 1
        seen = 0
        try:
            if self._reading is None or self._reading.done():
                seen = self._version  # what was read when somebody looked last is old
                self._text = ""
                self._reading = asyncio.create_task(self._go_on())
            while True:
                try:
                    async with asyncio.timeout(SILENT_S), self._changed:
                        while self._version <= seen:
                            await self._changed.wait()
                except TimeoutError:
                    yield b": still here\n\n"
                    continue
                seen = self._version
                yield f"data: {self._text}\n\n".encode()
        finally:
            self.pages -= 1

    async def _go_on(self) -> None:
        while self.pages:
            try:
                document = await self._read()
            except Exception as error:  # a damaged run is shown as such, and may mend
                log.exception("the run cannot be read")
                document = {"live": False, "problem": f"{type(error).__name__}: {error}"}
            text = json.dumps(document, allow_nan=False, separators=(",", ":"))
            if text != self._text or not self._version:
                async with self._changed:
                    self._text, self._version = text, self._version + 1
                    self._changed.notify_all()
            await asyncio.sleep(EVERY_S)


def _answering(how: Callable[[Mapping[str, str]], Any]) -> Callable[[Request], Any]:
    async def answer(request: Request) -> Response:
        return await _answer(lambda: how(request.query_params))

    return answer


async def _answer(ask: Callable[[], Any]) -> Response:
    try:
        found = await ask()
        return _text(found) if isinstance(found, str) else _json(found)
    except NotYetError as error:
        return _json({"problem": str(error), "waiting": True}, 202)
    except NotThereError as error:
        return _problem(str(error), 404)
    except (MarksError, TypedError) as error:
        return _problem(str(error), 409)
    except ArchiveError as error:
        return _problem(f"the archive cannot be read: {error}", 409)
    except ReadingError as error:
        return _problem(str(error), 409)
    except Exception as error:  # what a run's folder holds is anybody's
        log.exception("a question could not be answered")
        return _problem(f"{type(error).__name__}; the command's terminal says more", 500)


async def _given(request: Request, kind: type[M]) -> M | Response:
    """What a request's JSON says; or why it is refused."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        return _problem("not JSON", 415)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            return _problem(f"more than {MOST_BODY:,} bytes", 413)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return _problem(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", 422)


def _label(query: Mapping[str, str]) -> str:
    return query.get("sae", "")[:MOST_LABEL]


def _number(query: Mapping[str, str], name: str) -> int:
    text = query.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise NotThereError(f"{name} is no number")
    return int(text)


def _problem(text: str, status: int) -> Response:
    return _json({"problem": text}, status)


def _json(document: Any, status: int = 200) -> Response:
    """In ASCII: a name of a run may hold half a character."""
    return _text(json.dumps(document, allow_nan=False, separators=(",", ":")), status)


def _text(text: str, status: int = 200) -> Response:
    return Response(text, status, media_type="application/json")
