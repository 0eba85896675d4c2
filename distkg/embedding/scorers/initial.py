"""First values of entity and relation rows, shared by scorers.

No bound depends on how many rows are filled at once: a table starts alike whether one rank fills all of it or
many ranks fill a part each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_variance_(rows: Tensor, dim: int, generator: torch.Generator) -> None:
    """Uniform with variance 1/dim, so that ``dim`` such floats have length 1 on average."""
    bound = math.sqrt(3 / dim)
    rows.uniform_(-bound, bound, generator=generator)


def unit_length_(rows: Tensor, generator: torch.Generator) -> None:
    """Rows uniform in ±6/√width, then scaled to length 1 (Bordes et al. 2013, Algorithm 1)."""
    bound = 6 / math.sqrt(rows.shape[-1])
    rows.uniform_(-bound, bound, generator=generator)
    F.normalize(rows, dim=-1, out=rows)


def margin_uniform_(rows: Tensor, gamma: float, width: int, generator: torch.Generator) -> None:
    """Uniform in ±(γ + 2)/width, as in the reference settings of Sun et al. 2019 (RotatE)."""
    bound = (gamma + 2) / width
    rows.uniform_(-bound, bound, generator=generator)
