"""Styles as a user names them: a number, a mixture, or a map with one style for each pixel."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hida.config import Config
from hida.errors import HidaError, shown
from hida.images.io import require_shape, stored_values, to_rgb
from hida.images.opening import load
from hida.images.samples import Picture, is_deep, own_numbers

NamedStyle = int | Mapping[int, float]
"""A style's number from 1, or a mixture {number: weight}."""
Style = NamedStyle | np.ndarray
"""A number or a mixture for the whole photo, or weights (H, W, S) for each of its pixels."""

LEAST_COLOUR = 0.05
"""Share of all three colours in a pixel of a style map above which none of them is what was meant: in photos of faces
86 % of the pixels or more are so."""
MOST_STEPS = 100
"""of a sweep, whose pictures are side by side"""


def parse_style(text: str) -> int | dict[int, float]:
    """Read "2", or a mixture such as "1:0.6,3:0.4".

    Raises:
        HidaError: for anything else.
    """
    try:
        if ":" not in text:
            return int(text)
        parts = [part.split(":") for part in text.split(",")]
        mixture = {int(number): float(weight) for number, weight in parts}
    except ValueError:
        numbers = re.findall(r"\d+", text)
        hint = "give a number, or weights such as 1:0.6,3:0.4"
        if len(numbers) > 1 and re.fullmatch(r"\d+([,;/+ ]+\d+)*", text):
            hint = f"give {' '.join(numbers)}, with spaces, to draw each, or {':1,'.join(numbers)}:1 to mix them"
        elif text in ("all", "*"):
            hint = "leave --style out to draw all"
        raise HidaError(f"--style {text!r} is neither a style nor a mixture; {hint}.") from None
    if len(mixture) < len(parts):
        raise HidaError(f"--style {text!r} names a style twice; give each one weight.")
    return mixture


def style_name(style: NamedStyle) -> str:
    """Return a name for files and headings: "style2", "style1-60_3-40"."""
    if isinstance(style, Mapping):
        total = sum(style.values())
        return "style" + "_".join(f"{number}-{100 * (weight / total):g}" for number, weight in style.items())
    return f"style{style}"


def style_heading(style: NamedStyle) -> str:
    """Return the heading of a drawing: "style 2", "60 % 1, 40 % 3"."""
    if not isinstance(style, Mapping):
        return f"style {style}"
    parts = {number: 100 * (weight / sum(style.values())) for number, weight in style.items() if weight}
    if len(parts) == 1:
        return f"style {next(iter(parts))}"
    return ", ".join(f"{share:.3g} % {number}" for number, share in parts.items())


def count_styles(config: Config) -> int:
    """Return how many styles weights with this configuration draw; one if the style does not enter the network."""
    return config.generator.styles if config.generator.style_map else 1


def require_style(style: Style, styles: int) -> None:
    """Check that weights with ``styles`` styles can draw ``style``.

    Raises:
        HidaError: if they cannot.
    """
    if isinstance(style, np.ndarray):
        shaped = style.ndim == 3 and style.shape[2] == styles and style.size and style.dtype.kind in "biuf"
        if not shaped or not np.isfinite(style).all() or style.min() < 0:
            raise HidaError(f"a style map must be (H, W, {styles}) finite weights ≥ 0; its shape is {style.shape}.")
        if style.max() > np.finfo(np.float32).max:
            raise HidaError(f"the weights of a style map go up to {style.max():g}; scale them to sums of 1.")
        if not style.any(2).all():
            raise HidaError("a style map must have a weight above 0 at every pixel; some have none.")
        return
    numbers = list(style) if isinstance(style, Mapping) else [style]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or not 1 <= number <= styles:
            known = "style 1 only" if styles == 1 else f"styles 1 to {styles}"
            whole = "" if isinstance(number, int | np.integer) else ", given as a whole number"
            raise HidaError(f"there is no style {_as_given(number)}; these weights have {known}{whole}.")
    if isinstance(style, Mapping):
        weights = list(style.values())
        try:
            total = sum(float(weight) for weight in weights)
            sound = math.isfinite(total) and total > 0 and all(float(weight) >= 0 for weight in weights)
        except (OverflowError, TypeError, ValueError):
            sound = False
        if not sound:
            raise HidaError(
                f"the weights of a style mixture must be numbers ≥ 0 with a finite sum above 0; they are {weights}."
            )


def _as_given(number: object) -> str:
    return str(number) if isinstance(number, np.generic) else shown(number) if isinstance(number, str) else repr(number)


def mixture_weights(style: Mapping[int, float], styles: int) -> np.ndarray:
    """Return (S,) float32 weights that sum to 1."""
    weights = np.zeros(styles)
    for number, weight in style.items():
        weights[number - 1] = weight
    return (weights / weights.sum()).astype(np.float32)


def map_weights(style: np.ndarray) -> np.ndarray:
    """Return a style map (H, W, S) whose weights sum to 1 at every pixel, as the generator knows them."""
    total = style.sum(2, keepdims=True, dtype=np.float64)
    return style if np.abs(total - 1).max() <= 1e-3 else (style / total).astype(np.float32)


def sweep(first: int, last: int, steps: int) -> list[dict[int, float]]:
    """Return ``steps`` mixtures from one style to another, both ends included.

    Raises:
        HidaError: for one style, fewer than two steps, or more than can be looked at.
    """
    if not 2 <= steps <= MOST_STEPS or first == last:
        raise HidaError(
            f"a sweep needs two different styles and 2 steps or more, {MOST_STEPS} at most; change --sweep or --steps."
        )
    return [{first: 1 - k / (steps - 1), last: k / (steps - 1)} for k in range(steps)]


@dataclass(frozen=True)
class StyleMap:
    """A style for every region of a photo, of any size.

    Args:
        path: of the file that it was read from.
        pixels: numbers of styles, (H, W), or weights of the first three, uint8 (H, W, 3).
        styles: how many there are.
    """

    path: Path
    pixels: np.ndarray
    styles: int

    def weights(self, size: tuple[int, int]) -> np.ndarray:
        """Return the map's weights for a photo of ``size`` (width, height): (H, W, S) float32, summing to 1 at each.

        Raises:
            HidaError: if the photo has another shape.
        """
        height, width = self.pixels.shape[:2]
        require_shape(f"the style map '{self.path}'", (width, height), size)
        try:
            if self.pixels.ndim == 2:
                numbers = np.asarray(Image.fromarray(self.pixels).resize(size, Image.Resampling.NEAREST))
                return np.eye(self.styles, dtype=np.float32)[numbers - 1]
            pixels = self.pixels
            if (width, height) != size:
                pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
            weights = np.zeros((*pixels.shape[:2], self.styles), np.float32)
            weights[:, :, : min(3, self.styles)] = pixels[:, :, : min(3, self.styles)]
            return weights / weights.sum(2, keepdims=True)
        except MemoryError:
            raise _too_large(self.path) from None


def read_style_map(path: Path, styles: int) -> StyleMap:
    """Read a mask that names a style for every region.

    A grey mask holds style numbers 1 … S as its grey levels, in 2 to 32 bits. In a coloured one red, green and blue are
    the weights of styles 1, 2 and 3, so that (255, 0, 0) is style 1 and mixed colours are mixtures; it cannot name a
    fourth style. A palette whose indices are all style numbers, as tools for labels write it, is taken by its indices,
    any other by its colours. The mask is turned as its EXIF says, like the photo; a colour profile of it is ignored.

    Raises:
        HidaError: if it cannot be read, or holds another number, a black pixel, or more colours than there are styles,
            or is a photo: most of its pixels would be mixtures of all three.
    """
    try:
        return _style_map(path, styles)
    except MemoryError:
        raise _too_large(path) from None


def style_map_from_file(path: Path, size: tuple[int, int], styles: int) -> np.ndarray:
    """Return the weights (H, W, S) of :func:`read_style_map` for a photo of ``size`` (width, height)."""
    return read_style_map(path, styles).weights(size)


def _too_large(path: Path) -> HidaError:
    return HidaError(f"the style map '{path}' does not fit in memory; scale it and the photo down.")


def _style_map(path: Path, styles: int) -> StyleMap:
    def wrong(what: str) -> HidaError:
        colours = ("red for style 1", "red and green for styles 1 and 2", "red, green and blue for styles 1, 2 and 3")
        return HidaError(
            f"the style map '{path}' {what}; give style numbers, 1 to {styles}, as grey levels or as indices of a "
            f"palette, or the colours {colours[min(styles, 3) - 1]}."
        )

    picture = load(path, more=9)
    numbers = _labels(picture, styles)
    if numbers is not None:
        others = numbers[(numbers < 1) | (numbers > styles) | (numbers != np.rint(numbers))]
        if others.size:
            raise wrong(f"holds the value {others[0].item()}")
        return StyleMap(path, numbers.astype(np.uint8 if styles < 256 else np.int32), styles)
    pixels = np.asarray(to_rgb(picture, managed=False))
    if pixels[:, :, styles:].any():
        raise wrong(f"has more colours than these weights have styles ({styles})")
    some = pixels[:: 1 + pixels.shape[0] // 1024, :: 1 + pixels.shape[1] // 1024]
    if (some.min(2) > LEAST_COLOUR * some.sum(2)).mean() > 0.5:
        raise wrong("looks like a photo: most of its pixels are a mixture of all three colours")
    if not pixels.any(2).all():
        raise wrong("has black pixels, which name no style")
    return StyleMap(path, pixels, styles)


def _labels(picture: Picture, styles: int) -> np.ndarray | None:
    """Return the numbers of a mask (H, W); None if it names styles by colours."""
    if is_deep(picture.image):
        numbers = stored_values(picture)
        return numbers.astype(np.int32) if numbers.dtype == np.uint16 else numbers
    if picture.image.mode == "P":
        indices = stored_values(picture)
        if indices.min() >= 1 and indices.max() <= styles:
            return indices
    if picture.image.mode == "L" and not picture.image.has_transparency_data:
        return stored_values(picture)
    picture.image = to_rgb(picture, managed=False)
    pixels = np.asarray(picture.image)
    if (pixels != pixels[:, :, :1]).any():
        return None
    if picture.maxval > 255:  # of which Pillow keeps 8 bits
        raise HidaError(f"the mask {picture.name} is a PPM of more than 8 bits; save its numbers as a PGM or PNG.")
    return own_numbers(picture, pixels[:, :, 0].copy()) if picture.maxval else np.ascontiguousarray(pixels[:, :, 0])


def names(styles: Sequence[NamedStyle]) -> list[str]:
    """Return the names of ``styles``.

    Raises:
        HidaError: if two share one.
    """
    found = [style_name(style) for style in styles]
    for name in found:
        if found.count(name) > 1:
            raise HidaError(f"--style names {name} twice; once is enough.")
    return found
