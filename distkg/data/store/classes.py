"""Entity classes, and domain and range of relations, read from optional files in the folder of the triples.

Either tab-separated files, compressed or not:

- ``entity_types.tsv``: entity, class; several lines per entity, the most specific class first.
- ``relation_domain_range.tsv``: relation, domain (class of heads), range (class of tails); ``-`` or ``None`` if none is
  declared.

or from the JSON files of the PyKEEN negative-sampling extension (d'Amato et al. 2025, arXiv 2508.05587) in a folder
``metadata``: ``entity_classes.json`` {entity: [class, …]} and ``relation_domain_range.json``
{relation: {"domain": class, "range": class}}.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from distkg.data.errors import IngestError
from distkg.data.readers.text_files import find_text_file, read_rows
from distkg.data.storage.location import Location
from distkg.graph.csr import grouped_by
from distkg.strict_json import JsonError, parse_json

ENTITY_TYPES, DOMAIN_RANGE = "entity_types.tsv", "relation_domain_range.tsv"
ENTITY_TYPES_JSON, DOMAIN_RANGE_JSON = "entity_classes.json", "relation_domain_range.json"
LARGEST_JSON = 1 << 30
NONE = ("-", "None", "")


@dataclass(frozen=True)
class Classes:
    """Entity classes and declared domains and ranges, by id.

    Attributes:
        labels: utf8 [C], labels of the classes.
        offsets: int64 [N + 1]; the classes of entity e are ``members[offsets[e]:offsets[e + 1]]``, in the file's order.
        members: int32, class ids.
        required: int32 [2R], the class that the answers of each query relation should have: the range of r, then the
            domain of r for r⁻¹; -1 if none is declared.
    """

    labels: pa.Array
    offsets: NDArray[np.int64]
    members: NDArray[np.int32]
    required: NDArray[np.int32]

    @property
    def first(self) -> NDArray[np.int32]:
        """First class of each entity, -1 if it has none: int32 [N]."""
        has_class = np.diff(self.offsets) > 0
        first = np.full(len(has_class), -1, np.int32)
        first[has_class] = self.members[self.offsets[:-1][has_class]]
        return first

    @property
    def has_entities(self) -> bool:
        """True if any entity has a class."""
        return len(self.members) > 0

    @property
    def has_relations(self) -> bool:
        """True if any relation declares a domain or a range."""
        return bool((self.required >= 0).any())


@dataclass(frozen=True)
class Declared:
    """Contents of the class files: (entity, class) pairs and (relation, domain, range) triples of labels."""

    entity_classes: list[tuple[str, str]]
    relation_classes: list[tuple[str, str, str]]


def read_declared(folder: Location, encoding: str = "") -> Declared | None:
    """Read the class files of a folder; None if there are none.

    Args:
        encoding: encoding of the tab-separated files, if it is not UTF-8.

    Raises:
        IngestError: a line with a wrong number of columns, or JSON of another form; names file and line.
    """
    names = set(folder.names())
    types, ranges = (find_text_file(folder, names, name, encoding) for name in (ENTITY_TYPES, DOMAIN_RANGE))
    pairs, triples = list[tuple[str, str]](), list[tuple[str, str, str]]()
    if types is not None:
        pairs += [(entity, kind) for _, (entity, kind) in read_rows(types, 2, "entity, class")]
    if ranges is not None:
        expected = "relation, class of heads, class of tails"
        triples += [(relation, head, tail) for _, (relation, head, tail) in read_rows(ranges, 3, expected)]
    if "metadata" in names:
        metadata = folder.child("metadata")
        inside = set(metadata.names())
        pairs += _entity_json(metadata, inside)
        triples += _relation_json(metadata, inside)
    return Declared(pairs, triples) if pairs or triples else None


Unknown = dict[str, tuple[int, str]]
"""Warning → (number of labels that it concerns, the first of them), such as labels that the graph lacks."""


def encode_classes(declared: Declared, entities: pa.Array, relations: pa.Array) -> tuple[Classes, Unknown]:
    """Replace labels by ids, given the graph's labels in id order; return the classes and warnings.

    If a relation declares several domains or ranges, the last one is used.
    """
    entity_id, relation_id = _places(entities), _places(relations)
    class_id: dict[str, int] = {}
    rows: list[tuple[int, int]] = []
    unknown_entities: dict[str, None] = {}
    unknown_relations: dict[str, None] = {}
    declared_twice: dict[str, None] = {}
    for entity, kind in dict.fromkeys(declared.entity_classes):
        if entity in entity_id:
            rows.append((entity_id[entity], class_id.setdefault(kind, len(class_id))))
        else:
            unknown_entities[entity] = None
    declared_classes = np.full((2, len(relations)), -1, np.int32)
    for relation, head, tail in declared.relation_classes:
        if relation not in relation_id:
            unknown_relations[relation] = None
            continue
        for side, kind in enumerate((tail, head)):
            if kind not in NONE:
                previous = declared_classes[side, relation_id[relation]]
                declared_classes[side, relation_id[relation]] = class_id.setdefault(kind, len(class_id))
                if previous not in (-1, class_id[kind]):
                    declared_twice[relation] = None
    table = np.array(rows, dtype=np.int64).reshape(-1, 2)
    offsets, order = grouped_by(table[:, 0], len(entities))
    classes = Classes(
        pa.array(list(class_id), pa.utf8()), offsets, table[order, 1].astype(np.int32), declared_classes.ravel()
    )
    unknown = {
        "typed_entities_not_in_the_graph": unknown_entities,
        "declared_relations_not_in_the_graph": unknown_relations,
        "relations_with_several_classes": declared_twice,
    }
    return classes, {name: (len(labels), next(iter(labels))) for name, labels in unknown.items() if labels}


def _places(labels: pa.Array) -> dict[str, int]:
    return {label: i for i, label in enumerate(labels.to_pylist())}


def _json(folder: Location, name: str, names: Iterable[str]) -> dict[str, object]:
    if name not in names:
        return {}
    try:
        tree = parse_json(folder.child(name).read_bytes(), LARGEST_JSON)
    except JsonError as error:
        raise IngestError(f"metadata/{name} is not JSON: {error}") from None
    if not isinstance(tree, dict):
        raise IngestError(f"metadata/{name} must hold a JSON object whose keys are labels")
    return tree


def _entity_json(folder: Location, names: Iterable[str]) -> list[tuple[str, str]]:
    tree = _json(folder, ENTITY_TYPES_JSON, names)
    pairs = []
    for entity, kinds in tree.items():
        if not isinstance(kinds, list):
            raise IngestError(f"metadata/{ENTITY_TYPES_JSON}: {entity!r} needs a list of classes")
        wrong = [kind for kind in kinds if not isinstance(kind, str)]
        if wrong:
            raise IngestError(f"metadata/{ENTITY_TYPES_JSON}: {entity!r} has the class {wrong[0]!r}, not a string")
        pairs += [(entity, kind) for kind in kinds]
    return pairs


def _relation_json(folder: Location, names: Iterable[str]) -> list[tuple[str, str, str]]:
    tree = _json(folder, DOMAIN_RANGE_JSON, names)
    triples = []
    for relation, sides in tree.items():
        if not isinstance(sides, dict):
            raise IngestError(f'metadata/{DOMAIN_RANGE_JSON}: {relation!r} needs {{"domain": …, "range": …}}')
        head, tail = (sides.get(side) or "None" for side in ("domain", "range"))
        if not (isinstance(head, str) and isinstance(tail, str)):
            name = f"metadata/{DOMAIN_RANGE_JSON}"
            raise IngestError(f"{name}: {relation!r} has a class that is not a string: {sides!r:.80}")
        triples.append((relation, head, tail))
    return triples
