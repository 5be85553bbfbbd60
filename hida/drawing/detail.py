"""Fine drawings of large faces: how fine a face's pixels deserve, and how its coarse and fine drawings become one.

The generator knows a face in 256×256 pixels. It also draws the same square at 512 or 1024: teeth, irises and single
hairs, with strokes as much thinner, but without the dark masses, and with blotches on skin. Both are joined: how dark
the paper is in any neighbourhood, the tone, is the coarse drawing's; which strokes make it so are the fine one's.
Sketches are grey values, 0 to 255 or 0 to 1, with white paper the highest; the ink of a pixel is what its paper lacks,
its density the logarithm of the share of light that is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hida.data.framing import CROP
from hida.drawing.borders import MIDDLE, RADII
from hida.drawing.joining import finer
from hida.drawing.views import view_photo
from hida.errors import HidaError
from hida.images.alignment import scale_of

Detail = Literal["coarse", "fine", "auto"]
DrawViews = Callable[[np.ndarray, int], Sequence[np.ndarray]]
"""From a view's matrix and its side to its sketches, uint8 (side, side), one for each style."""

SCALES = (2, 4)
"""How many times as fine as the coarse one a face is drawn."""
ENOUGH = {2: 1.5, 4: 3.0}
"""Pixels of the photo, and of the picture, to a pixel of the coarse view from which a face is drawn so finely: below,
half of what is drawn could not be seen."""
FEWEST = round(ENOUGH[2] * CROP)
"""The least pixels across a face's view that are enough for fine strokes."""
DETAIL = 0.125
"""Energy of the photo's finest octave at a scale, by that of the octave below it, from which there is detail to draw.
It is 0.17 to 0.7 in real photos, below 0.1 in enlarged or blurred ones."""
TONE = 4.0
"""Standard deviation, in pixels of the coarse view, of the low-pass that is the tone: a third of an iris."""
TOLERANCE = 1.5 / 255
"""How exactly a joined drawing has the coarse one's tone."""
GAIN = 3.5
"""How many times its density a fine stroke is drawn at most: more would make its soft edges strokes, too."""
SHARE, MOST = 0.25, 0.25
"""Share of the coarse drawing's density that is added where the fine one has little ink: at first, and at most."""
SKIN = {2: 0.3, 4: 1.5}
"""The share that is added, by scale, where there is little tone: strokes on skin are the coarser drawing's, only
sharper, since the finest one has blotches there."""
OPEN = {2: 0.6, 4: 1.2}
"""How much contrast is added to strokes, by scale, in dark places, where they would run together."""
ROUNDS, SAMPLED = 7, 512
"""Rounds in which the gain is found, and the side to which a drawing is thinned for it."""


def require_detail(detail: Detail) -> None:
    """Check the choice of detail.

    Raises:
        HidaError: if it is none.
    """
    if detail not in get_args(Detail):
        raise HidaError(f"detail is {detail!r}; give one of {', '.join(get_args(Detail))}.")


def choose_scale(photo: np.ndarray, view: np.ndarray, detail: Detail, place: float = 1.0) -> int:
    """Return how many times as fine as in a 256×256 view a face is to be drawn: 1, 2 or 4.

    Args:
        photo: uint8 (H, W, 3).
        view: the matrix of the face's 256×256 view.
        detail: "coarse" is 1; "fine" what the number of pixels allows; "auto" that, as long as the photo, at the size
            in question, shows more than the next smaller size does.
        place: pixels of the picture to a pixel of the photo.
    """
    if detail == "coarse":
        return 1
    pixels = min(place, 1.0) / scale_of(view)
    chosen = 1
    for scale in SCALES:
        if pixels < ENOUGH[scale] or (detail == "auto" and finest_octave(photo, view, scale) < DETAIL):
            break
        chosen = scale
    return chosen


def finest_octave(photo: np.ndarray, view: np.ndarray, scale: int) -> float:
    """Return the energy of the finest octave of a face's view at ``scale`` by that of the octave below it.

    Energies are those of the spectrum of the view's middle, which holds the face, seen in grey through a Hann window.
    A photo whose energy falls as 1/f², as that of most sharp ones does, has 1; enlarged ones have next to nothing.
    """
    side = CROP * scale
    colours = view_photo(photo, finer(view, scale), (side, side)).astype(np.float32)
    grey = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    middle = grey[side // 4 : -side // 8, side // 4 : -side // 4]
    window = np.hanning(middle.shape[0])[:, None] * np.hanning(middle.shape[1])
    power = np.abs(np.fft.rfft2((middle - middle.mean()) * window)) ** 2
    # In units of the Nyquist frequency; the corners beyond it, and the last tenth, which resampling weakens, are out.
    radius = 2 * np.hypot(np.fft.fftfreq(middle.shape[0])[:, None], np.fft.rfftfreq(middle.shape[1]))
    fine, coarse = (power[(radius >= low) & (radius < 1.8 * low)].sum() for low in (0.5, 0.25))
    return float(fine / max(coarse, 1e-9))


def draw_finely(draw: DrawViews, view: np.ndarray, coarse: Sequence[np.ndarray], scale: int) -> list[np.ndarray]:
    """Draw a face ``scale`` times as fine.

    Args:
        draw: draws a view.
        view: the matrix of the face's 256×256 view.
        coarse: uint8 (256, 256), its sketches, one for each style.
        scale: 1, 2 or 4.

    Returns:
        uint8 (256·scale, 256·scale), one for each style.
    """
    joined = [torch.from_numpy(sketch) / 255 for sketch in coarse]
    tones = [tone(sketch) for sketch in joined]
    for step in SCALES:
        if step > scale:
            break
        fine = draw(finer(view, step), CROP * step)
        joined = [
            join(before, torch.from_numpy(sketch) / 255, wanted)
            for before, sketch, wanted in zip(joined, fine, tones, strict=True)
        ]
    return [(sketch * 255).round().to(torch.uint8).numpy() for sketch in joined]


def tone(sketch: Tensor, side: int = CROP) -> Tensor:
    """Return the low-pass of a square sketch (H, H), H a multiple of ``side``: (side, side)."""
    small = functional.avg_pool2d(sketch[None, None], sketch.shape[0] // side)
    reach = round(3 * TONE)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / TONE) ** 2)
    weights /= weights.sum()
    small = functional.pad(small, (reach,) * 4, mode="reflect")
    return functional.conv2d(functional.conv2d(small, weights[None, None, None]), weights[None, None, :, None])[0, 0]


def join(coarse: Tensor, fine: Tensor, wanted: Tensor) -> Tensor:
    """Return the strokes of a fine drawing in the tone of a coarse one.

    The fine drawing's density is multiplied, place by place, by what makes its tone the wanted one; this leaves paper
    white, and blotches where the coarse drawing has none next to nothing. Where the fine drawing has too little ink to
    multiply, as in dark masses, the coarse one's density is added. What then still differs, little, is added evenly.
    Clothes keep the coarse strokes, as they have beyond the view.

    Args:
        coarse: (h, h) in [0, 1], a drawing at a smaller scale.
        fine: (H, H) in [0, 1], H = 512 or 1024.
        wanted: (256, 256), the tone.
    """
    side = fine.shape[0]
    # The fine drawing's paper need not be as white.
    paper, fine_paper = _paper(coarse), _paper(fine)
    need = (1 - wanted / paper).clamp(0, 1)
    strokes = _density(fine / fine_paper)
    before = _enlarged(coarse, side)
    masses = _density(before / paper)
    lack = _ratio(need, torch.exp(-strokes))
    added = torch.maximum(SHARE * _smooth((lack - 1) / 1.5), SKIN[side // CROP] * (1 - _smooth((need - 0.2) / 0.3)))
    # In dark places, single strands: the gaps between them are opened.
    strokes = (
        strokes + _spread(OPEN[side // CROP] * _smooth((need - 0.2) / 0.4), side) * (strokes - _blurred(strokes))
    ).clamp(min=0)
    gain = torch.ones_like(need)
    # A tone is the mean of so many pixels that some of them are enough to find the gain.
    step = max(1, side // SAMPLED)
    some, some_masses = strokes[::step, ::step], masses[::step, ::step]
    for _ in range(ROUNDS):
        density = some + _spread(added, side // step) * some_masses
        lack = _ratio(need, torch.exp(-_spread(gain, side // step) * density))
        more = (added + (lack - 1).clamp(0, 1) * 0.3).clamp(max=MOST)
        added = torch.where(gain > 0.99 * GAIN, torch.maximum(added, more), added)
        gain = (gain * lack**1.2).clamp(max=GAIN)
    result = paper * torch.exp(-_spread(gain, side) * (strokes + _spread(added, side) * masses))
    result = before + (result - before) * _spread(_head(), side)
    for _ in range(4 * ROUNDS):
        missing = wanted - tone(result)
        if missing.abs().max() <= TOLERANCE:
            break
        result = (result + _spread(1.5 * missing, side)).clamp(0, 1)
    return result


def _head() -> Tensor:
    """Return (256, 256) weights: 1 on the head and in what is above the mouth, a smooth fall to 0 on the shoulders."""
    y, x = torch.meshgrid(torch.arange(CROP), torch.arange(CROP), indexing="ij")
    distance = torch.hypot(*((at - middle) / radius for at, middle, radius in zip((x, y), MIDDLE, RADII, strict=True)))
    return 1 - torch.minimum(_smooth((distance - 1.15) / 0.3), _smooth((y - 140) / 50))


def _paper(sketch: Tensor) -> Tensor:
    """Return the brightness of the paper: the median of the brighter two fifths."""
    return sketch.flatten().quantile(0.8).clamp(0.5, 1)


def _density(light: Tensor) -> Tensor:
    return -torch.log(light.clamp(1 / 255, 1))


def _ratio(need: Tensor, light: Tensor) -> Tensor:
    """Return how much more ink is needed than there is, place by place; about one where neither is any."""
    return (need + 0.004) / (1 - tone(light) + 0.004)


def _spread(field: Tensor, side: int) -> Tensor:
    """Return a smooth field on the coarse view at a finer side."""
    return functional.interpolate(field[None, None], (side, side), mode="bilinear", align_corners=False)[0, 0]


def _enlarged(sketch: Tensor, side: int) -> Tensor:
    larger = functional.interpolate(sketch[None, None], (side, side), mode="bicubic", align_corners=False)[0, 0]
    return larger.clamp(0, 1)


def _blurred(sketch: Tensor) -> Tensor:
    for _ in range(2):
        sketch = functional.avg_pool2d(functional.pad(sketch[None, None], (2,) * 4, mode="reflect"), 5, 1)[0, 0]
    return sketch


def _smooth(values: Tensor) -> Tensor:
    """Return 0 below 0, 1 above 1, and a smooth rise between."""
    values = values.clamp(0, 1)
    return values * values * (3 - 2 * values)
