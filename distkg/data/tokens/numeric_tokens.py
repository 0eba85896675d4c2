"""Tokens of numeric attributes: one token for each attribute and quantile bin.

Token = attribute × bins + bin. Quantiles are used instead of values, so that years, populations and areas need no
units, and a bin means the same in every graph: "among the largest of its kind".

The codebook is computed from the name of the attribute and the position of the bin only, so that a model trained on one
graph can use the tokens of another. A vector has two parts. 32 numbers are the sum of a hashed sign vector for each
word of the name: equal words have equal vectors in all graphs, and different words are nearly orthogonal. 16 numbers
are cosines of the quantile, with the largest weights on low frequencies: close bins have close vectors, and any
function of up to 17 bins is still a linear map.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.store.relation_text import words_of
from distkg.data.tokens.entity_values import EntityValues, Numbers, by_entity

NAME_WIDTH, PLACE_WIDTH = 32, 16


def numeric_tokens(numbers: Numbers, entities: int, bins: int) -> tuple[EntityValues, list[str]]:
    """Return the tokens of entities, and the names of the attributes in token order.

    Attributes are ordered by their number of values, so that entities with too many attributes keep the common ones.
    The quantile of a value is the share of smaller values plus half the share of equal ones: equal values share a bin.
    """
    count = np.bincount(numbers.attribute, minlength=len(numbers.attributes))
    order = sorted(np.flatnonzero(count).tolist(), key=lambda place: (-count[place], numbers.attributes[place]))
    token = np.empty(len(numbers.value), np.int32)
    for number, place in enumerate(order):
        rows = np.flatnonzero(numbers.attribute == place)
        token[rows] = number * bins + _bin_of(numbers.value[rows], bins)
    values = by_entity(numbers.entity, pa.array(token), entities)
    return EntityValues(values, numbers.unknown, numbers.example), [numbers.attributes[place] for place in order]


def numeric_codebook(attributes: Sequence[str], bins: int) -> NDArray[np.float32]:
    """Compute the vectors of the tokens: float32 [attributes × bins, 48], both parts of norm about 1."""
    names = np.stack(
        [np.sum([_signs(word) for word in words_of(name).split() or [name]], axis=0) for name in attributes]
    )
    names /= np.linalg.norm(names, axis=1, keepdims=True)
    quantile = (np.arange(bins) + 0.5) / bins
    wave = np.arange(1, PLACE_WIDTH + 1)
    places = np.cos(np.pi * np.outer(quantile, wave)) / wave
    places /= np.sqrt(np.mean(np.sum(places**2, axis=1)))
    parts = np.repeat(names, bins, axis=0), np.tile(places, (len(names), 1))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _bin_of(values: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    ordered = np.sort(values)
    below, not_above = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return np.minimum((below + not_above) * bins // (2 * len(values)), bins - 1)


def _signs(word: str) -> NDArray[np.float64]:
    bits = np.unpackbits(np.frombuffer(blake2b(word.encode(), digest_size=NAME_WIDTH // 8).digest(), np.uint8))
    return bits * np.float64(2) - 1
