"""Colours as sRGB: what a picture's own profile, or its gamma and primaries, say of its numbers.

The conversion is LittleCMS's, through Pillow. Of a file that describes its colours without a profile (PNG's gAMA and
cHRM, a camera's Adobe RGB) a profile is written for it.
"""

from __future__ import annotations

import functools
import io
import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms

from hida.errors import first_line, warn

LARGEST = 1 << 24  # bytes of a profile; those of presses have some 3 MB

_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK"}
# Devices and colour spaces. A device link or an abstract profile ("link", "abst") says nothing of a picture's colours.
_CLASSES = ("scnr", "mntr", "prtr", "spac")
_EXACT = 0x0100  # LittleCMS's cmsFLAGS_NOOPTIMIZE
_NEAR = 2  # levels: what profiles that all mean sRGB differ by

# White, red, green and blue as x, y.
_SRGB_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)
_ADOBE_PRIMARIES = (0.3127, 0.3290, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
_ADOBE_GAMMA = 2.19921875
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1, as ICC's function 3

_D50 = np.array([0.9642, 1.0, 0.8249])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


class Colours:
    """The colours of one picture: convert pieces of it to sRGB.

    Args:
        image: the picture, for its ``info`` and EXIF.
        mode: "RGB", "L" or "CMYK": what its pieces are converted from.
        name: the picture, for the warning about a profile that cannot be used.
    """

    def __init__(self, image: Image.Image, mode: str, name: str) -> None:
        self._transform: ImageCms.ImageCmsTransform | None = None
        try:
            profile = _profile(image, mode)
            self._transform = None if profile is None else _transform(profile, mode)
        except MemoryError:
            raise
        except Exception as error:  # whatever a malformed profile makes of it, the picture can be read
            warn(f"the colour profile of {name} is not used ({first_line(error)}): its colours are taken as sRGB.")

    @property
    def are_srgb(self) -> bool:
        """Whether there is nothing to convert."""
        return self._transform is None

    def convert(self, piece: Image.Image) -> Image.Image:
        """Return a piece of the picture's mode as RGB; one of mode "RGB" is changed in place."""
        if self._transform is None:
            return piece if piece.mode == "RGB" else piece.convert("RGB")
        if piece.mode == "L":
            return piece.point(list(_curve(self._transform))).convert("RGB")
        converted = ImageCms.applyTransform(piece, self._transform, inPlace=piece.mode == "RGB")
        return piece if converted is None else converted

    def convert_grey(self, levels: np.ndarray) -> np.ndarray:
        """Return grey levels 0–255 of any fineness as those of sRGB."""
        if self._transform is None:
            return levels
        return np.interp(levels, np.arange(256), _curve(self._transform))


def _curve(transform: ImageCms.ImageCmsTransform) -> tuple[int, ...]:
    """Return what the 256 levels of grey become."""
    found = ImageCms.applyTransform(Image.fromarray(np.arange(256, dtype=np.uint8)[None]), transform)
    assert found is not None  # None is for a conversion in place
    return tuple(np.asarray(found)[0, :, 1].tolist())


@functools.lru_cache(1)
def lab_to_srgb() -> ImageCms.ImageCmsTransform:
    """Return the transform of Pillow's mode "LAB" to "RGB"."""
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _profile(image: Image.Image, mode: str) -> bytes | None:
    """Return the ICC profile that describes a picture, None for sRGB."""
    info: dict[Any, Any] = image.info
    profile = info.get("icc_profile")
    if profile:
        if not isinstance(profile, bytes):
            raise TypeError("it is not binary")
        if len(profile) > LARGEST:
            raise ValueError(f"it has {len(profile):,} bytes")
        return profile
    # PNG: a profile goes before sRGB, and that before gAMA and cHRM.
    if "srgb" in info or mode == "CMYK":
        return None
    gamma, primaries = info.get("gamma"), info.get("chromaticity")
    if gamma is not None or primaries is not None:
        return _described(gamma, primaries, grey=mode == "L")
    if mode == "RGB" and _is_adobe(image):
        return matrix_profile(_ADOBE_GAMMA, _ADOBE_PRIMARIES)
    return None


def _described(gamma: float | None, primaries: Sequence[float] | None, grey: bool) -> bytes | None:
    exponent = None if gamma is None else 1 / gamma
    if not grey and primaries is not None and not np.allclose(primaries, _SRGB_PRIMARIES, rtol=0, atol=0.002):
        return matrix_profile(exponent, primaries)
    # 1/2.2 is how writers of PNG say sRGB; libpng counts 5 % to either side as the same.
    if gamma is None or abs(2.2 * gamma - 1) < 0.05:
        return None
    return matrix_profile(exponent, None if grey else _SRGB_PRIMARIES)


def _is_adobe(image: Image.Image) -> bool:
    """Tell whether a camera says by EXIF that its colours are Adobe RGB's: no sRGB, and DCF's option R03."""
    if image.format not in ("JPEG", "MPO", "TIFF"):
        return False
    try:
        exif = image.getexif()
        space = exif.get_ifd(ExifTags.IFD.Exif).get(0xA001)
        return space != 1 and str(exif.get_ifd(ExifTags.IFD.Interop).get(1, "")).startswith("R03")
    except Exception:  # EXIF is often malformed
        return False


@functools.lru_cache(8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of pixels of ``mode`` to sRGB; None if the profile is sRGB by its effect.

    Raises:
        ValueError: the profile is for another kind of picture.
        PyCMSError, OSError: it is broken.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    kind, space = source.profile.device_class.strip(), source.profile.xcolor_space.strip()
    if kind not in _CLASSES:
        raise ValueError(f"it is of the class {kind!r}")
    if space != _SPACES[mode]:
        raise ValueError(f"it is for {space!r} and the picture is {_SPACES[mode]}")
    # Where LittleCMS makes a table of a grey curve, its darkest levels are up to 10 too dark.
    flags = _EXACT if mode == "L" else 0
    srgb = ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(source, srgb, mode, "RGB", flags=flags)  # type: ignore[arg-type]
    if mode == "CMYK":
        return transform
    # There are many profiles of sRGB, and many that have its name and are another: its effect decides.
    levels = np.arange(256, dtype=np.uint8)
    if mode == "L":
        return None if np.abs(np.array(_curve(transform)) - levels).max() <= _NEAR else transform
    grid = np.stack(np.meshgrid(*[levels[::15]] * 3, indexing="ij"), -1).reshape(1, -1, 3)
    probe = np.concatenate([grid, np.repeat(levels[None, :, None], 3, 2)], 1)
    found = ImageCms.applyTransform(Image.fromarray(probe), transform)
    assert found is not None
    return None if np.abs(np.asarray(found).astype(int) - probe).max() <= _NEAR else transform


def matrix_profile(gamma: float | None, primaries: Sequence[float] | None) -> bytes:
    """Write an ICC profile of a display.

    Args:
        gamma: the exponent of its curve; None for the curve of sRGB.
        primaries: x and y of white, red, green and blue; None for a grey display.

    Raises:
        ValueError: these are no primaries of a display.

    Source: ICC.1:2010, 7.2, 9.2, 10.16; the adaptation to D50 is Bradford's, Annex E.
    """
    parameters = _SRGB_CURVE if gamma is None else (gamma,)
    curve = struct.pack(">4s4xHxx", b"para", 3 if gamma is None else 0) + b"".join(map(_fixed, parameters))
    tags = {b"wtpt": _xyz(_D50)}
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        points = np.asarray(primaries, np.float64).reshape(4, 2)
        if not (np.isfinite(points).all() and (points[:, 1] > 1e-6).all() and np.abs(points).max() < 4):
            raise ValueError("its primaries are impossible")
        white, *colours = np.stack([points[:, 0], points[:, 1], 1 - points.sum(1)], 1) / points[:, 1:]
        columns = np.array(colours).T
        columns = columns * np.linalg.solve(columns, white)
        cones = np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white))
        columns = np.linalg.solve(_BRADFORD, cones @ _BRADFORD @ columns)
        if not (np.isfinite(columns).all() and np.abs(columns).max() < 8):
            raise ValueError("its primaries are impossible")
        for letter, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
            tags[letter + b"XYZ"], tags[letter + b"TRC"] = _xyz(column), curve
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(data))
        body += data
    space = b"GRAY" if primaries is None else b"RGB "
    header = struct.pack(">I4x4s4s4s4s12x4s", offset + len(body), b"\4\x30\0\0", b"mntr", space, b"XYZ ", b"acsp")
    header += bytes(28) + b"".join(map(_fixed, _D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def _xyz(values: np.ndarray) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(map(_fixed, values))


def _fixed(value: float) -> bytes:
    """Return an s15Fixed16Number."""
    return struct.pack(">i", math.floor(value * 65536 + 0.5))
