"""Decompression of request bodies up to a size limit, and compression of responses for clients that accept gzip."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from serving.errors import ApiError

MIN_COMPRESSED_BYTES = 16 * 1024  # compressing a smaller response costs more than it saves
_GZIP_WBITS = zlib.MAX_WBITS | 16
_GZIP_LEVEL = 1  # of nine: responses are numbers, which higher levels hardly compress further
_CHUNK_BYTES = 1 << 16
_MAX_GZIP_MEMBERS = 100


def decompress(body: bytes, encoding: bytes, *, max_bytes: int) -> bytes:
    """Returns the decompressed body. Raises ApiError: 413 as soon as it exceeds `max_bytes`, 400 if damaged, 415 if unsupported.

    Args:
        body: The body as it was sent.
        encoding: The Content-Encoding header: gzip, zstd or identity.
        max_bytes: Limit of the decompressed size; at most this and one chunk are held in memory.
    """
    kind = encoding.strip().lower()
    if kind in (b"", b"identity"):
        return body
    decoders: dict[bytes, Callable[[bytes], Iterator[bytes]]] = {
        b"gzip": _gunzip,
        b"x-gzip": _gunzip,
        b"zstd": _unzstd,
    }
    if kind not in decoders:
        raise _unsupported_encoding_error("Expected a body that is not compressed, or compressed with gzip or zstd.")
    chunks: list[bytes] = []
    size = 0
    for chunk in decoders[kind](body):
        size += len(chunk)
        if size > max_bytes:
            message = f"Expected a body of at most {max_bytes} bytes when decompressed. Send fewer series, or shorter histories."
            raise ApiError("body_too_large", message)
        chunks.append(chunk)
    return b"".join(chunks)


def compress(body: bytes) -> bytes:
    """Compresses a body with gzip."""
    return zlib.compress(body, _GZIP_LEVEL, wbits=_GZIP_WBITS)


@lru_cache(64)
def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header allows a response in gzip."""
    for part in accept_encoding.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _gunzip(body: bytes) -> Iterator[bytes]:
    """Yields the decompressed chunks of all members of a gzip file."""
    position = member_count = 0
    while position < len(body):
        member_count += 1
        if member_count > _MAX_GZIP_MEMBERS:  # each of them costs as much as a chunk, even an empty one
            raise ApiError(
                "malformed_encoding",
                f"Expected at most {_MAX_GZIP_MEMBERS} members in gzip; found more. Compress the body at once.",
                where="content-encoding",
            )
        decompressor = zlib.decompressobj(_GZIP_WBITS)
        while not decompressor.eof:
            # Fed in chunks, because zlib copies what it does not consume.
            piece = decompressor.unconsumed_tail
            if not piece:
                piece = body[position : position + _CHUNK_BYTES]
                position += len(piece)
            try:
                chunk = decompressor.decompress(piece, _CHUNK_BYTES)
            except zlib.error as error:
                raise _malformed_encoding_error("gzip") from error
            if not piece and not chunk and not decompressor.eof:
                raise _malformed_encoding_error("gzip")  # truncated
            yield chunk
        position -= len(decompressor.unused_data)


def _unzstd(body: bytes) -> Iterator[bytes]:
    try:
        import pyarrow  # type: ignore[import-untyped]  # its window is bounded (128 MiB) by libzstd itself
    except ImportError as error:
        raise _unsupported_encoding_error(
            "Expected a body in gzip or without compression: zstd needs the package pyarrow on this server."
        ) from error
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "zstd") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise _malformed_encoding_error("zstd") from error


def _malformed_encoding_error(encoding: str) -> ApiError:
    return ApiError(
        "malformed_encoding",
        f"Expected a body in {encoding}; found a damaged or truncated one. Send it again.",
        where="content-encoding",
    )


def _unsupported_encoding_error(message: str) -> ApiError:
    return ApiError("unsupported_media_type", message, where="content-encoding")
