"""Compressed bodies: unpacked no further than a bound, whatever they claim to hold; and answers packed for who wants them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache

from serving.errors import Problem

PACK_FROM = 16 * 1024  # bytes of an answer below which packing costs more than it saves
_GZIP = zlib.MAX_WBITS | 16
_LEVEL = 1  # of nine: answers are numbers, of which more effort makes little less
_PIECE = 1 << 16


def unpack(body: bytes, encoding: bytes, *, most: int) -> bytes:
    """A body as it was before compression. Raises Problem: 413 as soon as it is more than `most` bytes, 400, 415.

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
        raise _unsupported("Expected a body that is not compressed, or with gzip or zstd.")
    parts: list[bytes] = []
    size = 0
    for part in pieces(body):
        size += len(part)
        if size > most:
            message = f"Expected a body of at most {most} bytes when unpacked. Send fewer series, or shorter histories."
            raise Problem("body_too_large", message)
        parts.append(part)
    return b"".join(parts)


def pack(body: bytes) -> bytes:
    """With gzip."""
    return zlib.compress(body, _LEVEL, wbits=_GZIP)


@lru_cache(64)
def takes_gzip(accepted: str) -> bool:
    """Whether an Accept-Encoding header lets an answer be packed."""
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() in ("gzip", "x-gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


def _gunzip(body: bytes) -> Iterator[bytes]:
    """One member of a gzip file after the other, in pieces."""
    rest = body
    while rest:
        unpacking = zlib.decompressobj(_GZIP)
        while not unpacking.eof:
            try:
                part = unpacking.decompress(rest, _PIECE)
            except zlib.error as error:
                raise _broken("gzip") from error
            if not part and not unpacking.eof:
                raise _broken("gzip")  # it ends before its end
            yield part
            rest = unpacking.unconsumed_tail
        rest = unpacking.unused_data


def _unzstd(body: bytes) -> Iterator[bytes]:
    try:
        import pyarrow  # type: ignore[import-untyped]  # its window is bounded (128 MiB) by libzstd itself
    except ImportError as error:
        raise _unsupported(
            "Expected a body with gzip or without compression: zstd needs pyarrow on this server."
        ) from error
    try:
        with pyarrow.CompressedInputStream(pyarrow.BufferReader(body), "zstd") as stream:
            while part := stream.read(_PIECE):
                yield part
    except OSError as error:
        raise _broken("zstd") from error


def _broken(kind: str) -> Problem:
    return Problem(
        "malformed_encoding", f"Expected a body in {kind}; it is damaged. Send it again.", where="content-encoding"
    )


def _unsupported(message: str) -> Problem:
    return Problem("unsupported_media_type", message, where="content-encoding")
