"""Bytes compressed as the ending of a name says."""

import bz2
import gzip
import lzma

import pyarrow as pa


def compress(data: bytes, name: str) -> bytes:
    """The data, compressed in the way that the name's ending asks for; unchanged where it asks for none."""
    ending = name.rpartition(".")[2]
    if ending in ("zst", "lz4"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, {"zst": "zstd", "lz4": "lz4"}[ending]) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}.get(ending, bytes)(data)
