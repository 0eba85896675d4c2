"""Cache of the table of similar relations, which actors compute every ``refresh_steps``.

A step never waits for a table, except with ``negatives.pool.sync``. If the table is missing, too old or broken, the
step compares relations itself and counts that.
"""

from __future__ import annotations

from collections.abc import Callable

from distkg.config import PoolConfig
from distkg.negatives.kmas.relation_miner import TableRequest
from distkg.negatives.kmas.relation_similarity import Alike, RelationTable
from distkg.negatives.prefetch.pool_client import Arrays, Pool, PoolClient


class SimilarityCache:
    """Latest table of a graph on this rank.

    Attributes:
        client: client of the pool, with statistics of the draws that need a table.
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
            pool: pool that requests are sent to.
            how: settings of the pool.
            relations: number of relations of the graph.
            refresh_steps: steps after which relations are compared again.
            parameters: function that returns copies of the weights with which relations are compared, the same on all
                ranks.
        """
        self.client: PoolClient[TableRequest, RelationTable] = PoolClient(pool, how)
        self._relations, self._refresh_steps, self._parameters = relations, refresh_steps, parameters
        self._requested: int | None = None  # step of the latest request
        self._under_way = self._lost = self._failing = False
        self._table: RelationTable | None = None
        self._alike: Alike | None = None

    def refresh(self, step: int) -> None:
        """Receive a table that has arrived, and request one for the weights of this step if it is due.

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
        """Request a table for the weights of this step if it is due, without waiting for it."""
        since = None if self._requested is None else step - self._requested
        due = since is None or self._lost or not 0 <= since < self._refresh_steps
        pool = self.client.pool
        if not due or self._under_way or not pool.room():
            return
        pool.publish(step, 0, self._parameters(), wait=False)  # actors process this worker's messages in order
        if pool.ask([TableRequest(step, pool.rank)]):
            self._requested, self._under_way, self._lost = step, True, False

    def _receive(self) -> None:
        """Receive the pending reply if it has arrived; a lost reply is requested again."""
        number, how = self._requested, self.client.how
        if number is None or not self._under_way or not (how.sync or self.client.pool.arrived(number)):
            return
        self._under_way = False
        reply = self.client.take(number)
        self._lost, self._failing = reply == "lost", reply in ("failed", "broken")
        if reply is not None and not isinstance(reply, str):
            self._table, self._alike = reply, None

    def latest(self, step: int, queries: int) -> Alike | None:
        """Return the most similar relations of each relation, or None if no table can be used; both are counted."""
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
