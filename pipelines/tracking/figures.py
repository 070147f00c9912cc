"""A figure as the files that a run keeps of it."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_THUMBNAIL_SIZE = 256  # pixels, as wide or as high as MLflow makes them


def render_pixels(figure: Figure) -> np.ndarray:
    """The pixels of a figure, "row column 3", drawn once: `savefig` would draw, and lay out, twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])  # type: ignore[no-untyped-call]


def build_image_files(name: str, pixels: np.ndarray) -> Mapping[str, bytes]:
    """The picture under its own name, and twice again under those by which MLflow's grid of images finds it.

    The latter are as `MlflowClient.log_image` makes them, which would compress the picture again.

    Args:
        name: Such as `plots/forecast.png`.
        pixels: "row column 3", of bytes.
    """
    picture = _encode_png(pixels)
    image = f"images/{PurePosixPath(name).stem}+step+0+timestamp+{time.time_ns() // 10**6}+{uuid.uuid4()}"
    return {name: picture, f"{image}.png": picture, f"{image}+compressed.webp": _encode_thumbnail(pixels)}


def _encode_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _encode_thumbnail(pixels: np.ndarray) -> bytes:
    from PIL import Image

    small, content = Image.fromarray(pixels), io.BytesIO()
    small.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    small.save(content, "WEBP", method=0)
    return content.getvalue()
