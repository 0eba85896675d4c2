"""Bytes that every run takes, whatever it trains."""

from __future__ import annotations

from distkg.data.store.graph_store import BATCH_ROWS

FLOAT, INDEX = 4, 8
BASE_PROCESS = 700 << 20  # a Ray worker with torch, numba and pyarrow imported and its process group joined
READ_BATCH = BATCH_ROWS  # triples that are read from the store at once
READ_BYTES = 96  # of such a triple: both its queries as keys, sorted and looked up
CATEGORY_BYTES = 44  # of a training triple while relations are put into categories
