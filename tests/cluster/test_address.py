"""Addresses of clusters: what stands for a mistake, and what listens there in place of Ray; Ray is not started here."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest

from distkg.cluster.session import address
from distkg.cluster.session.address import ClusterError, check_cluster, ray_token, refuse_gateway, split_address

TOKEN = "a" * 40
METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(address, "ANSWER_SECONDS", 3.0)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@contextmanager
def answering(answer: Callable[[socket.socket], object], family: int = socket.AF_INET) -> Iterator[int]:
    """A server that does the same with every connection; its port."""
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    server = socket.create_server((host, 0), family=family)
    kept = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            kept.append(connection)
            answer(connection)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.close()
        for connection in kept:
            connection.close()


IMPOSTORS: dict[str, Callable[[socket.socket], object]] = {
    "says nothing": lambda connection: None,
    "ssh": lambda connection: connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "database": lambda connection: connection.sendall(b"J\x00\x00\x00\x0a8.0.36\x00" + bytes(60)),
    "noise": lambda connection: connection.sendall(bytes(range(256)) * 8),
    "hangs up": lambda connection: connection.close(),
}


@pytest.mark.parametrize("name", IMPOSTORS)
def test_what_listens_but_is_no_ray_is_told_apart(name: str) -> None:
    with answering(IMPOSTORS[name]) as port, pytest.raises(ClusterError) as caught:
        check_cluster(f"127.0.0.1:{port}")
    assert str(caught.value) == (
        f"something answers at 127.0.0.1:{port}, but it is no Ray cluster (8265 is the dashboard; the cluster's port "
        "is 6379). Correct RAY_ADDRESS or cluster.address"
    )


def test_a_web_server_such_as_the_dashboard_is_no_cluster() -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(ClusterError, match="it is no Ray cluster"):
            check_cluster(f"localhost:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()


def test_a_silent_server_on_ipv6_is_told_apart_as_well() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with answering(IMPOSTORS["ssh"], socket.AF_INET6) as port, pytest.raises(ClusterError, match="no Ray cluster"):
        check_cluster(f"[::1]:{port}")


class FakeHead(grpc.GenericRpcHandler):
    """What a head does with the one question, as far as tokens go."""

    def __init__(self, token: str | None, method: str) -> None:
        self._token, self._method = token, method

    def service(self, details: Any) -> Any:
        shown = dict(details.invocation_metadata).get("authorization")

        def reply(request: bytes, context: Any) -> bytes:
            if self._token is not None and shown != f"Bearer {self._token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        known = details.method == self._method or self._token is not None
        if details.method != self._method and shown == f"Bearer {self._token}":
            return None
        return grpc.unary_unary_rpc_method_handler(reply) if known else None


@contextmanager
def head(token: str | None = None, method: str = METHOD) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((FakeHead(token, method),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None)


def test_a_cluster_without_tokens_admits_everybody() -> None:
    with head() as target:
        check_cluster(target)


@pytest.mark.parametrize("token", [None, TOKEN])
def test_another_port_of_ray_is_not_the_clusters(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with (
        head(token, "/ray.rpc.NodeManagerService/Other") as target,
        pytest.raises(ClusterError, match="no Ray cluster"),
    ):
        check_cluster(target)


def test_a_cluster_that_asks_for_a_token_names_the_mode_to_set(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(TOKEN)
    with head(TOKEN) as target:
        with pytest.raises(ClusterError) as caught:
            check_cluster(target)  # Ray shows a token only where the mode says so
        check_cluster(target, automatic=True)
    assert str(caught.value) == (
        f"the cluster at {target} refuses this process: set RAY_AUTH_MODE=token (docs/operations.md)"
    )


def test_the_token_is_tried_before_ray_tries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    refused = "refuses this process: put the cluster's token into ~/.ray/auth_token, or name its file in"
    with head(TOKEN) as target:
        for wrong in (None, "b" * 40):
            if wrong is not None:
                monkeypatch.setenv("RAY_AUTH_TOKEN", wrong)
            with pytest.raises(ClusterError, match=refused):
                check_cluster(target)
        monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
        check_cluster(target)


TOKENS: list[tuple[Mapping[str, str], bool, str | None]] = [
    ({}, False, None),
    ({}, True, "of home"),
    ({"RAY_AUTH_MODE": "token"}, False, "of home"),
    ({"RAY_AUTH_MODE": "TOKEN", "RAY_AUTH_TOKEN": "of environment\n"}, False, "of environment"),
    ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "of environment"}, True, None),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere"}, False, None),
]


@pytest.mark.parametrize(("environment", "automatic", "token"), TOKENS)
def test_the_token_is_the_one_that_ray_would_show(
    environment: Mapping[str, str], automatic: bool, token: str | None, tmp_path: Path
) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of home\n")
    assert ray_token(environment, automatic=automatic) == token


@pytest.mark.parametrize(
    "malformed", ["head", "", "head:", ":6379", "head:port", "head:0", "head:65536", "fd00::1:6379", "head:-1", "a b"]
)
def test_an_address_without_host_or_port_is_refused_with_an_example(malformed: str) -> None:
    with pytest.raises(ClusterError, match=r"must read HOST:PORT, such as head:6379 or \[fd00::1\]:6379"):
        split_address(malformed)


def test_hosts_and_ports() -> None:
    assert split_address("head.example:6379") == ("head.example", 6379)
    assert split_address("[fd00::1]:6380") == ("fd00::1", 6380)


def test_an_unknown_host_and_a_closed_port_are_no_cluster() -> None:
    with pytest.raises(ClusterError, match=r"no Ray cluster answers at nohost\.invalid:6379"):
        check_cluster("nohost.invalid:6379")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(ClusterError, match=f"no Ray cluster answers at 127.0.0.1:{port} .*ray start --head"):
        check_cluster(f"127.0.0.1:{port}")


@pytest.mark.parametrize("gateway", ["ray://head:10001", "http://head:8265", "https://head"])
def test_gateways_are_refused_with_the_way_to_submit(gateway: str) -> None:
    with pytest.raises(ClusterError, match="ray job submit"):
        refuse_gateway(gateway)
    refuse_gateway("head:6379")
