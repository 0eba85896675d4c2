"""What entities look like and say, as tokens, and what a model makes of them for each query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.data.store import Store
from distkg.data.tokens import read_modalities, read_modality


@dataclass(frozen=True, eq=False)
class EntityTokens:
    """Tokens of one kind (a modality) for the entities of a graph.

    Attributes:
        ids: int32 [N, n], rows of ``vectors``; -1 where an entity has fewer than n.
        vectors: float32 [V, c], frozen, of those tokens that some entity has.
    """

    ids: Tensor
    vectors: Tensor
    _elsewhere: dict[torch.device, EntityTokens] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, ids: Tensor, codebook: Tensor) -> EntityTokens:
        """Tokens integer [N, n] of a codebook [V, c], -1 for none."""
        used, places = torch.unique(torch.cat([ids.new_full((1,), -1), ids.flatten()]), return_inverse=True)
        return cls((places[1:] - 1).view_as(ids).int(), codebook[used[1:].long()].float())

    @property
    def present(self) -> Tensor:
        """Which entities have any: bool [N]."""
        return (self.ids >= 0).any(1)

    @property
    def width(self) -> int:
        """Of the vectors: c."""
        return self.vectors.shape[1]

    def to(self, device: torch.device) -> EntityTokens:
        """The same tokens there; a copy is made once for each device."""
        if device == self.ids.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = EntityTokens(self.ids.to(device), self.vectors.to(device))
        return self._elsewhere[device]

    def part(self, entities: Tensor, strangers: int = 0) -> EntityTokens:
        """Those of entities int64 [m], and of so many more that have none."""
        none = self.ids.new_full((strangers, self.ids.shape[1]), -1)
        return EntityTokens.of(torch.cat([self.ids[entities], none]), self.vectors)


Tokens = Mapping[str, EntityTokens]
"""Modality → its tokens; a graph may lack any."""


class TokensOnDemand(Tokens):
    """Tokens that are made when they are first asked for: most models never do. What there is, is asked once."""

    def __init__(self, names: Callable[[], Iterable[str]], make: Callable[[str], EntityTokens]) -> None:
        self._names, self._make = names, make
        self._made: dict[str, EntityTokens] = {}

    @cached_property
    def _known(self) -> tuple[str, ...]:
        return tuple(self._names())

    def __getitem__(self, name: str) -> EntityTokens:
        if name not in self._made:
            if name not in self._known:
                raise KeyError(name)
            self._made[name] = self._make(name)
        return self._made[name]

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)


def tokens_of_store(store: Store) -> Tokens:
    """All that a store has; asking raises StoreError where a file is damaged, or made for other entities."""
    return TokensOnDemand(partial(read_modalities, store), partial(_read, store))


def tokens_of_part(tokens: Tokens, entities: Tensor, strangers: int = 0) -> Tokens:
    """Those of entities int64 [m], and of so many more that have none."""
    return TokensOnDemand(partial(list, tokens), lambda name: tokens[name].part(entities, strangers))


def _read(store: Store, name: str) -> EntityTokens:
    modality = read_modality(store, name)
    return EntityTokens.of(torch.from_numpy(modality.rows()), torch.from_numpy(modality.codebook()))


class TokenPool(nn.Module):
    """A vector of each entity for each query: the mean of its tokens' vectors, weighed by how they answer the query.

    An entity without tokens has a learned vector of its own.
    """

    def __init__(self, codebook_width: int, width: int, query_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(codebook_width, width)
        self.norm = nn.LayerNorm(width)
        self.asked = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(query_width, width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: EntityTokens, query: Tensor) -> Tensor:
        """float32 [B, N, width] of queries float32 [B, query_width]."""
        # Before the tokens' values that of none, which an entity without any has as its only one.
        values = torch.cat([self.missing[None], self.norm(self.projection(tokens.vectors))])
        logits = values @ (self.asked + self.query(query)).T / values.shape[1] ** 0.5
        places, hidden = tokens.ids + 1, tokens.ids < 0
        hidden[:, 0] &= tokens.present
        shares = F.embedding(places, logits).masked_fill(hidden[..., None], -torch.inf).softmax(1)  # [N, n, B]
        return torch.einsum("nkb,nkw->bnw", shares, F.embedding(places, values))
