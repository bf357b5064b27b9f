"""Where alerts arrive: real servers on loopback that keep what they get, or behave as broken ones do."""

import email
import email.policy
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

USER, PASSWORD = "tester", "p4ss w0rd%?"


class Webhook:
    """An HTTP server: ``posts`` are the messages of apprise's ``json://``, ``gets`` the paths that were asked for."""

    def __init__(self) -> None:
        self.posts: list[dict[str, Any]] = []
        self.gets: list[str] = []
        self.status = 200
        self.pause_seconds = 0.0
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(webhook.pause_seconds)
                if webhook.status == 200:
                    webhook.posts.append({**json.loads(content), "path": self.path})
                self._answer()

            def do_GET(self) -> None:
                webhook.gets.append(self.path)
                self._answer()

            def _answer(self) -> None:
                self.send_response(webhook.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = int(self.server.server_address[1])
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def url(self, path: str = "hook", user: str = "") -> str:
        """The address as apprise has it."""
        return f"json://{user}127.0.0.1:{self.port}/{path}"

    def heartbeat(self, path: str = "ping") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def titles(self) -> list[str]:
        return [str(post["title"]) for post in self.posts]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class Mailbox:
    """An SMTP server that takes mail only from who logs in."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.answer = "250 OK"
        self.controller = Controller(
            self, hostname="127.0.0.1", port=_free_port(), auth_require_tls=False, authenticator=self._authenticate
        )
        self.controller.start()

    def url(self, to: str = "me@example.org") -> str:
        from urllib.parse import quote

        user = f"{USER}:{quote(PASSWORD)}"
        place = f"smtp=127.0.0.1&port={self.controller.port}&mode=insecure"
        return f"mailto://{user}@example.org:{self.controller.port}?{place}&from=box@example.org&to={to}"

    def _authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, _how: str, data: Any) -> AuthResult:
        is_right = isinstance(data, LoginPassword) and (data.login, data.password) == (
            USER.encode(),
            PASSWORD.encode(),
        )
        return AuthResult(success=is_right)

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if not session.authenticated:
            return "530 5.7.0 Authentication required"
        assert isinstance(envelope.content, bytes)
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        assert isinstance(mail, EmailMessage)
        if self.answer.startswith("250"):
            self.mails.append(mail)
        return self.answer

    def close(self) -> None:
        self.controller.stop()


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def hanging_server(trickle: bytes = b"") -> Iterator[int]:
    """The port of a server that takes every connection, and then says nothing, or ``trickle`` for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()
    taken = []

    def accept() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            taken.append(connection)
            if trickle:
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        try:
            while not ended.wait(0.1):
                connection.sendall(trickle)
        except OSError:
            return

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for connection in taken:
            connection.close()
