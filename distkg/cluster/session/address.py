"""Check of a Ray cluster's address before Ray connects, because Ray retries a wrong port forever."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distkg.config import ClusterConfig

if TYPE_CHECKING:
    import grpc

ANSWER_SECONDS = 15.0
CONNECT_SECONDS = 10.0
RAY_PORT, DASHBOARD_PORT = 6379, 8265

# A method of Ray's control service (GCS), which takes an empty request and changes nothing.
_METHOD = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")


class ClusterError(ValueError):
    """Error of a cluster that cannot run the training; the message says what is missing and what to do."""


def resolve_address(cluster: ClusterConfig) -> str:
    """Return ``local``, ``auto`` or host:port: the configured address, else the cluster of a Ray job, else a local one.

    Raises:
        ClusterError: a Ray Client address, from which a run cannot be driven.
    """
    named = os.environ.get("RAY_ADDRESS", "")
    address = cluster.address or ("auto" if named and named != "local" else "local")
    refuse_gateway(named if address == "auto" else address)
    return address


def refuse_gateway(target: str) -> None:
    """Refuse a Ray Client or dashboard address, from which a run cannot be driven.

    Raises:
        ClusterError: says how to submit the run as a job.
    """
    if "://" in target:
        raise ClusterError(
            f"cluster address {target!r} is a gateway, not a cluster that this process can join. Submit the "
            "run instead: ray job submit --working-dir . -- python jobs/train.py CONFIG.yaml --run RUN"
        )


def check_cluster(target: str, *, automatic: bool = False) -> None:
    """Check that a Ray cluster answers at ``HOST:PORT`` and admits this process.

    Takes at most 40 seconds, whatever service listens there. ``automatic`` means that Ray found the address itself; Ray
    then sends a token by default.

    Raises:
        ClusterError: the address is malformed, nothing or another service listens there, or the token is refused.
    """
    host, port = split_address(target)
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise not_there(target, error) from None
    code = _status(target, None).name
    if code in _REFUSED:
        token = ray_token(os.environ, automatic=automatic)
        if token is None:
            raise _refused(target)
        code = _status(target, token).name
        if code in _REFUSED:
            raise _refused(target)
    if code != "OK":
        raise ClusterError(
            f"something answers at {target}, but it is no Ray cluster ({DASHBOARD_PORT} is the dashboard; the "
            f"cluster's port is {RAY_PORT}). Correct RAY_ADDRESS or cluster.address"
        )


def split_address(target: str) -> tuple[str, int]:
    """Split an address into host and port; an IPv6 host is in brackets.

    Raises:
        ClusterError: it is not of the form ``HOST:PORT``.

    >>> split_address("[::1]:6379")
    ('::1', 6379)
    """
    host, _, port = target.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or (":" in host and not bracketed):
        raise ClusterError(
            f"cluster address {target!r} must read HOST:PORT, such as head:{RAY_PORT} or [fd00::1]:{RAY_PORT}; `auto` "
            "joins the cluster of this machine, `local` starts one"
        )
    return host.strip("[]"), int(port)


def not_there(target: str, error: Exception) -> ClusterError:
    """Return the error for an address where nothing listens."""
    return ClusterError(
        f"no Ray cluster answers at {target or 'this machine'} ({error}). Start one with `ray start --head`, "
        "or set cluster.address=local to run on this machine."
    )


def ray_token(environment: Mapping[str, str], *, automatic: bool = False) -> str | None:
    """Return the token that Ray sends, from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token.

    None if there is none, or if RAY_AUTH_MODE does not require one.
    """
    if environment.get("RAY_AUTH_MODE", "token" if automatic else "").lower() != "token":
        return None
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"].strip()
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return file.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _refused(target: str) -> ClusterError:
    way = "set RAY_AUTH_MODE=token"
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
        way = "put the cluster's token into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH"
    return ClusterError(f"the cluster at {target} refuses this process: {way} (docs/operations.md)")


def _status(target: str, token: str | None) -> grpc.StatusCode:
    """Return the status with which a Ray head answers; UNAVAILABLE or DEADLINE_EXCEEDED if the service does not
    speak gRPC."""
    import grpc  # here, because a run in this process needs no cluster

    # A web proxy does not lead to a cluster.
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        try:
            call(b"", timeout=ANSWER_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK
