"""A gallery: one HTML page with a slider between each photo and its sketches, which needs nothing beside it."""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template

from PIL import Image, ImageOps

from hida.errors import counted, printed
from hida.files import told_apart, write_bytes
from hida.images.embedding import data_uri
from hida.images.sheet import on_white
from hida.images.writing import MARK

BUDGET = 16_000_000
"""Bytes of a page, of which each photo has the same share: what mail takes as an attachment."""
SIDE = 1024
"""Longest side of a picture in the page, in pixels: less where a photo's share does not suffice."""
SMALLEST = 192
"""Longest side below which no picture is reduced: a page of several hundred photos is larger than ``BUDGET``."""
_PAGE, _FIGURE = 16_384, 2_048  # bytes of what is in every page, and of a photo's text
_QUALITY = 80


@dataclass(frozen=True)
class Pictures:
    """A photo and its sketches as a page has them: reduced and encoded.

    Args:
        size: (width, height) of all of them.
        photo: its data URI.
        sketches: data URIs by heading.
    """

    size: tuple[int, int]
    photo: str
    sketches: Mapping[str, str]


def reduce(photo: Image.Image, sketches: Mapping[str, Image.Image], share: int) -> Pictures:
    """Reduce and encode a photo and its sketches for a page.

    Args:
        photo: in any mode and size; what is transparent becomes white, here and in the sketches.
        sketches: by heading; the photo and others of another shape than the first are put into its shape, on white.
        share: bytes of the page that they may take.
    """
    shape = next(iter(sketches.values()), photo).size
    photo = _in_shape(photo, shape)
    sketches = {heading: _in_shape(sketch, shape) for heading, sketch in sketches.items()}
    side = min(SIDE, max(shape))
    while True:
        scale = side / max(shape)
        size = max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))
        encoded = {heading: _encoded(sketch, size) for heading, sketch in sketches.items()}
        result = Pictures(size, _encoded(photo, size), encoded)
        taken = len(result.photo) + sum(map(len, result.sketches.values()))
        if taken <= share or side <= SMALLEST:
            return result
        # Bytes go with the area, roughly: a little less, so that one more time is usually enough.
        side = max(SMALLEST, min(side - 1, int(side * math.sqrt(share / taken) * 0.95)))


def _in_shape(picture: Image.Image, shape: tuple[int, int]) -> Image.Image:
    """Return a picture with white beside it, or above and below, so that it has a shape (width, height)."""
    if abs(math.log(picture.width * shape[1] / (picture.height * shape[0]))) <= 0.01:
        return picture
    return ImageOps.pad(on_white(picture), shape, color="white")


def _encoded(picture: Image.Image, size: tuple[int, int]) -> str:
    # Reduced by whole numbers first: a photo of a phone has a dozen times the page's pixels.
    reduced = on_white(picture).resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
    return data_uri(reduced, "jpeg", quality=_QUALITY, progressive=True)


class Gallery:
    """Collect the pictures of photos as they are drawn, in any order, then write the page.

    ``share`` is the number of bytes for each photo's, of :func:`reduce`.

    Args:
        photos: all that may be added, in the order of the page.
    """

    def __init__(self, photos: Sequence[Path]) -> None:
        self.photos = list(photos)
        self.share = (BUDGET - _PAGE) // max(1, len(self.photos)) - _FIGURE
        self._added: dict[Path, Pictures] = {}

    def add(self, photo: Path, pictures: Pictures) -> None:
        """Add a photo's pictures."""
        self._added[photo] = pictures

    def write(self, path: Path, failures: Mapping[Path, str]) -> None:
        """Write the page whole or not at all.

        Args:
            path: the page.
            failures: why each photo that could not be drawn could not.
        """
        drawn = [photo for photo in self.photos if photo in self._added and photo not in failures]
        # The page may be sent to others, whom the folders here concern only where they tell photos apart.
        names = told_apart(self.photos, [lambda photo: photo.name if photo.name != "-" else "stdin"], "/")
        named = [(printed(names[photo]), self._added[photo]) for photo in drawn]
        reasons = [
            (names[photo], reason.replace(str(photo), names[photo]) if photo.name != "-" else reason)
            for photo, reason in failures.items()
        ]
        reasons = [(printed(name), printed(reason)) for name, reason in reasons]
        write_bytes(path, page(named, reasons).encode("utf-8", "backslashreplace"))


def page(photos: list[tuple[str, Pictures]], failures: list[tuple[str, str]]) -> str:
    """Return the HTML of a gallery.

    Args:
        photos: name and pictures of each photo, in their order.
        failures: name and reason of each photo that was not drawn.
    """
    folder = files("hida.images")
    script = folder.joinpath("gallery.js").read_text(encoding="utf-8")
    headings = list(dict.fromkeys(heading for _, pictures in photos for heading in pictures.sketches))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    count = counted(len(photos), "photo")
    return Template(folder.joinpath("gallery.html").read_text(encoding="utf-8")).substitute(
        digest=digest,
        mark=MARK,
        script=script,
        title=f"Sketches of {count}",
        all=_buttons(headings, "Style of all photos", "All: ") if len(photos) > 1 else "",
        order=html.escape(", ".join(["photo", *headings])),
        figures="\n".join(_figure(*photo) for photo in photos),
        failures=_failures(failures),
    )


def _figure(photo: str, pictures: Pictures) -> str:
    name = html.escape(photo)
    width, height = pictures.size
    images = [f'<img class="photo" alt="Photo {name}" width="{width}" height="{height}" src="{pictures.photo}">']
    for index, (heading, source) in enumerate(pictures.sketches.items()):
        classes = "sketch" if index else "sketch chosen"
        images.append(
            f'<img class="{classes}" data-style="{index}" alt="Sketch of {name}, {html.escape(heading)}" '
            f'width="{width}" height="{height}" src="{source}">'
        )
    slider = (
        f'<input type="range" min="0" max="100" value="50" autocomplete="off" aria-label="Photo and sketch of {name}" '
        'aria-valuetext="50 % photo, 50 % sketch"><span class="divider" aria-hidden="true"></span>'
    )
    return (
        f'<figure aria-label="{name}"><h2>{name}</h2>\n'
        f'<div class="stage" style="--width: {width}; --height: {height}">{"".join(images)}{slider}</div>\n'
        f"{_buttons(list(pictures.sketches), f'Style of {photo}')}</figure>"
    )


def _buttons(headings: list[str], label: str, text: str = "") -> str:
    """Return a group of buttons to choose one of several styles; nothing for a single one."""
    if len(headings) < 2:
        return ""
    buttons = "".join(
        f'<button type="button" data-style="{index}" aria-pressed="{"false" if index else "true"}">'
        f"{html.escape(heading)}</button>"
        for index, heading in enumerate(headings)
    )
    return f'<div class="styles" role="group" aria-label="{html.escape(label)}">{html.escape(text)}{buttons}</div>'


def _failures(failures: list[tuple[str, str]]) -> str:
    if not failures:
        return ""
    items = "".join(f"<li><strong>{html.escape(name)}</strong>: {html.escape(why)}</li>" for name, why in failures)
    return f'<section class="failed"><h2>Not drawn</h2><ul>{items}</ul></section>'
