"""Environment variables that torch reads when it is imported or allocates first, as every process of distkg has them.

Huge pages save most of the page faults of large tensors, which take two fifths of a step with independent negatives.
Passive waiting keeps idle OpenMP threads off the cores of other workers.
"""

from __future__ import annotations

import os

TORCH_VARIABLES = {"THP_MEM_ALLOC_ENABLE": "1", "OMP_WAIT_POLICY": "passive"}


def set_torch_variables() -> None:
    """Set them in this process, but for those that the user has set; called before torch is imported."""
    for name, value in TORCH_VARIABLES.items():
        os.environ.setdefault(name, value)
