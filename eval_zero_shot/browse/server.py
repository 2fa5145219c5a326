"""The browse page over HTTP, for the person who started it and nobody else.

Every address begins with a random token; a request whose Host is not this server's own name is refused, so that a web
page elsewhere cannot reach it under a name of its own (DNS rebinding); no other origin may read (no CORS) or embed an
answer; studies and slices are numbers and files are three fixed names, so no address is a path; nothing is kept by the
browser, and nothing that was asked is logged.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import re
import secrets
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from eval_zero_shot.browse.studies import Studies
from eval_zero_shot.errors import EvalError

HERE = Path(__file__).parent
FILES = {
    "": (HERE / "page.html", "text/html; charset=utf-8"),
    "browse.js": (HERE / "browse.js", "text/javascript; charset=utf-8"),
    "planes.js": (HERE.parent / "report" / "planes.js", "text/javascript; charset=utf-8"),
    "page.css": (HERE.parent / "report" / "page.css", "text/css; charset=utf-8"),
    "browse.css": (HERE / "browse.css", "text/css; charset=utf-8"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_TEXT, PAGE = 500, 100
SLICE = re.compile(r"slice/(\d{1,9})/(axial|coronal|sagittal)/(\d{1,3})/(\d{1,6})\.png")
STUDY = re.compile(r"(study|map)/(\d{1,9})")


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class BrowseServer(ThreadingHTTPServer):
    """Serves `studies` on host:port (0: a free one); `url` is what to open."""

    daemon_threads = True

    def __init__(self, studies: Studies, title: str, host: str = "127.0.0.1", port: int = 0) -> None:
        if host in ("", "0.0.0.0", "::"):
            raise EvalError(
                f"--host {host or '(empty)'} is every network at once",
                why="studies would be shown wherever this machine is connected",
                fix="give the address of one network, or leave it at 127.0.0.1 and forward the port (ssh -L)",
            )
        self.studies, self.title, self.token = studies, title, secrets.token_urlsafe(24)
        self.hosts = {*LOOPBACK} if is_loopback(host) else {host.lower()}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise EvalError(
                f"cannot listen on {host}, port {port} ({getattr(error, 'strerror', None) or error})",
                why="there would be no page",
                fix="leave --port out for a free one; --host must be an address of this machine",
            ) from None
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self.server_address[1]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that hangs up is no news; anything else is named by its kind alone."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError | TimeoutError):
            print(f"browse: a request failed ({type(error).__name__})", file=sys.stderr)


class Handler(BaseHTTPRequestHandler):
    """GET alone."""

    server: BrowseServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "voxclip", ""
    timeout = 60  # seconds in which a connection must say something

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: an address holds the token and what was asked."""

    def do_GET(self) -> None:
        """Answer one request."""
        if _hostname(self.headers.get_all("Host") or []) not in self.server.hosts:
            return self._answer(403, b"wrong host\n", "text/plain")
        address = urlsplit(self.path)
        token, slash, what = address.path.removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            return self._answer(404, b"not found\n", "text/plain")
        if what in FILES:
            path, kind = FILES[what]
            return self._answer(200, path.read_bytes(), kind)
        try:
            body, kind = self._data(what, parse_qs(address.query))
        except (LookupError, ValueError) as error:
            said = str(error) if isinstance(error, _AskedWrongly) else "not found"
            return self._answer(400 if isinstance(error, _AskedWrongly) else 404, said.encode() + b"\n", "text/plain")
        except EvalError as error:  # a text without tokens, features that are not finite
            return self._answer(400, f"{error}\n".encode(), "text/plain; charset=utf-8")
        except Exception as error:
            print(f"browse: a request failed ({type(error).__name__})", file=sys.stderr)
            return self._answer(500, b"this study or text could not be shown\n", "text/plain")
        return self._answer(200, body, kind)

    def _data(self, what: str, asked: dict[str, list[str]]) -> tuple[bytes, str]:
        studies = self.server.studies
        if found := SLICE.fullmatch(what):
            study, plane, window, place = found.groups()
            return studies.png(int(study), plane, int(window), int(place)), "image/png"
        if what == "about":
            alone = self.server.hosts == {*LOOPBACK}
            return _json({"title": self.server.title, "studies": len(studies), "alone": alone})
        if what == "rank":
            text, minus = _texts(asked)
            start = int((asked.get("start") or ["0"])[0])
            if start < 0:
                raise LookupError
            order = studies.rank(text, minus, lowest=asked.get("lowest") == ["1"])
            return _json({"total": len(order), "studies": order[start : start + PAGE]})
        if found := STUDY.fullmatch(what):
            study = int(found[2])
            if study >= len(studies):
                raise LookupError
            return _json(studies.about(study) if found[1] == "study" else studies.map(study, *_texts(asked)))
        raise LookupError

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


class _AskedWrongly(ValueError):
    """Said to the reader as it is."""


def _json(value: Any) -> tuple[bytes, str]:
    return json.dumps(value, allow_nan=False).encode(), "application/json"


def _texts(asked: dict[str, list[str]]) -> tuple[str, str]:
    text, minus = (" ".join((asked.get(name) or [""])[0].split()) for name in ("text", "minus"))
    if not text:
        raise _AskedWrongly("type a finding")
    if max(len(text), len(minus)) > MOST_TEXT:
        raise _AskedWrongly(f"at most {MOST_TEXT} characters")
    return text, minus


def _hostname(headers: list[str]) -> str | None:
    """The name in a Host header, lower case and without its port (a forwarded port is another one); None where the
    header is not there exactly once, or is none."""
    if len(headers) != 1:
        return None
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([A-Za-z0-9.-]+))(?::\d{1,5})?", headers[0].strip())
    return (found[1] or found[2]).lower() if found else None
