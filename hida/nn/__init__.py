"""Network modules built on :mod:`hida.ops`."""

from hida.nn.activation import MetaACON
from hida.nn.adaptation import DynamicAdaptation, DySPADE, InfoACON
from hida.nn.convolution import Conv2d, Upsample
from hida.nn.dog import DOG
from hida.nn.norm import InstanceNorm

__all__ = ["DOG", "Conv2d", "DySPADE", "DynamicAdaptation", "InfoACON", "InstanceNorm", "MetaACON", "Upsample"]
