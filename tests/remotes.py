"""A real S3 API on the loopback, and a network before it that is as bad as a test asks for."""

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field

KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "a-secret-of-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass
class Fault:
    """What happens to the next `times` requests whose first line has `what` in it.

    drop: the connection closes before the request arrives; hang: no answer ever; delay: a moment's wait;
    reset: the request arrives, the answer is a TCP reset; truncate: half of the answer's body; lie: a bit of
    the answer's body flips; spoil: a bit of the request's body flips; busy: an answer of 503; whole: the
    request loses its range.
    """

    kind: str
    what: bytes = b""
    times: int = 1


@dataclass
class Proxy:
    """A TCP proxy on the loopback that does what its `faults` say, in order, and notes each first line."""

    target: tuple[str, int]
    faults: list[Fault] = field(default_factory=list)
    seen: list[bytes] = field(default_factory=list)
    sent: int = 0
    """Bytes that clients sent."""

    def __post_init__(self) -> None:
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._closed.set()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def lines(self, what: bytes) -> list[bytes]:
        """The first lines of requests with `what` in them, in order."""
        return [line for line in list(self.seen) if what in line]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        # One thread for both ways: a socket that another thread waits on is not closed by close().
        with contextlib.suppress(OSError), client, socket.create_connection(self.target) as server:
            self._open += [client, server]
            kind = ""
            while True:
                ready, _, _ = select.select([client, server], [], [])
                if client in ready:
                    data = client.recv(1 << 16)
                    self.sent += len(data)
                    if data.split(b" ", 1)[0] in (b"GET", b"PUT", b"POST", b"HEAD", b"DELETE"):
                        kind = self._fault(data.split(b"\r\n", 1)[0])
                    if not data or (kind := self._request(kind, data, client, server)) == "over":
                        return
                if server in ready:
                    data = server.recv(1 << 16)
                    if not data or (kind := self._answer(kind, data, client)) == "over":
                        return

    def _request(self, kind: str, data: bytes, client: socket.socket, server: socket.socket) -> str:
        """Pass on a piece of a request; returns what is still to happen on this connection."""
        if kind == "hang":
            self._closed.wait()
        if kind == "busy":
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        if kind in ("hang", "busy", "drop"):
            return "over"
        if kind == "delay":
            time.sleep(0.2)
            kind = ""
        if kind == "spoil" and not data.endswith(b"\r\n\r\n"):  # not the head alone
            data, kind = data[:-1] + bytes([data[-1] ^ 1]), ""
        if kind == "whole":
            data = data.replace(b"\r\nRange:", b"\r\nX-Range:").replace(b"\r\nrange:", b"\r\nX-Range:")
        server.sendall(data)
        return kind

    def _answer(self, kind: str, data: bytes, client: socket.socket) -> str:
        """Pass on a piece of an answer; returns what is still to happen on this connection."""
        while data.startswith(b"HTTP/1.1 100"):  # go on; the answer may be in the same piece
            go_on, mark, data = data.partition(b"\r\n\r\n")
            client.sendall(go_on + mark)
        if not data:
            return kind
        head, mark, body = data.partition(b"\r\n\r\n") if data.startswith(b"HTTP/") else (b"", b"", data)
        if kind == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return "over"
        if body and kind == "truncate":
            client.sendall(head + mark + body[: len(body) // 2])
            return "over"
        if body and kind == "lie":
            body, kind = body[:-1] + bytes([body[-1] ^ 1]), ""
        client.sendall(head + mark + body)
        return kind

    def _fault(self, line: bytes) -> str:
        with self._lock:
            self.seen.append(line)
            for fault in self.faults:
                if fault.times and fault.what in line:
                    fault.times -= 1
                    return fault.kind
        return ""


@dataclass
class S3:
    """A bucket behind a proxy; `proxy.faults` makes it bad, `inside` looks at it past the proxy."""

    proxy: Proxy
    bucket: str
    server: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}"

    def client(self):
        """boto3, straight to the server."""
        import boto3
        from botocore.config import Config

        names = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        # As the bytes are, whatever the server believes of them.
        plain = Config(response_checksum_validation="when_required")
        return boto3.client("s3", endpoint_url=self.server, region_name="us-east-1", config=plain, **names)

    def names(self) -> set[str]:
        """Every key in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        return {item["Key"] for page in pages for item in page.get("Contents", ())}

    def get(self, key: str) -> bytes:
        body: bytes = self.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    def put(self, key: str, data: bytes) -> None:
        self.client().put_object(Bucket=self.bucket, Key=key, Body=data)


def kill_at_a_request(process: subprocess.Popen, proxy: Proxy, what: bytes) -> None:
    """Kill a process once it has sent a request whose first line has `what` in it."""
    end = time.monotonic() + 60
    while not proxy.lines(what):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    process.wait()


@contextlib.contextmanager
def moto() -> Iterator[tuple[str, int]]:
    """moto's server in a process of its own; its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **KEYS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.05)
        yield "127.0.0.1", port
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def bucket(server: tuple[str, int]) -> Iterator[S3]:
    """A new bucket behind a proxy of its own."""
    proxy = Proxy(server)
    made = S3(proxy, f"bucket-{uuid.uuid4().hex[:12]}", f"http://{server[0]}:{server[1]}")
    made.client().create_bucket(Bucket=made.bucket)
    try:
        yield made
    finally:
        proxy.close()
