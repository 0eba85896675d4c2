"""Ray Train's controller in the driver's process; Ray itself is not started here."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from types import SimpleNamespace

import pytest
from ray._private.log import PlainRayHandler

from distkg.cluster.ray_train import trainer
from distkg.cluster.ray_train.trainer import Controller
from distkg.cluster.session import private_ray
from distkg.cluster.session.private_ray import PrivateRay, used_until


class Endless(Controller):
    """Controller of workers that never finish."""

    def __init__(self) -> None:
        self._is_over, self._stopped = threading.Event(), False
        self.rounds = 0

    def get_state(self) -> SimpleNamespace:
        return SimpleNamespace(is_terminal=lambda: False)

    async def _run_control_loop_iteration(self) -> None:
        self.rounds += 1
        await asyncio.sleep(0.001)


def test_the_control_of_workers_ends_before_their_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    private, controller = PrivateRay(), Endless()
    monkeypatch.setattr(private_ray, "_running", [private])

    def control() -> None:
        with used_until(controller.end):
            asyncio.run(controller.run())

    thread = threading.Thread(target=control, daemon=True)
    thread.start()
    while not controller.rounds:
        thread.join(0.01)
    (end,) = private.users
    end()
    thread.join(60)
    assert not thread.is_alive()
    assert private.users == []


def test_the_loggers_of_the_process_are_what_they_were_after_a_run() -> None:
    logger = logging.getLogger("ray.train")
    before = logger.level, logger.propagate, list(logger.handlers)
    with trainer._logging_restored():
        kept, printed = logging.NullHandler(), PlainRayHandler()
        logger.handlers[:], logger.propagate = [kept, printed], not logger.propagate
        logger.setLevel(logging.DEBUG)
        trainer._log_to_files_only()
        assert logger.handlers == [kept]
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_dashboard_is_asked_only_where_one_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def listens(url: str | None) -> bool:
        monkeypatch.setattr("ray._private.worker._global_node", SimpleNamespace(webui_url=url))
        return trainer._dashboard_listens()

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert listens(f"127.0.0.1:{port}")
    assert not listens(f"127.0.0.1:{port}")
    assert not listens(None)
    assert not listens("")
