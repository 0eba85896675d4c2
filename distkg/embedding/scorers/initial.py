"""Initialisers of entity and relation rows, shared by scorers.

No bound depends on the number of rows in a call, so a table has the same distribution whether one rank initialises all
of it or many ranks a part each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def unit_variance_(rows: Tensor, dim: int, generator: torch.Generator) -> None:
    """Fill with uniform values of variance 1/dim, so that ``dim`` such floats have norm 1 on average."""
    bound = math.sqrt(3 / dim)
    rows.uniform_(-bound, bound, generator=generator)


def unit_length_(rows: Tensor, generator: torch.Generator) -> None:
    """Fill rows with uniform values in ±6/√width, then scale them to norm 1 (Bordes et al. 2013, Algorithm 1)."""
    bound = 6 / math.sqrt(rows.shape[-1])
    rows.uniform_(-bound, bound, generator=generator)
    F.normalize(rows, dim=-1, out=rows)


def margin_uniform_(rows: Tensor, gamma: float, width: int, generator: torch.Generator) -> None:
    """Fill with uniform values in ±(γ + 2)/width, as in the reference settings of Sun et al. 2019 (RotatE)."""
    bound = (gamma + 2) / width
    rows.uniform_(-bound, bound, generator=generator)
