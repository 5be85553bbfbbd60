"""Network modules built on :mod:`hida.ops`."""

from hida.nn.ablation import DySPADE, InfoACON
from hida.nn.adaptation import DynamicAdaptation
from hida.nn.convolution import Conv2d, Upsample
from hida.nn.dog import DOG
from hida.nn.meta_acon import MetaACON
from hida.nn.norm import InstanceNorm

__all__ = ["DOG", "Conv2d", "DySPADE", "DynamicAdaptation", "InfoACON", "InstanceNorm", "MetaACON", "Upsample"]
