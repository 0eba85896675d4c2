"""A graph as a user has it, a file of triples or a folder with what is said of entities, as a store for a question."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from distkg.data.assemble import PrepareReport
from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.readers.sources import COMPRESSIONS, EXTENSIONS
from distkg.data.readers.text_files import find_text_file
from distkg.data.storage.location import Location, address_within, without_secrets
from distkg.data.store.graph_store import Store
from distkg.data.tokens.make_tokens import TokenSource, make_tokens, numeric_source, text_source

TRIPLES = "triples"
SAID: dict[str, tuple[str, Callable[[Store, str], TokenSource]]] = {
    "text": ("descriptions.tsv", text_source),
    "numeric": ("numeric.tsv", numeric_source),
}
"""Modality → the file that says it, compressed or not, and what makes tokens of it."""


@contextmanager
def fresh_graph(
    source: str, reads: Collection[str] = (), tell: Callable[[PrepareReport], None] | None = None
) -> Iterator[Store]:
    """A store of all its triples, none held out, for as long as it is needed.

    Args:
        source: a file of triples; or a folder with ``triples.tsv`` (any ending that `distkg prepare` knows), and beside
            it ``descriptions.tsv`` (lines LABEL<TAB>TEXT) and ``numeric.tsv`` (lines LABEL<TAB>ATTRIBUTE<TAB>VALUE).
        reads: modalities that tokens are made of, where their file is there.
        tell: called with what was counted while the triples were read.

    Raises:
        IngestError: no triples, or lines of other form.
        StoreError: text is to be read, and there is no vocabulary for it.
    """
    location = Location.of(source)
    names = location.names() if location.is_folder() else set()
    triples = _in_folder(location, names, source) if location.is_folder() else source
    with tempfile.TemporaryDirectory() as folder:
        address = str(Path(folder) / "store")
        report = _prepared(triples, address)
        if tell is not None:
            tell(report)
        store = Store.open(address, called=source)
        for modality in sorted(SAID.keys() & set(reads)):
            file, source_of = SAID[modality]
            found = find_text_file(location, names, file)
            if found is not None:
                make_tokens(store, modality, source_of(store, address_within(source, found.name)))
        yield store


def _prepared(triples: str, address: str) -> PrepareReport:
    try:
        return prepare(triples, address, split=(1.0, 0.0, 0.0))
    except IngestError as error:
        if "--" not in str(error):
            raise
        raise IngestError(
            f"{str(error).rstrip('.')}. These options are those of `distkg prepare`: make a store with it, and give "
            "that with --store in place of --graph"
        ) from None


def _in_folder(location: Location, names: Collection[str], source: str) -> str:
    compressed = ("", *(f".{ending}" for ending in COMPRESSIONS))
    known = [f"{TRIPLES}.{ending}{end}" for ending in EXTENSIONS for end in compressed]
    found = [name for name in known if name in names]
    if len(found) != 1:
        has = ", ".join(found) if found else ", ".join(sorted(names)[:5]) or "nothing"
        raise IngestError(
            f"{without_secrets(source)} has {has}, where one file {TRIPLES}.tsv is expected. For files of splits, make "
            "a store with `distkg prepare` and `distkg tokens`, and give it with --store"
        )
    return address_within(source, found[0])
