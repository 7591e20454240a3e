"""Who may ask the eyepiece anything, and what a browser may do with an answer.

    address      Host is localhost, 127.0.0.1 or [::1] with any port (`ssh -L` gives another one). A name that
                 an attacker's DNS points at 127.0.0.1 is refused.
    token        32 random bytes, in the address that the command prints. `GET /?token=...` exchanges it at
                 once for a cookie: HttpOnly, SameSite=Strict, gone with the browser. All else needs that.
    origin       a request that names its Origin names this server; one that changes something names it.
    site         scripts, pictures and forms of other sites are refused by Sec-Fetch-Site too.
    policy       scripts and styles come from this server alone, none is inline, nothing else is loaded, no
                 page may frame this one, and no script may turn text into markup (Trusted Types).

NOT COVERED: whoever reads the memory, or the terminal, of the user who started the command.
"""

from __future__ import annotations

import hmac
import re
import secrets
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_HOST = re.compile(r"(?:localhost|127\.0\.0\.1|\[::1\])(?::\d{1,5})?")
READING = ("GET", "HEAD")
ASK_AGAIN = "open the address that `asys-run eye` printed: it has the token that lets you in\n"
# A Strict cookie is not sent after a redirect that began on another site, such as a chat with the address
# in it; from a page of our own it is.
_EXCHANGED = (
    '<!doctype html><html lang="en"><meta charset="utf-8"><title>A-Sys-I</title>'
    '<link rel="icon" href="/static/eye.svg" type="image/svg+xml">'
    '<meta http-equiv="refresh" content="0;url=/"><p><a href="/">Go on</a></p></html>'
)


class Guard:
    """An ASGI application in front of `inner`; lets in who knows `token`."""

    def __init__(self, inner: ASGIApp, token: str) -> None:
        self._inner, self._token = inner, token
        self._secret = secrets.token_urlsafe(32)
        # Cookies know no ports: two servers of one user must not take each other's.
        self._cookie = f"asys-eye-{secrets.token_hex(4)}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                answered = MutableHeaders(scope=message)
                answered.update(HEADERS)
                answered.setdefault("cache-control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        refused = self._refused(scope, headers)
        answer = refused or self._exchange(scope)
        if answer is None and not self._is_known(headers):
            answer = PlainTextResponse(ASK_AGAIN, 403)
        await (answer or self._inner)(scope, receive, with_headers)

    def _refused(self, scope: Scope, headers: Headers) -> Response | None:
        """Why it is not even looked at who asks."""
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0].lower()):
            return PlainTextResponse("this server is localhost\n", 403)
        reads = scope["method"] in READING
        origins = headers.getlist("origin")
        own = f"http://{hosts[0]}".lower()
        if any(origin.lower() != own for origin in origins) or not (reads or origins):
            return PlainTextResponse("asked from another page\n", 403)
        elsewhere = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        # Following a link from elsewhere is fine; it brings no cookie, so at most the token's page.
        followed = reads and headers.get("sec-fetch-mode") == "navigate"
        if elsewhere and not followed:
            return PlainTextResponse("asked from another site\n", 403)
        return None

    def _exchange(self, scope: Scope) -> Response | None:
        """The cookie for the token; None: no token was given."""
        given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100).get("token")
        if scope["path"] != "/" or not given:
            return None
        if not _same(given[0], self._token):
            return PlainTextResponse(f"another token; {ASK_AGAIN}", 403)
        answer = HTMLResponse(_EXCHANGED)
        answer.set_cookie(self._cookie, self._secret, httponly=True, samesite="strict", path="/")
        return answer

    def _is_known(self, headers: Headers) -> bool:
        # Lenient: other servers of this machine may have given the browser odd cookies of their own.
        found = [
            cookie_parser(header).get(self._cookie, "") for header in headers.getlist("cookie")
        ]
        return any(_same(value, self._secret) for value in found)


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())
