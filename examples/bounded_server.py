"""A service run by uvicorn with bounds on connections, heads and time.

A connection that takes too long to send a request and to read its answer is cut off, because uvicorn itself
waits without a limit. Connections beyond CONNECTIONS are answered 503.
"""

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

CONNECTIONS = 64
LARGEST_HEAD = 8 << 10  # bytes
IDLE_S = 5
ENDING_S = 5


def serve(app: Any, host: str, port: int, *, timeout_s: float) -> None:
    """Serve until interrupted, and print the address once it listens. Port 0 is any free port.

    Raises OSError, in one line, for a port that cannot be used.
    """
    config = uvicorn.Config(
        app,
        http=_impatient(timeout_s),
        ws="none",
        log_level="error",  # no line for each client that is refused
        limit_concurrency=CONNECTIONS,
        backlog=CONNECTIONS,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=ENDING_S,
        h11_max_incomplete_event_size=LARGEST_HEAD,
    )
    # Named as TCP, or asyncio leaves Nagle's algorithm on, and each answer waits 40 ms for an ACK.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError) as error:
            raise OSError(f"Port {port} cannot be used: {error}.") from error
        listening.listen(CONNECTIONS)  # whoever connects from now on is answered once the service is up
        print(f"http://{host}:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listening])


def _impatient(timeout_s: float) -> type[H11Protocol]:
    """Return a protocol that aborts a connection once a request and its answer take longer."""

    class Connection(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self.wait()  # for the next; uvicorn waits IDLE_S for one that has not begun

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self.deadline:
                self.deadline.cancel()

        def wait(self) -> None:
            if self.deadline:
                self.deadline.cancel()
            self.deadline = self.loop.call_later(timeout_s, self.transport.abort)

    return Connection
