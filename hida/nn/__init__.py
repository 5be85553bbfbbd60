"""Network modules built on :mod:`hida.ops`."""

from hida.nn.ablation import DySPADE, InfoACON
from hida.nn.adaptation import DynamicAdaptation
from hida.nn.dog import DOG
from hida.nn.meta_acon import MetaACON

__all__ = ["DOG", "DySPADE", "DynamicAdaptation", "InfoACON", "MetaACON"]
