"""Text vectors of relations: ``relation_text.parquet`` in the folder of a store.

SEMMA (Arun et al. 2025) uses the vectors in addition to the facts. Rows are found by label, so one file serves every
store with the same relations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from distkg.data.errors import IngestError, StoreError
from distkg.data.readers.text_files import read_rows, text_file
from distkg.data.storage.local_path import local_path
from distkg.data.storage.location import Location, without_secrets

if TYPE_CHECKING:
    from distkg.data.store.graph_store import Store

RELATION_TEXT = "relation_text.parquet"
WIDTH = 64

Encode = Callable[[Sequence[str]], NDArray[np.float32]]
"""Text encoder: texts [n] → vectors, float32 [n, d]; texts of similar meaning have vectors of similar direction."""

Descriptions = Mapping[str, tuple[str, str]]
"""Label → (description of the relation, description of its inverse), one sentence each."""


def words_of(label: str) -> str:
    """Split a label into the lower-case words of a sentence.

    >>> words_of("/people/person/nationality"), words_of("_hypernym"), words_of("concept:actorStarredInMovie")
    ('people person nationality', 'hypernym', 'actor starred in movie')
    >>> words_of("http://dbpedia.org/ontology/birthPlace")
    'birth place'
    """
    if "://" in label:
        label = re.split(r"[/#]", label.rstrip("/#"))[-1]
    name = label.rpartition(":")[2] or label
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return " ".join(re.findall(r"\w+", spaced.replace("_", " "))).lower() or label


def relation_vectors(labels: Sequence[str], encode: Encode, descriptions: Descriptions | None = None) -> np.ndarray:
    """Encode relations, then their inverses: float32 [2R, d], as in SEMMA.

    The vector of a relation is the sum of the vectors of its label, its words and, with ``descriptions``, its
    sentence. The inverse takes the first two with the opposite sign, and its own sentence.

    Raises:
        StoreError: a relation has no description, or a vector is not finite.
    """
    names = encode(list(labels)) + encode([words_of(label) for label in labels])
    vectors = np.concatenate([names, -names])
    if descriptions is not None:
        missing = [label for label in labels if label not in descriptions]
        if missing:
            raise StoreError(f"relation {missing[0]!r} has no description{_and_more(missing)}")
        sentences = [descriptions[label] for label in labels]
        vectors += encode([forward for forward, _ in sentences] + [inverse for _, inverse in sentences])
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1)) % len(labels)
    if len(broken):
        raise StoreError(
            f"the encoder gave relation {labels[broken[0]]!r} a vector that is not finite: it may know no word of its "
            "label or description"
        )
    return vectors.astype(np.float32)


def make_relation_text(store: Store, encode: Encode, descriptions: Descriptions | None = None) -> str:
    """Write ``relation_text.parquet`` into the store's folder, replacing an existing file. Return its path.

    Labels without words, such as Wikidata's P19, need ``descriptions``: their vectors are nearly the same.

    Raises:
        StoreError: a relation has no description, or the system refuses the write.
    """
    labels = store.relation_labels().to_pylist()
    forward, inverse = np.split(relation_vectors(labels, encode, descriptions), 2)
    table = pa.table({"label": pa.array(labels), "forward": pa.array([*forward]), "inverse": pa.array([*inverse])})
    file = Location.of(store.address).child(RELATION_TEXT)
    content = pa.BufferOutputStream()
    pq.write_table(table, content, compression="zstd")
    try:
        file.write_bytes(content.getvalue())
    except OSError as error:
        raise StoreError(f"{file.path} could not be written: {error}") from error
    return file.path


def read_descriptions(file: Path) -> Descriptions:
    """Read descriptions from lines LABEL<TAB>DESCRIPTION<TAB>DESCRIPTION OF THE INVERSE, without a header.

    Raises:
        IngestError: no such file, a line with a wrong number of fields or an empty description, or two different
            descriptions of one relation; names file and line.
    """
    file = local_path(file, "descriptions", "file")
    descriptions: dict[str, tuple[str, str]] = {}
    rows = read_rows(text_file(file, str(file)), 3, "label, description, description of the inverse")
    for line, (label, *sentences) in rows:
        forward, inverse = (sentence.strip() for sentence in sentences)
        if not forward or not inverse:
            which = "its inverse" if forward else "it"
            raise IngestError(f"{file}:{line}: relation {label!r}: the description of {which} is empty")
        if descriptions.setdefault(label, (forward, inverse)) != (forward, inverse):
            raise IngestError(f"{file}:{line}: relation {label!r} has other descriptions in an earlier line; keep one")
    return descriptions


def read_relation_text(store: Store, address: str = "") -> NDArray[np.float32] | None:
    """Read the vectors of a store's relations, float32 [2R, d]; None if its folder holds none.

    Args:
        address: file to read instead of the one in the store's folder; it must exist.

    Raises:
        StoreError: no such file, a damaged one, or one that lacks a relation of the store.
    """
    file = Location.of(address) if address else Location.of(store.address).file_within(RELATION_TEXT)
    if not file.is_file():
        if not address:
            return None
        shown = without_secrets(address)
        raise StoreError(f"there is no file of relation vectors at {shown}. Make one with make_relation_text")
    try:
        columns = pq.read_table(file.path, filesystem=file.filesystem).to_pydict()
        sides = [np.array(columns[side], np.float32) for side in ("forward", "inverse")]
        place = {label: row for row, label in enumerate(columns["label"])}
        if sides[0].shape != sides[1].shape or sides[0].ndim != 2 or not np.isfinite(sides).all():
            raise ValueError("its vectors are not finite numbers of one width")
    except (OSError, KeyError, TypeError, ValueError, OverflowError, pa.ArrowException) as error:
        raise StoreError(f"{file.path} cannot be read as relation vectors: {error}. Make it again") from None
    labels = store.relation_labels().to_pylist()
    missing = [label for label in labels if label not in place]
    if missing:
        raise StoreError(
            f"{file.path} has no vector for relation {missing[0]!r}{_and_more(missing)}: it was made for other "
            "relations. Make one for this store with make_relation_text"
        )
    rows = [place[label] for label in labels]
    return np.concatenate([side[rows] for side in sides])


def wordllama_encoder(width: int = WIDTH) -> Encode:
    """Return an encoder to unit vectors with WordLlama's word vectors, which the package contains: no download.

    Args:
        width: 64, 128 or 256.

    Raises:
        StoreError: wordllama is not installed.
    """
    try:
        import wordllama
    except ImportError:
        raise StoreError("encoding text needs wordllama, which is not installed: pip install 'distkg[text]'") from None
    # By default it looks for its tokenizer in a download cache only, not in the installed package.
    package = Path(wordllama.__file__).parent
    model = wordllama.WordLlama.load(trunc_dim=width, cache_dir=package, disable_download=True)

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = model.embed(list(texts), norm=True)
        return vectors

    return encode


def _and_more(missing: Sequence[str]) -> str:
    return f", nor have {len(missing) - 1:,} others" if len(missing) > 1 else ""
