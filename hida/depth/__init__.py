"""Depth of a face photo: nearest 1, background 0.

tddfa: 3DDFA_V2, once its weights are fetched; builtin: our own small network, which ships with HIDA; midas: MiDaS, DPT
or Depth-Anything from a file or torch.hub; none: zeros; and :func:`depth_from_file` for a map of your own.
"""

from hida.depth.maps import depth_from_file
from hida.depth.predictor import METHODS, face_model, load, predict, require_method, resolve

__all__ = ["METHODS", "depth_from_file", "face_model", "load", "predict", "require_method", "resolve"]
