"""An HTTP server for one :class:`Site`: on this machine alone, for reading alone.

A page of another site may not read it: a name that resolves to this machine is refused as a host (DNS
rebinding), and no answer may be framed or sniffed.
"""

from __future__ import annotations

import errno
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from mup_tune.errors import UserError
from mup_tune.report.site import TYPES, Moved, Site

ADDRESS = "127.0.0.1"
HOSTS = (ADDRESS, "localhost")  # with any port, for a tunnel may end at another one
PAGES = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' data:; "
PAGES += "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
OTHERS = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; sandbox"
IDLE_S = 30.0  # after which a connection that says nothing is closed


class Server(ThreadingHTTPServer):
    """Listens from its making on; ``port`` 0 takes a free one.

    Raises:
        UserError: the port is taken, or may not be had.
    """

    daemon_threads = True

    def __init__(self, site: Site, port: int) -> None:
        self.site = site
        try:
            super().__init__((ADDRESS, port), _Handler)
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            problem = f"port {port} is taken" if taken else f"port {port} cannot be had ({str(error.strerror).lower()})"
            raise UserError(problem, field="--port", fix="Name another one, or 0 for any that is free") from None

    @property
    def url(self) -> str:
        return f"http://{ADDRESS}:{self.server_port}/"

    def handle_error(self, request: object, client_address: object) -> None:
        """A reader that left in the middle of an answer is no matter."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    server_version, sys_version = "mup-tune", ""
    protocol_version = "HTTP/1.1"
    timeout: ClassVar[float] = IDLE_S

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _read_only(self) -> None:
        self.close_connection = True  # a body that nobody reads may follow
        self._say(HTTPStatus.METHOD_NOT_ALLOWED, "This server is for reading.", Allow="GET, HEAD")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_TRACE = do_CONNECT = _read_only

    def _answer(self) -> None:
        if not self._asked_here():
            self._say(HTTPStatus.MISDIRECTED_REQUEST, f"Ask {self.server.url} itself.")
            return
        try:
            found = self.server.site.find(self.path)
            if isinstance(found, Moved):
                self._say(HTTPStatus.MOVED_PERMANENTLY, "It is a folder.", Location=found.to)
                return
            if found is None:
                self._say(HTTPStatus.NOT_FOUND, "There is no such page.")
                return
            if self.headers.get("If-None-Match") == found.version:
                self._send(HTTPStatus.NOT_MODIFIED, None, TYPES[found.suffix], ETag=found.version)
                return
            # A reader that only asks for the version must not wait for a page to be drawn.
            content = None if self.command == "HEAD" else found.content()
        except (OSError, UserError) as error:
            self._say(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            return
        self._send(HTTPStatus.OK, content, TYPES[found.suffix], ETag=found.version)

    def _asked_here(self) -> bool:
        hosts = self.headers.get_all("Host") or []
        return len(hosts) == 1 and hosts[0].rsplit(":", 1)[0].lower() in HOSTS

    def _say(self, status: HTTPStatus, text: str, **headers: str) -> None:
        self._send(status, f"{text}\n".encode(), "text/plain; charset=utf-8", **headers)

    def _send(self, status: HTTPStatus, content: bytes | None, kind: str, **headers: str) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": kind,
            "Cache-Control": "no-cache",
            "Content-Security-Policy": PAGES if kind.startswith("text/html") else OTHERS,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            **({} if content is None else {"Content-Length": str(len(content))}),
            **headers,
        }
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if content and self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the terminal says where to look, and no more."""
