"""Renders a figure as the image files that a run stores."""

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

_THUMBNAIL_SIZE = 256  # pixels of the longer side, as in MLflow


def render_pixels(figure: Figure) -> np.ndarray:
    """Returns the pixels of a figure, "row column 3", drawn once; `savefig` would draw and lay it out twice."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[:, :, :3])  # type: ignore[no-untyped-call]


def build_image_files(name: str, pixels: np.ndarray) -> Mapping[str, bytes]:
    """Encodes an image under its own name, and under the two names by which MLflow's image grid finds it.

    The latter equal those of `MlflowClient.log_image`, which would compress the image again.

    Args:
        name: Path of the file in the run, such as `plots/forecast.png`.
        pixels: "row column 3", uint8.
    """
    png = _encode_png(pixels)
    grid_name = f"images/{PurePosixPath(name).stem}+step+0+timestamp+{time.time_ns() // 10**6}+{uuid.uuid4()}"
    return {name: png, f"{grid_name}.png": png, f"{grid_name}+compressed.webp": _encode_thumbnail(pixels)}


def _encode_png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _encode_thumbnail(pixels: np.ndarray) -> bytes:
    from PIL import Image

    thumbnail, content = Image.fromarray(pixels), io.BytesIO()
    thumbnail.thumbnail((_THUMBNAIL_SIZE, _THUMBNAIL_SIZE))
    thumbnail.save(content, "WEBP", method=0)
    return content.getvalue()
