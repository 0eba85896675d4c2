"""Tokens of entities (text, numbers, images), their similarity, and their pooling for each query."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distkg.data.store.graph_store import Store
from distkg.data.tokens.token_store import read_modalities, read_modality

SOME = 8192  # entities from which the scale of similarity of a graph is estimated
TOO_ALIKE = 1e-3  # spread of cosines up to which entities are not told apart


@dataclass(frozen=True, eq=False)
class LikenessScale:
    """Scale of token similarity in a graph: the mean direction of entities and the spread of their cosines.

    Attributes:
        shared: float32 [c], the mean direction of entities.
        spread: root mean square of the cosines of pairs of entities after removing the mean direction.
    """

    shared: Tensor
    spread: float

    @classmethod
    def of(cls, directions: Tensor) -> LikenessScale:
        """Estimate the scale from unit vectors float32 [n, c]; zero rows are entities without tokens."""
        present = directions[directions.any(1)]
        shared = present.mean(0) if len(present) else directions.new_zeros(directions.shape[1])
        rest = F.normalize(present - shared, dim=1)
        # Over ordered pairs, without those of an entity and itself, whose cosines are 1.
        squares, pairs = float((rest.T @ rest).square().sum()), len(present) ** 2
        spread = ((squares - len(present)) / max(pairs - len(present), 1)) ** 0.5 if squares > len(present) else 0.0
        return cls(shared, spread if spread > TOO_ALIKE else 1.0)

    def profiles(self, directions: Tensor) -> Tensor:
        """Return vectors float32 [n, c] whose inner products are cosines in units of their spread; zero where
        directions are zero."""
        present = directions.any(1, keepdim=True)
        return torch.where(present, F.normalize(directions - self.shared, dim=1) / self.spread**0.5, 0.0)

    def to(self, device: torch.device) -> LikenessScale:
        return LikenessScale(self.shared.to(device), self.spread)


@dataclass(frozen=True, eq=False)
class EntityTokens:
    """Tokens of one modality for the entities of a graph.

    Attributes:
        ids: int32 [N, n], rows of ``vectors``; -1 where an entity has fewer than n.
        vectors: float32 [V, c], frozen vectors of the tokens that occur.
        scale: scale of similarity, that of the whole graph if these tokens are of a part; None to estimate it.
    """

    ids: Tensor
    vectors: Tensor
    scale: LikenessScale | None = None
    _elsewhere: dict[torch.device, EntityTokens] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, ids: Tensor, codebook: Tensor) -> EntityTokens:
        """Build tokens from integer ids [N, n] of a codebook [V, c]; -1 for none."""
        return cls(*_used(ids, codebook))

    @property
    def present(self) -> Tensor:
        """Mask of the entities that have a token: bool [N]."""
        return (self.ids >= 0).any(1)

    @property
    def width(self) -> int:
        """Dimension c of the token vectors."""
        return self.vectors.shape[1]

    def likeness(self, anchor: Tensor) -> Tensor:
        """Return the token similarity of all entities and anchors int64 [B]: float32 [B, N].

        It is the cosine of their mean token vectors after removing the graph's mean direction, in units of its root
        mean square over pairs of entities; 0 where one has no tokens, and for an anchor and itself.
        """
        similarity = self._profiles[anchor] @ self._profiles.T
        return similarity.scatter_(1, anchor[:, None], 0.0)

    @cached_property
    def _profiles(self) -> Tensor:
        """Normalized mean token vector of each entity: float32 [N, c], zeros for an entity without tokens."""
        return self._scale.profiles(self._directions(slice(None)))

    @cached_property
    def _scale(self) -> LikenessScale:
        if self.scale is not None:
            return self.scale
        step = -(-len(self.ids) // SOME)
        return LikenessScale.of(self._directions(slice(None, None, step)))

    def _directions(self, entities: slice) -> Tensor:
        """Return the directions of the sums of token vectors: float32 [n, c] of length 1, or 0 for entities without
        tokens."""
        values = torch.cat([self.vectors.new_zeros(1, self.width), self.vectors])
        return F.normalize(F.embedding_bag(self.ids[entities] + 1, values, mode="sum"), dim=1)

    def to(self, device: torch.device) -> EntityTokens:
        """Return the tokens on a device; the copy for each device is made once."""
        if device == self.ids.device:
            return self
        if device not in self._elsewhere:
            moved = self.ids.to(device), self.vectors.to(device), self._scale.to(device)
            self._elsewhere[device] = EntityTokens(*moved)
        return self._elsewhere[device]

    def part(self, entities: Tensor, strangers: int = 0) -> EntityTokens:
        """Return the tokens of entities int64 [m], followed by ``strangers`` entities without tokens."""
        none = self.ids.new_full((strangers, self.ids.shape[1]), -1)
        return EntityTokens(*_used(torch.cat([self.ids[entities], none]), self.vectors), self._scale)


def _used(ids: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Return token ids as indices into the vectors of the tokens that occur, and these vectors; ids are integers [N,
    n] with -1 for none."""
    used, places = torch.unique(torch.cat([ids.new_full((1,), -1), ids.flatten()]), return_inverse=True)
    return (places[1:] - 1).view_as(ids).int(), codebook[used[1:].long()].float()


Tokens = Mapping[str, EntityTokens]
"""Modality → its tokens; a graph may lack any."""


class TokensOnDemand(Tokens):
    """Mapping of tokens that are read at first use, because most models never read them. The names are listed once."""

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
    """Return the tokens of a store; reading one raises StoreError if its file is damaged or belongs to other
    entities."""
    return TokensOnDemand(partial(read_modalities, store), partial(_read, store))


def tokens_of_part(tokens: Tokens, entities: Tensor, strangers: int = 0) -> Tokens:
    """Return the tokens of entities int64 [m], followed by ``strangers`` entities without tokens."""
    return TokensOnDemand(partial(list, tokens), lambda name: tokens[name].part(entities, strangers))


def _read(store: Store, name: str) -> EntityTokens:
    modality = read_modality(store, name)
    return EntityTokens.of(torch.from_numpy(modality.rows()), torch.from_numpy(modality.codebook()))


class TokenPool(nn.Module):
    """Attention pooling of an entity's tokens for each query: the weighted mean of token vectors.

    An entity without tokens has a learned vector.
    """

    def __init__(self, codebook_width: int, width: int, query_width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(codebook_width, width)
        self.norm = nn.LayerNorm(width)
        self.asked = nn.Parameter(torch.zeros(width))
        self.query = nn.Linear(query_width, width)
        self.missing = nn.Parameter(torch.zeros(width))

    def forward(self, tokens: EntityTokens, query: Tensor) -> Tensor:
        """Return pooled vectors float32 [B, N, width] of queries float32 [B, query_width]."""
        # Row 0 is the value of a missing token, the only one of an entity without tokens.
        values = torch.cat([self.missing[None], self.norm(self.projection(tokens.vectors))])
        logits = values @ (self.asked + self.query(query)).T / values.shape[1] ** 0.5
        places, hidden = tokens.ids + 1, tokens.ids < 0
        hidden[:, 0] &= tokens.present
        shares = F.embedding(places, logits).masked_fill(hidden[..., None], -torch.inf).softmax(1)  # [N, n, B]
        return torch.einsum("nkb,nkw->bnw", shares, F.embedding(places, values))
