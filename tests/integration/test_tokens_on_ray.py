"""Tokenising on Ray Data gives what one process gives, in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest

from distkg.cluster.tokenise import tokenising_on_ray
from distkg.data.errors import StoreError
from distkg.data.generate import generate
from distkg.data.store.graph_store import Store
from distkg.data.tokens import make_tokens as module
from distkg.data.tokens.make_tokens import TokenSource, make_tokens, text_source
from distkg.data.tokens.text_tokens import TextTokenizer
from distkg.data.tokens.token_store import read_modalities, read_modality

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def test_as_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(str(tmp_path / "store"), entities=300, relations=6, triples=3000, seed=1)
    store = Store.open(str(tmp_path / "store"))
    labels = store.entity_labels().to_pylist()
    lines = [f"{label}\t{'city ' * (i % 3)}{i} county seat {i * 7}\n" for i, label in enumerate(labels) if i % 5]
    (tmp_path / "text.tsv").write_text("".join(lines))
    source = text_source(store, str(tmp_path / "text.tsv"))
    here = make_tokens(store, "here", source)
    monkeypatch.setattr(module, "ENTITIES_AT_ONCE", 32)  # the last block has 12
    with tokenising_on_ray(2) as mapped:
        there = make_tokens(store, "there", source, mapped=mapped)
        absent = TokenSource(source.entity_values, source.codebook, "nothing", TextTokenizer(Path("/no/where")))
        with pytest.raises(StoreError, match=r"^there is no /no/where/tokenizer.json[^\n]*$"):
            make_tokens(store, "nothing", absent, mapped=mapped)
    assert read_modality(store, "there").rows().tolist() == read_modality(store, "here").rows().tolist()
    assert (there.covered, there.tokens, there.shown) == (here.covered, here.tokens, here.shown)
    assert here.covered == 240
    assert list(read_modalities(store)) == ["here", "there"]
