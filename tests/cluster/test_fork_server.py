"""The server that forks worker processes, with scripts in place of Ray's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from distkg.cluster.session import forked_worker
from distkg.cluster.session.fork_server import MODULES, ForkServer, can_fork_workers

pytestmark = pytest.mark.skipif(not can_fork_workers(), reason="this system has no pidfd_open")

WORKER = """
import json, os, sys
import helper
print(json.dumps({
    "arguments": sys.argv[1:], "name": __name__, "folder": os.getcwd(), "parent": os.getppid(), "nice": os.nice(0),
    "own": os.environ.get("OWN"), "threads": os.environ.get("THREADS"), "imported": "colorsys" in sys.modules,
}), flush=True)
exec(os.environ.get("DO", ""))
"""
SETUP = "import sys; print('by Ray itself', len(sys.argv) - 1)"
CONTEXT = "--serialized-runtime-env-context="


@pytest.fixture
def server() -> Iterator[ForkServer]:
    server = ForkServer({"THREADS": "3"}, ["colorsys"])
    yield server
    server.end()


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    (tmp_path / "default_worker.py").write_text(WORKER)
    (tmp_path / "setup_worker.py").write_text(SETUP)
    (tmp_path / "helper.py").write_text("")
    return tmp_path


def start(scripts: Path, path: str, *options: str, before: str = "", **variables: str) -> subprocess.Popen[str]:
    """Start a process as a raylet does, after the commands ``before`` of a shell."""
    arguments = [sys.executable, forked_worker.__file__, str(scripts / "default_worker.py"), "--id=7", *options]
    return subprocess.Popen(
        ["sh", "-c", f'{before} exec "$@"', "sh", *arguments, "--language=PYTHON"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=scripts,
        env={**os.environ, forked_worker.SERVER: path, **variables},
    )


def test_a_fork_is_the_process_that_ray_asked_for(scripts: Path, server: ForkServer) -> None:
    context = CONTEXT + json.dumps({"env_vars": {"THREADS": "3", "RAY_ANY": "1"}})
    process = start(scripts, server.path, context, before="renice -n 3 $$ >/dev/null;", OWN="a b")
    said = json.loads(process.communicate(timeout=60)[0])
    assert process.returncode == 0
    assert said == {
        "arguments": ["--id=7"],
        "name": "__main__",
        "folder": str(scripts),
        "parent": server._process.pid,
        "nice": 3,
        "own": "a b",
        "threads": "3",
        "imported": True,
    }


@pytest.mark.parametrize(
    ("work", "status"),
    [("sys.exit(5)", 5), ("raise ValueError", 1), ("os.kill(os.getpid(), 9)", -9), ("os.kill(os.getpid(), 15)", -15)],
)
def test_it_ends_as_its_fork_ends(scripts: Path, server: ForkServer, work: str, status: int) -> None:
    process = start(scripts, server.path, DO=work)
    process.communicate(timeout=60)
    assert process.returncode == status


@pytest.mark.parametrize(
    "context",
    [
        {"env_vars": {"THREADS": "4"}},
        {"env_vars": {"ANOTHER": "1"}},
        {"py_executable": "/usr/bin/another"},
        {"command_prefix": ["nice"]},
        {"override_worker_entrypoint": "/in/a/container.py"},
    ],
    ids=str,
)
def test_ray_starts_what_needs_another_environment(
    scripts: Path, server: ForkServer, context: dict[str, object]
) -> None:
    process = start(scripts, server.path, CONTEXT + json.dumps(context))
    assert process.communicate(timeout=60)[0] == "by Ray itself 4\n"


def test_ray_starts_workers_where_the_server_has_ended(scripts: Path, server: ForkServer) -> None:
    server.end()
    assert start(scripts, server.path).communicate(timeout=60)[0] == "by Ray itself 3\n"


def test_a_server_that_cannot_import_refuses(scripts: Path) -> None:
    server = ForkServer({}, ["there_is_no_such_module"])
    assert start(scripts, server.path).communicate(timeout=60)[0] == "by Ray itself 3\n"
    server.end()


def test_a_fork_ends_with_the_process_in_whose_place_it_runs(scripts: Path, server: ForkServer) -> None:
    process = start(scripts, server.path, DO="import time; time.sleep(600)")
    assert process.stdout is not None
    process.stdout.readline()
    (fork,) = psutil.Process(server._process.pid).children()
    process.kill()
    process.wait()
    fork.wait(timeout=60)
    # and the server has taken its exit status
    deadline = time.monotonic() + 60
    while psutil.Process(server._process.pid).children():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_forks_know_nothing_of_each_other(scripts: Path, server: ForkServer) -> None:
    """Ends of pipes that a fork kept open for others would let nobody see these end."""
    first = start(scripts, server.path, DO="import time; time.sleep(600)")
    second = start(
        scripts, server.path, DO="print(sorted(os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))"
    )
    output = second.communicate(timeout=60)[0].splitlines()[1]
    assert output == "['0', '1', '2'] 4"  # the last is that of the listing
    first.kill()
    first.communicate()


STARTER = """
import sys, time
from distkg.cluster.session.fork_server import ForkServer
server = ForkServer({}, ["colorsys"])
print(server.path, server._process.pid, flush=True)
time.sleep(600)
"""


def test_nothing_is_left_of_a_server_whose_starter_was_killed() -> None:
    starter = subprocess.Popen([sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    path, pid = starter.stdout.readline().split()
    server = psutil.Process(int(pid))
    server.send_signal(signal.SIGINT)  # Ctrl-C reaches it, and is not for it
    starter.kill()
    starter.wait()
    server.wait(timeout=60)
    assert not Path(path).parent.exists()


INSIDE = f"""
import importlib, os, sys
for module in {MODULES!r}: importlib.import_module(module)
import torch
names = {{open(f"/proc/self/task/{{task}}/comm").read().strip() for task in os.listdir("/proc/self/task")}}
print(sorted(names - {{"jemalloc_bg_thd"}}), "ray" in sys.modules, torch.cuda.is_initialized())
"""


def test_what_is_imported_before_a_fork_starts_no_thread_and_no_ray() -> None:
    """A background thread of Arrow's allocator, which is made for forks, is the exception."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INSIDE], capture_output=True, text=True, env=environment, check=True)
    name = Path(sys.executable).name[:15]
    assert done.stdout in (f"['{name}'] False False\n", "['python'] False False\n")
