"""Crashes and damage while a store is made, injected for real."""

import gzip
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from distkg.data.errors import IngestError
from distkg.data.prepare import prepare
from distkg.data.readers.sources import ReadOptions
from distkg.data.store.graph_store import Store, StoreError

TRIPLES = b"".join(b"entity-%d\tr\tentity-%d\n" % (i, 7919 * i % 50_000) for i in range(50_000))

# Stops for good while it writes: the other process kills it there.
WRITER = """
import sys, time
from distkg.data.prepare import prepare

def progress(stage, done):
    if stage == sys.argv[3]:
        print("here", flush=True)
        time.sleep(600)

prepare(sys.argv[1], sys.argv[2], progress=progress)
"""


@pytest.mark.parametrize("stage", ["reading train.tsv", "writing train", "writing test"])
def test_a_killed_writer_leaves_a_store_that_is_refused_and_can_be_made_again(tmp_path: Path, stage: str) -> None:
    source, store = tmp_path / "files", tmp_path / "store"
    source.mkdir()
    (source / "train.tsv").write_bytes(TRIPLES)
    (source / "test.tsv").write_bytes(TRIPLES[:1000].rpartition(b"\n")[0])
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(source), str(store), stage], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "here\n"
    writer.send_signal(signal.SIGKILL)
    assert writer.wait() == -signal.SIGKILL
    writer.stdout.close()
    with pytest.raises(StoreError, match=r"is half-written.*run it again with the same --store; it starts over"):
        Store.open(str(store))
    prepare(str(source), str(store))
    Store.open(str(store)).verify()
    assert not [path for path in store.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("damage", ["cut off", "bit flipped", "cut off within the checksum"])
def test_a_damaged_gzip_file_is_never_taken_for_a_shorter_one(tmp_path: Path, damage: str, on_error: str) -> None:
    content = bytearray(gzip.compress(TRIPLES))
    if damage == "bit flipped":
        content[len(content) // 2] ^= 0x10
    else:
        del content[len(content) // 2 if damage == "cut off" else -3 :]
    (tmp_path / "train.tsv.gz").write_bytes(content)
    # Where a flipped bit still inflates, lines made of rubbish may be met before the checksum is.
    reason = "" if damage == "bit flipped" else "the file cannot be read from about this line"
    expected = rf"train\.tsv\.gz:\d+: {reason}"
    with pytest.raises(IngestError, match=expected):
        prepare(str(tmp_path / "train.tsv.gz"), str(tmp_path / "store"), ReadOptions(on_error=on_error))  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()


def test_the_place_of_a_cut_is_known_to_a_few_thousand_lines(tmp_path: Path) -> None:
    lines = b"".join(b"%d\tr\t%d\n" % (hash((i, 1)) % 10**9, hash((i, 2)) % 10**9) for i in range(200_000))
    (tmp_path / "train.tsv.gz").write_bytes(gzip.compress(lines, 1)[: -(1 << 19)])
    with pytest.raises(IngestError) as raised:
        prepare(str(tmp_path / "train.tsv.gz"), str(tmp_path / "store"))
    line = int(str(raised.value).split(":")[1])
    assert 50_000 < line < 200_000


def test_a_file_that_is_not_gzip_is_named(tmp_path: Path) -> None:
    (tmp_path / "train.tsv.gz").write_bytes(TRIPLES)
    with pytest.raises(IngestError, match=r"train\.tsv\.gz:1: the file cannot be read .*damaged or cut off"):
        prepare(str(tmp_path / "train.tsv.gz"), str(tmp_path / "store"))


def test_a_full_disk_leaves_no_store(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_bytes(TRIPLES)
    # A limit on file size makes the kernel refuse the write, as a full disk does.
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "from distkg.data.prepare import prepare;"
        "import distkg.data.store.vocabulary;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "prepare(sys.argv[1], sys.argv[2])"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", limited, str(tmp_path / "train.tsv"), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 1
    assert "StoreError: store" in done.stderr
    assert "could not be written: [Errno 27]" in done.stderr
    assert not (tmp_path / "store").exists()
