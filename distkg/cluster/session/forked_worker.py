"""Process that Ray starts for a worker: it has the fork server make one, and lives as long as that.

Ray runs this file in place of its own ``setup_worker.py``, which it runs itself where the worker needs an environment
that the server has not: other variables, another interpreter or a container. It imports as little as it can.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys

SERVER = "DISTKG_FORK_SERVER"
"""Environment variable: path of the server's socket."""

HEADER_BYTES, STATUS_BYTES, FORKED = 8, 4, b"\1"
WAIT_SECONDS = 40.0
CONTEXT, LANGUAGE = "--serialized-runtime-env-context", "--language"


def main(arguments: list[str]) -> None:
    """Run Ray's worker script, the first argument, in a fork of the server or in this process."""
    connection = request(arguments)
    if connection is None:
        setup = os.path.join(os.path.dirname(arguments[0]), "setup_worker.py")
        os.execv(sys.executable, [sys.executable, setup, *arguments])
    status = connection.recv(STATUS_BYTES)
    code = int.from_bytes(status, "little", signed=True) if status else 1  # the server has ended first
    if code < 0:
        with contextlib.suppress(OSError, ValueError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def request(arguments: list[str]) -> socket.socket | None:
    """Return the connection to the server, which has forked; None if it is not there or refuses."""
    options = dict(argument.split("=", 1) for argument in arguments if argument.startswith((CONTEXT, LANGUAGE)))
    context = json.loads(options.get(CONTEXT) or "{}")
    variables = context.get("env_vars") or {}
    if (
        SERVER not in os.environ
        or options.get(LANGUAGE) != "PYTHON"
        or context.get("command_prefix")
        or context.get("override_worker_entrypoint")
        or context.get("py_executable", sys.executable) != sys.executable
    ):
        return None
    data = json.dumps(
        {
            "arguments": [argument for argument in arguments if not argument.startswith((CONTEXT, LANGUAGE))],
            "variables": variables,
            "environment": {**os.environ, **variables},
            "folder": os.getcwd(),
            "niceness": os.nice(0),
        }
    ).encode()
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(WAIT_SECONDS)
    try:
        connection.connect(os.environ[SERVER])
        socket.send_fds(connection, [len(data).to_bytes(HEADER_BYTES, "little")], [0, 1, 2])
        connection.sendall(data)
        if connection.recv(1) != FORKED:
            return None
    except OSError:
        connection.close()  # a server that forks after all ends that process
        return None
    connection.settimeout(None)
    return connection


if __name__ == "__main__":
    main(sys.argv[1:])
