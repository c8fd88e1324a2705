"""An HTTP server on the loopback interface that gives the answers of a script, whatever is asked.

For what a real object store does rarely: conflicts, throttling, silence, connections that break.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType

__all__ = ["Answer", "ScriptedServer", "s3_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A status and a body. `is_silent`: nothing is ever answered; `is_cut`: the connection breaks instead."""

    status: int = 200
    body: bytes = b""
    is_silent: bool = False
    is_cut: bool = False


def s3_error(status: int, code: str, message: str = "as the script wants it", condition: str = "") -> Answer:
    """An error as S3 words it."""
    detail = f"<Condition>{condition}</Condition>" if condition else ""
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{detail}</Error>"
    return Answer(status=status, body=body.encode())


@dataclass
class ScriptedServer:
    """A context manager. `answers` are given in order, the last one again and again; `requests` are those that came."""

    answers: list[Answer]
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def __enter__(self) -> ScriptedServer:
        self._ending = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                script.requests.append((self.command, self.path, dict(self.headers)))
                answer = script.answers[min(len(script.requests), len(script.answers)) - 1]
                if answer.is_silent:
                    script._ending.wait()
                if answer.is_silent or answer.is_cut:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                if self.command != "HEAD":
                    with contextlib.suppress(ConnectionError):
                        self.wfile.write(answer.body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        return Handler
