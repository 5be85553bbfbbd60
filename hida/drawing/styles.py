"""Styles as a user names them: a number, a mixture, or a map with one style for each pixel."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hida.config import Config
from hida.errors import HidaError
from hida.images.io import stored_values, to_rgb
from hida.images.opening import load
from hida.images.samples import Picture, is_deep, own_numbers

NamedStyle = int | Mapping[int, float]
"""A style's number from 1, or a mixture {number: weight}."""
Style = NamedStyle | np.ndarray
"""A number or a mixture for the whole photo, or weights (H, W, S) for each of its pixels."""

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
        raise HidaError(
            f"--style {text!r} is neither a style nor a mixture; give a number, or weights such as 1:0.6,3:0.4."
        ) from None
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
            raise HidaError(f"there is no style {number}; these weights have styles 1 to {styles}.")
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


def style_map_from_file(path: Path, size: tuple[int, int], styles: int) -> np.ndarray:
    """Read a mask as style weights for each pixel of a photo.

    A grey mask holds style numbers 1 … S as its grey levels, in 2 to 32 bits. In a coloured one red, green and blue are
    the weights of styles 1, 2 and 3, so that (255, 0, 0) is style 1 and mixed colours are mixtures; it cannot name a
    fourth style. A palette whose indices are all style numbers, as tools for labels write it, is taken by its indices,
    any other by its colours. The mask is turned as its EXIF says, like the photo; a colour profile of it is ignored.

    Args:
        size: (width, height) of the photo.

    Returns:
        (H, W, S) float32, summing to 1 at each pixel.

    Raises:
        HidaError: if it cannot be read, or holds another number, a black pixel, or more colours than there are styles.
    """
    try:
        return _style_map(path, size, styles)
    except MemoryError:
        raise HidaError(f"the mask '{path}' does not fit in memory; scale it and the photo down.") from None


def _style_map(path: Path, size: tuple[int, int], styles: int) -> np.ndarray:
    picture = load(path, more=9)
    numbers = _labels(picture, styles)
    if numbers is not None:
        # Pillow has no 32 bits without a sign.
        stored = numbers.view(np.int32) if numbers.dtype == np.uint32 else numbers
        numbers = np.asarray(Image.fromarray(stored).resize(size, Image.Resampling.NEAREST)).view(numbers.dtype)
        wrong = numbers[(numbers < 1) | (numbers > styles) | (numbers != np.rint(numbers))]
        if wrong.size:
            raise HidaError(
                f"the grey mask '{path}' holds the value {wrong[0].item()}; its values must be style numbers, 1 to "
                f"{styles}, or its colours red, green and blue the weights of styles 1, 2 and 3."
            )
        return np.eye(styles, dtype=np.float32)[numbers.astype(np.int64) - 1]
    image = to_rgb(picture, managed=False)
    pixels = np.asarray(image)
    if pixels[:, :, styles:].any():
        raise HidaError(f"the mask '{path}' has more colours than these weights have styles ({styles}); use fewer.")
    if image.size != size:
        pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
    weights = np.zeros((*pixels.shape[:2], styles), np.float32)
    weights[:, :, : min(3, styles)] = pixels[:, :, : min(3, styles)]
    total = weights.sum(2, keepdims=True)
    if not total.min():
        raise HidaError(f"the mask '{path}' has black pixels, which name no style; give every pixel a colour.")
    return weights / total


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
