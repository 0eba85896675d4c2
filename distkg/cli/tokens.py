"""Command that makes tokens of entities."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from distkg.cli.app import JsonOption, app, file_path, folder_path, say, say_json, show_table

if TYPE_CHECKING:
    from distkg.data.store.graph_store import Store
    from distkg.data.tokens.entity_values import Keys
    from distkg.data.tokens.make_tokens import Mapped, TokenReport, TokenSource

T = TypeVar("T")


@dataclass(frozen=True)
class TokenInputs:
    """Options of the command that describe the token source; exactly one of the first five must be set."""

    text: str | None
    labels: bool
    numeric: str | None
    mygo: str | None
    images: Path | None
    codebook: Path | None
    tokenizer: str | None
    vocabulary: Path | None
    bins: int

    def kind(self) -> str:
        """Return the kind of tokens that the options describe.

        Raises:
            BadParameter: none of the five sources is set, or several are.
        """
        sources = {
            "text": self.text is not None or self.labels,
            "numeric": self.numeric is not None,
            "image": self.images is not None,
            "mygo": self.mygo is not None,
        }
        kinds = [kind for kind, is_set in sources.items() if is_set]
        if len(kinds) != 1 or (self.labels and self.text is not None):
            raise typer.BadParameter("give one of --text, --labels, --numeric, --mygo and --images")
        return kinds[0]

    def source(self, store: Store, keys: Keys | None) -> TokenSource:
        from distkg.data.tokens.make_tokens import image_source, numeric_source, text_source, token_list_source
        from distkg.data.tokens.text_tokens import TextTokenizer

        if self.numeric is not None:
            return numeric_source(store, self.numeric, self.bins, keys)
        if self.mygo is not None:
            return token_list_source(store, self.mygo, _needed(self.codebook, "--mygo needs --codebook"), keys)
        if self.images is not None:
            codebook = _needed(self.codebook, "--images needs --codebook")
            function = _needed(self.tokenizer, "--images needs --tokenizer MODULE:FUNCTION")
            return image_source(store, self.images, function, codebook, keys)
        tokenizer = None if self.vocabulary is None else TextTokenizer(self.vocabulary)
        return text_source(store, self.text, tokenizer, keys)


@app.command(epilog="Example: distkg tokens stores/umls --text data/UMLS/entity_text.tsv")
def tokens(
    store: Annotated[str, typer.Argument(metavar="STORE", help="Store made by `distkg prepare`, or folder of two.")],
    text: Annotated[
        str | None, typer.Option(help="File of entity names and descriptions, lines LABEL<TAB>TEXT.")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels", help="Use the labels of the store as the text.")] = False,
    numeric: Annotated[
        str | None, typer.Option(help="File of numeric attributes, lines LABEL<TAB>ATTRIBUTE<TAB>VALUE.")
    ] = None,
    mygo: Annotated[
        str | None, typer.Option(help="JSON file {label: [token, …]} as of MyGO; needs --codebook and --name.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            parser=folder_path,
            help="Folder of images LABEL.jpg or LABEL/*.jpg (any ending); needs --codebook and --tokenizer.",
        ),
    ] = None,
    codebook: Annotated[
        Path | None, typer.Option(parser=file_path, help="File of token vectors: .pth, .safetensors or .npy.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Python function that returns the tokens of an image path."),
    ] = None,
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            parser=folder_path,
            help="Folder with a language model's tokenizer.json and model.safetensors, for text.",
        ),
    ] = None,
    ids: Annotated[
        str | None,
        typer.Option(help="File of lines KEY<TAB>LABEL, if the files of entities use keys instead of labels."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the tokens in the store; default: text, numeric or image.")
    ] = None,
    most: Annotated[
        int, typer.Option(min=1, help="Maximum number of tokens of an entity, its most frequent ones.")
    ] = 8,
    bins: Annotated[int, typer.Option(min=1, help="Number of quantile bins of a numeric attribute.")] = 16,
    workers: Annotated[
        int, typer.Option(min=0, help="Number of Ray tasks that tokenise; 0: tokenise in this process.")
    ] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make tokens of entities from text, numbers or images, for models that read more than the graph."""
    source_options = TokenInputs(text, labels, numeric, mygo, images, codebook, tokenizer, vocabulary, bins)
    kind = source_options.kind()
    called = name or (kind if kind != "mygo" else _needed(name, "--mygo needs --name, such as image or text"))
    from distkg.data.store.graph_store import Store
    from distkg.data.tokens.entity_values import read_keys
    from distkg.data.tokens.make_tokens import make_tokens

    sys.path.insert(0, os.getcwd())  # so that a user's module in the working directory can be imported
    keys = None if ids is None else read_keys(ids)
    with _mapping(workers) as mapped:
        for opened in Store.open_all(store):
            _print_tokens(make_tokens(opened, called, source_options.source(opened, keys), most, mapped), as_json)


@contextmanager
def _mapping(workers: int) -> Iterator[Mapped]:
    if not workers:
        yield map
        return
    from distkg.cluster.tokenise import tokenising_on_ray

    with tokenising_on_ray(workers) as mapped:
        yield mapped


def _needed(option: T | None, message: str) -> T:
    if option is None:
        raise typer.BadParameter(message)
    return option


def _print_tokens(report: TokenReport, as_json: bool) -> None:
    from distkg.reporting.quantities import duration
    from distkg.reporting.tables import text_table

    if as_json:
        say_json(asdict(report))
        return
    share = report.covered / max(report.entities, 1)
    rows = [
        ("entities with tokens", f"{report.covered:,} of {report.entities:,} ({share:.1%})"),
        ("tokens of each", f"{report.tokens:.2f} on average"),
        ("different tokens", f"{report.distinct:,} of {report.vocabulary:,}, vectors of {report.width}"),
    ]
    show_table(text_table(["", ""], rows, f"{report.store}: {report.name} ({duration(report.seconds)})"))
    show_table(text_table(["entity", "tokens"], [(label, "  ".join(each)) for label, each in report.shown.items()]))
    if report.unknown:
        say(f"warning: entries whose label is no entity: {report.unknown:,}, first {report.example!r}", err=True)
