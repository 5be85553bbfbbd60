"""Predict the depth of natural images with MiDaS, DPT or Depth-Anything: a TorchScript or ONNX file, or torch.hub.

A TorchScript file and a torch.hub repository carry code that runs when they are loaded. So only what is named
explicitly is ever loaded; no folder, cache or environment variable is searched for one.

Sources: https://github.com/isl-org/MiDaS, https://github.com/DepthAnything/Depth-Anything-V2.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from hida.errors import HidaError, first_line
from hida.images.io import ImageSource, read_image
from hida.weights.kinds import irregular, kind_of
from hida.weights.opened import readable_name

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_ONNX_HINT = "pip install onnxruntime"


@dataclass(frozen=True)
class Preparation:
    """How a network wants its input: the shorter side's length, the multiple of both sides, mean and deviation."""

    size: int = 384
    multiple: int = 32
    mean: tuple[float, float, float] = IMAGENET[0]
    std: tuple[float, float, float] = IMAGENET[1]

    @classmethod
    def for_name(cls, name: str) -> Preparation:
        """Return what a published network wants, told by its name: Depth-Anything 518/14, MiDaS small 256, else 384/32.

        DPT networks alone are normalised with 0.5, all others with ImageNet's statistics.
        """
        flat = name.lower().replace("-", "_")
        if "depth_anything" in flat or "dinov2" in flat:
            return cls(518, 14)
        if "small" in flat:
            return cls(256, 32)
        return cls(384, 32, *HALF) if "dpt" in flat else cls()

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return (height, width) of the input: the shorter near ``size``, aspect kept up to 4:1, whole multiples."""
        scale = self.size / min(height, width)

        def whole(length: float) -> int:
            # A longer side than four times the shorter would only cost memory.
            return max(self.multiple, round(min(length, 4 * self.size) / self.multiple) * self.multiple)

        return whole(height * scale), whole(width * scale)


@dataclass
class Midas:
    """A monocular depth network: (1, 3, h, w) normalised RGB in, inverse depth (1, h, w) or (1, 1, h, w) out."""

    network: Callable[[np.ndarray], np.ndarray]
    preparation: Preparation = field(default_factory=Preparation)
    fixed_size: tuple[int, int] | None = None

    @classmethod
    def load(cls, model: str | os.PathLike[str], preparation: Preparation | None = None, device: str = "cpu") -> Midas:
        """Load a network.

        Args:
            model: a TorchScript file, an ONNX file (``.onnx``), or ``owner/repository:entry`` for torch.hub, for
                example ``intel-isl/MiDaS:DPT_Hybrid``. TorchScript and torch.hub run code: name only what you trust.
            preparation: by default told from the name.

        Raises:
            HidaError: there is no such file, it is of another kind, or a library it needs is not installed.
        """
        name = os.fspath(model)
        preparation = preparation or Preparation.for_name(Path(name).name if Path(name).exists() else name)
        if fault := irregular(Path(name)):
            raise HidaError(f"the depth network {name} {fault}; give a TorchScript or ONNX file.")
        if Path(name).is_file():
            if Path(name).suffix.lower() == ".onnx":
                network, fixed = _load_onnx(name)
                return cls(network, preparation, fixed)
            return cls(_on_torch(_load_torchscript(name, device), device), preparation)
        repository, separator, entry = name.rpartition(":")
        if separator and "/" in repository and not Path(repository).is_absolute():
            return cls(_on_torch(_load_hub(repository, entry), device), preparation)
        raise HidaError(
            f"there is no depth network {name}: give a TorchScript or ONNX file, or a torch.hub name such as "
            "intel-isl/MiDaS:DPT_Hybrid."
        )

    def predict(self, photo: ImageSource) -> np.ndarray:
        """Predict the depth (H, W) float32 in [0, 1] of a photo of any size: nearest 1; constant output gives zeros.

        Raises:
            HidaError: the network refuses the input, or gives something other than one finite map.
        """
        image = read_image(photo)
        height, width = self.fixed_size or self.preparation.input_size(image.height, image.width)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255
        mean, std = (np.asarray(values, np.float32) for values in (self.preparation.mean, self.preparation.std))
        pixels = (pixels - mean) / std
        try:
            output = self.network(np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]))
        except HidaError:
            raise
        except Exception as error:  # every runtime has its own kind for an input it does not take
            raise HidaError(
                f"the depth network failed on an input of {height}×{width} ({_reason(error)}); give another."
            ) from error
        inverse = np.squeeze(np.asarray(output, np.float32))
        if inverse.ndim != 2:
            raise HidaError(
                f"the depth network gave an array of shape {np.shape(output)} instead of one H×W map; give another."
            )
        if not np.isfinite(inverse).all():
            raise HidaError("the depth network gave values that are not finite; use another network or precision.")
        full = F.interpolate(
            torch.from_numpy(inverse)[None, None],
            size=(image.height, image.width),
            mode="bilinear",
            align_corners=False,
        )
        return normalise(full[0, 0].numpy())


def normalise(inverse: np.ndarray) -> np.ndarray:
    """Scale inverse depth to float32 [0, 1] by its minimum and maximum; a constant map says nothing and gives zeros."""
    inverse = np.asarray(inverse, np.float64)
    low, high = inverse.min(), inverse.max()
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        return np.zeros(inverse.shape, np.float32)
    return ((inverse - low) / (high - low)).astype(np.float32)


def _load_torchscript(path: str, device: str) -> torch.nn.Module:
    try:
        with warnings.catch_warnings():
            # torch deprecates TorchScript; the published networks still come as such.
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
            with readable_name(Path(path)) as name:
                return torch.jit.load(os.fspath(name), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        reason, kind = first_line(error)[:120], kind_of(Path(path))
        if _has_code(path):
            raise HidaError(f"{path} is TorchScript that cannot be loaded ({reason}); export it again.") from None
        but = f" but {kind}" if kind else "; a checkpoint of weights alone needs its code"
        raise HidaError(
            f"{path} is not a TorchScript file{but}: give a TorchScript or ONNX export, or a torch.hub name such as "
            "intel-isl/MiDaS:DPT_Hybrid."
        ) from None


def _has_code(path: str) -> bool:
    """Return whether a file is an archive with a program, as TorchScript is; a damaged one cannot be told."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except Exception:  # the directory of a damaged archive raises nearly anything
        return False


def _reason(error: BaseException) -> str:
    """Return the one line of an error of a network that says what is wrong."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    # TorchScript begins with the place, many lines of it, and ends with the cause.
    scripted = bool(lines) and "TorchScript" in lines[0]
    return (lines[-1].strip().removeprefix("RuntimeError: ").rstrip(".") if scripted else first_line(error))[:200]


def _load_hub(repository: str, entry: str) -> torch.nn.Module:
    try:
        # Naming the repository is the user's consent; torch.hub would ask on a terminal otherwise.
        return torch.hub.load(repository, entry, trust_repo=True).eval()
    except Exception as error:  # it runs the repository's own code: anything may come
        raise HidaError(
            f"torch.hub could not load {entry} from {repository} ({first_line(error)}); check the name."
        ) from error


def _on_torch(module: torch.nn.Module, device: str) -> Callable[[np.ndarray], np.ndarray]:
    module = module.to(device)

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        return _first_map(module(torch.from_numpy(pixels).to(device))).float().cpu().numpy()

    return run


def _load_onnx(path: str) -> tuple[Callable[[np.ndarray], np.ndarray], tuple[int, int] | None]:
    try:
        import onnxruntime
    except ImportError:
        raise HidaError(f"the depth network {path} is an ONNX file, which needs onnxruntime: {_ONNX_HINT}.") from None
    try:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no public base
        raise HidaError(f"{path} cannot be opened as an ONNX network ({first_line(error)}); export it again.") from None
    given = session.get_inputs()[0]
    # A dynamic side is a name or None; a fixed one a number.
    sides = tuple(given.shape[-2:]) if len(given.shape) == 4 else ()
    fixed = sides if len(sides) == 2 and all(isinstance(side, int) and side > 0 for side in sides) else None

    def run(pixels: np.ndarray) -> np.ndarray:
        return _first_map(session.run(None, {given.name: pixels}))

    return run, fixed


def _first_map(output: Any) -> Any:
    """Return the depth of a network that gives it bare, first of several, or as ``predicted_depth`` of a dictionary."""
    while isinstance(output, (tuple, list, dict)):
        if not output:
            raise HidaError("the depth network gave no output; give another.")
        output = output.get("predicted_depth", next(iter(output.values()))) if isinstance(output, dict) else output[0]
    if not isinstance(output, torch.Tensor | np.ndarray):
        raise HidaError(f"the depth network gave {type(output).__name__} instead of one H×W map; give another.")
    return output
