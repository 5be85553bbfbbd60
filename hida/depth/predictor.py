"""Choose a depth method by name, load its network once, and predict."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

import numpy as np

from hida import weights
from hida.depth.face import FaceModel, largest_face
from hida.errors import HidaError
from hida.images.io import ImageSource, read_image

if TYPE_CHECKING:
    from hida.depth.midas import Midas

METHODS = ("auto", "tddfa", "midas", "builtin", "none")

# indices.npy is needed to make bfm.npz only, not to use it.
_TDDFA = tuple(name for name in weights.GROUPS["tddfa"] if name != "indices")
# Networks are loaded once for every set of files they come from.
_loaded: dict[tuple[str, ...], FaceModel | Midas] = {}


def predict(photo: ImageSource, method: str = "auto", *, model: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Depth float32 (H, W) in [0, 1] of a photo, in its own size once upright: nearest 1, background 0.

    Args:
        photo: a path, a Pillow image or an array; see :func:`hida.images.io.read_image`.
        method: "tddfa", "builtin", "midas", "none" (zeros, with a warning), or "auto": tddfa where all of its weights
            are on this machine, builtin elsewhere. builtin takes the whole picture for a face, with a warning, when
            the detector sees none.
        model: for midas alone, the network: a TorchScript or ONNX file or a torch.hub name; both TorchScript and
            torch.hub run code, so nothing is loaded that is not named here.

    Raises:
        HidaError: the photo cannot be read, tddfa finds no face in it, weights are missing, or the method is unknown.
    """
    network = load(method, model)
    image = read_image(photo)
    if network is None:
        warnings.warn(
            "depth 'none': the depth is zero everywhere, which the generator was not trained on", stacklevel=2
        )
        return np.zeros((image.height, image.width), np.float32)
    if resolve(method) == "midas":
        return network.predict(image)
    pixels = np.asarray(image)
    if resolve(method) == "tddfa":
        return largest_face(pixels, network).depth(image.size)
    faces = network.faces(pixels)
    if not faces:
        warnings.warn("no face was found in the photo: the whole picture is taken for one", stacklevel=2)
    return (faces[0] if faces else network.whole(pixels)).depth(image.size)


def load(method: str = "auto", model: str | os.PathLike[str] | None = None) -> FaceModel | Midas | None:
    """Load, once, what :func:`predict` would use; None for "none". Arguments and errors as there."""
    method = resolve(method)
    if model is not None and method != "midas":
        raise HidaError(f"A depth network {model} is of use to the method midas only, not to {method}.")
    if method == "none":
        return None
    return _midas(model) if method == "midas" else face_model(method)


def resolve(method: str) -> str:
    """The method that "auto" stands for on this machine; other names unchanged, HidaError for unknown ones."""
    if method not in METHODS:
        raise HidaError(f"There is no depth method {method!r}; choose one of {', '.join(METHODS)}.")
    if method != "auto":
        return method
    return "tddfa" if weights.is_available(*_TDDFA) else "builtin"


def face_model(method: str = "auto", device: str = "cpu") -> FaceModel:
    """The face model "tddfa", "builtin" or "auto" stands for, loaded once.

    device: where builtin computes; tddfa runs on the CPU. HidaError when its weights are missing.
    """
    method = resolve(method)
    if method == "tddfa":
        if device != "cpu":
            raise HidaError(f"The depth method tddfa runs on the CPU, not on {device}; use builtin there.")
        if not weights.is_available(*_TDDFA):
            missing = ", ".join(weights.get(name).filename for name in _TDDFA if not weights.is_available(name))
            raise HidaError(
                f"The depth method tddfa needs files that are not on this machine ({missing}); run `hida weights fetch "
                "tddfa --accept-licence`, add a folder that holds them to HIDA_WEIGHTS, or use builtin."
            )
        key = (method, *(str(weights.find(name)) for name in _TDDFA))
    elif method == "builtin":
        key = (method, device, str(weights.find("depth")), str(weights.find("faceboxes")))
    else:
        raise HidaError(f"The depth method {method} finds no faces; choose tddfa or builtin.")
    if key not in _loaded:
        if method == "tddfa":
            from hida.depth.tddfa import TDDFA

            _loaded[key] = TDDFA.load()
        else:
            from hida.depth.builtin.network import BuiltinDepth

            _loaded[key] = BuiltinDepth.load(device=device)
    return _loaded[key]


def _midas(model: str | os.PathLike[str] | None) -> Midas:
    if model is None:
        raise HidaError(
            "The depth method midas needs a network: name a TorchScript or ONNX file, or a torch.hub name such as "
            "intel-isl/MiDaS:DPT_Hybrid."
        )
    from hida.depth.midas import Midas

    key = ("midas", os.fspath(model))
    if key not in _loaded:
        _loaded[key] = Midas.load(model)
    return _loaded[key]
