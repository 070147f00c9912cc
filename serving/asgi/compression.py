"""Compressed bodies: unpacked no further than a bound, whatever they claim to hold; and answers packed for who wants them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from serving.errors import ApiError

MIN_COMPRESSED_BYTES = 16 * 1024  # bytes of an answer below which packing costs more than it saves
_GZIP_WBITS = zlib.MAX_WBITS | 16
_GZIP_LEVEL = 1  # of nine: answers are numbers, of which more effort makes little less
_CHUNK_BYTES = 1 << 16


def decompress(body: bytes, encoding: bytes, *, max_bytes: int) -> bytes:
    """A body as it was before compression. Raises Problem: 413 as soon as it is more than `max_bytes` bytes, 400, 415.

    Args:
        body: What was sent.
        encoding: The Content-Encoding header: gzip, zstd or identity.
        most: Bytes that are taken; never more are held than these and a piece.
    """
    kind = encoding.strip().lower()
    if kind in (b"", b"identity"):
        return body
    pieces: Callable[[bytes], Iterator[bytes]] | None = {b"gzip": _gunzip, b"x-gzip": _gunzip, b"zstd": _unzstd}.get(
        kind
    )
    if pieces is None:
        raise _unsupported_encoding_error("Expected a body that is not compressed, or with gzip or zstd.")
    parts: list[bytes] = []
    size = 0
    for part in pieces(body):
        size += len(part)
        if size > max_bytes:
            message = (
                f"Expected a body of at most {max_bytes} bytes when unpacked. Send fewer series, or shorter histories."
            )
            raise ApiError("body_too_large", message)
        parts.append(part)
    return b"".join(parts)


def compress(body: bytes) -> bytes:
    """With gzip."""
    return zlib.compress(body, _GZIP_LEVEL, wbits=_GZIP_WBITS)


@lru_cache(64)
def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header lets an answer be packed."""
    for part in accept_encoding.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _gunzip(body: bytes) -> Iterator[bytes]:
    """One member of a gzip file after the other, in pieces."""
    rest = body
    while rest:
        unpacking = zlib.decompressobj(_GZIP_WBITS)
        while not unpacking.eof:
            try:
                part = unpacking.decompress(rest, _CHUNK_BYTES)
            except zlib.error as error:
                raise _malformed_encoding_error("gzip") from error
            if not part and not unpacking.eof:
                raise _malformed_encoding_error("gzip")  # it ends before its end
            yield part
            rest = unpacking.unconsumed_tail
        rest = unpacking.unused_data


def _unzstd(body: bytes) -> Iterator[bytes]:
    try:
        import pyarrow  # type: ignore[import-untyped]  # its window is bounded (128 MiB) by libzstd itself
    except ImportError as error:
        raise _unsupported_encoding_error(
            "Expected a body with gzip or without compression: zstd needs pyarrow on this server."
        ) from error
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "zstd") as stream:
            while part := stream.read(_CHUNK_BYTES):
                yield part
    except OSError as error:
        raise _malformed_encoding_error("zstd") from error


def _malformed_encoding_error(encoding: str) -> ApiError:
    return ApiError(
        "malformed_encoding", f"Expected a body in {encoding}; it is damaged. Send it again.", where="content-encoding"
    )


def _unsupported_encoding_error(message: str) -> ApiError:
    return ApiError("unsupported_media_type", message, where="content-encoding")
