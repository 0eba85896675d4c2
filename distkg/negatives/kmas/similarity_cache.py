"""Client of the tables of relations that are alike: asked for now and then, and used while they are young.

A step never waits for a table. Where there is none, or one too old or broken, relations are compared in the step, and
that is counted.
"""

from __future__ import annotations

from collections.abc import Callable

from distkg.config import PoolConfig
from distkg.negatives.kmas.relation_miner import TableRequest
from distkg.negatives.kmas.relation_similarity import Alike, RelationTable
from distkg.negatives.prefetch.pool_client import Arrays, Pool, PoolClient


class SimilarityCache:
    """The latest table of a graph, as this rank has it.

    Attributes:
        client: by which it asks; it counts the draws that wanted a table.
    """

    def __init__(
        self,
        pool: Pool[TableRequest, RelationTable],
        how: PoolConfig,
        relations: int,
        refresh_steps: int,
        parameters: Callable[[], Arrays],
    ) -> None:
        """
        Args:
            pool: to which requests go.
            how: to ask it.
            relations: of the graph.
            refresh_steps: steps after which relations are compared anew.
            parameters: gives copies of the weights by which they are compared, the same on all ranks.
        """
        self.client: PoolClient[TableRequest, RelationTable] = PoolClient(pool, how)
        self._relations, self._refresh_steps, self._parameters = relations, refresh_steps, parameters
        self._requested: int | None = None  # step of the latest request
        self._under_way = self._lost = self._failing = False
        self._table: RelationTable | None = None
        self._alike: Alike | None = None

    def refresh(self, step: int) -> None:
        """Take the table that has come, and where it is time, have relations compared by the weights of this step.

        Raises:
            NegativePoolError: a comparison raised, and ``negatives.pool.on_error`` is ``fail``.
        """
        self.request(step)
        self._receive()
        while self._lost and self.client.how.sync and not self.client.pool.gone:
            self.request(step)
            self._receive()
        self.client.heed_events()

    def request(self, step: int) -> None:
        """Where it is time, have relations compared by the weights of this step, without waiting for the table."""
        since = None if self._requested is None else step - self._requested
        due = since is None or self._lost or not 0 <= since < self._refresh_steps
        pool = self.client.pool
        if not due or self._under_way or not pool.room():
            return
        pool.publish(step, 0, self._parameters(), wait=False)  # an actor does what this worker sends in its order
        if pool.ask([TableRequest(step, pool.rank)]):
            self._requested, self._under_way, self._lost = step, True, False

    def _receive(self) -> None:
        """An actor that was lost with the table is asked again, or its successor."""
        number, how = self._requested, self.client.how
        if number is None or not self._under_way or not (how.sync or self.client.pool.arrived(number)):
            return
        self._under_way = False
        reply = self.client.take(number)
        self._lost, self._failing = reply == "lost", reply in ("failed", "broken")
        if reply is not None and not isinstance(reply, str):
            self._table, self._alike = reply, None

    def latest(self, step: int, queries: int) -> Alike | None:
        """For each of the graph's relations those like it; None where no table can be used. Either way it is
        counted."""
        client, table = self.client, self._table
        failing = self._failing or client.pool.gone
        if table is None:
            client.deliveries.add("failed" if failing else "late", queries)
            return None
        if self._alike is None:
            fault = table.fault(self._relations)
            if fault is not None:
                text = f"the table of similar relations of step {table.version} is broken: {fault}"
                client.count_broken(text, queries)
                return None
            self._alike = table.alike()
        usable = client.count_reply(step - table.version, queries, "failed" if failing else "old")
        return self._alike if usable else None
