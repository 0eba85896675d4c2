"""What entities look like and say, as tokens, and what a model makes of them for each query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.data.store.graph_store import Store
from distkg.data.tokens.token_store import read_modalities, read_modality

SOME = 8192  # entities, by which it is judged how alike those of a graph are
TOO_ALIKE = 1e-3  # of the spread of cosines: there is nothing to tell apart


@dataclass(frozen=True, eq=False)
class LikenessScale:
    """What the entities of a graph share, and how much their likeness varies.

    Attributes:
        shared: float32 [c], the mean direction of entities.
        spread: root mean square of the cosines of pairs of entities, without what they share.
    """

    shared: Tensor
    spread: float

    @classmethod
    def of(cls, directions: Tensor) -> LikenessScale:
        """Of unit vectors float32 [n, c]; zero rows are of entities without tokens."""
        there = directions[directions.any(1)]
        shared = there.mean(0) if len(there) else directions.new_zeros(directions.shape[1])
        rest = F.normalize(there - shared, dim=1)
        # Over ordered pairs, without those of an entity and itself, whose cosines are 1.
        squares, pairs = float((rest.T @ rest).square().sum()), len(there) ** 2
        spread = ((squares - len(there)) / max(pairs - len(there), 1)) ** 0.5 if squares > len(there) else 0.0
        return cls(shared, spread if spread > TOO_ALIKE else 1.0)

    def profiles(self, directions: Tensor) -> Tensor:
        """Vectors float32 [n, c] whose products are cosines in units of their spread; zero where directions are."""
        there = directions.any(1, keepdim=True)
        return torch.where(there, F.normalize(directions - self.shared, dim=1) / self.spread**0.5, 0.0)

    def to(self, device: torch.device) -> LikenessScale:
        return LikenessScale(self.shared.to(device), self.spread)


@dataclass(frozen=True, eq=False)
class EntityTokens:
    """Tokens of one kind (a modality) for the entities of a graph.

    Attributes:
        ids: int32 [N, n], rows of ``vectors``; -1 where an entity has fewer than n.
        vectors: float32 [V, c], frozen, of those tokens that some entity has.
        scale: by which likeness is measured: of the whole graph, where these are a part's; None for their own.
    """

    ids: Tensor
    vectors: Tensor
    scale: LikenessScale | None = None
    _elsewhere: dict[torch.device, EntityTokens] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, ids: Tensor, codebook: Tensor) -> EntityTokens:
        """Tokens integer [N, n] of a codebook [V, c], -1 for none."""
        return cls(*_used(ids, codebook))

    @property
    def present(self) -> Tensor:
        """Which entities have any: bool [N]."""
        return (self.ids >= 0).any(1)

    @property
    def width(self) -> int:
        """Of the vectors: c."""
        return self.vectors.shape[1]

    def likeness(self, anchor: Tensor) -> Tensor:
        """How alike all entities and anchors int64 [B] are: float32 [B, N].

        The cosine of their tokens' mean vectors, without what all entities of the graph share, in units of its root
        mean square over pairs of entities; 0 where one has no tokens, and of the anchor and itself.
        """
        found = self._profiles[anchor] @ self._profiles.T
        return found.scatter_(1, anchor[:, None], 0.0)

    @cached_property
    def _profiles(self) -> Tensor:
        """What the tokens of an entity mean together: float32 [N, c], zeros for an entity without any."""
        return self._scale.profiles(self._directions(slice(None)))

    @cached_property
    def _scale(self) -> LikenessScale:
        if self.scale is not None:
            return self.scale
        step = -(-len(self.ids) // SOME)
        return LikenessScale.of(self._directions(slice(None, None, step)))

    def _directions(self, entities: slice) -> Tensor:
        """Of the sums of tokens' vectors: float32 [n, c] of length 1, or 0 where there are no tokens."""
        values = torch.cat([self.vectors.new_zeros(1, self.width), self.vectors])
        return F.normalize(F.embedding_bag(self.ids[entities] + 1, values, mode="sum"), dim=1)

    def to(self, device: torch.device) -> EntityTokens:
        """The same tokens there; a copy is made once for each device."""
        if device == self.ids.device:
            return self
        if device not in self._elsewhere:
            moved = self.ids.to(device), self.vectors.to(device), self._scale.to(device)
            self._elsewhere[device] = EntityTokens(*moved)
        return self._elsewhere[device]

    def part(self, entities: Tensor, strangers: int = 0) -> EntityTokens:
        """Those of entities int64 [m], and of so many more that have none."""
        none = self.ids.new_full((strangers, self.ids.shape[1]), -1)
        return EntityTokens(*_used(torch.cat([self.ids[entities], none]), self.vectors), self._scale)


def _used(ids: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens integer [N, n] as places in the vectors of those that some entity has, and these; -1 for none."""
    used, places = torch.unique(torch.cat([ids.new_full((1,), -1), ids.flatten()]), return_inverse=True)
    return (places[1:] - 1).view_as(ids).int(), codebook[used[1:].long()].float()


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
