"""A figure as the files that a run keeps of it."""

from __future__ import annotations

import io
import struct
import time
import uuid
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THUMBNAIL = 256  # pixels, as wide or as high as MLflow makes them


def drawn(figure: Figure) -> np.ndarray:
    """The pixels of a figure, "row column 3", drawn once: `savefig` would draw, and lay out, twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[:, :, :3]  # type: ignore[no-untyped-call]


def files(name: str, pixels: np.ndarray) -> Mapping[str, bytes]:
    """The picture under its own name, and twice again under those by which MLflow's grid of images finds it.

    The latter are as `MlflowClient.log_image` makes them, which would compress the picture again.

    Args:
        name: Such as `plots/forecast.png`.
        pixels: "row column 3", of bytes.
    """
    picture = png(pixels)
    image = f"images/{PurePosixPath(name).stem}+step+0+timestamp+{time.time_ns() // 10**6}+{uuid.uuid4()}"
    return {name: picture, f"{image}.png": picture, f"{image}+compressed.webp": _thumbnail(pixels)}


def png(pixels: np.ndarray) -> bytes:
    """A PNG (ISO/IEC 15948) of pixels, "row column 3".

    Pillow tries five filters on each line and lets no other thread run. Flat colours need none, and zlib runs beside others.
    """
    height, width, _ = pixels.shape
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each begins with its filter: 0, none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # eight bits of each of red, green and blue
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.data, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _thumbnail(pixels: np.ndarray) -> bytes:
    from PIL import Image

    small, content = Image.fromarray(np.ascontiguousarray(pixels)), io.BytesIO()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    small.save(content, "WEBP", method=0)
    return content.getvalue()
