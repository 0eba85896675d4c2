"""Generator of graphs with known logical rules and skewed degrees.

Relations come in themes (work, study, film, then again with numbers), each over persons, organisations and cities.
With o an organisation of the theme, the facts of every theme satisfy these rules without exception:

====================  ==============================================  =====================
pattern               rule                                            example
====================  ==============================================  =====================
inverse               base(p, o) ⇔ inverse(o, p)                      works_at, employs
symmetry              sym(p, q) ⇒ sym(q, p)                           knows
composition           base(p, o) ∧ site(o, c) ⇒ via(p, c)             works_at, based_in ⇒ works_in
hierarchy             base(p, o) ⇒ wider(p, o)                        works_at ⇒ affiliated_with
====================  ==============================================  =====================

The last theme is cut off at the requested number of relations or triples. Valid and test are drawn from the
right-hand sides only, and every left-hand side stays in train, so a perfect model exists wherever a rule has one
answer. Persons, organisations and cities are drawn from a bounded Zipf law.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from distkg.data.assemble import Graph, PrepareReport, SplitPart, StorePlan, assemble
from distkg.data.errors import IngestError
from distkg.data.prepare import report
from distkg.data.readers.problems import Problems
from distkg.data.rules.shapes import zipf
from distkg.data.spool import NO_ROWS, Spool, shuffled
from distkg.data.store.writer import StoreWriter
from distkg.host_memory import memory_limit

HELD_OUT_SHARE = 0.05
MOST_HELD_OUT = 20_000
EXTRA_WIDER = 0.1
THEMES = (
    ("company", ("works_at", "employs", "knows", "based_in", "works_in", "affiliated_with")),
    ("university", ("graduated_from", "alumni_include", "classmate_of", "campus_in", "studied_in", "attended")),
    ("film", ("starred_in", "stars", "co_starred_with", "filmed_in", "performed_in", "appeared_in")),
)
PER_THEME = 6
ENTITY_BYTES, FACT_BYTES = 40, 8
"""Lower bounds of the memory per entity and per fact of the largest theme; twice as much was measured."""

Ints = NDArray[np.int64]


class GeneratedFacts(NamedTuple):
    """Triples of one relation: heads and tails [n]; the facts from ``implied_from`` on follow from a rule."""

    head: Ints
    tail: Ints
    implied_from: int


class Kind(NamedTuple):
    """Entities of one kind: provisional ids [first, first + size)."""

    name: str
    first: int
    size: int


@dataclass(frozen=True)
class World:
    """Kinds of entities by their role in a theme.

    Attributes:
        persons: heads of every base relation.
        organisations: one kind for each theme vocabulary in use.
        cities: sites of organisations; empty if no relation uses them.
    """

    persons: Kind
    organisations: list[Kind]
    cities: Kind

    @classmethod
    def of(cls, entities: int, relations: int, triples: int) -> World:
        """Divide the entities: up to 30 % organisations (with at least twelve triples each), a third as many cities,
        and persons."""
        used = min(len(THEMES), -(-relations // PER_THEME))
        theme_triples = triples * min(relations, PER_THEME) // relations
        each = max(1, min(int(0.3 * entities) // used, theme_triples // 12))
        cities = max(1, each // 3) if relations >= 4 else 0
        persons = entities - used * each - cities
        organisations = [Kind(THEMES[theme][0], persons + theme * each, each) for theme in range(used)]
        return cls(Kind("person", 0, persons), organisations, Kind("city", entities - cities, cities))

    def labels(self) -> pa.Array:
        """Return the labels ``person_0`` … in provisional id order: large_utf8 [entities]."""
        return pa.concat_arrays([_labels(kind) for kind in (self.persons, *self.organisations, self.cities)])


def generate(
    store: str, *, entities: int, relations: int, triples: int, seed: int, partitions: int = 1
) -> PrepareReport:
    """Generate a graph with exactly the given numbers of entities, relations and distinct triples, and store it.

    Valid and test get min(5 %, 20,000) triples each: fewer if too few follow from a rule, none with one relation.
    Memory holds one theme (six relations) and a few integers per entity.

    Raises:
        IngestError: too few triples to mention every entity, or more than the entities allow.
        StoreError: the folder is not free, or a write fails.
    """
    started = time.perf_counter()
    if min(entities, relations, triples) < 1 or entities < 10:
        raise IngestError("a generated graph needs at least 10 entities, 1 relation and 1 triple")
    _refuse_too_large(entities, relations, triples)
    world = World.of(entities, relations, triples)
    rng = np.random.default_rng([seed, 0])
    plan = StorePlan("generated", seed, partitions, "random")
    with StoreWriter(store) as writer:
        spool, implied = Spool(writer.scratch / "all"), []
        for relation, facts in _facts(world, relations, triples, rng):
            implied.append((len(spool) + facts.implied_from, len(spool) + len(facts.head)))
            spool.append(np.stack([facts.head, np.full_like(facts.head, relation), facts.tail], axis=1))
        spool.finish()
        parts = _held_out(spool, np.array(implied), writer, rng)
        graph = Graph(parts, world.labels(), pa.array(relation_names(relations), pa.large_utf8()))
        manifest = assemble(writer, graph, plan, Problems("fail", writer.open_rejects), lambda stage, done: None)
    return report(store, manifest, time.perf_counter() - started)


def _refuse_too_large(entities: int, relations: int, triples: int) -> None:
    """Check the size of the graph against 32-bit ids and the memory of this machine.

    Raises:
        IngestError: ids would not fit into 32 bits, or memory is certainly too small.
    """
    for name, count in (("entities", entities), ("relations", 2 * relations)):
        if count >= 2**31:
            raise IngestError(f"{count:,} {name} are too many: their ids have 32 bits. Ask for fewer")
    needed = ENTITY_BYTES * entities + FACT_BYTES * min(triples, triples * PER_THEME // relations)
    available = memory_limit()
    if needed > available:
        raise IngestError(
            f"a graph of {entities:,} entities and {triples:,} triples needs at least {needed / 2**30:,.0f} GiB of "
            f"memory, and {available / 2**30:,.0f} GiB are available. Ask for fewer, or for more relations"
        )


def relation_names(relations: int) -> list[str]:
    """Return the names in id order; a vocabulary used for the n-th time gets the suffix ``_n``."""
    names = []
    for relation in range(relations):
        round_, place = divmod(relation, PER_THEME * len(THEMES))
        name = THEMES[place // PER_THEME][1][place % PER_THEME]
        names.append(f"{name}_{round_ + 1}" if round_ else name)
    return names


def _labels(kind: Kind) -> pa.Array:
    numbers = pa.array(np.arange(kind.size)).cast(pa.large_utf8())
    return pc.binary_join_element_wise(pa.scalar(kind.name, pa.large_utf8()), numbers, pa.scalar("_", pa.large_utf8()))


def _facts(
    world: World, relations: int, triples: int, rng: np.random.Generator
) -> Iterator[tuple[int, GeneratedFacts]]:
    """Yield relation ids and their facts, theme by theme; triples are divided by the number of relations."""
    themes: list[_Theme] = []
    for first in range(0, relations, PER_THEME):
        names = min(PER_THEME, relations - first)
        budget = triples * (first + names) // relations - triples * first // relations
        organisations = world.organisations[first // PER_THEME % len(world.organisations)]
        next_person = sum(theme.base_count for theme in themes)
        themes.append(_Theme(world, organisations, names, budget, next_person, rng))
    fewest = min(theme.base_count - theme.organisations.size for theme in themes)
    if fewest < 0 or sum(theme.base_count for theme in themes) < world.persons.size:
        raise IngestError(
            f"{triples:,} triples are too few to mention every entity with {relations} relations; ask for more triples "
            "(six per entity and twelve per relation are enough) or for fewer entities"
        )
    for number, theme in enumerate(themes):
        for place, facts in theme.facts():
            yield number * PER_THEME + place, facts


class _Theme:
    """Facts of up to six relations around one kind of organisation."""

    def __init__(
        self, world: World, organisations: Kind, names: int, budget: int, next_person: int, rng: np.random.Generator
    ) -> None:
        self.world, self.organisations, self.names, self.budget = world, organisations, names, budget
        self.next_person, self.rng = next_person, rng
        site = organisations.size if names >= 4 else 0
        weights = (1, 1, 1, 0, 1, 1 + EXTRA_WIDER)[:names]
        self.base_count = -(-budget // names) if names <= 2 else int((budget - site) / sum(weights))

    def facts(self) -> Iterator[tuple[int, GeneratedFacts]]:
        """Yield the index of the relation in the theme and its facts; symmetry is last and fills the budget exactly."""
        person, place = self._base()
        yield 0, GeneratedFacts(person, place + self.organisations.first, len(person))
        remaining = self.budget - len(person)
        if self.names >= 2:
            yield 1, GeneratedFacts((place + self.organisations.first)[:remaining], person[:remaining], 0)
            remaining -= min(remaining, len(person))
        if self.names >= 4:
            city = self._site()
            yield (
                3,
                GeneratedFacts(
                    np.arange(len(city)) + self.organisations.first, city + self.world.cities.first, len(city)
                ),
            )
            remaining -= len(city)
        if self.names >= 5:
            via = _unique_pairs(person, city[place], self.world.cities.size)
            yield 4, GeneratedFacts(via[0], via[1] + self.world.cities.first, 0)
            remaining -= len(via[0])
        if self.names >= 6:
            wider = self._wider(person, place)
            yield 5, wider
            remaining -= len(wider.head)
        if self.names >= 3:
            yield 2, self._symmetric(remaining)

    def _base(self) -> tuple[Ints, Ints]:
        """Draw the base facts: persons and places (organisations from 0), each person in turn, each organisation at
        least once."""
        persons, places = self.world.persons.size, self.organisations.size
        heads = (self.next_person + np.arange(min(self.base_count, persons))) % persons
        tails = zipf(self.rng, places, len(heads))
        tails[: min(places, len(heads))] = np.arange(min(places, len(heads)))
        return self._more(heads, tails, self.base_count)

    def _more(self, persons: Ints, places: Ints, count: int) -> tuple[Ints, Ints]:
        """Extend distinct (person, place) pairs to ``count`` distinct pairs."""
        width = self.organisations.size
        people = self.world.persons.size

        def draw(size: int, even: bool) -> Ints:
            if even:
                return self.rng.integers(0, people * width, size)
            return zipf(self.rng, people, size) * width + zipf(self.rng, width, size)

        keys = _distinct(persons * width + places, count, people * width, draw, self.rng)
        return keys // width, keys % width

    def _site(self) -> Ints:
        """Draw the city of each organisation, from 0; each city at least once."""
        city = zipf(self.rng, self.world.cities.size, self.organisations.size)
        city[: self.world.cities.size] = np.arange(self.world.cities.size)
        return city

    def _wider(self, persons: Ints, places: Ints) -> GeneratedFacts:
        """Return facts of the wider relation: further ones, then the base facts, which are implied."""
        count = len(persons) + int(EXTRA_WIDER * len(persons))
        heads, tails = (np.roll(side, -len(persons)) for side in self._more(persons, places, count))
        return GeneratedFacts(heads, tails + self.organisations.first, count - len(persons))

    def _symmetric(self, count: int) -> GeneratedFacts:
        """Return ``count`` facts between persons: the first half, then their reversals, which are implied."""
        people, pairs = self.world.persons.size, -(-count // 2)

        def draw(size: int, even: bool) -> Ints:
            one = self.rng.integers(0, people, size) if even else zipf(self.rng, people, size)
            # Acquaintances are local: most ids are close, some are anywhere.
            step = self.rng.integers(1, people, size) if even else 1 + zipf(self.rng, people - 1, size)
            other = (one + step) % people
            return np.minimum(one, other) * people + np.maximum(one, other)

        keys = _distinct(np.empty(0, dtype=np.int64), pairs, people * (people - 1) // 2, draw, self.rng)
        one, other = keys // people, keys % people
        turn = self.rng.random(pairs) < 0.5
        head, tail = np.where(turn, other, one), np.where(turn, one, other)
        back = count - pairs
        return GeneratedFacts(np.concatenate([head, tail[:back]]), np.concatenate([tail, head[:back]]), pairs)


def _distinct(
    keys: Ints, count: int, capacity: int, draw: Callable[[int, bool], Ints], rng: np.random.Generator
) -> Ints:
    """Extend ``keys`` with distinct drawn ones to ``count``; switch to uniform draws when the skewed law repeats."""
    if count > capacity // 2 and count > len(keys):
        raise IngestError(
            f"a relation would need {count:,} of {capacity:,} possible facts; ask for fewer triples or more entities"
        )
    even = False
    while len(keys) < count:
        missing = count - len(keys)
        fresh = np.unique(draw(missing + missing // 4 + 16, even))
        fresh = rng.permutation(fresh[~np.isin(fresh, keys)])[:missing]
        even = even or len(fresh) < missing // 2
        keys = np.concatenate([keys, fresh])
    return keys


def _unique_pairs(heads: Ints, tails: Ints, width: int) -> tuple[Ints, Ints]:
    keys = np.unique(heads * width + tails)
    return keys // width, keys % width


def _held_out(spool: Spool, implied: Ints, writer: StoreWriter, rng: np.random.Generator) -> dict[str, SplitPart]:
    """Draw valid and test from the implied rows, given as ranges [relations, 2], and shuffle train."""
    counts = implied[:, 1] - implied[:, 0]
    each = min(round(HELD_OUT_SHARE * len(spool)), MOST_HELD_OUT, int(counts.sum()) // 4)
    ordinals = rng.choice(counts.sum(), 2 * each, replace=False)
    before = np.cumsum(counts) - counts
    run = np.searchsorted(before + counts, ordinals, side="right")
    rows = implied[run, 0] + ordinals - before[run]
    parts = {"train": SplitPart(shuffled(spool, writer.scratch / "train", np.sort(rows), rng), NO_ROWS)}
    for split, held_out in (("valid", rows[:each]), ("test", rows[each:])):
        part = Spool(writer.scratch / split)
        part.append(spool.take(held_out))
        part.finish()
        parts[split] = SplitPart(part)
    return parts
