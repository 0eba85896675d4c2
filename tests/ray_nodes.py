"""Ray nodes on this machine, for tests of several nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ray.cluster_utils import Cluster

STARTS = 3
_TIMED_OUT = "timed out during startup"


def start_head(*, shutdown_at_exit: bool = True, **settings: Any) -> Cluster:
    """Start the first node of a cluster; on a busy machine Ray may give up on its own daemon after half a minute."""
    node = {**settings, "include_dashboard": False}
    return _started(lambda: Cluster(initialize_head=True, head_node_args=node, shutdown_at_exit=shutdown_at_exit))


def add_node(cluster: Cluster, **settings: Any) -> Any:
    """Start another node."""
    return _started(lambda: cluster.add_node(**settings))


def _started(start: Callable[[], Any]) -> Any:
    for attempt in range(STARTS):
        try:
            return start()
        except Exception as error:
            if _TIMED_OUT not in str(error) or attempt == STARTS - 1:
                raise
    raise AssertionError
