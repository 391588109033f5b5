"""Who may talk to the desk: an ASGI wrapper around the whole application.

Loopback is not a boundary: any web page the user visits, and any other program or user of the
machine, can reach a port of 127.0.0.1. A request passes only if

    1. its Host is exactly 127.0.0.1:PORT or localhost:PORT  (against DNS rebinding)
    2. its Origin, if there is one, is one of those two      (against foreign pages, other ports)
    3. its Sec-Fetch-Site, if there is one, is same-origin or none; a top-level GET navigation may
       come from anywhere                                    (against cross-site posts and embeds)
    4. it carries this launch's cookie, which only the opened URL's token is exchanged for
                                                             (against other users and programs)

Every response gets the security headers, refused ones included.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any
from urllib.parse import parse_qs

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

TOKEN_PARAMETER = "token"
# Browsers ask for the manifest without cookies; it holds nothing but the program's name.
OPEN_PATHS = frozenset({"/manifest.json"})

# Verified against Gradio 6.31: it evaluates templates and styles inline. Nothing outside this
# origin can be contacted, so an image address in an answer cannot carry the document away.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "style-src 'self' 'unsafe-inline'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
        "worker-src 'self' blob:",
        "connect-src 'self'",
        "frame-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS: tuple[tuple[bytes, bytes], ...] = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)

_REFUSED_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Longread</title>
<style>body{font:16px/1.6 system-ui,sans-serif;max-width:32rem;margin:20vh auto;padding:0 1.5rem}
@media(prefers-color-scheme:dark){body{background:#17191c;color:#e6e4df}}</style>
<h1>This window has no key</h1>
<p>Only the window that Longread itself opened can use the desk.
Start Longread again: it opens a window that works.</p></html>"""


class Guard:
    """Wraps an ASGI application; see the module's docstring for the rules.

    port              the bound port; Host and Origin must name it
    token             what the opened URL carries; random if None
    max_body_bytes    a longer announced body gets 413 before it is read
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        port: int,
        token: str | None = None,
        max_body_bytes: int | None = None,
    ) -> None:
        self.app = app
        self.token = token or secrets.token_urlsafe(24)
        self.cookie_name = f"longread-{port}"  # cookies do not know ports: two desks must not clash
        self.max_body_bytes = max_body_bytes
        self._cookie_value = secrets.token_urlsafe(32)
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}
        self._origins = {b"http://" + host for host in self._hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, exchange the token for the cookie, or refuse with 403 or 413."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        send = _with_security_headers(send)
        refusal = self.refusal(scope)
        if refusal is not None:
            await _refuse(scope, send, *refusal)
            return
        if self._brings_token(scope):
            await self._exchange(send)
        elif scope["path"] in OPEN_PATHS or self._has_cookie(scope):
            await self.app(scope, receive, send)
        else:
            await _refuse(scope, send, 403, "This launch's cookie is missing.")

    def refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason if the request breaks rules 1 to 3 or is too long, else None."""
        hosts = _header(scope, b"host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return 403, "The Host header is not this desk's address."
        if any(origin.lower() not in self._origins for origin in _header(scope, b"origin")):
            return 403, "The request comes from a foreign origin."
        sites = {site.lower() for site in _header(scope, b"sec-fetch-site")}
        if not sites <= {b"same-origin", b"none"} and not _is_navigation(scope):
            return 403, "The request comes from a foreign page."
        if self.max_body_bytes is not None:
            lengths = [int(n) for n in _header(scope, b"content-length") if n.isdigit()]
            if any(length > self.max_body_bytes for length in lengths):
                return 413, f"The file is larger than {self.max_body_bytes >> 20} MiB."
        return None

    def _brings_token(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["method"] != "GET" or scope["path"] != "/":
            return False
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        return any(_equal(given, self.token) for given in query.get(TOKEN_PARAMETER, []))

    def _has_cookie(self, scope: Scope) -> bool:
        return any(
            name == self.cookie_name and _equal(value, self._cookie_value)
            for header in _header(scope, b"cookie")
            for name, value in _cookies(header)
        )

    async def _exchange(self, send: Send) -> None:
        """Answer the opened URL: set the cookie and go on without the token in the address."""
        cookie = f"{self.cookie_name}={self._cookie_value}; Path=/; HttpOnly; SameSite=Strict"
        headers = [
            (b"location", b"/"),
            (b"set-cookie", cookie.encode()),
            (b"cache-control", b"no-store"),
            (b"content-length", b"0"),
        ]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _header(scope: Scope, name: bytes) -> list[bytes]:
    return [value.strip() for key, value in scope["headers"] if key.lower() == name]


def _cookies(header: bytes) -> Iterator[tuple[str, str]]:
    """Names and values of a Cookie header.

    Other programs on this address may have set any, also such as no standard allows; those must
    not hide ours, as they would from http.cookies.
    """
    for pair in header.decode("latin-1").split(";"):
        name, _, value = pair.partition("=")
        yield name.strip(), value.strip()


def _is_navigation(scope: Scope) -> bool:
    """A link or bookmark that opens the desk as a page of its own (not in a frame)."""
    return (
        scope["type"] == "http"
        and scope["method"] == "GET"
        and _header(scope, b"sec-fetch-mode") == [b"navigate"]
        and _header(scope, b"sec-fetch-dest") == [b"document"]
    )


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _with_security_headers(send: Send) -> Send:
    names = {name for name, _ in SECURITY_HEADERS}

    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [(k, v) for k, v in message.get("headers", ()) if k.lower() not in names]
            message = {**message, "headers": [*kept, *SECURITY_HEADERS]}
        await send(message)

    return wrapped


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    page = _is_navigation(scope) and status == 403
    body = (_REFUSED_PAGE if page else reason + "\n").encode()
    kind = b"text/html; charset=utf-8" if page else b"text/plain; charset=utf-8"
    headers = [
        (b"content-type", kind),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
