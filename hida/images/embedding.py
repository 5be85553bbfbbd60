"""Pictures inside pages: as data, so that a page is one file."""

from __future__ import annotations

import base64
import io
from typing import Any, Literal

from PIL import Image


def data_uri(image: Image.Image, kind: Literal["png", "jpeg"], **options: Any) -> str:
    """Return a picture as the address that an ``img`` element shows; ``options`` are those of Pillow's writer."""
    buffer = io.BytesIO()
    image.save(buffer, format=kind.upper(), optimize=True, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
