"""S3 server on loopback, and a proxy before it that injects faults into chosen requests."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest

Policy = Callable[[str, str, int], str | None]
"""Fault of a request by its method, its path with query, and its number from 0; None for no fault.

``unavailable``, ``throttled`` and ``internal`` answer with an error; ``cut`` closes the connection before the request
is served, ``lost`` after it, without an answer; ``half`` sends half of the body of the answer; ``slow`` waits for half
a second; ``stale`` answers a listing as it was answered before.
"""

_ERRORS = {
    "unavailable": (503, "ServiceUnavailable"),
    "throttled": (503, "SlowDown"),
    "internal": (500, "InternalError"),
    "skewed": (403, "RequestTimeTooSkewed"),
}


class FaultyS3:
    """Proxy before an S3 server.

    Attributes:
        endpoint: host and port.
        policy: decides on the fault of each request.
        requests: methods and paths of the requests so far.
        injected: faults so far.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = upstream
        self.policy: Policy = lambda method, path, number: None
        self.requests: list[tuple[str, str]] = []
        self.injected: list[str] = []
        self._lock, self._listings = threading.Lock(), dict[str, tuple[int, list[tuple[str, str]], bytes]]()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.endpoint = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def count(self, method: str, part: str = "") -> int:
        return sum(found == method and part in path for found, path in self.requests)

    def _next_fault(self, method: str, path: str) -> str | None:
        with self._lock:
            number = len(self.requests)
            self.requests.append((method, path))
            fault = self.policy(method, path, number)
            if fault is not None:
                self.injected.append(fault)
            return fault

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                """Print nothing."""

            def _serve(self) -> None:
                body = self._body()
                fault = proxy._next_fault(self.command, self.path)
                if fault in _ERRORS:
                    status, code = _ERRORS[fault]
                    content = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
                    self._answer(status, [("Content-Type", "application/xml")], content)
                    return
                if fault == "cut":
                    self.close_connection = True
                    return
                if fault == "slow":
                    time.sleep(0.5)
                status, headers, content = self._forward(body)
                if "list-type=2" in self.path and status == 200:
                    with proxy._lock:
                        before = proxy._listings.get(self.path)
                        proxy._listings[self.path] = status, headers, content
                    if fault == "stale" and before is not None:
                        status, headers, content = before
                if fault == "lost":
                    self.close_connection = True
                    return
                self._answer(status, headers, content, half=fault == "half")

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

            def _body(self) -> bytes:
                if "100-continue" in self.headers.get("Expect", ""):
                    pass  # BaseHTTPRequestHandler has answered it
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
                connection = http.client.HTTPConnection(proxy._upstream, timeout=60)
                headers = {
                    key: value for key, value in self.headers.items() if key.lower() not in ("expect", "connection")
                }
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
                dropped = ("connection", "transfer-encoding", "content-length", "server", "date")
                kept = [(key, value) for key, value in answer.getheaders() if key.lower() not in dropped]
                if self.command == "HEAD":
                    kept += [(key, value) for key, value in answer.getheaders() if key.lower() == "content-length"]
                connection.close()
                return answer.status, kept, content

            def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes, half: bool = False) -> None:
                self.send_response(status)
                for key, value in headers:
                    self.send_header(key, value)
                if self.command != "HEAD":
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if half else content)
                if half:
                    self.close_connection = True

        return Handler


@contextmanager
def s3_server() -> Iterator[str]:
    """Host and port of an S3 server on loopback."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_if(self: S3Response) -> Any:
        """moto looks whether the condition of a write holds, and writes; S3 does both at once."""
        with one_at_a_time:
            return put(self)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_if)
        server.start()
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
        server.stop()


def create_bucket(endpoint: str, name: str) -> None:
    import boto3

    keys = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
    boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1", **keys).create_bucket(Bucket=name)


def address_in(endpoint: str, bucket: str, path: str) -> str:
    """Address of a path in a bucket of a server."""
    return f"s3://{bucket}/{path}?endpoint_override={quote(f'http://{endpoint}', safe='')}&region=us-east-1"


def listed(path: str) -> str:
    """Prefix of a listing, from the path of its request; empty for another request."""
    query = parse_qs(urlsplit(path).query)
    return query.get("prefix", [""])[0] if query.get("list-type") == ["2"] else ""
