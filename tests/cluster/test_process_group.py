"""Which interface gloo is bound to."""

import os
import socket
from datetime import timedelta

import psutil
import pytest
import ray
import torch.distributed as dist

from distkg.cluster.process_group import (
    _meeting_point,
    bind_gloo_to_node_address,
    interface_of,
    open_meeting_point,
)
from distkg.cluster.ray_train.backend import process_group


def test_the_loopback_interface_carries_its_address() -> None:
    name = interface_of("127.0.0.1")
    assert name in psutil.net_if_addrs()
    assert name.startswith("lo")


def test_every_interface_is_found_by_its_own_address() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        for entry in addresses:
            if entry.family == socket.AF_INET:
                assert interface_of(entry.address) == name


def test_an_address_of_another_machine_has_no_interface() -> None:
    assert interface_of("203.0.113.7") is None


@pytest.fixture
def _no_interface_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "unset")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")


@pytest.mark.usefixtures("_no_interface_set")
def test_without_a_network_gloo_uses_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    bind_gloo_to_node_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == interface_of("127.0.0.1")


@pytest.mark.usefixtures("_no_interface_set")
def test_an_address_without_interface_leaves_the_choice_to_gloo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.7")
    bind_gloo_to_node_address()
    assert "GLOO_SOCKET_IFNAME" not in os.environ


def test_the_operators_interface_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "ib0")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    bind_gloo_to_node_address()
    assert os.environ["GLOO_SOCKET_IFNAME"] == "ib0"


def test_gloo_on_cpu_and_both_backends_with_gpus() -> None:
    assert process_group(gpus_per_worker=0).backend == "gloo"
    assert process_group(gpus_per_worker=1).backend == "cpu:gloo,cuda:nccl"


def listening_addresses(port: int) -> set[str]:
    connections = psutil.Process().net_connections("inet")
    return {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN and entry.laddr.port == port}


def test_workers_meet_on_the_nodes_own_address_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    first = open_meeting_point(2, 10)
    kept = _meeting_point[0]
    second = open_meeting_point(2, 10)
    assert first[0] == second[0] == "127.0.0.1"
    assert first[1] != second[1]
    assert [listening_addresses(port) for _, port in (first, second)] == [{"127.0.0.1"}] * 2
    kept.set("said", "by the first worker")
    joined = dist.TCPStore(*first, 2, timeout=timedelta(seconds=10), wait_for_workers=False)
    assert joined.get("said") == b"by the first worker"


def test_an_address_that_is_not_this_machines_own_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "203.0.113.7")
    monkeypatch.setattr(dist, "TCPStore", lambda *arguments, **named: None)
    address, port = open_meeting_point(1, 10)
    assert address == "203.0.113.7"
    assert port > 0
