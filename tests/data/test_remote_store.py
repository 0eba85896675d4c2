"""Stores and sources on a server that speaks the S3 protocol over real HTTP."""

from collections.abc import Callable

import pytest

from distkg.data.generate import generate
from distkg.data.prepare import prepare
from distkg.data.storage.location import Location
from distkg.data.store.graph_store import Store, StoreError

Address = Callable[[str], str]
TRAIN = b"".join(b"n%d\tr\tn%d\n" % (i, (7 * i + 1) % 50) for i in range(50))


@pytest.fixture
def files(bucket: Address, upload: Callable[[str, bytes], None]) -> str:
    upload("files/train.tsv", TRAIN)
    upload("files/test.tsv", b"n1\tr\tn9\n")
    return bucket("files")


def test_a_store_goes_to_and_comes_from_a_bucket(bucket: Address, files: str) -> None:
    made = prepare(files, bucket("graphs/x"))
    assert made.triples == {"train": 50, "valid": 0, "test": 1}
    store = Store.open(bucket("graphs/x"))
    store.verify()
    assert store.num_entities == 50
    assert store.entity_labels_of(store.triples("test")[0, [0, 2]]) == ["n1", "n9"]
    assert [len(store.triples_part("train", part, 3)) for part in range(3)] == [17, 17, 16]
    assert store.manifest.source == files.partition("?")[0]
    names = {"train.parquet", "valid.parquet", "test.parquet", "entities.parquet", "relations.parquet", "manifest.json"}
    assert Location.of(bucket("graphs/x")).names() == names


def test_the_same_bytes_are_written_locally_and_remotely(
    bucket: Address, files: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    local = str(tmp_path_factory.mktemp("stores") / "local")
    for address in (bucket("remote"), local):
        prepare(files, address, seed=5)
    assert Store.open(bucket("remote")).manifest.files == Store.open(local).manifest.files


def test_a_finished_store_in_a_bucket_is_not_overwritten(bucket: Address, files: str) -> None:
    generate(bucket("x"), entities=50, relations=2, triples=300, seed=0)
    with pytest.raises(StoreError, match="already holds a finished store"):
        prepare(files, bucket("x"))
    assert Store.open(bucket("x")).manifest.source == "generated"


def test_a_half_written_store_in_a_bucket_is_refused_and_replaced(
    bucket: Address, files: str, upload: Callable[[str, bytes], None]
) -> None:
    upload("x/.incomplete", b"")
    upload("x/train.parquet", b"half")
    with pytest.raises(StoreError, match=r"half-written.*run it again with the same --store"):
        Store.open(bucket("x"))
    prepare(files, bucket("x"))
    Store.open(bucket("x")).verify()


def test_an_error_leaves_no_objects(bucket: Address, upload: Callable[[str, bytes], None]) -> None:
    upload("bad/train.tsv", TRAIN + b"bad line\n")
    with pytest.raises(StoreError, match=r"train\.tsv:51: 1 column"):
        prepare(bucket("bad"), bucket("x"))
    assert Location.of(bucket("x")).names() == set()


def test_secrets_in_an_address_stay_out_of_messages_and_manifest(bucket: Address, files: str) -> None:
    secret = files.replace("s3://", "s3://key-of-a-test:hidden-word@")
    prepare(secret, bucket("x").replace("s3://", "s3://key-of-a-test:hidden-word@"))
    store = Store.open(bucket("x"))
    assert "hidden" not in store.manifest.model_dump_json()
    with pytest.raises(StoreError) as raised:
        Store.open(bucket("none").replace("s3://", "s3://key-of-a-test:hidden-word@"))
    assert "hidden" not in str(raised.value)


def test_a_missing_bucket_is_named(bucket: Address, files: str) -> None:
    elsewhere = bucket("x").replace("s3://graphs-", "s3://no-such-")
    with pytest.raises(StoreError, match=r"no store can be written to s3://no-such-.*not found"):
        prepare(files, elsewhere)
    with pytest.raises(StoreError, match="there is no store at s3://no-such-"):
        Store.open(elsewhere)
