"""Temporary store of a user's graph, which is a file of triples or a folder with entity descriptions and values."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from distkg.data.assemble import PrepareReport
from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.readers.formats import COMPRESSIONS, extensions
from distkg.data.readers.text_files import find_text_file
from distkg.data.storage.location import Location, address_within, without_secrets
from distkg.data.store.graph_store import Store
from distkg.data.tokens.make_tokens import TokenSource, make_tokens, numeric_source, text_source

TRIPLES = "triples"
SAID: dict[str, tuple[str, Callable[[Store, str], TokenSource]]] = {
    "text": ("descriptions.tsv", text_source),
    "numeric": ("numeric.tsv", numeric_source),
}
"""Modality → its file of entity descriptions or values, compressed or not, and the function that makes tokens of it."""


@contextmanager
def fresh_graph(
    source: str, reads: Collection[str] = (), tell: Callable[[PrepareReport], None] | None = None
) -> Iterator[Store]:
    """Build a temporary store of all triples of a graph, with none held out, and delete it when the context ends.

    Args:
        source: a file of triples; or a folder with ``triples.tsv`` (any ending that `distkg prepare` reads), and beside
            it ``descriptions.tsv`` (lines LABEL<TAB>TEXT) and ``numeric.tsv`` (lines LABEL<TAB>ATTRIBUTE<TAB>VALUE).
        reads: modalities for which tokens are made if their file is present.
        tell: called with the report of reading the triples.

    Raises:
        IngestError: there are no triples, or lines have another form.
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
            said_file = find_text_file(location, names, file)
            if said_file is not None:
                make_tokens(store, modality, source_of(store, address_within(source, said_file.name)))
        yield store


def _prepared(triples: str, address: str) -> PrepareReport:
    try:
        return prepare(triples, address, split=(1.0, 0.0, 0.0))
    except IngestError as error:
        if "--" not in str(error):
            raise
        raise IngestError(
            f"{str(error).rstrip('.')}. These are options of `distkg prepare`: build a store with it, and pass the "
            "store with --store instead of --graph"
        ) from None


def _in_folder(location: Location, names: Collection[str], source: str) -> str:
    compressed = ("", *(f".{ending}" for ending in COMPRESSIONS))
    known = [f"{TRIPLES}.{ending}{end}" for ending in extensions() for end in compressed]
    triple_files = [name for name in known if name in names]
    if len(triple_files) != 1:
        has = ", ".join(triple_files) if triple_files else ", ".join(sorted(names)[:5]) or "nothing"
        raise IngestError(
            f"{without_secrets(source)} has {has}, where one file {TRIPLES}.tsv is expected. For files of splits, "
            "build a store with `distkg prepare` and `distkg tokens`, and pass it with --store"
        )
    return address_within(source, triple_files[0])
