"""Six facts of two relations among five entities, for which tests of foundation models are written out."""

from __future__ import annotations

import torch

from distkg.foundation.models import KnowledgeGraph

FACTS = [(0, 0, 1), (1, 0, 2), (2, 1, 3), (3, 1, 4), (0, 1, 4), (1, 1, 3)]


def graph() -> KnowledgeGraph:
    return KnowledgeGraph(torch.tensor(FACTS), entities=5, relations=2)
