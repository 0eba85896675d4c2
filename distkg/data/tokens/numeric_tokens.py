"""Numeric attributes as tokens: which attribute, and in which of its quantile bins the value falls.

Token = attribute × bins + bin. Quantiles and not values, so that years, populations and areas need no units, and a bin
means the same in every graph: "among the largest of its kind".

No model has made vectors for such tokens, so they are made here, from the name of the attribute and the place of the
bin alone, and a model that has learned to read them in one graph can read those of another: 32 numbers are the sum of
a vector of signs for each word of the name (hashed, so longitude has the same in every graph, and different words are
nearly orthogonal), and 16 are cosines of the quantile, slow ones weighing most, so close bins are close and yet any
function of up to 17 bins is a linear map.
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
    """The tokens of entities, and the names of the attributes in the order of their numbers.

    Attributes that more values tell of come first, so that entities with too many attributes keep the common ones. A
    value's quantile is the share of values below it, those equal counted half: equal values share a bin.
    """
    count = np.bincount(numbers.attribute, minlength=len(numbers.attributes))
    order = sorted(np.flatnonzero(count).tolist(), key=lambda place: (-count[place], numbers.attributes[place]))
    token = np.empty(len(numbers.value), np.int32)
    for number, place in enumerate(order):
        mine = np.flatnonzero(numbers.attribute == place)
        token[mine] = number * bins + _bin_of(numbers.value[mine], bins)
    values = by_entity(numbers.entity, pa.array(token), entities)
    return EntityValues(values, numbers.unknown, numbers.example), [numbers.attributes[place] for place in order]


def numeric_codebook(attributes: Sequence[str], bins: int) -> NDArray[np.float32]:
    """Vectors of the tokens: float32 [attributes × bins, 48], both parts of length about 1."""
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
