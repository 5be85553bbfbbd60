"""Choose a depth method by name, load its network once, and predict."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Literal, overload

import numpy as np

from hida import weights
from hida.depth.face import FaceModel, largest_face
from hida.errors import HidaError, warn
from hida.images.io import ImageSource, read_image

if TYPE_CHECKING:
    from hida.depth.builtin.network import BuiltinDepth
    from hida.depth.midas import Midas

METHODS = ("auto", "tddfa", "midas", "builtin", "none")

# indices.npy is needed to make bfm.npz only, not to use it.
_TDDFA = tuple(name for name in weights.GROUPS["tddfa"] if name != "indices")
# Networks are loaded once for every set of files they come from.
_face_models: dict[tuple[str, ...], FaceModel] = {}
_midas_networks: dict[str, Midas] = {}


def predict(photo: ImageSource, method: str = "auto", *, model: str | os.PathLike[str] | None = None) -> np.ndarray:
    """Predict the depth of a photo: float32 (H, W) in [0, 1], in its own size once upright, nearest 1, background 0.

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
    method = _checked(method, model)
    if method == "none":
        image = read_image(photo)
        warn("depth 'none': the depth is zero everywhere, which the generator was not trained on")
        return np.zeros((image.height, image.width), np.float32)
    if method == "midas":
        return _midas(model).predict(photo)
    if method == "tddfa":
        tddfa = face_model("tddfa")
        image = read_image(photo)
        return largest_face(np.asarray(image), tddfa).depth(image.size)
    builtin = face_model("builtin")
    image = read_image(photo)
    pixels = np.asarray(image)
    faces = builtin.faces(pixels)
    if not faces:
        warn("no face was found in the photo: the whole picture is taken for one")
    return (faces[0] if faces else builtin.whole(pixels)).depth(image.size)


def require_method(name: str) -> None:
    """Check a choice of depth that is a word: a method, midas:MODEL, or the path of a map that is there.

    Raises:
        HidaError: if it is none of these, with the method that may be meant.
    """
    word = name.partition(":")[0]
    if word in METHODS or os.path.exists(name):
        return
    near = difflib.get_close_matches(word.lower(), METHODS, 1)
    if not near and (os.path.splitext(name)[1] or os.path.dirname(name)):
        raise HidaError(f"the depth map '{name}' does not exist; check the path.")
    hint = f"did you mean {near[0]}?" if near else f"choose {', '.join(METHODS)} (as midas:MODEL), or give a file."
    raise HidaError(f"there is no depth method and no file '{name}'; {hint}")


def load(method: str = "auto", model: str | os.PathLike[str] | None = None) -> FaceModel | Midas | None:
    """Load, once, what :func:`predict` would use; None for "none". Arguments and errors as there."""
    method = _checked(method, model)
    if method == "none":
        return None
    return _midas(model) if method == "midas" else face_model(method)


def resolve(method: str) -> str:
    """Return the method that "auto" is on this machine; other names unchanged.

    Raises:
        HidaError: the method is unknown.
    """
    if method not in METHODS:
        raise HidaError(f"there is no depth method {method!r}; choose one of {', '.join(METHODS)}.")
    if method != "auto":
        return method
    return "tddfa" if weights.is_available(*_TDDFA) else "builtin"


@overload
def face_model(method: Literal["builtin"], device: str = "cpu") -> BuiltinDepth: ...


@overload
def face_model(method: str = "auto", device: str = "cpu") -> FaceModel: ...


def face_model(method: str = "auto", device: str = "cpu") -> FaceModel:
    """Return the face model that "tddfa", "builtin" or "auto" is, loaded once.

    Args:
        method: the name; builtin also takes a whole picture for a face.
        device: where builtin computes; tddfa runs on the CPU.

    Raises:
        HidaError: its weights are missing, or the method finds no faces.
    """
    method = resolve(method)
    key: tuple[str, ...]
    if method == "tddfa":
        if device != "cpu":
            raise HidaError(f"the depth method tddfa runs on the CPU, not on {device}; use builtin there.")
        if not weights.is_available(*_TDDFA):
            missing = ", ".join(weights.get(name).filename for name in _TDDFA if not weights.is_available(name))
            raise HidaError(
                f"the depth method tddfa needs files that are not on this machine ({missing}); run `hida weights fetch "
                "tddfa --accept-licence`, add a folder that holds them to HIDA_WEIGHTS, or use builtin."
            )
        key = (method, *(str(weights.find(name)) for name in _TDDFA))
    elif method == "builtin":
        key = (method, device, str(weights.find("depth")), str(weights.find("faceboxes")))
    else:
        raise HidaError(f"the depth method {method} finds no faces; choose tddfa or builtin.")
    if key not in _face_models:
        if method == "tddfa":
            from hida.depth.tddfa import TDDFA

            _face_models[key] = TDDFA.load()
        else:
            from hida.depth.builtin.network import BuiltinDepth

            _face_models[key] = BuiltinDepth.load(device=device)
    return _face_models[key]


def _checked(method: str, model: str | os.PathLike[str] | None) -> str:
    method = resolve(method)
    if model is not None and method != "midas":
        raise HidaError(f"a depth network {model} is of use to the method midas only, not to {method}; leave it out.")
    return method


def _midas(model: str | os.PathLike[str] | None) -> Midas:
    if model is None:
        raise HidaError(
            "the depth method midas needs a network: name a TorchScript or ONNX file, or a torch.hub name such as "
            "intel-isl/MiDaS:DPT_Hybrid."
        )
    from hida.depth.midas import Midas

    name = os.fspath(model)
    if name not in _midas_networks:
        _midas_networks[name] = Midas.load(model)
    return _midas_networks[name]
