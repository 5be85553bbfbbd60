"""The fused operators as stand-alone functions; each file holds one op's contract and its reference twin."""

from hida.ops.checks import OpError
from hida.ops.deform_conv2d import deform_conv2d
from hida.ops.dispatch import available, backend
from hida.ops.ida import ida
from hida.ops.info_acon import info_acon
from hida.ops.instance_norm_modulate import instance_norm_modulate

__all__ = [
    "OpError",
    "available",
    "backend",
    "deform_conv2d",
    "ida",
    "info_acon",
    "instance_norm_modulate",
]
