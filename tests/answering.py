"""A small HTTP server on this machine whose answers a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Answer:
    """What is sent back; `wait` keeps it until the event is set."""

    body: Any = None  # bytes as they are, anything else as JSON
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None


@dataclass
class Answering:
    """Answers every POST by `reply(path, body)`; remembers what came, and how many came at the same time."""

    reply: Callable[[str, Any], Answer]
    address: str = ""
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)  # path, headers, JSON
    at_once: int = 0
    _open: int = 0
    _lock: Any = field(default_factory=threading.Lock)


@contextmanager
def answering(reply: Callable[[str, Any], Answer]) -> Iterator[Answering]:
    ours = Answering(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with ours._lock:
                ours.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                ours._open += 1
                ours.at_once = max(ours.at_once, ours._open)
            try:
                answer = ours.reply(self.path, body)
                if answer.wait is not None:
                    answer.wait.wait(30)
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
            except (BrokenPipeError, ConnectionResetError):  # the client has broken off
                self.close_connection = True
            finally:
                with ours._lock:
                    ours._open -= 1

        def log_message(self, *_: Any) -> None:
            """Nothing is written to the screen."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """A client that has gone is no matter."""

    server = Server(("127.0.0.1", 0), Handler)
    ours.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, name="answering")
    thread.start()
    try:
        yield ours
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def free_address() -> str:
    """Where nobody listens."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
