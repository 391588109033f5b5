"""The guard over real HTTP, around an application that answers everything with 200."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from app.desk.guard import CONTENT_SECURITY_POLICY, Guard

TOKEN = "a-token-of-this-launch"


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-app", b"1")]})
    await send({"type": "http.response.body", "body": b"inside"})


class Served:
    """A guarded server on a free port, and requests to it with exactly the headers given."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.guard = Guard(_echo, port=self.port, token=TOKEN, max_body_bytes=1000)
        config = uvicorn.Config(self.guard, log_level="error", lifespan="off", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listener]}, daemon=True
        )
        self.thread.start()
        self.cookie = self._exchange()

    def _exchange(self) -> str:
        response = self.ask(f"/?token={TOKEN}")
        assert response.status == 303
        return response.headers["set-cookie"].split(";")[0]

    def ask(
        self, path: str = "/", method: str = "GET", body: bytes = b"", **headers: str | None
    ) -> http.client.HTTPResponse:
        """Header names with _ for -; a Host of ours unless one is given (None: no Host)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        given: dict[str, str | None] = {"host": f"127.0.0.1:{self.port}", **headers}
        for name, value in given.items():
            if value is not None:
                connection.putheader(name.replace("_", "-"), value)
        if body or method == "POST":
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body or None)
        response = connection.getresponse()
        response.body = response.read()  # type: ignore[attr-defined]
        connection.close()
        return response

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)
        self.listener.close()


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.stop()


def test_own_page_passes(served: Served) -> None:
    for host in (f"127.0.0.1:{served.port}", f"localhost:{served.port}"):
        response = served.ask(host=host, cookie=served.cookie, origin=f"http://{host}")
        assert (response.status, response.body) == (200, b"inside")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "[::1]:PORT", "127.0.0.1.:PORT", ""]
)
def test_foreign_host_is_refused(served: Served, host: str) -> None:
    host = host.replace("PORT", str(served.port))
    assert served.ask(host=host, cookie=served.cookie).status == 403


def test_missing_host_is_refused(served: Served) -> None:
    assert served.ask(host=None, cookie=served.cookie).status in (400, 403)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "https://HOST"],
)
def test_foreign_origin_is_refused(served: Served, origin: str) -> None:
    origin = origin.replace("HOST", f"127.0.0.1:{served.port}")
    for method in ("GET", "POST"):
        assert served.ask("/x", method, cookie=served.cookie, origin=origin).status == 403


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_cross_site_upload_is_refused(served: Served, site: str) -> None:
    form = {"content_type": "multipart/form-data; boundary=x", "sec_fetch_site": site}
    response = served.ask("/upload", "POST", b"--x--", cookie=served.cookie, **form)
    assert response.status == 403


def test_only_top_level_navigation_may_come_from_elsewhere(served: Served) -> None:
    link = {
        "cookie": served.cookie,
        "sec_fetch_site": "cross-site",
        "sec_fetch_mode": "navigate",
        "sec_fetch_dest": "document",
    }
    assert served.ask(**link).status == 200
    assert served.ask(**{**link, "sec_fetch_dest": "iframe"}).status == 403
    assert served.ask(**{**link, "sec_fetch_mode": "no-cors"}).status == 403
    assert served.ask("/", "POST", **link).status == 403


def test_without_the_cookie_nothing_is_served(served: Served) -> None:
    for path in ("/", "/config", "/gradio_api/file=/etc/passwd", "/?token=wrong", "/?token="):
        assert served.ask(path).status == 403
    name = served.cookie.split("=")[0]
    assert served.ask(cookie=f"{name}=guess").status == 403
    assert served.ask("/x?token=" + TOKEN).status == 403
    assert served.ask("/?token=" + TOKEN, "POST").status == 403


@pytest.mark.parametrize(
    "foreign",
    ['prefs={"theme":"dark","n":1}', "name=John Smith", "a@b=1", "alone", "=", 'open="', "a=b=c"],
)
def test_cookies_of_other_programs_on_this_machine_do_no_harm(served: Served, foreign: str) -> None:
    name = served.cookie.split("=")[0]
    for cookies in (f"{foreign}; {served.cookie}", f"{served.cookie};{foreign}"):
        assert served.ask(cookie=cookies).status == 200
    for cookies in (foreign, f"{foreign}; {name}=guess", f"x{served.cookie}", f"x={served.cookie}"):
        assert served.ask(cookie=cookies).status == 403


def test_the_token_is_exchanged_for_a_strict_cookie(served: Served) -> None:
    response = served.ask(f"/?token={TOKEN}")
    cookie = response.headers["set-cookie"]
    assert response.headers["location"] == "/"
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert cookie.startswith(f"longread-{served.port}=")


def test_every_response_has_the_security_headers(served: Served) -> None:
    for response in (served.ask(cookie=served.cookie), served.ask(), served.ask(host="evil")):
        assert response.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["cross-origin-resource-policy"] == "same-origin"


def test_a_body_that_is_too_long_is_refused_unread(served: Served) -> None:
    assert served.ask("/x", "POST", b"x" * 1000, cookie=served.cookie).status == 200
    assert served.ask("/x", "POST", b"x" * 1001, cookie=served.cookie).status == 413


def test_the_manifest_needs_no_cookie(served: Served) -> None:
    assert served.ask("/manifest.json").status == 200
    assert served.ask("/manifest.json", host="evil.example").status == 403
