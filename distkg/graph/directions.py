"""Both directions of a fact: (h, r, t) gives the queries (h, r) → t and (t, r + R) → h.

R is the number of relations, and a query's relation is in [0, 2R). Columns are NumPy arrays or tensors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Column = TypeVar("Column", NDArray[Any], "Tensor")


def both_directions(
    head: Column, relation: Column, tail: Column, *, num_relations: int
) -> tuple[Column, Column, Column]:
    """Return anchors, relations and answers of the queries for all tails, then for all heads: [2n] each, from integer
    columns [n], with the same data type."""
    return _joined(head, tail), _joined(relation, relation + num_relations), _joined(tail, head)


def inverse_of(relation: Column, num_relations: int) -> Column:
    """Return the inverses of relations in [0, 2R): r + R for r, and r for r + R."""
    return (relation + num_relations) % (2 * num_relations)


def query_keys(anchor: Column, relation: Column, num_relations: int) -> Column:
    """Return a key for each query (anchor, relation), sorted as the queries: int64, anchor · 2R + relation."""
    if isinstance(anchor, np.ndarray):
        return anchor.astype(np.int64, copy=False) * (2 * num_relations) + relation
    return anchor.long() * (2 * num_relations) + relation


def _joined(first: Column, second: Column) -> Column:
    if isinstance(first, np.ndarray):
        return np.concatenate([first, second])
    import torch  # imported here, so that reading files does not import it

    return torch.cat([first, second])
