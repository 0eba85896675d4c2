"""Tokenisation as a map stage of Ray Data, for graphs and images that one process would take too long for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from distkg.cluster.session.ray_session import ray_session
from distkg.cluster.session.remote_errors import mistake_of
from distkg.cluster.session.worker_environment import worker_environment
from distkg.config import RunConfig
from distkg.data.errors import StoreError
from distkg.data.tokens.make_tokens import Mapped

TokenRows = NDArray[np.int32]


@contextmanager
def tokenising_on_ray(tasks: int) -> Iterator[Mapped]:
    """Yield a ``map`` over blocks of entities with ``tasks`` concurrent Ray tasks of one CPU each; results are in
    order.

    Joins the cluster of RAY_ADDRESS, as in a job, else starts Ray on this machine. Folders of vocabularies and paths of
    images must be the same on every node.

    Raises:
        ClusterError: there is no such cluster.
        StoreError, RemoteTaskError: raised while results are read, if a task fails.
    """
    config = RunConfig.model_validate({"train": {"workers": tasks}})
    environment = worker_environment(config.cluster) | {"TOKENIZERS_PARALLELISM": "false"}
    with ray_session(config):
        yield partial(_mapped, tasks, environment)


def _mapped(
    tasks: int, environment: dict[str, str], function: Callable[[pa.Array], TokenRows], blocks: Iterable[pa.Array]
) -> Iterator[TokenRows]:
    from ray.data import DataContext, TaskPoolStrategy, from_arrow  # a second to import

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised here
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    results = from_arrow([pa.table({"values": block}) for block in blocks]).map_batches(
        partial(_rows, function),
        batch_format="pyarrow",
        batch_size=None,
        compute=TaskPoolStrategy(size=tasks),
        num_cpus=1,
        runtime_env={"env_vars": environment},
    )
    try:
        for table in results.iter_batches(batch_format="pyarrow", batch_size=None):
            ids = table.column("ids").combine_chunks()
            yield ids.flatten().to_numpy().reshape(len(ids), -1)
    except ray.exceptions.RayError as error:
        mistake = mistake_of(error, "tokenising")
        if isinstance(mistake, StoreError):
            raise StoreError(str(mistake).splitlines()[0]) from None  # Ray adds lines of its own
        raise mistake from None


def _rows(function: Callable[[pa.Array], TokenRows], table: pa.Table) -> pa.Table:
    ids = function(table.column("values").combine_chunks())
    return pa.table({"ids": pa.FixedSizeListArray.from_arrays(pa.array(ids.ravel()), ids.shape[1])})
