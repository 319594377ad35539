"""Pictures as the trackers' libraries take them."""

from __future__ import annotations

import io
from typing import Any


def picture(png: bytes) -> Any:
    """The PIL.Image of the content of a PNG file, in three colours."""
    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB")
