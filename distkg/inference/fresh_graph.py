"""A graph as a user has it, a file of triples or a folder with what is said of entities, as a store for a question."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from distkg.data.errors import IngestError
from distkg.data.location import Location, address_within, without_secrets
from distkg.data.make_tokens import TokenSource, make_tokens, numeric_source, text_source
from distkg.data.prepare import prepare
from distkg.data.sources import EXTENSIONS
from distkg.data.store import Store

TRIPLES = "triples"
SAID: dict[str, tuple[str, Callable[[Store, str], TokenSource]]] = {
    "text": ("descriptions.tsv", text_source),
    "numeric": ("numeric.tsv", numeric_source),
}
"""Modality → the file that says it, plain or gzipped, and what makes tokens of it."""


@contextmanager
def fresh_graph(source: str, reads: Collection[str] = ()) -> Iterator[Store]:
    """A store of all its triples, none held out, for as long as it is needed.

    Args:
        source: a file of triples; or a folder with ``triples.tsv`` (any ending that `distkg prepare` knows), and beside
            it ``descriptions.tsv`` (lines LABEL<TAB>TEXT) and ``numeric.tsv`` (lines LABEL<TAB>ATTRIBUTE<TAB>VALUE).
        reads: modalities that tokens are made of, where their file is there.

    Raises:
        IngestError: no triples, or lines of other form.
        StoreError: text is to be read, and there is no vocabulary for it.
    """
    location = Location.of(source)
    names = location.names() if location.is_folder() else set()
    triples = _in_folder(location, names, source) if location.is_folder() else source
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "store")
        prepare(triples, address, split=(1.0, 0.0, 0.0))
        store = Store.open(address, called=source)
        for modality in sorted(SAID.keys() & set(reads)):
            file, source_of = SAID[modality]
            found = next((name for name in (file, f"{file}.gz") if name in names), None)
            if found is not None:
                make_tokens(store, modality, source_of(store, address_within(source, found)))
        yield store


def _in_folder(location: Location, names: Collection[str], source: str) -> str:
    known = [f"{TRIPLES}.{ending}{zipped}" for ending in EXTENSIONS for zipped in ("", ".gz")]
    found = [name for name in known if name in names]
    if len(found) != 1:
        has = ", ".join(found) if found else ", ".join(sorted(names)[:5]) or "nothing"
        raise IngestError(
            f"{without_secrets(source)} has {has}, where one file {TRIPLES}.tsv is expected. For files of splits, make "
            "a store with `distkg prepare` and `distkg tokens`, and give it with --store"
        )
    return address_within(source, found[0])
