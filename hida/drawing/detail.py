"""Fine drawings of large faces: how fine a face's pixels deserve, and how its coarse and fine drawings become one.

The generator knows a face in 256×256 pixels. It also draws the same square at 512 or 1024: teeth, irises and single
hairs, with strokes as much thinner, but without the dark masses, and with blotches on skin. Both are joined: how dark
the paper is in any neighbourhood, the tone, is the coarse drawing's; which strokes make it so are the fine one's.
Sketches are grey values, 0 to 255 or 0 to 1, with white paper the highest; the ink of a pixel is what its paper lacks,
its density the logarithm of the share of light that is left.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as nn

from hida.data.framing import CROP
from hida.drawing.borders import MIDDLE, RADII
from hida.drawing.joining import finer
from hida.drawing.views import Viewed
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
TONE, FACE_TONE = 1.8, 4.0
"""Standard deviation, in pixels of the coarse view, of the low-pass that is the tone, and of that in the middle of a
face, where the coarse drawing has no teeth. With 4 everywhere the drawing, reduced to 250 pixels, is .018 of LPIPS
farther from artists' drawings than the coarse one; so it is .008, with 1.8 everywhere .005."""
TOLERANCE, SPARED = 1 / 255, 1 / 255
"""How exactly a joined drawing has the coarse one's tone, and what is left in the darkest places, where setting
it right would close the gaps between strands."""
GAIN = 3.5
"""How many times its density a fine stroke is drawn at most: more would make its soft edges strokes, too."""
SHARE, MOST = 0.25, 0.25
"""Share of the coarse drawing's density that is added where the fine one has little ink: at first, and at most."""
SKIN = {2: 0.3, 4: 1.5}
"""The share that is added, by scale, where there is little tone: strokes on skin are the coarser drawing's, only
sharper, since the finest one has blotches there."""
OPEN = {2: 0.6, 4: 1.2}
"""How much contrast is added to strokes, by scale, in dark places, where they would run together."""
ROUNDS = 7
"""Rounds in which a gain is found."""
MASS, HAIR = (0.25, 0.45), (0.2, 0.4)
"""From how much ink a place is a mass, and where it is one for certain, if no pixel of some 10×10 has less; and the
same of the tone around it, which tells hair from a wide line. Smaller squares hatch hair that has its own strands."""
INK, FULL, SOFT = 0.97, 0.7, 0.3
"""The ink of a strand, the most of a mass that strands cover, and over how much of it a strand fades into a gap. A tone
as dark as the darkest hair needs more than three quarters: the tone closes some gaps again."""
NOISE, ALONG = 0.4, (1.0, 2.5, 5.0)
"""Standard deviation of noise, by that of the fine drawing's strokes, of which strands are where that has none; and the
pixels by which they are smoothed along the hair, one after the other: longer ones look combed, shorter like fur."""
LOCK = 1.0
"""Standard deviation, in pixels of the coarse view, of the low-pass that says how dark a lock of hair is."""


def require_detail(detail: Detail) -> None:
    """Check the choice of detail.

    Raises:
        HidaError: if it is none.
    """
    if detail not in get_args(Detail):
        raise HidaError(f"detail is {detail!r}; give one of {', '.join(get_args(Detail))}.")


def choose_scale(photo: Viewed, view: np.ndarray, detail: Detail, place: float = 1.0) -> int:
    """Return how many times as fine as in a 256×256 view a face is to be drawn: 1, 2 or 4.

    Args:
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


def finest_octave(photo: Viewed, view: np.ndarray, scale: int) -> float:
    """Return the energy of the finest octave of a face's view at ``scale`` by that of the octave below it.

    Energies are those of the spectrum of the view's middle, which holds the face, seen in grey through a Hann window.
    A photo whose energy falls as 1/f², as that of most sharp ones does, has 1; enlarged ones have next to nothing.
    """
    side = CROP * scale
    colours = photo.view(finer(view, scale), (side, side)).astype(np.float32)
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
            join(before, torch.from_numpy(sketch) / 255, wanted, finest=step == scale)
            for before, sketch, wanted in zip(joined, fine, tones, strict=True)
        ]
    return [(sketch * 255).round().to(torch.uint8).numpy() for sketch in joined]


def tone(sketch: Tensor) -> Tensor:
    """Return the low-pass of a sketch (H, H), H a multiple of 256: (256, 256)."""
    small = _thinned(sketch, CROP)
    near = _gaussian(small, TONE)
    return near + (_gaussian(small, FACE_TONE) - near) * _face()


def join(coarse: Tensor, fine: Tensor, wanted: Tensor, finest: bool) -> Tensor:
    """Return the strokes of a fine drawing in the tone of a coarse one.

    The fine drawing's density is multiplied, place by place, by what makes its tone the wanted one; this leaves paper
    white, and blotches where the coarse drawing has none next to nothing. Where the fine drawing has too little ink to
    multiply, as in dark masses, the coarse one's density is added; hair that this leaves without paper is divided into
    strands. What then still differs, little, is added evenly. Clothes keep the coarse strokes, as they have beyond the
    view.

    Args:
        coarse: (h, h) in [0, 1], a drawing at a smaller scale.
        fine: (H, H) in [0, 1], H = 512 or 1024.
        wanted: (256, 256), the tone.
        finest: whether no finer drawing follows, for which masses would have to be divided anew.
    """
    side = fine.shape[0]
    # The fine drawing's paper need not be as white.
    paper, fine_paper = _paper(coarse), _paper(fine)
    need = (1 - wanted / paper).clamp(0, 1)
    strokes = _density(fine / fine_paper)
    before = _spread(coarse, side, "bicubic").clamp(0, 1)
    masses = _density(before / paper)
    lack = _ratio(need, torch.exp(-strokes))
    added = torch.maximum(SHARE * _rise(lack, 1, 2.5), SKIN[side // CROP] * (1 - _rise(need, 0.2, 0.5)))
    # In dark places, single strands: the gaps between them are opened.
    sharp = strokes - _blurred(strokes)
    opened = (strokes + _spread(OPEN[side // CROP] * _rise(need, 0.2, 0.6), side) * sharp).clamp(min=0)
    gain = torch.ones_like(need)
    # A tone is the mean of so many pixels that some of them are enough to find the gain.
    step = side // CROP
    some, some_masses = opened[::step, ::step], masses[::step, ::step]
    for _ in range(ROUNDS):
        lack = _ratio(need, torch.exp(-gain * (some + added * some_masses)))
        more = (added + (lack - 1).clamp(0, 1) * 0.3).clamp(max=MOST)
        added = torch.where(gain > 0.99 * GAIN, torch.maximum(added, more), added)
        gain = (gain * lack**1.2).clamp(max=GAIN)
    ink = 1 - torch.exp(-_spread(gain, side) * (opened + _spread(added, side) * masses))
    if finest:
        ink = _divided(ink, sharp, 1 - coarse / paper, need)
    result = before + (paper * (1 - ink) - before) * _spread(_head(), side)
    # Nothing is brighter than the coarse drawing nearby, or the paper beside hair would glow.
    brightest = nn.max_pool2d(_thinned(coarse, CROP)[None, None], 3, 1, 1)[0, 0]
    return _toned(result, wanted, paper, torch.maximum(brightest, paper), ROUNDS if finest else 2)


def _divided(ink: Tensor, sharp: Tensor, coarse: Tensor, need: Tensor) -> Tensor:
    """Return a drawing with the masses of its hair divided into strands, between which the paper shows.

    Args:
        ink: (H, H) in [0, 1], of the drawing.
        sharp: (H, H), the contrast of the fine drawing, whose strokes become strands.
        coarse: (h, h), the ink of a drawing at a smaller scale, whose strokes tell which way the hair lies.
        need: (256, 256), the ink of the tone.
    """
    side = ink.shape[0]
    # Erosion, then dilation: what has no light pixel in it. The features of a face may be masses.
    mass = -nn.max_pool2d(-_thinned(ink, side // 2)[None, None], 5, 1, 2)
    mass = nn.max_pool2d(mass, 7, side // 2 // CROP, 3)[0, 0]
    weight = _gaussian(_rise(mass, *MASS), 1.0) * _rise(need, *HAIR) * (1 - _face())
    if not weight.any():
        return ink
    coarse = _thinned(coarse, CROP)
    strands = _along(_normal(sharp) + NOISE * _noise(side), coarse)
    strands = _normal(strands - _blurred(strands))
    # Where a share of the paper is to be covered, the strands' strongest share of pixels covers it.
    share = (_gaussian(coarse, LOCK) / INK).clamp(0, FULL)
    divided = INK * _rise(_spread(share, side) - 0.5 * torch.erfc(strands / math.sqrt(2)), -SOFT / 2, SOFT / 2)
    return ink + (divided - ink) * _spread(weight, side)


def _toned(result: Tensor, wanted: Tensor, paper: Tensor, brightest: Tensor, rounds: int) -> Tensor:
    """Return a drawing (H, H) in the tone that is wanted: its ink multiplied, then, for what is missing, light added.

    No place becomes brighter than ``brightest``, (256, 256) as the tone.
    """
    # Tones are so smooth that light is found on a drawing thinned to their samples.
    side, small, need = result.shape[0], _thinned(result, CROP), 1 - wanted / paper
    gain = torch.ones_like(wanted)
    for _ in range(ROUNDS):
        gain *= _ratio(need, 1 - (1 - small / paper) * gain).clamp(0.5, 2)
    result = paper - (paper - result) * _spread(gain, side)
    spared, limit = SPARED * _rise(need, 0.5, 0.7), _spread(brightest, side)
    for _ in range(rounds):
        result = torch.minimum(result.clamp(min=0), limit)
        missing = wanted - tone(result)
        if (missing.abs() <= TOLERANCE + spared).all():
            break
        small, light = _thinned(result, CROP), torch.zeros_like(wanted)
        for _ in range(ROUNDS):
            light += 1.5 * (missing - missing.clamp(-spared, spared))
            missing = wanted - tone(torch.minimum(small + light, brightest).clamp(min=0))
        result += _spread(light, side)
    return torch.minimum(result.clamp(min=0), limit)


@functools.cache
def _noise(side: int) -> Tensor:
    """Return noise (H, H) of standard deviation 1, smooth over 3×3 pixels, always the same."""
    noise = torch.randn(side + 2, side + 2, generator=torch.Generator().manual_seed(0))
    return nn.avg_pool2d(noise[None, None], 3, 1)[0, 0] * 3


def _normal(field: Tensor) -> Tensor:
    """Return a field (H, H) of mean 0 in units of its standard deviation around each pixel."""
    power = _gaussian(_thinned(field * field, field.shape[0] // 4), 3.0)
    return field / (_spread(power, field.shape[0]).sqrt() + 0.02)


def _along(field: Tensor, coarse: Tensor) -> Tensor:
    """Return a field (H, H) smoothed along the strokes of a drawing (256, 256)."""
    side = field.shape[0]
    down, right = torch.gradient(_gaussian(coarse, 1.0))
    # The structure tensor: a line's direction has no sign, that of twice its angle has.
    across, along = (
        _gaussian(part, 3.0) + 0.2 * _gaussian(part, 8.0) for part in (right * right - down * down, 2 * right * down)
    )
    angle = 0.5 * torch.atan2(along, across)
    way = torch.stack((-torch.sin(angle), torch.cos(angle)))[None] * (2 / side)
    way = nn.interpolate(way, (side, side)).permute(0, 2, 3, 1).contiguous()
    at = (torch.arange(side) + 0.5) * (2 / side) - 1
    here = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)[None]
    field = field[None, None]
    for length in ALONG:
        there = (torch.add(here, way, alpha=step) for step in (length, -length))
        beside = [nn.grid_sample(field, at, padding_mode="border", align_corners=False) for at in there]
        field = (field + beside[0] + beside[1]) / 3
    return field[0, 0]


@functools.cache
def _face() -> Tensor:
    """Return (256, 256) weights: 1 from the eyebrows to the chin, 0 where hair is."""
    y, x = torch.meshgrid(torch.arange(CROP), torch.arange(CROP), indexing="ij")
    return 1 - _rise(torch.hypot((x - 126.5) / 50, (y - 142) / 62), 1, 1.25)


def _head() -> Tensor:
    """Return (256, 256) weights: 1 on the head and in what is above the mouth, a smooth fall to 0 on the shoulders."""
    y, x = torch.meshgrid(torch.arange(CROP), torch.arange(CROP), indexing="ij")
    distance = torch.hypot(*((at - middle) / radius for at, middle, radius in zip((x, y), MIDDLE, RADII, strict=True)))
    return 1 - torch.minimum(_rise(distance, 1.15, 1.45), _rise(y, 140, 190))


def _paper(sketch: Tensor) -> Tensor:
    """Return the brightness of the paper: the median of the brighter two fifths."""
    step = sketch.shape[0] // CROP
    return sketch[::step, ::step].flatten().quantile(0.8).clamp(0.5, 1)


def _density(light: Tensor) -> Tensor:
    return -torch.log(light.clamp(1 / 255, 1))


def _ratio(need: Tensor, light: Tensor) -> Tensor:
    """Return how much more ink is needed than there is, place by place; about one where neither is any."""
    return (need + 0.004) / (1 - tone(light) + 0.004)


def _spread(field: Tensor, side: int, mode: str = "bilinear") -> Tensor:
    """Return a smooth field on a coarser side at a finer one."""
    return nn.interpolate(field[None, None], (side, side), mode=mode, align_corners=False)[0, 0]


def _thinned(field: Tensor, side: int) -> Tensor:
    """Return the means of a field (H, H), H a multiple of ``side``, over squares: (side, side)."""
    return field if field.shape[0] == side else nn.avg_pool2d(field[None, None], field.shape[0] // side)[0, 0]


def _blurred(field: Tensor) -> Tensor:
    """Return the mean of about 5×5 pixels, smoothly weighted."""
    small = _thinned(field, field.shape[0] // 2)[None, None]
    for _ in range(2):
        small = nn.avg_pool2d(nn.pad(small, (1,) * 4, mode="reflect"), 3, 1)
    return _spread(small[0, 0], field.shape[0])


def _gaussian(small: Tensor, sigma: float) -> Tensor:
    """Return a field (h, h) seen through a Gaussian; beyond its edge it is mirrored."""
    across = _weights(small.shape[0], sigma)
    return across @ small @ across.T


@functools.cache
def _weights(side: int, sigma: float) -> Tensor:
    """Return the Gaussian along a length as a matrix, which is twice as fast as a convolution."""
    reach = round(3 * sigma)
    at = torch.arange(side)
    weights = torch.zeros(side, side)
    for step in range(-reach, reach + 1):
        mirrored = (at + step).abs()
        mirrored = torch.minimum(mirrored, 2 * (side - 1) - mirrored)
        weights[at, mirrored] += math.exp(-0.5 * (step / sigma) ** 2)
    return weights / weights.sum(1, keepdim=True)


def _rise(values: Tensor, low: float, high: float) -> Tensor:
    """Return 0 below ``low``, 1 above ``high``, and a smooth rise between."""
    values = ((values - low) / (high - low)).clamp(0, 1)
    return values * values * (3 - 2 * values)
